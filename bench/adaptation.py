"""One epoch of adaptation with re-scoring, against the plain loop: `python bench/adaptation.py`
writes
docs/results/adaptation_speed.md.

The plain loop runs the whole network on the pixels, in training and in scoring. Both loops take the
same images and weights and alternate; a line is the median of the rounds. Wide-ResNet-50-2 has one
batch to learn from. The floor of a line is the work that no cache can take away, the
multiplications of the trainable part, at the rate at which this machine convolves in the same run.
"""

from __future__ import annotations

import copy
import statistics
import time

import common
import numpy as np
import torch
from common import Line, at_most, finish, machine, section, versions
from torch import nn

from pandalib import load_backbone, load_task
from pandalib.backbones import cut_stages, embedded_network, normalise
from pandalib.methods.knn import knn_scores
from pandalib.methods.panda import compactness, fit_compactness
from pandalib.methods.training import TrainableCopy
from pandalib.weights import EMBEDDED, read_state, verify_embedded

OVER_FLOOR = 1.5
BF16 = {"off": False, "on": True, "auto": "auto"}

PAGE = """# An epoch of adaptation with re-scoring

Made by `python bench/adaptation.py` on {machine}; {versions}. Medians of {rounds} alternating
rounds of four epochs (two of ResNet-18 and MobileNetV2, one of Wide-ResNet-50-2); the centre,
computed once a run, counts for `fit_compactness` alone.

{section}
The plain loop runs the whole network on the pixels, for training and for scoring. `fit_compactness`
keeps the frozen part's output (computed once, not counted: {frozen}).{bf16} "Floor" is the
trainable part's multiplications alone at the rate of convolutions measured in the same run; "rank
agreement" is the Spearman correlation of the scores with those of the plain loop.

| network, images | variant | plain, s | pandalib, s | ratio | wanted | floor, s | over floor | \
rank agreement |
|---|---|---|---|---|---|---|---|---|
{rows}

Where the time goes (profile of the embedded line in float32): more than half of an epoch's training
is the convolutions' backward pass, a quarter their forward pass, a twentieth the step of SGD;
scoring is three tenths of the whole and close to its own floor. Batches of 32 on maps of 4 x 4 and
2 x 2 read and write as many weights as activations, and the gradient of the weights, which sums
over few positions, runs far below the rate of a convolution on large maps: that is the distance to
the floor. In bfloat16 only the convolutions can be faster, on a processor with instructions for it;
the step is not, since parameters stay in float32. What helped: the embedded trainable part in
PyTorch's default order in memory in place of channels last, which is faster on large maps only.
Tried without gain in float32: matrix products, for the whole convolution or for the gradient of the
weights alone; smaller batches for scoring; the clip folded into the step. All of this depends on
the processor.
"""


def plain_network(name: str) -> nn.Sequential:
    """The unfolded network up to its last feature map, as torchvision builds it."""
    if name == "embedded":
        network = embedded_network(len(read_state(verify_embedded())["fc.weight"]))
        network.load_state_dict(read_state(verify_embedded()))
    else:
        import torchvision

        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None)
    stages, _ = cut_stages(network, EMBEDDED if name == "embedded" else name)
    return nn.Sequential(*stages.values()).eval()


def plain_epoch(network, first, centre, images, test, optimiser, order) -> np.ndarray:
    """The definition: forward from the pixels for every batch, clip, step; then all images again
    for the scores. `first` is the first of the stages that learn.
    """
    for rows in order.split(32):
        optimiser.zero_grad()
        compactness(
            network(normalise(images[rows.numpy()]).contiguous()).mean(dim=(2, 3)), centre
        ).backward()
        torch.nn.utils.clip_grad_norm_(network[first:].parameters(), 0.1)
        optimiser.step()
    with torch.no_grad():
        features = [
            torch.cat(
                [
                    network(normalise(part[i : i + 100]).contiguous()).mean(dim=(2, 3))
                    for i in range(0, len(part), 100)
                ]
            )
            for part in (images, test)
        ]
    return knn_scores(*(feature.numpy() for feature in features))


def macs(module: nn.Module, example: torch.Tensor) -> int:
    """Multiplications of the convolutions for one image, by a hook on each."""
    total = 0

    def count(conv, inputs, output):
        nonlocal total
        total += output[0].numel() * conv.weight[0].numel()

    hooks = [
        part.register_forward_hook(count)
        for part in module.modules()
        if isinstance(part, nn.Conv2d)
    ]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return total


def rate(trainable: nn.Module, example: torch.Tensor, bf16: bool) -> float:
    """Multiplications a second of the trainable part's widest convolutions without padding,
    reordering
    or anything around them.
    """
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(64, 256, 14, 14).to(memory_format=torch.channels_last)
    if bf16:
        conv, x = conv.bfloat16(), x.bfloat16()
    with torch.no_grad():
        conv(x)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            conv(x)
            times.append(time.perf_counter() - start)
    return 64 * 14 * 14 * 256 * 256 * 9 / statistics.median(times)


def compare(
    name: str,
    images: np.ndarray,
    test: np.ndarray,
    variants: dict[str, tuple[bool, float]],
    rounds: int,
    epochs: int,
) -> tuple[list[str], list[Line]]:
    from scipy.stats import spearmanr

    backbone = load_backbone() if name == "embedded" else load_backbone(name, "random")
    frozen, frozen_test = backbone.frozen_features(images), backbone.frozen_features(test)
    first = len(backbone.frozen)
    trainable_macs = macs(copy.deepcopy(backbone.trainable), frozen[:1])
    rows, lines = [], []
    plain = plain_network(name)
    if name != "embedded":  # the same random weights on both sides
        backbone_again = load_backbone(name, "random", adapt_from=backbone.stages[0])
        values = backbone_again.trainable.state_dict().values()
        plain.load_state_dict(dict(zip(plain.state_dict(), values, strict=True)))
    start_state = copy.deepcopy(plain.state_dict())
    centre = torch.from_numpy(backbone.features_from(frozen).mean(axis=0))
    for variant, (bf16, wanted) in variants.items():
        seconds: dict[str, list[float]] = {"plain": [], "pandalib": [], "floor": []}
        for number in range(rounds):
            plain.load_state_dict(start_state)
            plain.requires_grad_(False)
            plain[first:].requires_grad_(True)
            optimiser = torch.optim.SGD(plain[first:].parameters(), lr=0.08, momentum=0.9)
            start = time.perf_counter()
            for epoch in range(1, epochs + 1):
                order = torch.from_numpy(np.random.default_rng((0, epoch)).permutation(len(images)))
                expected = plain_epoch(plain, first, centre, images, test, optimiser, order)
            seconds["plain"].append((time.perf_counter() - start) / epochs)
            rescored = []

            def rescore(checkpoint):
                if checkpoint.epoch > 0:
                    rescored.append(
                        knn_scores(
                            *(
                                checkpoint.backbone.features_from(part, bf16=bf16)
                                for part in (frozen, frozen_test)
                            )
                        )
                    )

            start = time.perf_counter()
            fit_compactness(
                backbone,
                frozen,
                epochs=epochs,
                lr=0.08,
                max_grad_norm=0.1,
                bf16=bf16,
                on_checkpoint=rescore,
                progress=False,
            )
            seconds["pandalib"].append((time.perf_counter() - start) / epochs)
            # Training is a forward pass and two backward ones, of which the first layer of the
            # trainable part
            # needs one only.
            seconds["floor"].append(
                trainable_macs
                * (3 * len(images) + len(images) + len(test))
                / rate(backbone.trainable, frozen[:1], bf16)
            )
        median = {key: statistics.median(values) for key, values in seconds.items()}
        ratio, over, agreement = (
            median["plain"] / median["pandalib"],
            median["pandalib"] / median["floor"],
            spearmanr(expected, rescored[-1])[0],
        )
        what = f"{name}, {len(images)} + {len(test)} at {images.shape[-1]} px"
        rows.append(
            f"| {what} | {variant} | {median['plain']:.2f} | {median['pandalib']:.2f} | "
            f"{ratio:.2f} | {wanted:g}, {'met' if ratio >= wanted else 'NOT met'} | "
            f"{median['floor']:.2f} | "
            f"{over:.2f} | {agreement:.4f} |"
        )
        lines.append(
            Line(
                f"epoch with scores, {what}, {variant}",
                f"{wanted:g} times as fast",
                f"{ratio:.2f} times, rank agreement {agreement:.4f}",
                ratio >= wanted,
            )
        )
        lines.append(
            at_most(
                f"epoch with scores, {what}, {variant}, over the floor", over, OVER_FLOOR, " times"
            )
        )
        print(rows[-1], flush=True)
    return rows, lines


def main() -> None:
    wanted = "a line in bfloat16 as well: off, on, or auto (default), where it pays; alone: on"
    choice = dict(nargs="?", choices=tuple(BF16), const="on", default="auto", help=wanted)
    options = common.arguments(__doc__, 5, ("--bf16", choice))
    tiny, rounds = options.tiny, options.rounds
    task = load_task("pictograms:star", **(dict(n_train=64, n_test=4) if tiny else {}))
    large = np.repeat(np.repeat(task.train[:96], 4, axis=2), 4, axis=3)[:, :, :224, :224]
    variants = {"float32": (False, 2.5)}
    backbone = load_backbone()
    batch = backbone.frozen_features(task.train[:32])
    network = TrainableCopy(backbone, BF16[options.bf16], batch)
    speed = network.bf16_ratio
    if network.bf16:
        variants["bf16"] = (True, 4.0)
    trial = f" A step in bfloat16 is {speed:.2g} times as fast as in float32." if speed else ""
    parts = [compare("embedded", task.train, task.test, variants, rounds, epochs=1 if tiny else 4)]
    small = large[:, :, :96, :96]
    for name, pictures, n, times, n_rounds, epochs in (
        ("resnet18", large, 64, 2.4, rounds, 2),
        ("mobilenet_v2", small, 64, 2.5, rounds, 2),
        ("wide_resnet50_2", large, 32, 1.0, max(1, rounds - 2), 1),
    ):
        n, epochs = (4, 1) if tiny else (n, epochs)
        images, test = pictures[:n], pictures[n : n + n // 2]
        parts.append(compare(name, images, test, {"float32": (False, times)}, n_rounds, epochs))
    rows, lines = (sum(part, []) for part in zip(*parts))
    start = time.perf_counter()
    load_backbone().frozen_features(np.concatenate([task.train, task.test]))
    n_images = len(task.train) + len(task.test)
    frozen = f"{time.perf_counter() - start:.2f} s for the embedded line's {n_images} images"
    page = PAGE.format(
        machine=machine(),
        versions=versions("torch", "torchvision", "numpy"),
        rounds=rounds,
        section=section(lines),
        rows="\n".join(rows),
        frozen=frozen,
        bf16=trial,
    )
    finish("adaptation_speed.md", page, tiny)


if __name__ == "__main__":
    main()
