"""The encoder's second convolution as a linear layer, which may then be of low rank.

Shape suffixes: B batch, C input channels, O output channels, W kernel width, T input frames, F
output frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .linear import LowRankLinear, PivotedLinear

__all__ = ["FramedConvolution"]


class FramedConvolution(nn.Module):
    """A convolution over time by a linear layer that sees all input frames of an output frame.

    Takes and returns what :class:`torch.nn.Conv1d` does. ``linear`` maps W·C inputs, the frames
    under the kernel one after the other, to O outputs. A
    :class:`~liteasr.modeling.LowRankLinear` of that shape may take its place; its factors are then
    used as they are, without its own ``forward`` unless it has hooks. The convolution is 6 % of
    the encoder of Whisper tiny, and 0.8 % of large-v3's.

    Args:
        convolution: What it shall compute; without dilation and groups, zero-padded.

    Raises:
        ValueError: If the convolution is of another kind.

    Example:
        >>> convolution = nn.Conv1d(4, 5, kernel_size=3, stride=2, padding=1)
        >>> framed, x = FramedConvolution(convolution), torch.randn(2, 4, 10)
        >>> torch.allclose(framed(x), convolution(x), atol=1e-5), framed.linear
        (True, Linear(in_features=12, out_features=5, bias=True))
    """

    def __init__(self, convolution: nn.Conv1d) -> None:
        super().__init__()
        is_plain = (
            convolution.dilation == (1,)
            and convolution.groups == 1
            and convolution.padding_mode == "zeros"
            and isinstance(convolution.padding, tuple)
        )
        if not is_plain:
            raise ValueError(f"{convolution} is not a plain convolution")
        self.in_channels, self.out_channels = convolution.in_channels, convolution.out_channels
        self.kernel_size, self.stride = convolution.kernel_size, convolution.stride
        self.padding = int(convolution.padding[0])
        weight = convolution.weight
        widths = (self.kernel_size[0] * self.in_channels, self.out_channels)
        has_bias = convolution.bias is not None
        linear = nn.Linear(*widths, bias=has_bias, device="meta", dtype=weight.dtype)
        # (O, C, W) to (O, W·C); on its device, and trained if it was.
        as_rows = weight.detach().transpose(1, 2).flatten(1).contiguous()
        linear.weight = nn.Parameter(as_rows, requires_grad=weight.requires_grad)
        linear.bias = convolution.bias  # type: ignore[assignment]
        self.linear: nn.Module = linear
        self.train(convolution.training)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Map (B, C, T) to (B, O, F)."""
        linear: Any = self.linear
        hooked = linear._forward_hooks or linear._forward_pre_hooks or hasattr(linear, "_hf_hook")
        if isinstance(linear, LowRankLinear) and not hooked:
            # A narrower convolution, and a product that leaves frames where they are.
            kernel_KCW = linear.weight1.T.reshape(linear.rank, -1, self.in_channels).transpose(1, 2)
            x_BKF = F.conv1d(x_BCT, kernel_KCW, None, self.stride, self.padding)
            y_BOF: Tensor = self._outputs(linear, x_BKF)
            return y_BOF + linear.bias[:, None].to(y_BOF.dtype)
        width, step = self.kernel_size[0], self.stride[0]
        x_BTC = F.pad(x_BCT.transpose(1, 2), (0, 0, self.padding, self.padding))
        count = (x_BTC.shape[1] - width) // step + 1
        under = [x_BTC[:, at : at + step * (count - 1) + 1 : step] for at in range(width)]
        y_BFO: Tensor = linear(torch.cat(under, dim=-1))
        return y_BFO.transpose(1, 2)

    @staticmethod
    def _outputs(linear: LowRankLinear, x_BKF: Tensor) -> Tensor:
        """What the second factor makes of the first one's channels, (B, O, F)."""
        is_plain = not isinstance(linear, PivotedLinear) or linear.pivots_inputs
        if is_plain or torch.is_grad_enabled() or x_BKF.device.type != "cpu":
            return linear.weight2.T @ x_BKF
        assert isinstance(linear, PivotedLinear)
        if linear.interpolation is None or linear.order is None:
            return x_BKF
        both_BOF = torch.cat([x_BKF, linear.interpolation.T @ x_BKF], dim=1)
        return both_BOF.index_select(1, linear.order)

    @torch.no_grad()
    def as_convolution(self, weight_OX: Tensor, bias_O: Tensor | None) -> nn.Conv1d:
        """A convolution with a dense weight in the layout of ``linear``, (O, W·C).

        Args:
            weight_OX: The weight.
            bias_O: The bias, if there is one.
        """
        convolution = nn.Conv1d(
            self.in_channels,
            self.out_channels,
            self.kernel_size[0],
            self.stride[0],
            self.padding,
            bias=bias_O is not None,
            device=weight_OX.device,
            dtype=weight_OX.dtype,
        )
        rows_OWC = weight_OX.reshape(-1, self.kernel_size[0], self.in_channels)
        convolution.weight.copy_(rows_OWC.transpose(1, 2))
        if bias_O is not None and convolution.bias is not None:
            convolution.bias.copy_(bias_O)
        return convolution.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
