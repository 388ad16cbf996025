"""What a benchmark shall measure, checked before anything is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from liteasr.config import ConfigError

__all__ = ["MODES", "Combination", "Settings", "check_dtype", "check_settings", "combinations"]

MODES = ("eager", "graphs", "compiled")


@dataclass(frozen=True)
class Settings:
    """Options of the command.

    Attributes:
        model: Folder or hub id of the compressed checkpoint.
        dense: That of the one it was made from.
        shape: Name of a published size, in place of both.
        ranks: File with the ranks of the lite encoder of that size.
        encoder_params: Its parameters, such as ``240M``, in place of the file.
        pivoted: Whether its low-rank layers are pivoted, where a plan does not say so.
        fast_dense: Let the dense encoder run as liteasr runs its own, not as Hugging Face does.
        batch_sizes: Windows at a time.
        dtypes: Types of the weights and of the input.
        threads: Threads of torch.
        modes: ``eager``, ``graphs`` (CUDA graphs), ``compiled`` (``torch.compile``, on a GPU with
            CUDA graphs).
        device: ``cpu`` or ``cuda``.
        repeats: Rounds of each combination; in each, both encoders run.
        audio: Files or sets to transcribe; none for encoders alone.
        limit: Utterances a set at most.
        processor: Where tokenizer and feature extractor are, if not with the models.
        language: Spoken language, for multilingual checkpoints.
        output: JSON file to write, a PNG beside it.
    """

    model: str | None = None
    dense: str | None = None
    shape: str | None = None
    ranks: Path | None = None
    encoder_params: str | None = None
    pivoted: bool = False
    fast_dense: bool = False
    batch_sizes: tuple[int, ...] = (1,)
    dtypes: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1,)
    modes: tuple[str, ...] = ("eager",)
    device: str = "cpu"
    repeats: int = 10
    audio: tuple[str, ...] = ()
    limit: int | None = None
    processor: str | None = None
    language: str | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Combination:
    """One way in which both encoders run."""

    batch_size: int
    dtype: str
    threads: int
    mode: str = "eager"


def combinations(settings: Settings, modes: Sequence[str] | None = None) -> list[Combination]:
    """All combinations, those of one type one after another; each once.

    Args:
        settings: The options.
        modes: In place of those of the options.

    Example:
        >>> one, two = combinations(Settings(batch_sizes=(1, 8, 1)))
        >>> one, two.batch_size
        (Combination(batch_size=1, dtype='float32', threads=1, mode='eager'), 8)
    """
    product = itertools.product(
        settings.dtypes, settings.threads, modes or settings.modes, settings.batch_sizes
    )
    found = [Combination(size, dtype, threads, mode) for dtype, threads, mode, size in product]
    return list(dict.fromkeys(found))


def check_settings(settings: Settings) -> None:
    """Refuse what cannot be measured, all reasons at once.

    Raises:
        ConfigError: Naming the options.
    """
    errors = [*_wrong_numbers(settings), *_wrong_models(settings), *_wrong_output(settings)]
    if "compiled" in settings.modes and not can_compile():
        errors.append("--mode: torch.compile does not support this Python or system")
    if "graphs" in settings.modes and settings.device != "cuda":
        errors.append("--mode: graphs are CUDA graphs, which need --device cuda")
    if errors:
        raise ConfigError(errors)
    for dtype in settings.dtypes:
        check_dtype(dtype, settings.device)


def can_compile() -> bool:
    """Whether ``torch.compile`` knows this Python and system; a compiler may still be missing."""
    return bool(torch._dynamo.is_dynamo_supported())  # type: ignore[attr-defined]


def _wrong_numbers(settings: Settings) -> Iterator[str]:
    limits = () if settings.limit is None else (settings.limit,)
    numbers = {
        "--batch-size": settings.batch_sizes,
        "--threads": settings.threads,
        "--repeats": (settings.repeats,),
        "--limit": limits,
    }
    for option, values in numbers.items():
        for value in values:
            if value < 1:
                yield f"{option}: {value} is not at least 1"


def _wrong_models(settings: Settings) -> Iterator[str]:
    if settings.shape is None:
        if settings.model is None or settings.dense is None:
            yield "--model, --dense: both are needed, or --shape in their place"
        if settings.ranks is not None or settings.encoder_params is not None or settings.pivoted:
            yield "--ranks, --encoder-params, --pivoted: they belong to --shape"
        return
    if settings.model is not None or settings.dense is not None:
        yield "--shape: takes the place of --model and --dense; give one or the other"
    if (settings.ranks is None) == (settings.encoder_params is None):
        yield "--shape: needs either --ranks or --encoder-params"
    if settings.audio:
        yield "--audio: a shape has random weights and no decoder, so it transcribes nothing"


def _wrong_output(settings: Settings) -> Iterator[str]:
    output = settings.output
    if output is None:
        return
    if not output.absolute().parent.is_dir():
        yield f"--output: there is no folder {output.parent}"
    elif output.is_dir():
        yield f"--output: {output} is a folder"
    elif output.suffix.lower() == ".png":
        yield f"--output: {output} is the JSON file; the PNG beside it gets its name"


@torch.inference_mode()
def check_dtype(dtype: str, device: str) -> None:
    """Run each kind of layer of an encoder once.

    Args:
        dtype: Name of a torch type.
        device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: If one does not exist for the type and device.
    """
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device}
    x, weight = torch.ones(1, 8, 8, **options), torch.ones(8, 8, **options)
    try:
        x = F.gelu(F.conv1d(x, weight[:, :, None]))
        x = F.layer_norm(F.linear(x, weight), (8,))
        F.scaled_dot_product_attention(x, x, x)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--dtype: {dtype} does not work on {device} here: {reason}") from error
    if dtype == "bfloat16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("--dtype: bfloat16 is not supported by this GPU")
