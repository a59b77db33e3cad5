"""The matrix product on small maps against PyTorch's own convolution."""

import copy

import pytest
import torch
from torch import nn

from pandalib.smallmaps import SmallMapConv2d, use_small_map_convolutions


@pytest.mark.parametrize(
    "kernel, stride, padding, size",
    [
        (3, 1, 1, 2),
        (3, 2, 1, 8),
        (3, 2, 1, 7),
        (1, 2, 0, 4),
        ((1, 3), (2, 1), (0, 1), 4),
        (3, 1, 1, 9),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_results_and_gradients_are_those_of_the_convolution(kernel, stride, padding, size, bias):
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, kernel, stride, padding, bias=bias)
    ours = copy.deepcopy(plain)
    use_small_map_convolutions(ours)
    assert type(ours) is SmallMapConv2d
    x = torch.randn(3, 5, size, size)
    results = []
    for conv in (plain, ours):
        images = x.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(images)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
        (y.float() * weights).sum().backward()
        results.append(
            [y.detach().float(), images.grad, *(parameter.grad for parameter in conv.parameters())]
        )
    for expected, found in zip(*results, strict=True):
        assert expected.shape == found.shape
        # bfloat16 keeps 8 bits: each of the two differs from the exact result by about 2 ** -8 of its scale.
        assert (expected - found).abs().max() <= 2**-6 * expected.abs().max()


def test_other_convolutions_stay_as_they_are():
    parts = nn.ModuleList(
        [
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Conv2d(4, 4, 3, dilation=2),
            nn.Conv2d(4, 4, 3, padding_mode="circular", padding=1),
            nn.Conv2d(4, 4, 3, padding="same"),
            nn.Linear(2, 2),
        ]
    )
    use_small_map_convolutions(parts)
    assert not any(isinstance(part, SmallMapConv2d) for part in parts)
