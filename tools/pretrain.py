"""Pretrain the embedded backbone on glyphs: a ResNet of four basic blocks, 20 minutes on 2 cores.

    python tools/pretrain.py            remakes data/weights/ : the weights, their index and README

Every epoch sees new images, drawn by a second process while the first one trains. The loss is the
cross-entropy of the glyph plus 0.3 times that of the background texture: features of textures are
wanted for surfaces. bf16 autocast, channels_last, AdamW, one-cycle. Seeded; another machine or
another number of threads rounds differently, so a remade file has another SHA-256, which the index
then records.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch.optim.lr_scheduler import OneCycleLR

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pandalib.backbones import embedded_network, normalise
from pandalib.datasets.synthetic import glyphs
from pandalib.io import data_folder, sha256_of, write_atomically
from pandalib.weights import EMBEDDED_INDEX

N_GLYPHS = len(glyphs.classes())


def accuracies(net, images, glyph_labels, texture_labels) -> dict[str, float]:
    net.eval()
    with torch.inference_mode():
        blocks = [net(normalise(images[i : i + 500])) for i in range(0, len(images), 500)]
        logits = torch.cat(blocks).numpy()
    net.train()
    glyph, texture = logits[:, :N_GLYPHS].argmax(1), logits[:, N_GLYPHS:].argmax(1)
    return {
        "glyph_accuracy": float((glyph == glyph_labels).mean()),
        "texture_accuracy": float((texture == texture_labels).mean()),
    }


def train_epoch(net, optimiser, schedule, drawn, batch: int, texture_weight: float) -> float:
    """One pass over the drawn images; returns the mean loss."""
    images, *labels = drawn
    glyph_labels, texture_labels = map(torch.from_numpy, labels)
    losses = []
    for step in range(len(images) // batch):
        rows = slice(step * batch, (step + 1) * batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(normalise(images[rows]))
        logits = logits.float()
        loss = F.cross_entropy(logits[:, :N_GLYPHS], glyph_labels[rows])
        texture_loss = F.cross_entropy(logits[:, N_GLYPHS:], texture_labels[rows])
        loss = loss + texture_weight * texture_loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def train(options: argparse.Namespace) -> tuple[torch.nn.Module, list[dict]]:
    """The trained network, rounded to float16, and an entry an epoch."""
    torch.manual_seed(options.seed)
    network = embedded_network(N_GLYPHS + glyphs.N_TEXTURES)
    network = network.to(memory_format=torch.channels_last)
    steps = options.images_per_epoch // options.batch * options.epochs
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.lr, weight_decay=options.weight_decay
    )
    schedule = OneCycleLR(optimiser, options.lr, total_steps=steps, pct_start=0.1)
    test = glyphs.draw_batch(range(options.n_test), split="test", seed=options.seed)
    curve, n = [], options.images_per_epoch
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as artist:

        def draw(epoch: int):
            numbers = range(epoch * n, (epoch + 1) * n)
            return artist.submit(glyphs.draw_batch, numbers, seed=options.seed)

        upcoming = draw(0)
        for epoch in range(options.epochs):
            drawn = upcoming.result()
            if epoch + 1 < options.epochs:
                upcoming = draw(epoch + 1)
            recipe = options.batch, options.texture_weight
            loss = train_epoch(network, optimiser, schedule, drawn, *recipe)
            entry = {"epoch": epoch + 1, "loss": round(loss, 4), **accuracies(network, *test)}
            print(entry, flush=True)
            curve.append(entry)
    network.half().float()  # what is stored is float16: measure that
    curve[-1] |= accuracies(network, *test)
    return network.eval(), curve


README = """# Weights of the embedded tier

`{file}`: a torchvision `ResNet(BasicBlock, [1, 1, 1, 1])`, float16, classifier included:
{n_glyphs} glyphs, then {n_textures} background textures. Trained by this project on images that it
draws itself; no image and no weight of anyone else is in it. Remake it with `python
tools/pretrain.py`, which writes this page and `index.json` as well: {seconds} seconds with
{settings}.

SHA-256 `{sha256}`. Accuracy on new images, of glyphs
**{glyph_accuracy:.3f}**, of textures {texture_accuracy:.3f}.

| epoch | training loss | glyph accuracy | texture accuracy |
|---|---|---|---|
{rows}

Another machine, thread count or torch release rounds differently: a remade file has another SHA-256
and accuracies that differ in the third decimal. Loading compares the file with `index.json`.
"""
ROW = "| {epoch} | {loss:.3f} | {glyph_accuracy:.3f} | {texture_accuracy:.3f} |"


def write(network, curve: list[dict], settings: dict, seconds: float, folder: Path) -> None:
    """The weights first, then the index with their hash: loading refuses what was cut between."""
    path = folder / "glyphs_resnet4.safetensors"
    state = network.state_dict().items()
    tensors = {key: one.half() if one.is_floating_point() else one for key, one in state}
    write_atomically(path, save({key: one.contiguous() for key, one in tensors.items()}))
    index = dict(
        file=path.name,
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        n_glyphs=N_GLYPHS,
        n_textures=glyphs.N_TEXTURES,
        glyphs=glyphs.classes(),
        glyph_accuracy=curve[-1]["glyph_accuracy"],
        texture_accuracy=curve[-1]["texture_accuracy"],
        settings=settings,
        seconds=round(seconds),
        curve=curve,
    )
    text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / EMBEDDED_INDEX, text.encode())
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    rows = "\n".join(ROW.format(**entry) for entry in curve)
    page = README.format(**index | {"settings": words, "rows": rows})
    write_atomically(folder / "README.md", page.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images-per-epoch", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--texture-weight", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-test", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=data_folder() / "weights")
    options = parser.parse_args()
    start = time.perf_counter()
    network, curve = train(options)
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    settings |= dict(threads=torch.get_num_threads(), torch=torch.__version__.split("+")[0])
    write(network, curve, settings, time.perf_counter() - start, options.out)


if __name__ == "__main__":
    main()
