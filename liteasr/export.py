"""Writing a model as a folder that needs nothing of liteasr to be used.

A Hugging Face folder has safetensors weights, configuration, generation configuration, tokenizer,
feature extractor, a model card, and for a compressed model the modelling files that
``trust_remote_code=True`` runs where liteasr is not installed. An ONNX folder has graphs in the
place of weights and files of code. ``python -m liteasr.export --model M --output D`` writes either.
"""

from __future__ import annotations

import argparse
import copy
import importlib.resources
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from liteasr.cli import COMMANDS, run_main
from liteasr.compression import (
    collect_head_dims,
    collect_ranks,
    expand_heads,
    pivot_layers,
    unframe_convolution,
    unpivot_layers,
)
from liteasr.compression.plan import CONVOLUTION, low_rank_config, reduced_attention_config
from liteasr.config import ConfigError, Dtype
from liteasr.files import atomic_folder, write_text
from liteasr.loading import load, require_weights
from liteasr.modeling import (
    FramedConvolution,
    LiteWhisperConfig,
    LiteWhisperForConditionalGeneration,
    LowRankLinear,
    PivotedLinear,
    use_plain_inference,
)
from liteasr.onnx import require_packages
from liteasr.onnx.folder import check_graphs, plain_config, write_graphs
from liteasr.onnx.graphs import HIGHEST_OPSET, OPSET

__all__ = ["export_model", "export_onnx", "main"]

# Modules of liteasr.modeling → their names in the folder; the last two are the published ones.
REMOTE_CODE = {
    "attention": "attention_lite_whisper",
    "rank_space": "rank_space_lite_whisper",
    "tiles": "tiles_lite_whisper",
    "fast": "fast_lite_whisper",
    "products": "products_lite_whisper",
    "linear": "linear_lite_whisper",
    "convolution": "convolution_lite_whisper",
    "configuration": "configuration_lite_whisper",
    "whisper": "modeling_lite_whisper",
}
AUTO_MAP = {
    "AutoConfig": "configuration_lite_whisper.LiteWhisperConfig",
    "AutoModel": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
    "AutoModelForSpeechSeq2Seq": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
}

FORMATS = {
    "onnx": "graphs",
    "folder": "for transformers",
    "published": "for transformers and the published lite-whisper code",
}


def export_model(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    *,
    published: bool = False,
) -> None:
    """Write the folder, reload it, and only then put it in place of an old one.

    Args:
        model: Whisper, dense or with a compressed encoder.
        processor: Its tokenizer and feature extractor.
        folder: Where to write.
        dtype: Type of the stored weights; the model's if absent.
        published: Write the published lite-whisper format, so that its own classes open the folder
            too: pivoted layers get two factors, or a dense weight where that is smaller, reduced
            heads are filled up with zeros, and the convolution gets a dense weight, which is the
            same function in more parameters. Without all three the format is the published one in
            any case.

    Raises:
        ValueError: If the model cannot be written in the format, or the reloaded weights are not
            those that were written.
    """
    saved = _as_saved(_in_one_form(model, published=published), dtype or model.dtype)
    with atomic_folder(folder) as temporary:
        saved.save_pretrained(temporary)
        _save_processor(processor, temporary)
        if isinstance(saved, LiteWhisperForConditionalGeneration):
            _write_remote_code(temporary)
        _check_reload(saved, temporary)


def export_onnx(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    int8: bool = False,
    opset: int = OPSET,
) -> dict[str, Any]:
    """Write an ONNX folder, run it beside the model, and only then put it in place of an old one.

    The files and their inputs and outputs are those of Hugging Face Optimum's
    ``ORTModelForSpeechSeq2Seq``. liteasr's own ``load`` takes the folder too. Pivoted layers become
    two factors, or a dense weight where that is smaller: ONNX Runtime takes longer to select
    channels than for the products that it saves.

    Args:
        model: Whisper, dense or with low-rank encoder layers.
        processor: Its tokenizer and feature extractor.
        folder: Where to write.
        dtype: Type of the weights, ``torch.float32`` or ``torch.float16``.
        int8: Store the encoder's linear layers in 8 bits.
        opset: Version of ONNX's operators.

    Returns:
        ``differences`` between ONNX Runtime and torch in fp32, relative, by graph, and
        ``quantized``, bytes of a file before and after.

    Raises:
        ConfigError: If packages of the extra ``[onnx]`` are not installed.
        ValueError: If the weights do not fit the type, or ONNX Runtime computes something else.
    """
    require_packages("onnx", "onnxscript", "onnxruntime")
    saved = _as_saved(_in_one_form(model, pivoted=False), dtype)
    use_plain_inference(saved)
    with atomic_folder(folder) as temporary:
        quantized = write_graphs(saved, temporary, int8=int8, opset=opset)
        plain_config(saved.config).save_pretrained(temporary)
        saved.generation_config.save_pretrained(temporary)
        _save_processor(processor, temporary)
        _explain_to_transformers_4(processor, temporary)
        differences = check_graphs(saved, temporary)
    return {"differences": differences, "quantized": quantized}


def _save_processor(processor: WhisperProcessor, folder: Path) -> None:
    processor.save_pretrained(folder)
    spelling = getattr(processor.tokenizer, "english_spelling_normalizer", None)
    if spelling:
        # transformers 5 reads this file but does not write it back.
        write_text(folder / "normalizer.json", json.dumps(spelling, indent=0))


def _explain_to_transformers_4(processor: WhisperProcessor, folder: Path) -> None:
    """Let it read the processor too: Optimum runs graphs with that version."""
    processor.feature_extractor.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_text(file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _in_one_form(
    model: WhisperForConditionalGeneration, *, pivoted: bool = True, published: bool = False
) -> WhisperForConditionalGeneration:
    """The model, or a copy of the same function that can be written.

    Args:
        model: Whisper.
        pivoted: Pivot all low-rank layers where one is; else none.
        published: Low-rank layers of two factors alone, in the blocks alone.
    """
    pivoted, convolution = pivoted and not published, not published
    layers = [one for one in model.modules() if isinstance(one, LowRankLinear)]
    found = {isinstance(one, PivotedLinear) for one in layers}
    framed = [one.linear for one in model.modules() if isinstance(one, FramedConvolution)]
    stays = not framed or (convolution and isinstance(framed[0], LowRankLinear))
    stays = stays and not (published and collect_head_dims(model))
    if stays and (True not in found or (pivoted and False not in found)):
        return model
    # The decoder, most of a large model, is shared.
    shared = (model.get_decoder(), model.proj_out)
    model = copy.deepcopy(model, {id(one): one for one in shared})
    if published:
        expand_heads(model)
    if True in found:
        (pivot_layers if pivoted else unpivot_layers)(model)
    unframe_convolution(model, low_rank=not convolution)
    return model


def _as_saved(
    model: WhisperForConditionalGeneration, dtype: torch.dtype
) -> WhisperForConditionalGeneration:
    """The model in the class and type in which it is stored; the original is not touched."""
    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
        for name, tensor in model.state_dict().items()
    }
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is not finite in {dtype}: store in another export.dtype")
    ranks, head_dims = collect_ranks(model), collect_head_dims(model)
    config = copy.deepcopy(model.config)
    cls: Any = WhisperForConditionalGeneration
    if ranks or head_dims or isinstance(model, LiteWhisperForConditionalGeneration):
        cls = LiteWhisperForConditionalGeneration
        options = config.to_dict()
        sizes = ("low_rank_config", "reduced_attention", "pivoted", "conv2_rank")
        for key in ("model_type", *sizes, "auto_map", "architectures"):
            options.pop(key, None)
        layers = low_rank_config(ranks.items(), config.encoder_layers)
        heads = reduced_attention_config(head_dims.items(), config.encoder_layers)
        pivoted = any(isinstance(one, PivotedLinear) for one in model.modules())
        conv2 = next((rank for name, rank in ranks.items() if name.endswith(CONVOLUTION)), None)
        config = LiteWhisperConfig(layers, heads, pivoted=pivoted, conv2_rank=conv2, **options)
        config.auto_map = dict(AUTO_MAP)
    output, embedding = state["proj_out.weight"], state["model.decoder.embed_tokens.weight"]
    if config.tie_word_embeddings and not torch.equal(output, embedding):
        config.tie_word_embeddings = False  # else loading would drop one of the two
    with torch.device("meta"):
        saved: WhisperForConditionalGeneration = cls(config)
    saved.load_state_dict(state, assign=True)
    saved.tie_weights()
    saved.generation_config = copy.deepcopy(model.generation_config)
    return saved.eval()


def _write_remote_code(folder: Path) -> None:
    """Copy the modelling files, with their imports of each other renamed."""
    package = importlib.resources.files("liteasr.modeling")
    for module, name in REMOTE_CODE.items():
        source = (package / f"{module}.py").read_text(encoding="utf-8")
        for old, new in REMOTE_CODE.items():
            source = source.replace(f"from .{old} import", f"from .{new} import")
        write_text(folder / f"{name}.py", source)


def _check_reload(saved: WhisperForConditionalGeneration, folder: Path) -> None:
    reloaded, _ = load(str(folder), dtype=str(saved.dtype).removeprefix("torch."))
    expected: dict[str, Tensor] = saved.state_dict()
    actual = reloaded.state_dict()
    different = [
        name
        for name in expected.keys() | actual.keys()
        if name not in expected
        or name not in actual
        or not torch.equal(expected[name], actual[name])
    ]
    if different:
        raise ValueError(f"reloaded weights differ from those written: {sorted(different)[:3]}")


# ---------------------------------------------------------------------- command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="liteasr export", description=COMMANDS["export"])
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_HUB_ID", help="Whisper or lite-whisper")
    add("--processor", metavar="DIR_OR_HUB_ID", help="where the tokenizer is, if not there")
    add("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    add(
        "--format", choices=FORMATS, default="onnx", help="; ".join(map(": ".join, FORMATS.items()))
    )
    add("--dtype", choices=[dtype.value for dtype in Dtype], help="of the weights")
    add("--int8", action="store_true", help="the ONNX encoder's linear layers in 8 bits")
    add("--opset", type=int, metavar="N", help=f"of the ONNX graphs; {OPSET} if not given")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, or cannot be done here, before anything is loaded.

    Raises:
        ConfigError: Naming the options.
    """
    if arguments.format == "onnx":
        require_packages("onnx", "onnxscript", "onnxruntime")
        if arguments.dtype == "bfloat16":
            raise ConfigError("--dtype: ONNX Runtime computes in float32 and float16 only")
        if arguments.int8 and arguments.dtype == "float16":
            raise ConfigError("--int8: an encoder in float32 is quantized; leave --dtype out")
        if arguments.opset is not None and not OPSET <= arguments.opset <= HIGHEST_OPSET:
            raise ConfigError(f"--opset: {arguments.opset} is not in {OPSET}–{HIGHEST_OPSET}")
    elif arguments.int8 or arguments.opset is not None:
        raise ConfigError("--int8, --opset: belong to --format onnx")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ConfigError(f"--output: {arguments.output} is a file")
    if arguments.output.is_dir() and any(arguments.output.iterdir()):
        raise ConfigError(f"--output: {arguments.output} is not empty")


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    require_weights(arguments.model)
    model, processor = load(arguments.model, processor_id=arguments.processor)
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    try:
        if arguments.format != "onnx":
            published = arguments.format == "published"
            export_model(model, processor, arguments.output, dtype, published=published)
        else:
            options = {"int8": arguments.int8, "opset": arguments.opset or OPSET}
            done = export_onnx(
                model, processor, arguments.output, dtype or torch.float32, **options
            )
            for name, difference in done["differences"].items():
                print(f"{name}: relative difference to torch {difference:.2g}")
            for name, (before, after) in done["quantized"].items():
                print(f"{name}: {before / 1e6:.1f} MB, in 8 bits {after / 1e6:.1f} MB")
    except ValueError as error:
        raise ConfigError(f"--model: {arguments.model}: {error}") from error
    print(f"written: {arguments.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_main(lambda: _run(arguments), command=None)


if __name__ == "__main__":
    sys.exit(main())
