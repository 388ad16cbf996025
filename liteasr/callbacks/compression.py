"""The callback that says when to calibrate, swap and report; the methods say what."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn
from torch.utils.data import DataLoader

from liteasr.callbacks.blocks import Block, by_block, check_attention, name_of, part_of
from liteasr.callbacks.processes import on_cpu, processes_of, without_whitening
from liteasr.callbacks.statistics_store import StatisticsStore
from liteasr.compression import (
    AllocationError,
    CalibrationBatch,
    CompressionMethod,
    CompressionPlan,
    LayerPlan,
    LowRankFactors,
    PivotedFactors,
    Spectra,
    build_method,
    encoder_parameters,
    pivot,
    unframe_convolution,
)
from liteasr.console import console, progress, table
from liteasr.distributed import raise_together
from liteasr.module import WhisperModule

__all__ = ["CompressionCallback"]

log = logging.getLogger(__name__)

_MODEL_KEYS = (
    *("model_id", "revision", "dtype", "processor_id"),
    *("language", "task", "max_new_tokens"),
)
"""Hyper-parameters that say what the encoder gives and what the decoder says of it."""


class CompressionCallback(L.Callback):
    """Calibrates and compresses a :class:`~liteasr.WhisperModule` at the start of ``trainer.fit``.

    Everything happens in ``setup``: the process group is up, and the strategy has not wrapped the
    model nor has an optimizer been made, so both see the small model. Each process runs its shard
    of the calibration loader on its own device, sums are all-reduced, process 0 decides and
    factorizes, and every process installs its factors. ``validate``, ``test`` and ``predict``
    leave the model as it is.

    To resume, set ``trainer.ckpt_path`` before ``fit``: the structure is rebuilt from the plan in
    the checkpoint and nothing is calibrated. (The argument ``fit(ckpt_path=…)`` works too, but
    Lightning 2.6 tells nobody of it before ``setup`` is over, so calibration is repeated.) When
    statistics of the same calibration are found in ``statistics_dir``, they are used.

    Override :meth:`select_modules`, :meth:`calibration_loader`, :meth:`allocate`,
    :meth:`factorize`, :meth:`on_layer_compressed` or :meth:`report` to change one step.

    Args:
        method: A method, its name, or the dotted path of its class.
        statistics_dir: Where statistics are saved; ``None`` keeps them in memory only.
        save_every: Batches between two saves; 0 saves only at the end.
        options: Arguments of the method, where ``method`` is a name.

    Attributes:
        plan: What was decided, once it is.
        spectra: What other ranks would have left out, where the method says so; on process 0.
        timing_s: Seconds that ``calibrate`` and ``factorize`` took.

    Example:
        >>> callback = CompressionCallback("pca", padding_weight=0.05)
        >>> callback.method.name
        'pca'
    """

    def __init__(
        self,
        method: str | CompressionMethod = "pca",
        *,
        statistics_dir: str | Path | None = None,
        save_every: int = 16,
        **options: Any,
    ) -> None:
        if isinstance(method, CompressionMethod):
            if options:
                raise ValueError(f"options {sorted(options)} belong to the method given")
            self.method = method
        else:
            self.method = build_method(method, **options)
        self.statistics_dir = None if statistics_dir is None else Path(statistics_dir)
        self.save_every = save_every
        self.plan: CompressionPlan | None = None
        self.spectra: Spectra | None = None
        self.timing_s: dict[str, float] = {"calibrate": 0.0, "factorize": 0.0}

    # ------------------------------------------------------------------ override points

    def select_modules(self, pl_module: WhisperModule) -> dict[str, nn.Linear]:
        """Layers that may be compressed, by name within ``pl_module.model``.

        Raises:
            ValueError: If there are none.
        """
        return self.method.select(pl_module.model)

    def calibration_loader(
        self, trainer: L.Trainer, pl_module: WhisperModule, skip_batches: int = 0
    ) -> DataLoader[Any]:
        """This process's share of the calibration clips.

        Batches are mappings with ``input_features`` (B, mel bins, 3000) and ``frames`` (B,),
        encoder frames that hold audio.

        Args:
            trainer: The trainer.
            pl_module: The model.
            skip_batches: Batches at the start that a resumed run has seen.
        """
        loader: DataLoader[Any] = trainer.datamodule.calibration_dataloader(  # type: ignore[attr-defined]
            skip_batches=skip_batches
        )
        return loader

    def allocate(self) -> CompressionPlan:
        """Decide the ranks from the statistics."""
        return self.method.allocate()

    def factorize(self, name: str, rank: int) -> LowRankFactors:
        """Factors of one layer."""
        return self.method.factorize(name, rank)

    def on_layer_compressed(
        self, trainer: L.Trainer, pl_module: WhisperModule, name: str, layer: LayerPlan
    ) -> None:
        """Called on every process for each layer when all are swapped."""

    def report(self, trainer: L.Trainer, pl_module: WhisperModule, plan: CompressionPlan) -> None:
        """Print a table of all layers; on process 0 only."""
        rows: list[tuple[str, ...]] = []
        heads = dict(plan.attention)
        for name, layer in plan.layers.items():
            if (attention := heads.pop(name.rpartition(".")[0], None)) is not None:
                dims = (
                    "dense" if attention.qk_dim is None else f"{attention.qk_dim}/{attention.v_dim}"
                )
                sizes = f"{attention.dense_params:,}", f"{attention.params:,}"
                rows.append((f"{_short(name.rpartition('.')[0])}: heads", dims, *sizes, "–"))
            sizes = f"{layer.dense_params:,}", f"{layer.params:,}"
            rank = "dense" if layer.rank is None else str(layer.rank)
            rows.append((_short(name), rank, *sizes, f"{layer.kept_energy:.5f}"))
        columns = ("encoder layer", "rank", "parameters", "after", "kept energy")
        console.print(table(f"Compression by {plan.method}", columns, rows))
        size = encoder_parameters(pl_module.encoder)
        console.print(f"encoder: {(size + plan.saved_params) / 1e6:.3f} M → {size / 1e6:.3f} M")

    # ------------------------------------------------------------------ Lightning's hook

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compress before the strategy wraps the model; see the class."""
        if stage != "fit":
            return
        if not isinstance(pl_module, WhisperModule):
            raise TypeError(f"CompressionCallback needs a WhisperModule, got {type(pl_module)}")
        if self.plan is not None and pl_module.compression_plan is self.plan:
            return
        if trainer.ckpt_path is not None:
            self.plan = _plan_of_checkpoint(trainer.ckpt_path)
            pl_module.apply_plan(self.plan)
            unframe_convolution(pl_module.model)
            rank_zero_info(f"compressed structure rebuilt from {trainer.ckpt_path}")
            return
        with _calibrating(trainer, pl_module), _dense_as_it_was(pl_module.model):
            self.method.processes = processes_of(trainer)
            self.method.decoder = pl_module.decoder()
            self.method.prepare(pl_module.encoder, self.select_modules(pl_module))
            started = time.perf_counter()
            clips = self._calibrate(trainer, pl_module)
            self.timing_s["calibrate"] = time.perf_counter() - started
            started = time.perf_counter()
            self.plan = self._compress(trainer, pl_module, clips)
            self.timing_s["factorize"] = time.perf_counter() - started
        if trainer.is_global_zero:
            self.report(trainer, pl_module, self.plan)

    # ------------------------------------------------------------------ steps

    def _calibrate(self, trainer: L.Trainer, pl_module: WhisperModule) -> int:
        """Collect and reduce the statistics; returns the clips seen by all processes."""
        store = StatisticsStore(
            self.statistics_dir, self._statistics_key(trainer, pl_module), trainer.global_rank
        )
        # Only process 0 needs the totals: it alone decides and factorizes.
        total = store.load_total() if trainer.is_global_zero else None
        found = trainer.strategy.broadcast(None if total is None else int(total["clips"]))
        if found is not None:
            # The file may be on the disk of process 0 alone; the others need what is shared.
            state = trainer.strategy.broadcast(None if total is None else total["state"])
            assert state is not None
            self.method.load_state_dict(state)
            rank_zero_info(f"statistics of {found} clips found in {store.folder}")
            return int(found)
        clips = self._observe_all(trainer, pl_module, store)
        problems = getattr(trainer.datamodule, "problems", None)  # type: ignore[attr-defined]
        raise_together(problems("calibration") if problems else [])

        reduce_sum = self.method.processes.reduce_sum
        self.method.reduce(reduce_sum)
        clips = int(reduce_sum(torch.tensor(clips)))
        if clips == 0:
            raise ValueError("calibration saw no clips")
        if trainer.is_global_zero:
            store.save_total(self.method.state_dict(), clips)
        trainer.strategy.barrier("liteasr_statistics_saved")
        store.drop_partial()
        return clips

    def _statistics_key(self, trainer: L.Trainer, pl_module: WhisperModule) -> dict[str, Any]:
        """All that saved statistics depend on, plain values."""
        data = getattr(trainer.datamodule, "data", None)  # type: ignore[attr-defined]
        return {
            "method": self.method.name,
            "statistics": self.method.statistics_options(),
            "layers": sorted(self.method.linears),
            "calibration": _fingerprint(trainer),
            "batch_size": getattr(data, "calibration_batch_size", None),
            "model": [str(pl_module.hparams.get(key)) for key in _MODEL_KEYS],
            "precision": str(trainer.precision),
            "world_size": trainer.world_size,
        }

    def _observe_all(
        self, trainer: L.Trainer, pl_module: WhisperModule, store: StatisticsStore
    ) -> int:
        """Run this process's shard through the method; returns the clips it saw."""
        batches, clips = 0, 0
        partial = store.load_partial()
        if partial is not None:
            self.method.load_state_dict(partial["state"])
            batches, clips = int(partial["batches"]), int(partial["clips"])
            log.info("calibration goes on after %d clips", clips)
        skipped = saved = batches
        loader = self.calibration_loader(trainer, pl_module, skip_batches=skipped)
        total = clips + _num_clips(loader)
        with progress("calibrating", total, "clips", enabled=trainer.is_global_zero) as bar:
            bar.advance(bar.task_ids[0], clips)
            for batch in loader:
                calibration_batch = _to_device(batch, trainer, pl_module)
                with trainer.precision_plugin.forward_context():
                    self.method.observe(calibration_batch)
                # A loader that drops unreadable clips may have read more batches than it gave.
                batches = skipped + getattr(loader, "batches_read", batches - skipped + 1)
                clips += len(calibration_batch.frames)
                bar.advance(bar.task_ids[0], len(calibration_batch.frames))
                if self.save_every and batches - saved >= self.save_every:
                    store.save_partial(self.method.state_dict(), batches, clips)
                    saved = batches
        return clips

    def _compress(
        self, trainer: L.Trainer, pl_module: WhisperModule, clips: int
    ) -> CompressionPlan:
        """Allocate, then factorize and swap block by block; process 0 decides for all."""
        if trainer.is_global_zero:
            console.print("choosing ranks")
        plan = self._agreed_plan(trainer)
        check_attention(plan)
        plan.calibration = {"clips": clips, "fingerprint": _fingerprint(trainer)}
        decided = {"ranks": plan.ranks, "heads": plan.head_dims, "options": plan.options}
        key = {**self._statistics_key(trainer, pl_module), **decided}
        store = StatisticsStore(self.statistics_dir, key, trainer.global_rank)
        blocks = by_block(pl_module, plan.ranks)
        final = store.load_block(len(blocks)) if trainer.is_global_zero else None
        final = trainer.strategy.broadcast(final)
        if final is None:
            final = self._compress_blocks(trainer, pl_module, plan, store, blocks)
        pl_module.apply_plan(plan, _pivoted(trainer, final) if plan.pivoted else final)
        for name in plan.ranks:
            self.on_layer_compressed(trainer, pl_module, name, plan.layers[name])
        if trainer.is_global_zero:
            self.spectra = _spectra(self.method, plan)
        self.method.release()
        return plan

    def _compress_blocks(
        self,
        trainer: L.Trainer,
        pl_module: WhisperModule,
        plan: CompressionPlan,
        store: StatisticsStore,
        blocks: Sequence[Block],
    ) -> dict[str, LowRankFactors]:
        """Factorize and swap block by block, then let the method have all factors once more.

        Returns:
            The final factors, which are not installed.
        """
        installed: dict[str, LowRankFactors] = {}
        if trainer.is_global_zero:
            console.print(f"compressing {len(plan.ranks)} layers")
        self.method.before_blocks()
        with progress("compressing", len(blocks), "blocks", enabled=trainer.is_global_zero) as bar:
            for index, (prefix, block, names) in enumerate(blocks):
                done = store.load_block(index) if trainer.is_global_zero else None
                done = trainer.strategy.broadcast(done)
                if block is not None:
                    self.method.before_block(block)
                factors = done if done is not None else self._factors(trainer, plan, names)
                part = part_of(plan, names)
                pl_module.apply_plan(part, factors)
                if block is not None and done is None:
                    within = {name.removeprefix(prefix): one for name, one in factors.items()}
                    refined = self.method.after_block(block, within)
                    factors = {prefix + name: one for name, one in refined.items()}
                    pl_module.apply_plan(part, factors)
                    if trainer.is_global_zero and refined is not within:
                        store.save_block(index, factors)
                installed |= {name: without_whitening(one) for name, one in factors.items()}
                if block is not None:
                    self.method.block_done(block)
                bar.advance(bar.task_ids[0])
            prefix = f"{name_of(pl_module.model, pl_module.encoder)}."
            within = {
                name.removeprefix(prefix): one
                for name, one in installed.items()
                if name.startswith(prefix)
            }
            refined = self.method.after_blocks(within)
        final = installed | {prefix + name: on_cpu(one) for name, one in refined.items()}
        if refined is not within and trainer.is_global_zero:
            store.save_block(len(blocks), final)
        return final

    def _agreed_plan(self, trainer: L.Trainer) -> CompressionPlan:
        """The plan of process 0, or its complaint, on every process.

        Raises:
            AllocationError: If the method cannot give what is asked for.
        """
        plan: CompressionPlan | None = None
        problem: str | None = None
        if trainer.is_global_zero:
            try:
                plan = self.allocate()
            except ValueError as error:
                problem = str(error)
        plan, problem = trainer.strategy.broadcast((plan, problem))
        if plan is None:
            raise AllocationError(problem)
        return plan

    def _factors(
        self, trainer: L.Trainer, plan: CompressionPlan, names: Sequence[str]
    ) -> dict[str, LowRankFactors]:
        """Factors of some layers, computed on process 0."""
        factors = {}
        for name in names:
            rank = plan.ranks[name]
            mine = on_cpu(self.factorize(name, rank)) if trainer.is_global_zero else None
            everyones = trainer.strategy.broadcast(mine)
            assert everyones is not None
            factors[name] = everyones
        return factors


def _pivoted(
    trainer: L.Trainer, factors: Mapping[str, LowRankFactors]
) -> dict[str, PivotedFactors]:
    """Factors in pivoted form, from process 0: rounding may choose other pivots elsewhere."""
    mine = None
    if trainer.is_global_zero:
        mine = {name: pivot(on_cpu(one)) for name, one in factors.items()}
    everyones = trainer.strategy.broadcast(mine)
    assert everyones is not None
    return everyones


@contextmanager
def _dense_as_it_was(model: nn.Module) -> Iterator[None]:
    """Change back what a method exchanged to look at it and left dense, also if it fails."""
    try:
        yield
    finally:
        unframe_convolution(model)


class _calibrating:
    """Encoder on the strategy's device and in evaluation mode, and back as it was."""

    def __init__(self, trainer: L.Trainer, pl_module: WhisperModule) -> None:
        self.model = pl_module.model
        self.device = trainer.strategy.root_device
        self.home = next(self.model.parameters()).device
        self.training = [module for module in self.model.modules() if module.training]

    def __enter__(self) -> None:
        self.model.to(self.device).eval()

    def __exit__(self, *_exc: object) -> None:
        self.model.to(self.home)
        for module in self.training:
            module.training = True


def _short(name: str) -> str:
    return name.removeprefix("model.encoder.").removeprefix("layers.")


def _spectra(method: CompressionMethod, plan: CompressionPlan) -> Spectra | None:
    """For plots only, so an error in a method's spectra must not cost the run."""
    try:
        spectra = method.spectra()
        return Spectra.of(spectra, method.spectra_unit, plan.ranks) if spectra else None
    except Exception as error:
        log.warning("no spectra of method %s: %s", method.name, error)
        return None


def _to_device(
    batch: Mapping[str, Any], trainer: L.Trainer, pl_module: WhisperModule
) -> CalibrationBatch:
    device = trainer.strategy.root_device
    features = batch["input_features"].to(device, pl_module.model.dtype)
    return CalibrationBatch(features, batch["frames"].to(device))


def _fingerprint(trainer: L.Trainer) -> str:
    fingerprint = getattr(trainer.datamodule, "calibration_fingerprint", None)  # type: ignore[attr-defined]
    return "" if fingerprint is None else str(fingerprint())


def _num_clips(loader: DataLoader[Any]) -> int:
    dataset: Any = getattr(loader, "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else 0


def _plan_of_checkpoint(path: str | Path) -> CompressionPlan:
    """Plan stored in a checkpoint file, or in the ``meta.pt`` of a sharded checkpoint folder.

    Raises:
        ValueError: If the checkpoint holds no plan.
    """
    file = Path(path) / "meta.pt" if Path(path).is_dir() else Path(path)
    checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if WhisperModule.PLAN_KEY not in checkpoint:
        raise ValueError(f"{path} has no compression plan: it is not of a compressed run")
    return CompressionPlan.from_dict(checkpoint[WhisperModule.PLAN_KEY])
