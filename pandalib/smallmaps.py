"""Convolutions on the smallest feature maps as one matrix product each, for training in bfloat16 on a processor.

On maps of 2 x 2 or 4 x 4 a convolution spends most of its time on reordering weights. Gathering the patches and
multiplying takes about a third off an epoch of the embedded tier in bfloat16 (`bench/adaptation.py`); in float32 the
gain was a tenth, which is not worth a second path, so float32 stays with PyTorch's convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

LARGEST = 4  # output pixels along a side; from there on the patches cost more than they save


class SmallMapConv2d(nn.Conv2d):
    """A 2-d convolution with the same parameters and, up to rounding, the same results; use under autocast."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, O, h', w')."""
        (high, wide), (down, across), (above, beside) = self.kernel_size, self.stride, self.padding
        rows = (x.shape[2] + 2 * above - high) // down + 1
        columns = (x.shape[3] + 2 * beside - wide) // across + 1
        if max(rows, columns) > LARGEST:
            return super().forward(x)
        # Channels last, so that the patches are copied in runs of C.
        x = x.to(torch.get_autocast_dtype("cpu"), memory_format=torch.channels_last).permute(
            0, 2, 3, 1
        )
        x = F.pad(x, (0, 0, beside, beside, above, above))
        taps = [
            x[:, i : i + down * (rows - 1) + 1 : down, j : j + across * (columns - 1) + 1 : across]
            for i in range(high)
            for j in range(wide)
        ]
        patches = torch.cat(taps, dim=3)  # (B, h', w', high * wide * C)
        return F.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias).permute(
            0, 3, 1, 2
        )


def use_small_map_convolutions(module: nn.Module) -> None:
    """Turn the plain convolutions of the module into `SmallMapConv2d`, in place; their weights go into the order of the patches."""
    module.to(memory_format=torch.channels_last)
    for part in module.modules():
        if (
            type(part) is nn.Conv2d
            and part.groups == 1
            and part.dilation == (1, 1)
            and part.padding_mode == "zeros"
            and not isinstance(part.padding, str)
        ):
            part.__class__ = SmallMapConv2d
