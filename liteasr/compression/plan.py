"""What a compression decided: a plain record that outlives the run that made it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["AttentionPlan", "CompressionPlan", "LayerPlan"]

FORMAT = 1
ATTENTION_FORMAT = 2
"""Of a plan with reduced attention, which readers of format 1 must not take for one without."""
CONVOLUTION = "encoder.conv2.linear"
"""How the name of the encoder's second convolution ends, as a linear layer."""

PIVOTED_FORMAT = 4
"""Of a plan with pivoted layers, with or without reduced attention. (3 was an experiment's.)"""


@dataclass(frozen=True)
class LayerPlan:
    """Decision for one linear layer.

    Attributes:
        in_features: Input width.
        out_features: Output width.
        rank: Rank of the low-rank layer; ``None`` leaves the layer dense.
        kept_energy: Share of the output's variance that is kept, in 0…1.
        dense_params: Parameters of the layer before.
        params: Parameters of the layer after.
        predicted_error: Relative error of the encoder's output that this layer is expected to
            bring; 0 where the method does not predict one.
    """

    in_features: int
    out_features: int
    rank: int | None
    kept_energy: float
    dense_params: int
    params: int
    predicted_error: float = 0.0


@dataclass(frozen=True)
class AttentionPlan:
    """Decision for the heads of one self-attention.

    Attributes:
        embed_dim: Width of the encoder.
        num_heads: Heads.
        qk_dim: Dimensions of a head for queries and keys.
        v_dim: Dimensions of a head for values. Both ``None`` leave the attention dense.
        dense_params: Parameters of the four projections before.
        params: Parameters of the four projections after. A projection that gets a low rank
            besides has a decision of its own, which starts from its reduced shape.
        predicted_error: Relative error of the encoder's output that this attention is expected to
            bring; 0 where the method does not predict one.
    """

    embed_dim: int
    num_heads: int
    qk_dim: int | None
    v_dim: int | None
    dense_params: int
    params: int
    predicted_error: float = 0.0

    def __post_init__(self) -> None:
        if (self.qk_dim is None) != (self.v_dim is None):
            raise ValueError(f"qk_dim={self.qk_dim} and v_dim={self.v_dim}: either both or none")


@dataclass
class CompressionPlan:
    """Module name → decision, and where the decisions come from.

    Attributes:
        layers: Full name of a linear layer → its decision. No entries: the identity.
        method: Name of the method that decided.
        options: Options of the method, plain values.
        calibration: Clips seen and their fingerprint.
        predicted_error: Relative error of the encoder's output that is expected of all layers
            together; ``None`` where the method does not predict it.
        attention: Full name of a self-attention → its decision; it is made before those of the
            layers in it.
        pivoted: Whether low-rank layers are :class:`~liteasr.modeling.PivotedLinear`.

    Example:
        >>> layer = LayerPlan(8, 8, 2, kept_energy=0.9, dense_params=72, params=40)
        >>> plan = CompressionPlan({"model.encoder.layers.0.fc1": layer})
        >>> CompressionPlan.from_dict(plan.to_dict()) == plan
        True
    """

    layers: dict[str, LayerPlan] = field(default_factory=dict)
    method: str = "none"
    options: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    predicted_error: float | None = None
    attention: dict[str, AttentionPlan] = field(default_factory=dict)
    pivoted: bool = False

    @property
    def ranks(self) -> dict[str, int]:
        """Ranks of the layers that do not stay dense."""
        return {name: layer.rank for name, layer in self.layers.items() if layer.rank is not None}

    @property
    def head_dims(self) -> dict[str, tuple[int, int]]:
        """Dimensions of a head, for queries and keys and for values, where they are reduced."""
        return {
            name: (one.qk_dim, one.v_dim)
            for name, one in self.attention.items()
            if one.qk_dim is not None and one.v_dim is not None
        }

    @property
    def saved_params(self) -> int:
        """Parameters that the plan takes away in all."""
        of_layers = sum(one.dense_params - one.params for one in self.layers.values())
        return of_layers + sum(one.dense_params - one.params for one in self.attention.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, fit for JSON and for ``torch.load(weights_only=True)``."""
        content = asdict(self)
        if not self.attention:
            del content["attention"]
        if self.pivoted:
            return {"format": PIVOTED_FORMAT, **content}
        del content["pivoted"]
        return {"format": ATTENTION_FORMAT if self.attention else FORMAT, **content}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionPlan:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: If the record is of another format.
        """
        present = data.get("format") if isinstance(data, Mapping) else None
        known = (FORMAT, ATTENTION_FORMAT, PIVOTED_FORMAT)
        if present not in known:
            raise ValueError(f"its format is {present!r}, not {', '.join(map(str, known))}")
        layers = {name: LayerPlan(**layer) for name, layer in data["layers"].items()}
        attention = {n: AttentionPlan(**one) for n, one in data.get("attention", {}).items()}
        return cls(
            layers,
            data["method"],
            dict(data["options"]),
            dict(data["calibration"]),
            data.get("predicted_error"),
            attention,
            bool(data.get("pivoted", False)),
        )

    def to_json(self) -> str:
        """Text of ``plan.json``."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> CompressionPlan:
        """Read ``plan.json``.

        Raises:
            ValueError: If the file is not a plan, named.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a compression plan: {error}") from error

    def low_rank_config(self, num_layers: int) -> list[dict[str, int]]:
        """Ranks in the published format: one dict an encoder layer, last name part → rank.

        That of the second convolution has no place there and is left out.

        Args:
            num_layers: Layers of the encoder.

        Raises:
            ValueError: If a compressed module is not a linear of an encoder layer.

        Example:
            >>> layer = LayerPlan(8, 8, 2, kept_energy=0.9, dense_params=72, params=40)
            >>> CompressionPlan({"model.encoder.layers.1.fc1": layer}).low_rank_config(2)
            [{}, {'fc1': 2}]
        """
        return low_rank_config(self.ranks.items(), num_layers)


def low_rank_config(ranks: Iterable[tuple[str, int]], num_layers: int) -> list[dict[str, int]]:
    """Module names and ranks in the published format; see ``CompressionPlan.low_rank_config``."""
    config: list[dict[str, int]] = [{} for _ in range(num_layers)]
    for name, rank in ranks:
        if name.endswith(CONVOLUTION):
            continue  # ``LiteWhisperConfig.conv2_rank``
        index, last = _place(name)
        config[index][last] = rank
    return config


def reduced_attention_config(
    dims: Iterable[tuple[str, tuple[int, int]]], num_layers: int
) -> list[dict[str, int]] | None:
    """Module names and dimensions of heads as ``LiteWhisperConfig.reduced_attention`` has them.

    Args:
        dims: Full name of each reduced self-attention and its dimensions for queries and keys and
            for values.
        num_layers: Layers of the encoder.

    Returns:
        One dict an encoder layer, or ``None`` where no attention is reduced.

    Raises:
        ValueError: If an attention is not in an encoder layer.

    Example:
        >>> reduced_attention_config([("model.encoder.layers.1.self_attn", (32, 48))], 2)
        [{}, {'qk_dim': 32, 'v_dim': 48}]
    """
    config: list[dict[str, int]] = [{} for _ in range(num_layers)]
    for name, (qk_dim, v_dim) in dims:
        config[_place(name)[0]] = {"qk_dim": qk_dim, "v_dim": v_dim}
    return config if any(config) else None


def _place(name: str) -> tuple[int, str]:
    """Number of a module's encoder layer, and the last part of its name."""
    parts = name.rsplit("encoder.layers.", maxsplit=1)[-1].split(".")
    if "encoder.layers." not in name or not parts[0].isdigit():
        raise ValueError(f"{name} is not in an encoder layer: the format has no place for it")
    return int(parts[0]), parts[-1]
