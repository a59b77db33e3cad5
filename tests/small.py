"""A ResNet so small that tests can compute a definition by plain loops, and such loops."""

import math
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from pandalib.backbones import MEAN, STD, Backbone
from pandalib.weights import state_sha256

CLASSES = 5


def images(n: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Blotches of colour, uint8 (n, 3, side, side)."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(n, 3, 4, 4), dtype=np.uint8)
    return coarse.repeat(side // 4, axis=2).repeat(side // 4, axis=3)


def normalised(pictures: np.ndarray) -> torch.Tensor:
    """What torchvision's weights expect, written out."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (torch.from_numpy(pictures.astype(np.float32)) / 255 - mean) / std


def plain_network(seed: int = 0, widths=(8, 8, 12, 16, 20)) -> nn.Sequential:
    """Stages conv, layer1 ... layer4 and the classifier; BatchNorm with the statistics of some
    training, nothing folded.
    """
    torch.manual_seed(seed)
    conv = OrderedDict(
        conv1=nn.Conv2d(3, widths[0], 7, 2, 3, bias=False),
        bn1=nn.BatchNorm2d(widths[0]),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, 1),
    )
    stages = OrderedDict(conv=nn.Sequential(conv))
    for i, (narrow, wide) in enumerate(pairwise(widths), start=1):
        stride, shortcut = 1, None
        if i > 1:
            stride = 2
            convolution = nn.Conv2d(narrow, wide, 1, stride, bias=False)
            shortcut = nn.Sequential(convolution, nn.BatchNorm2d(wide))
        stages[f"layer{i}"] = nn.Sequential(BasicBlock(narrow, wide, stride, shortcut))
    stages["classifier"] = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[4], CLASSES)
    )
    network = nn.Sequential(stages)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    nn.init.normal_(network.classifier[2].weight)
    return network.eval()


def small_backbone(seed: int = 0, truncate_after: str = "layer4", **options) -> Backbone:
    """The same network as a backbone, with BatchNorm folded into the frozen part."""
    network = plain_network(seed)
    stages = OrderedDict(network.named_children())
    classifier = stages.pop("classifier")
    digest = state_sha256(network.state_dict())
    if truncate_after != "layer4":
        n_kept = list(stages).index(truncate_after) + 1
        stages, classifier = OrderedDict(list(stages.items())[:n_kept]), None
    return Backbone(stages, classifier, name="small", weights_sha256=digest, **options)


def sgd_by_hand(
    trained,
    loss_of,
    n,
    *,
    epochs,
    lr,
    max_grad_norm,
    batch_size=32,
    momentum=0.9,
    weight_decay=0.0,
    seed=0,
    l2=0.0,
) -> list[float]:
    """The mean loss of each epoch; order, gradient, penalty, clip and step written out.

    `loss_of(rows)` is the loss of one batch, `l2` the weight of a pull towards the start.
    """
    start = [parameter.detach().clone() for parameter in trained]
    velocity = [torch.zeros_like(parameter) for parameter in trained]
    losses = []
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng((seed, epoch)).permutation(n)
        total = 0.0
        for begin in range(0, n, batch_size):
            rows = order[begin : begin + batch_size]
            loss = loss_of(rows)
            gradients = torch.autograd.grad(loss, trained)
            with torch.no_grad():
                gradients = [g + l2 * (p - s) for g, p, s in zip(gradients, trained, start)]
                norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
                scale = 1.0 if max_grad_norm is None else min(1.0, max_grad_norm / norm)
                for parameter, gradient, v in zip(trained, gradients, velocity):
                    v.mul_(momentum).add_(gradient * scale + weight_decay * parameter)
                    parameter.sub_(lr * v)
            total += loss.item() * len(rows)
        losses.append(total / n)
    return losses


def pooled(network, batch) -> torch.Tensor:
    """Pooled features of images by the plain network."""
    x = normalised(batch)
    for name in ("conv", "layer1", "layer2", "layer3", "layer4"):
        x = getattr(network, name)(x)
    return x.mean(dim=(2, 3))


def check_that_only_the_trainable_part_moved(backbone, before, adapted) -> None:
    """Among what must not move are the statistics of BatchNorm, also those of the trained part."""
    assert any("trainable" in name and "running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    trainable = {f"trainable.{name}" for name, _ in backbone.trainable.named_parameters()}
    for name, value in adapted.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trainable), name
    assert adapted.frozen is backbone.frozen and not adapted.trainable.training
    assert not any(p.requires_grad for net in (backbone, adapted) for p in net.parameters())
