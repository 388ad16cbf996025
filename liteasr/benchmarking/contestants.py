"""The two that are compared, loaded or made, in one type at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.benchmark import set_torch_threads
from transformers import PreTrainedModel, WhisperConfig

from liteasr.benchmarking.settings import Settings
from liteasr.benchmarking.shapes import (
    lay_out,
    make_encoder,
    plausible_ranks,
    read_ranks,
    shape_config,
)
from liteasr.compression import CompressionPlan, encoder_flops, encoder_parameters
from liteasr.compression.surgery import collect_ranks
from liteasr.config import ConfigError
from liteasr.loading import load_config, load_model
from liteasr.modeling import use_fast_inference
from liteasr.module import WhisperModule
from liteasr.onnx import find_encoder

__all__ = ["Contest", "Pair", "describe"]


@dataclass(frozen=True)
class Pair:
    """Dense and lite in one type.

    Attributes:
        encoders: By name.
        modules: The whole checkpoints, where something is transcribed.
    """

    encoders: Mapping[str, PreTrainedModel]
    modules: Mapping[str, WhisperModule] | None = None


class Contest:
    """Who is compared, by the options of the command.

    Args:
        settings: The options.

    Attributes:
        names: What to call the two.

    Raises:
        ConfigError: If a checkpoint or a file of ranks cannot be used, or the two do not take the
            same input.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ranks: list[dict[str, int]] | CompressionPlan | None = None
        if settings.shape is not None:
            self._config = shape_config(settings.shape, pivoted=settings.pivoted)
            if settings.ranks is not None:
                self._ranks, said = read_ranks(settings.ranks, self._config), settings.ranks.name
            else:
                said = str(settings.encoder_params)
                self._ranks = plausible_ranks(self._config, said)
            self.names = {"dense": settings.shape, "lite": f"{settings.shape}, {said}"}
            return
        self._ids = {"dense": str(settings.dense), "lite": str(settings.model)}
        configs = {name: load_config(model_id) for name, model_id in self._ids.items()}
        _check_same_input(configs, self._ids)
        _check_graphs(settings, self._ids)
        self._config = configs["dense"]
        self.names = self._ids

    def load(self, dtype: str) -> Pair:
        """Load both, or draw their weights.

        Args:
            dtype: Name of a torch type.

        Raises:
            ConfigError: If the weights or the tokenizer cannot be used.
        """
        # ONNX Runtime keeps the threads that it is loaded with.
        with set_torch_threads(self._settings.threads[0]):
            pair = self._load(dtype)
        if self._settings.fast_dense:
            use_fast_inference(pair.encoders["dense"], self._config.max_source_positions)
        return pair

    def _load(self, dtype: str) -> Pair:
        device = self._settings.device
        if self._settings.shape is not None:
            models = {"dense": lay_out(self._config), "lite": lay_out(self._config, self._ranks)}
            return Pair({n: make_encoder(model, dtype, device) for n, model in models.items()})
        if self._settings.audio:
            modules = {name: self._module(one, dtype) for name, one in self._ids.items()}
            return Pair({name: module.encoder for name, module in modules.items()}, modules)
        return Pair(
            {
                name: load_model(model_id, dtype=dtype).get_encoder().to(device)
                for name, model_id in self._ids.items()
            }
        )

    def _module(self, model_id: str, dtype: str) -> WhisperModule:
        settings = self._settings
        module = WhisperModule(
            model_id,
            processor_id=settings.processor,
            language=settings.language,
            dtype=dtype,
        )
        return module.to(torch.device(settings.device)).eval()


def _check_same_input(configs: Mapping[str, WhisperConfig], ids: Mapping[str, str]) -> None:
    dense, lite = configs["dense"], configs["lite"]
    errors = [
        f"--model, --dense: {ids['lite']} takes {getattr(lite, key)} {what}, "
        f"{ids['dense']} takes {getattr(dense, key)}"
        for key, what in (
            ("num_mel_bins", "mel bins"),
            ("max_source_positions", "frames in a window"),
        )
        if getattr(dense, key) != getattr(lite, key)
    ]
    if errors:
        raise ConfigError(errors)


def _check_graphs(settings: Settings, ids: Mapping[str, str]) -> None:
    for option, name in (("--model", "lite"), ("--dense", "dense")):
        if find_encoder(ids[name]) is None:
            continue
        ways = {
            "--dtype": settings.dtypes == ("float32",),
            "--threads": len(set(settings.threads)) == 1,
            "--mode": settings.modes == ("eager",),
            "--device": settings.device == "cpu",
            "--fast-dense": name == "lite" or not settings.fast_dense,
        }
        if wrong := [key for key, is_right in ways.items() if not is_right]:
            raise ConfigError(
                f"{', '.join(wrong)}: {option} {ids[name]} holds ONNX graphs, which run on the "
                "CPU in one way alone: float32, eager, with one number of threads"
            )


def describe(encoder: PreTrainedModel) -> dict[str, Any]:
    """Size, arithmetic for one window, and ranks of an encoder."""
    return {
        "encoder_params": encoder_parameters(encoder),
        "encoder_flops": encoder_flops(encoder),
        "ranks": collect_ranks(encoder),
    }
