"""Fisher information of the trainable part, four ways: `python bench/fisher.py` writes
docs/results/fisher_speed.md.

The definition: the gradient of each sample alone, squared, then averaged. All ways take the same
images, weights and labels (drawn once from the network's prediction). "Plain loop" runs the whole
network on the pixels of each sample; "loop" is `pandalib.fisher_information`, from the frozen
part's activations; "vmap" is torch.func; "hooks" takes the gradients of samples apart layer by
layer. The common recipe squares the mean gradient of a batch, which is another number: how much it
is off is measured.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import common
import numpy as np
import torch
import torch.nn.functional as F
from common import alternate, at_most, faster, finish, machine, section, versions
from torch import nn

from pandalib import fisher_information, load_backbone
from pandalib.backbones import normalise
from pandalib.datasets.synthetic import glyphs
from pandalib.experiments.run import peak_rss_mb, reset_peak_rss

BIASED = 32  # the batch of the common recipe
# Samples at once of vmap and hooks: each has a gradient of the size of the trainable part.
CHUNK = 8
PAGE = """# Fisher information

Made by `python bench/fisher.py` on {machine}; {versions}. Medians of {rounds} alternating rounds.

{section}
## The definition, four ways

The same images, weights and labels. Memory is what a process of its own holds at most above what it
held before. "Difference": the largest, of the largest value, from the plain loop.

| network, samples | way | seconds | ms a sample | against the loop from pixels | memory, MiB | \
difference |
|---|---|---|---|---|---|---|
{rows}

vmap and hooks take {chunk} samples at once.

## The common recipe: squares of a batch's mean gradient

Embedded network, {n} samples, batches of {biased}. "Share" is the mean over all parameters against
the definition's, with 1/{biased} = {inverse:.4f} where the gradients of samples are independent;
"rank agreement" is the Spearman correlation over {subset:,} parameters.

| labels | seconds | mean, batches | mean, per sample | share | rank agreement |
|---|---|---|---|---|---|
{biased_rows}

A lambda that was tuned with the one means another penalty with the other. How alike the gradients
of a batch are depends on the labels, so the share depends on network and batch, and the order of
the parameters changes as well: no factor repairs the recipe.
"""


def drawn_labels(backbone, frozen: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """One label a sample from the network's own prediction, for all ways alike."""
    with torch.no_grad():
        logits = torch.cat(
            [
                backbone.classifier(backbone.trainable(part))[:, : backbone.n_classes]
                for part in frozen.split(64)
            ]
        )
    return torch.multinomial(
        logits.softmax(dim=1), 1, generator=torch.Generator().manual_seed(seed)
    )[:, 0]


def plain_loop(backbone, images: np.ndarray, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The definition: for each sample the whole network on its pixels, a backward pass into the
    trainable, squares.
    """
    trainable = copy.deepcopy(backbone.trainable).requires_grad_(True)
    parameters = dict(trainable.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for image, label in zip(images, labels):
        trainable.zero_grad()
        logits = backbone.classifier(trainable(backbone.frozen(normalise(image[None]))))[
            :, : backbone.n_classes
        ]
        F.cross_entropy(logits, label[None]).backward()
        for name, parameter in parameters.items():
            sums[name] += parameter.grad.square()
    return {name: value / len(images) for name, value in sums.items()}


def by_loop(backbone, frozen: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return fisher_information(backbone, frozen, labels.numpy(), progress=False).values


def by_vmap(
    backbone, frozen: torch.Tensor, labels: torch.Tensor, chunk: int = CHUNK
) -> dict[str, torch.Tensor]:
    """torch.func: the gradient of one sample's loss, mapped over a chunk of samples."""
    trainable = backbone.trainable
    parameters = {name: parameter.detach() for name, parameter in trainable.named_parameters()}
    buffers = dict(trainable.named_buffers())

    def loss(parameters, x, label):
        feature_map = torch.func.functional_call(trainable, (parameters, buffers), (x[None],))
        # The classifier's own pooling has no rule for vmap in this memory format and would slow it
        # down.
        return F.cross_entropy(
            backbone.classifier.fc(feature_map.mean(dim=(2, 3)))[:, : backbone.n_classes],
            label[None],
        )

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for start in range(0, len(frozen), chunk):
        found = gradients(parameters, frozen[start : start + chunk], labels[start : start + chunk])
        for name, part in found.items():
            sums[name] += part.square().sum(dim=0)
    return {name: value / len(frozen) for name, value in sums.items()}


def by_hooks(
    backbone, frozen: torch.Tensor, labels: torch.Tensor, chunk: int = CHUNK
) -> dict[str, torch.Tensor]:
    """Per layer from its input and the gradient of its output: one backward pass a chunk, of the
    sum
    of the losses.

    For a convolution the gradient of a sample is the product of its output's gradient with the
    patches of its input; for a BatchNorm in evaluation mode it is a sum over positions.
    """
    trainable = copy.deepcopy(backbone.trainable).requires_grad_(True)
    layers = {
        name: part
        for name, part in trainable.named_modules()
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d)
    }
    unknown = {name for name, _ in trainable.named_parameters()} - {
        f"{name}.{key}" for name, part in layers.items() for key, _ in part.named_parameters()
    }
    if unknown or any(
        part.groups != 1 or part.padding_mode != "zeros"
        for part in layers.values()
        if isinstance(part, nn.Conv2d)
    ):
        raise ValueError(
            "the hooks know plain convolutions and BatchNorm only, not those of "
            f"{', '.join(sorted(unknown)) or 'grouped convolutions'}."
        )
    sums = {name: torch.zeros_like(parameter) for name, parameter in trainable.named_parameters()}

    def hook(name, part):
        def take(_, inputs, output):
            x = inputs[0].detach()
            output.register_hook(lambda gradient: add(name, part, x, gradient))

        return part.register_forward_hook(take)

    def add(name, part, x, gradient):
        if isinstance(part, nn.Conv2d):
            patches = F.unfold(
                x, part.kernel_size, part.dilation, part.padding, part.stride
            )  # (B, C * h * w, positions)
            each = gradient.flatten(2) @ patches.transpose(1, 2)  # (B, O, C * h * w)
            sums[f"{name}.weight"] += each.square_().sum(dim=0).view_as(part.weight)
            if part.bias is not None:
                sums[f"{name}.bias"] += gradient.sum(dim=(2, 3)).square().sum(dim=0)
        else:
            scaled = (x - part.running_mean[:, None, None]) * (part.running_var + part.eps).rsqrt()[
                :, None, None
            ]
            sums[f"{name}.weight"] += (gradient * scaled).sum(dim=(2, 3)).square().sum(dim=0)
            sums[f"{name}.bias"] += gradient.sum(dim=(2, 3)).square().sum(dim=0)

    hooks = [hook(name, part) for name, part in layers.items()]
    for start in range(0, len(frozen), chunk):
        x = frozen[start : start + chunk].detach().requires_grad_(True)
        logits = backbone.classifier(trainable(x))[:, : backbone.n_classes]
        # Towards the input: that passes the output of every layer, and leaves out the gradients of
        # the parameters summed over samples.
        torch.autograd.grad(
            F.cross_entropy(logits, labels[start : start + chunk], reduction="sum"), x
        )
    for one in hooks:
        one.remove()
    return {name: value / len(frozen) for name, value in sums.items()}


WAYS = {"plain loop": plain_loop, "loop (pandalib)": by_loop, "vmap": by_vmap, "hooks": by_hooks}


def prepared(name: str, n: int):
    """Backbone, images, the frozen part's output and labels of a line."""
    backbone = (
        load_backbone(device="cpu")
        if name == "embedded"
        else load_backbone(name, "random", device="cpu")
    )
    images, truth, _ = glyphs.draw_batch(range(n), split="fisher", seed=0)
    if name != "embedded":
        images = np.ascontiguousarray(
            np.repeat(np.repeat(images, 4, axis=2), 4, axis=3)[:, :, :224, :224]
        )
    frozen = backbone.frozen_features(images).to(memory_format=torch.channels_last)
    return backbone, images, frozen, drawn_labels(backbone, frozen), truth


def memory_of(name: str, n: int, way: str) -> float:
    """What one way needs, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", json.dumps([name, n, way, torch.get_num_threads()])],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def print_memory(name: str, n: int, way: str, threads: int) -> None:
    torch.set_num_threads(threads)
    backbone, images, frozen, labels, _ = prepared(name, n)
    reset_peak_rss()
    before = peak_rss_mb()
    WAYS[way](backbone, images if way == "plain loop" else frozen, labels)
    print(peak_rss_mb() - before)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest, of the largest value."""
    return max(float((one[name] - other[name]).abs().max()) for name in one) / max(
        float(value.max()) for value in one.values()
    )


def compare(name: str, n: int, rounds: int) -> tuple[list[str], list[common.Line]]:
    backbone, images, frozen, labels, _ = prepared(name, n)
    median, values = alternate(
        {
            way: lambda way=way: WAYS[way](
                backbone, images if way == "plain loop" else frozen, labels
            )
            for way in WAYS
        },
        rounds,
        warm=False,
    )
    rows = []
    apart = {way: difference(values["plain loop"], values[way]) for way in WAYS}
    for way in WAYS:
        rows.append(
            f"| {name}, {n} at {images.shape[-1]} px | {way} | {median[way]:.3g} | "
            f"{1e3 * median[way] / n:.2f} | {median['plain loop'] / median[way]:.2f} | "
            f"{memory_of(name, n, way):.0f} | {apart[way]:.1e} |"
        )
        print(rows[-1], flush=True)
    ours = "loop (pandalib)"
    lines = [
        faster(f"Fisher, {name}, {n} samples, against {way}", median[way], median[ours])
        for way in WAYS
        if way != ours
    ]
    return rows, [
        *lines,
        at_most(f"Fisher, {name}, {n} samples, difference from the plain loop", apart[ours], 1e-4),
    ]


def bias(n: int, rounds: int) -> tuple[list[str], int]:
    """The recipe of batches against the definition."""
    from scipy.stats import spearmanr

    backbone, _, frozen, drawn, truth = prepared("embedded", n)
    rows = []
    for kind, labels in (
        ("drawn from the prediction", drawn.numpy()),
        ("true (the official recipe)", truth),
    ):
        sides = {
            size: lambda size=size, labels=labels: fisher_information(
                backbone, frozen, labels, batch_size=size, progress=False
            )
            for size in (1, BIASED)
        }
        median, found = alternate(sides, rounds, warm=False)
        flat = [
            torch.cat([value.flatten() for value in found[size].values.values()])[::97].numpy()
            for size in (BIASED, 1)
        ]
        means = [found[size].mean() for size in (BIASED, 1)]
        rows.append(
            f"| {kind} | {median[BIASED]:.3g} | {means[0]:.3e} | {means[1]:.3e} | "
            f"{means[0] / means[1]:.4f} | {spearmanr(*flat)[0]:.3f} |"
        )
        print(rows[-1], flush=True)
    return rows, len(flat[0])


def main() -> None:
    options = common.arguments(__doc__, 3, ("--memory", dict(help=common.argparse.SUPPRESS)))
    if options.memory:
        return print_memory(*json.loads(options.memory))
    rows, lines = [], []
    n = 32 if options.tiny else 320
    for name, samples in (
        ("embedded", 6 if options.tiny else n),
        ("resnet18", 2 if options.tiny else 16),
    ):
        found = compare(name, samples, options.rounds)
        rows, lines = rows + found[0], lines + found[1]
    biased_rows, subset = bias(n, options.rounds)
    page = PAGE.format(
        machine=machine(),
        versions=versions("torch", "numpy"),
        rounds=options.rounds,
        section=section(lines),
        rows="\n".join(rows),
        chunk=CHUNK,
        n=n,
        biased=BIASED,
        inverse=1 / BIASED,
        subset=subset,
        biased_rows="\n".join(biased_rows),
    )
    finish("fisher_speed.md", page, options.tiny)


if __name__ == "__main__":
    main()
