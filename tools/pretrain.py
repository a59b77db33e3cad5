"""Pretrain the embedded backbone on the glyphs: a ResNet of four basic blocks, about 20 minutes on 2 cores.

    python tools/pretrain.py            remakes data/weights/ : the weights, their index and README

Every epoch sees new images (they are drawn, so there is no end of them), drawn by a second process while the first
one trains. The loss is the cross-entropy of the glyph plus 0.3 times that of the background texture: features of
textures are wanted later, for surfaces. bf16 autocast, channels_last, AdamW, one-cycle. Seeded; another machine or
another number of threads rounds differently, so a remade file has another SHA-256, which the index then records.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pandalib.backbones import embedded_network, normalise  # noqa: E402
from pandalib.datasets.synthetic import glyphs  # noqa: E402
from pandalib.io import data_folder, sha256_of, write_atomically  # noqa: E402
from pandalib.weights import EMBEDDED_INDEX  # noqa: E402


def accuracies(
    net: torch.nn.Module, images: np.ndarray, glyph_labels: np.ndarray, texture_labels: np.ndarray
) -> tuple[float, float]:
    net.eval()
    n_glyphs = len(glyphs.classes())
    with torch.inference_mode():
        logits = torch.cat(
            [net(normalise(images[i : i + 500])) for i in range(0, len(images), 500)]
        ).numpy()
    net.train()
    return (
        float((logits[:, :n_glyphs].argmax(1) == glyph_labels).mean()),
        float((logits[:, n_glyphs:].argmax(1) == texture_labels).mean()),
    )


def train(
    epochs: int,
    images_per_epoch: int,
    batch: int,
    lr: float,
    weight_decay: float,
    texture_weight: float,
    seed: int,
    n_test: int,
):
    torch.manual_seed(seed)
    n_glyphs = len(glyphs.classes())
    net = embedded_network(n_glyphs + glyphs.N_TEXTURES).to(memory_format=torch.channels_last)
    steps = images_per_epoch // batch
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, lr, total_steps=steps * epochs, pct_start=0.1
    )
    test = glyphs.draw_batch(range(n_test), split="test", seed=seed)
    curve, start = [], time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as artist:
        draw = lambda epoch: artist.submit(  # noqa: E731
            glyphs.draw_batch,
            range(epoch * images_per_epoch, (epoch + 1) * images_per_epoch),
            seed=seed,
        )
        upcoming = draw(0)
        for epoch in range(epochs):
            images, glyph_labels, texture_labels = upcoming.result()
            glyph_labels, texture_labels = (
                torch.from_numpy(glyph_labels),
                torch.from_numpy(texture_labels),
            )
            if epoch + 1 < epochs:
                upcoming = draw(epoch + 1)
            total = 0.0
            for step in range(steps):
                rows = slice(step * batch, (step + 1) * batch)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = net(normalise(images[rows]))
                logits = logits.float()
                loss = F.cross_entropy(logits[:, :n_glyphs], glyph_labels[rows])
                loss = loss + texture_weight * F.cross_entropy(
                    logits[:, n_glyphs:], texture_labels[rows]
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item()
            glyph_accuracy, texture_accuracy = accuracies(net, *test)
            curve.append(
                dict(
                    epoch=epoch + 1,
                    loss=round(total / steps, 4),
                    glyph_accuracy=glyph_accuracy,
                    texture_accuracy=texture_accuracy,
                )
            )
            print(
                *(f"{key} {value:.4g}" for key, value in curve[-1].items()),
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    net.half().float()  # what is stored is float16: measure that
    return net.eval(), curve, accuracies(net, *test), time.perf_counter() - start


README = """# Weights of the embedded tier

`{file}`: a torchvision `ResNet(BasicBlock, [1, 1, 1, 1])`, float16, classifier included: {n_glyphs} glyphs, then
{n_textures} background textures. Trained by this project on images that it draws itself; no image and no weight of
anyone else is in it. Remake it with `python tools/pretrain.py` (this page and `index.json` are written by it).

| | |
|---|---|
| SHA-256 | `{sha256}` |
| size | {bytes} bytes |
| glyph accuracy, {images} new test images | **{glyph:.3f}** ({n_glyphs} classes, chance {chance:.4f}) |
| texture accuracy, same images | {texture:.3f} ({n_textures} classes) |
| settings | {settings} |
| time | {seconds} s on {threads} threads |

| epoch | training loss | glyph accuracy | texture accuracy |
|---|---|---|---|
{curve}

Another machine, thread count or torch release rounds differently: a remade file has another SHA-256 and figures that
differ in the third decimal. `index.json` records the hash of the file beside it, and loading checks it.
"""


def write(
    net: torch.nn.Module,
    settings: dict,
    curve: list[dict],
    accuracy: tuple[float, float],
    seconds: float,
    folder: Path,
) -> Path:
    """The weights first, then the index that names their hash: a run killed in between leaves a mismatch that loading refuses."""
    tensors = {
        key: value.half() if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }
    path = folder / "glyphs_resnet4.safetensors"
    write_atomically(path, save({key: value.contiguous() for key, value in tensors.items()}))
    index = dict(
        file=path.name,
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        n_glyphs=len(glyphs.classes()),
        n_textures=glyphs.N_TEXTURES,
        glyphs=glyphs.classes(),
        glyph_accuracy=accuracy[0],
        texture_accuracy=accuracy[1],
        settings=settings,
        seconds=round(seconds),
        curve=curve,
    )
    write_atomically(
        folder / EMBEDDED_INDEX, (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode()
    )
    rows = "\n".join(
        f"| {r['epoch']} | {r['loss']:.3f} | {r['glyph_accuracy']:.3f} | {r['texture_accuracy']:.3f} |"
        for r in curve
    )
    page = README.format(
        **{
            key: index[key]
            for key in ("file", "sha256", "bytes", "n_glyphs", "n_textures", "seconds")
        },
        images=settings["n_test"],
        glyph=accuracy[0],
        texture=accuracy[1],
        chance=1 / index["n_glyphs"],
        curve=rows,
        settings=", ".join(f"{key} {value}" for key, value in settings.items()),
        threads=settings["threads"],
    )
    write_atomically(folder / "README.md", page.encode())
    return path


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
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    net, curve, accuracy, seconds = train(**settings)
    settings |= dict(threads=torch.get_num_threads(), torch=torch.__version__.split("+")[0])
    print(
        write(net, settings, curve, accuracy, seconds, options.out),
        f"glyph accuracy {accuracy[0]:.4f}",
    )


if __name__ == "__main__":
    main()
