"""``python -m liteasr.evaluate --model M --data D …``: word error rate of a checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liteasr.builders import build_datamodule, build_module, build_trainer
from liteasr.cli import COMMANDS, run_main
from liteasr.compression import encoder_parameters
from liteasr.config import (
    CompressionConfig,
    ConfigError,
    DataConfig,
    DecodingConfig,
    LongForm,
    ModelConfig,
    Recipe,
    Task,
    TrainerConfig,
)
from liteasr.console import console, table
from liteasr.data import parse_sources
from liteasr.files import write_text
from liteasr.module import WhisperModule
from liteasr.runfolder import is_first_process
from liteasr.speed import rounded

__all__ = ["decoder_parameters", "evaluate", "main"]


def evaluate(recipe: Recipe) -> dict[str, Any]:
    """Decode every test set of the recipe.

    Args:
        recipe: Model, decoding and test sets; the rest is not used.

    Returns:
        ``wer`` (percent, mean of the sets), ``datasets`` (each with ``wer``, ``utterances``,
        ``words``, ``seconds`` of audio), ``encoder_params`` (without positional embedding),
        ``decoder_params``, ``rtfx`` (seconds of audio per second of running encoder and decoder)
        and ``encoder_rtfx`` (of the encoder alone, or ``None``).

    Raises:
        ConfigError: If the model or the data cannot be used.
    """
    module = build_module(recipe)
    datamodule = build_datamodule(recipe, module)
    datamodule.check()
    trainer = build_trainer(recipe, None)
    trainer.test(module, datamodule=datamodule, verbose=False)
    return {
        "wer": round(float(trainer.callback_metrics["test/wer"]), 4),
        "datasets": module.results,
        "encoder_params": encoder_parameters(module.encoder),
        "decoder_params": decoder_parameters(module),
        "rtfx": rounded(module.rtfx),
        "encoder_rtfx": rounded(module.encoder_rtfx),
    }


def decoder_parameters(module: WhisperModule) -> int:
    """Parameters of the decoder with its token embedding, as the publication counts."""
    return sum(parameter.numel() for parameter in module.model.get_decoder().parameters())


def _recipe(arguments: argparse.Namespace) -> Recipe:
    sets: dict[str, Any] = {}
    for argument in arguments.data:
        for name, source in parse_sources(argument, taken=sets).items():
            if source in sets.values():
                raise ConfigError(f"--data: {argument} is given twice")
            if name in sets:
                raise ConfigError(f"--data: two sets are called {name}; write NAME={argument}")
            source.limit = arguments.limit
            sets[name] = source
    return Recipe(
        model=ModelConfig(
            id=arguments.model,
            processor=arguments.processor,
            language=arguments.language,
            task=None if arguments.task is None else Task(arguments.task),
        ),
        data=DataConfig(
            test=sets, eval_batch_size=arguments.batch_size, num_workers=arguments.num_workers
        ),
        decoding=DecodingConfig(
            num_beams=arguments.num_beams, long_form=LongForm(arguments.long_form)
        ),
        compression=CompressionConfig(method="none"),
        trainer=TrainerConfig(
            accelerator=arguments.accelerator,
            devices=arguments.devices,
            precision=arguments.precision,
        ),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="liteasr evaluate", description=COMMANDS["evaluate"])
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_HUB_ID", help="Whisper or lite-whisper, or demo")
    add("--processor", metavar="DIR_OR_HUB_ID", help="where the tokenizer is, if not there")
    add(
        "--data",
        required=True,
        nargs="+",
        metavar="NAME_OR_DIR",
        help="esb, esb:MIRROR, a folder with metadata, a .jsonl manifest, org/name[:subset[:split]]"
        ", demo[:SPLIT]; each may be written name=…",
    )
    add("--limit", type=_positive, help="utterances a set at most")
    add("--output", type=Path, metavar="FILE", help="write the result, printed too, as JSON")
    add("--language", help="spoken language, for a multilingual checkpoint")
    add("--task", choices=[task.value for task in Task], help="for a multilingual checkpoint")
    add("--num-beams", type=_positive, default=1, help="1 is greedy")
    add(
        "--long-form",
        choices=[mode.value for mode in LongForm],
        default=LongForm.timestamps.value,
        help="how audio over 30 s is decoded: windows for checkpoints without timestamps",
    )
    add("--batch-size", type=_positive, default=16, help="utterances decoded together")
    add("--num-workers", type=_count, default=1, help="processes that read audio")
    add("--accelerator", default="auto", help="as in lightning.Trainer")
    add("--devices", default="auto", help="as in lightning.Trainer")
    add("--precision", default="32-true", help="as in lightning.Trainer")
    return parser


def _count(text: str, least: int = 0) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return number


def _positive(text: str) -> int:
    return _count(text, least=1)


def _print_result(result: dict[str, Any]) -> None:
    rows = [
        (name, f"{s['wer']:.2f}", f"{s['utterances']:,}", f"{s['words']:,}", f"{s['seconds']:,.0f}")
        for name, s in result["datasets"].items()
    ]
    rows.append(("mean of sets", f"{result['wer']:.2f}", "", "", ""))
    console.print(table("WER", ("set", "WER, %", "utterances", "words", "audio, s"), rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)

    def body() -> None:
        output = arguments.output
        if output is not None and not output.absolute().parent.is_dir():
            raise ConfigError(f"--output: there is no folder {output.parent}")
        if output is not None and output.is_dir():
            raise ConfigError(f"--output: {output} is a folder")
        result = evaluate(_recipe(arguments))
        if not is_first_process():
            return
        text = json.dumps(result, indent=2) + "\n"
        if output is not None:
            write_text(output, text)
        print(text, end="")
        _print_result(result)

    return run_main(body, command=None)


if __name__ == "__main__":
    sys.exit(main())
