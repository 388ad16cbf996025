"""What a compression decided: a plain record that outlives the run that made it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CompressionPlan", "LayerPlan"]

FORMAT = 1


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

    @property
    def ranks(self) -> dict[str, int]:
        """Ranks of the layers that do not stay dense."""
        return {name: layer.rank for name, layer in self.layers.items() if layer.rank is not None}

    @property
    def saved_params(self) -> int:
        """Parameters that the plan takes away in all."""
        return sum(layer.dense_params - layer.params for layer in self.layers.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, fit for JSON and for ``torch.load(weights_only=True)``."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionPlan:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: If the record is of another format.
        """
        present = data.get("format") if isinstance(data, Mapping) else None
        if present != FORMAT:
            raise ValueError(f"its format is {present!r}, not {FORMAT}")
        layers = {name: LayerPlan(**layer) for name, layer in data["layers"].items()}
        return cls(
            layers,
            data["method"],
            dict(data["options"]),
            dict(data["calibration"]),
            data.get("predicted_error"),
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
        parts = name.rsplit("encoder.layers.", maxsplit=1)[-1].split(".")
        if "encoder.layers." not in name or not parts[0].isdigit():
            raise ValueError(f"{name} is not in an encoder layer: the format has no place for it")
        config[int(parts[0])][parts[-1]] = rank
    return config
