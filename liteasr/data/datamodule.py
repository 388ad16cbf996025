"""The loaders of a run: calibration, train, validation, test."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import lightning as L
from transformers import WhisperProcessor

from liteasr.config import (
    EVALUATION_ROLES,
    ROLES,
    ConfigError,
    DataConfig,
    LongForm,
    SourceConfig,
    TrainText,
)
from liteasr.data.calibration import CalibrationClips, CalibrationCollate, Draw, draw_clips
from liteasr.data.evaluation import EvaluationCollate, stream_loader, table_loader
from liteasr.data.examples import ExampleOptions
from liteasr.data.features import LogMel
from liteasr.data.labels import LabelEncoder
from liteasr.data.loader import Extent, SpeechLoader, Tally, make_loader
from liteasr.data.order import Order, evaluation_order
from liteasr.data.sets import SpeechSet, check_disjoint, load_sets
from liteasr.data.training import training_loader
from liteasr.data.utterances import Sharding

__all__ = ["SpeechDataModule"]

_STAGE_ROLES = {
    "fit": ("calibration", "train", "val"),
    "validate": ("val",),
    "test": ("test",),
    None: ROLES,
}


class SpeechDataModule(L.LightningDataModule):
    """Speech for calibration, training and evaluation, no file of which is in one of the others.

    Every process gets its own share of each set, so the trainer needs ``use_distributed_sampler``
    neither on nor off. Unreadable files are skipped and named; more than ``max_bad_fraction`` of a
    set stops the run.

    Args:
        data: Sets, batch sizes and tolerances.
        processor: Feature extractor and tokenizer of the checkpoint.
        language: Spoken language of a multilingual checkpoint, for training labels.
        task: Task of a multilingual checkpoint, for training labels.
        normalizer: Normaliser of transcripts; an utterance of which it leaves nothing is not
            evaluated.
        seed: Seed of the draw of calibration clips and of the order of training.
        long_form: ``timestamps`` gives an utterance over 30 s whole, ``windows`` cuts it.
        max_labels: Tokens that the decoder has positions for.
        train_transcripts: Training reads transcripts; else its sets need none, like those of
            calibration.

    Attributes:
        tallies: What could not be read or was left out, by role.
    """

    def __init__(
        self,
        data: DataConfig,
        processor: WhisperProcessor,
        *,
        language: str | None = None,
        task: str | None = None,
        normalizer: Callable[[str], str],
        seed: int = 0,
        long_form: str = "timestamps",
        max_labels: int = 448,
        train_transcripts: bool = True,
    ) -> None:
        super().__init__()
        # A set may have fewer utterances than there are processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.data = data
        self.processor = processor
        self.language = language
        self.task = task
        self.normalizer = normalizer
        self.seed = seed
        self.long_form = LongForm(long_form)
        self.max_labels = max_labels
        self.train_transcripts = train_transcripts
        self.log_mel = LogMel(processor.feature_extractor)
        self.tallies = {role: Tally(role, data.max_bad_fraction) for role in ROLES}
        self._sets: dict[str, dict[str, SpeechSet]] = {}
        self._orders: dict[str, Order] = {}
        self._draw: Draw | None = None
        self._sharding: Sharding | None = None

    # ------------------------------------------------------------------ sets

    @property
    def calibration_names(self) -> list[str]:
        """Names of the calibration sets."""
        return list(self.data.calibration)

    @property
    def train_names(self) -> list[str]:
        """Names of the training sets."""
        return list(self.data.train)

    @property
    def val_names(self) -> list[str]:
        """Names of the validation sets, in the order of their loaders."""
        return list(self.data.val)

    @property
    def test_names(self) -> list[str]:
        """Names of the test sets, in the order of their loaders."""
        return list(self.data.test)

    @property
    def sharding(self) -> Sharding:
        """This process and their number: as set, else the trainer's, else the only one."""
        if self._sharding is not None:
            return self._sharding
        if self.trainer is not None:
            return Sharding(self.trainer.global_rank, self.trainer.world_size)
        return Sharding()

    def problems(self, role: str) -> list[str]:
        """Errors of this process's share of a role, which all processes must raise together.

        With a single process there are none: it has raised them.
        """
        return [m for messages in self.tallies[role].problems.values() for m in messages]

    def _tally(self, role: str) -> Tally:
        tally = self.tallies[role]
        tally.deferred = self.sharding.world_size > 1
        return tally

    def set_sharding(self, rank: int, world_size: int) -> None:
        """Fix the share that this process gets, whatever the trainer says.

        Raises:
            ValueError: If there is no such share.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        self._sharding = Sharding(rank, world_size)

    def check(self) -> None:
        """Load the sets of all roles and hold that no file of evaluation is in the others.

        Raises:
            ConfigError: Saying all that is wrong with the sources.
        """
        self._load(ROLES)

    def setup(self, stage: str | None = None) -> None:
        """Load the sets that a stage needs, unless they are loaded already.

        Raises:
            ConfigError: As :meth:`check`.
        """
        self._load(_STAGE_ROLES.get(stage, ()))

    def _load(self, roles: tuple[str, ...]) -> None:
        errors = []
        missing = [role for role in roles if role not in self._sets]
        for role in missing:
            sources: Mapping[str, SourceConfig] = getattr(self.data, role)
            try:
                self._sets[role] = load_sets(sources, role, transcripts=self._reads_text(role))
            except ConfigError as error:
                errors += error.errors
        if errors:
            raise ConfigError(errors)
        if missing:
            check_disjoint(self._sets)

    def _reads_text(self, role: str) -> bool:
        return role in EVALUATION_ROLES or (role == "train" and self.train_transcripts)

    def _require(self, role: str) -> dict[str, SpeechSet]:
        self._load((role,))
        if not self._sets[role]:
            raise ConfigError(f"data.{role}: names no source")
        return self._sets[role]

    # ------------------------------------------------------------------ calibration

    def calibration_dataloader(self, *, skip_batches: int = 0) -> SpeechLoader:
        """This process's share of the calibration clips, always in the same order.

        Batches have ``input_features`` (B, mel bins, 3000), ``frames`` (B,) encoder frames that
        hold audio, and ``ids``. ``len(loader.dataset)`` is the number of clips.

        Args:
            skip_batches: Batches at the start to leave out, without reading them.

        Raises:
            ConfigError: If no clips could be drawn, or a set has too many unreadable files.
        """
        draw = self._drawn()
        mine = draw.clips[self.sharding.rank :: self.sharding.world_size]
        size = self.data.calibration_batch_size
        clips = CalibrationClips(mine[skip_batches * size :], draw.rows, self.log_mel.sampling_rate)
        collate = CalibrationCollate(self.log_mel)
        loader = make_loader(clips, self.data.num_workers, collate_fn=collate, batch_size=size)
        extents = {name: self._examined(draw, name) for name in draw.examined}
        may_be_empty = skip_batches > 0 or self.sharding.world_size > 1
        tally = self._tally("calibration")
        return SpeechLoader(loader, tally, extents, len(loader), may_be_empty=may_be_empty)

    def calibration_fingerprint(self) -> str:
        """Short hash of the clips and of how their spectrograms are made.

        It is the same on every process and for any number of them.

        Raises:
            ConfigError: As :meth:`calibration_dataloader`.
        """
        return self._drawn().fingerprint(self.log_mel)

    def _drawn(self) -> Draw:
        if self._draw is None:
            rows = {name: one.rows for name, one in self._require("calibration").items()}
            tally = self.tallies["calibration"]
            draw = draw_clips(rows, self.data.calibration_clips, self.seed, self.log_mel, tally)
            for name in draw.examined:
                tally.check(name, self._examined(draw, name))
            if not draw.clips:
                raise ConfigError("data.calibration: the sets hold no audio")
            self._draw = draw
        return self._draw

    def _examined(self, draw: Draw, name: str) -> Extent:
        one = self._sets["calibration"][name]
        is_whole = not one.is_stream and draw.examined[name] == len(one.rows)
        return Extent(draw.examined[name], not is_whole or self.sharding.world_size > 1)

    # ------------------------------------------------------------------ training

    def train_dataloader(self) -> SpeechLoader:
        """This process's share of all training sets, in a new order each epoch.

        Batches have ``input_features`` (B, mel bins, 3000), ``frames`` (B,), ``labels`` (B, L),
        −100 where a text has ended, and ``ids``. If any set is a stream, all are read as one
        stream without an end, for a trainer that is told its steps.

        Raises:
            ConfigError: If there is nothing to train on.
        """
        sets = self._require("train")
        try:
            encode = LabelEncoder(
                self.processor.tokenizer,
                self.language,
                self.task,
                plain=TrainText(self.data.train_text) is TrainText.plain,
            )
        except ValueError as error:
            raise ConfigError(f"model.language: {error}") from error
        if self.data.train_timestamps > 0 and not encode.has_timestamps:
            raise ConfigError("data.train_timestamps: the tokenizer has no timestamp tokens")
        return training_loader(
            sets,
            self.log_mel,
            encode,
            self.sharding,
            self._tally("train"),
            batch_size=self.data.train_batch_size,
            num_workers=self.data.num_workers,
            seed=self.seed,
            options=ExampleOptions(
                timestamps=self.data.train_timestamps,
                longest=self.max_labels,
                speed=self.data.train_speed,
                packed=self.data.train_packed,
                seed=self.seed,
            ),
            consumed=self._consumed,
        )

    def _consumed(self) -> int:
        """Training batches of this epoch that the trainer has taken; 0 after the last one.

        What the loader has given is no measure: the trainer fetches ahead of a stream.
        """
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        # After the last batch a checkpoint goes on with the next epoch, from its start.
        return 0 if progress.is_last_batch else progress.current.ready

    # ------------------------------------------------------------------ evaluation

    def val_dataloader(self) -> list[SpeechLoader]:
        """This process's share of each validation set, in the order of ``val_names``.

        Batches have ``input_features`` (B, mel bins, frames), ``frames`` (B,), ``segments`` (rows
        of ``input_features`` of each utterance), ``references`` (transcripts as they are), ``ids``,
        ``seconds``, ``is_long``, and ``attention_mask`` for a long utterance given whole.

        Raises:
            ConfigError: If a set has nothing to evaluate.
        """
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> list[SpeechLoader]:
        """This process's share of each test set, in the order of ``test_names``.

        Batches are those of :meth:`val_dataloader`.

        Raises:
            ConfigError: If a set has nothing to evaluate.
        """
        return self._evaluation_loaders("test")

    def _evaluation_loaders(self, role: str) -> list[SpeechLoader]:
        self._load((role,))
        return [self._evaluation_loader(one) for one in self._sets[role].values()]

    def _evaluation_loader(self, one: SpeechSet) -> SpeechLoader:
        options = {"batch_size": self.data.eval_batch_size, "num_workers": self.data.num_workers}
        tally = self._tally(one.role)
        if one.is_stream:
            collate = EvaluationCollate(one.name, self.log_mel, self.long_form, planned=False)
            return stream_loader(one, self.normalizer, collate, self.sharding, tally, **options)
        if one.key not in self._orders:
            self._orders[one.key] = evaluation_order(one, self.normalizer)
        order = self._orders[one.key]
        planned = order[1] is not None
        collate = EvaluationCollate(one.name, self.log_mel, self.long_form, planned=planned)
        return table_loader(one, order, collate, self.sharding, tally, **options)
