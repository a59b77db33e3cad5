"""Where is something wrong? PatchCore's memory bank or SPADE, in the hands of the inspector.

Both have the same methods. `extract` gives what is known of a batch of images: pooled features, and
a row for each image from which maps are made. `see` takes in the rows of normal images one batch
after another, `learn` ends that, `maps` compares rows with the normal ones, and `maps_without` does
so for normal images themselves, each without its own group of near-duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pandalib.backbones import Backbone
from pandalib.methods.patchcore import MemoryBank, PatchCore
from pandalib.methods.spade import SPADE, Pyramids


class BankPlaces:
    """By a memory bank (`pandalib.methods.patchcore`)."""

    def __init__(self, backbone: Backbone, layers, *, bank_size, sigma, memory_mb, seed, **_):
        how = dict(layers=layers, bank_size=bank_size, sigma=sigma, memory_mb=memory_mb)
        self.detector = PatchCore(backbone, **how, seed=seed, progress=False)
        self.detector._check_settings()
        self.bank: MemoryBank | None = None

    def extract(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        detector, pooled, rows = self.detector, [], []
        for found in detector.backbone.iter_layers(images, detector.layers):
            pooled.append(found["pooled"].float().cpu().numpy())
            rows.append(detector.patches_of(found).numpy())
        return np.concatenate(pooled), np.concatenate(rows)

    def see(self, rows: np.ndarray, numbers) -> None:
        if self.bank is None:
            self.bank = self.detector.new_bank()
            if hasattr(self.detector, "memory_bank_"):  # more images for a detector
                self.bank.kept.append((self.detector.memory_bank_, self.detector.owners_))
        self.bank.add(torch.from_numpy(rows), numbers)
        self.grid = rows.shape[1:3]

    def learn(self, sample: np.ndarray, groups: np.ndarray, image_size) -> None:
        self.detector.fit_bank(*self.bank.close(), self.grid, image_size)
        self.bank = None

    def maps(self, rows: np.ndarray) -> np.ndarray:
        return self.detector.maps_of(torch.from_numpy(rows))

    def maps_without(self, rows: np.ndarray, numbers, groups: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the map of each of the normal images `numbers`; `groups` are those of all."""
        for row, number in zip(rows, numbers, strict=True):
            twins = np.flatnonzero(groups == groups[number])
            patches = torch.from_numpy(row[None].astype(np.float32))
            yield self.detector.maps_of(patches, without=twins)

    def tensors(self) -> dict[str, np.ndarray]:
        """What a file has to keep; `restore` takes it."""
        detector = self.detector
        return {"bank": detector.memory_bank_.numpy(), "owners": detector.owners_.numpy()}

    def expected(self, row: np.ndarray, n_sample: int, tensors: dict) -> dict[str, tuple]:
        """The shapes of `tensors`, from what `extract` gave of one image."""
        n = len(tensors.get("bank", ()))
        return {"bank": (n, row.shape[3]), "owners": (n,)}

    def restore(self, tensors: dict[str, np.ndarray], row: np.ndarray, image_size) -> None:
        bank, owners = torch.from_numpy(tensors["bank"]), torch.from_numpy(tensors["owners"])
        self.detector.fit_bank(bank, owners, row.shape[1:3], image_size)

    def __str__(self) -> str:
        return f"a memory bank of {len(self.detector.memory_bank_)} patches"

    def images_at_once(self) -> int:
        return self.detector._images_at_once()


class SpadePlaces:
    """By correspondences with the most similar of the sampled images (`pandalib.methods.spade`)."""

    def __init__(self, backbone: Backbone, layers, *, n_images, sigma, memory_mb, **_):
        how = dict(n_images=n_images, sigma=sigma, memory_mb=memory_mb)
        self.detector = SPADE(backbone, layers=layers, balanced=True, **how)
        self.detector._check_settings()

    def extract(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        detector = self.detector
        found = Pyramids.of(detector.backbone, images, detector.layers, dtype=np.float32)
        self.shapes = found.shapes
        return found.pooled.copy(), found.rows  # a view would keep all of the pyramids

    def see(self, rows: np.ndarray, numbers) -> None:
        """The sample is all that SPADE compares with."""

    def learn(self, sample: np.ndarray, groups: np.ndarray, image_size) -> None:
        self.detector.fit_pyramids(Pyramids(sample, self.shapes), image_size, groups=groups)

    def maps(self, rows: np.ndarray) -> np.ndarray:
        return self.detector.maps_of(Pyramids(rows, self.shapes))

    def maps_without(self, rows: np.ndarray, numbers, groups: np.ndarray) -> Iterator[np.ndarray]:
        return self.detector.iter_leave_one_out_maps(progress=False, groups=groups[numbers])

    def tensors(self) -> dict[str, np.ndarray]:
        return {"pyramids": self.detector.normal_.rows, "scales": self.detector.scales_}

    def expected(self, row: np.ndarray, n_sample: int, tensors: dict) -> dict[str, tuple]:
        return {"pyramids": (n_sample, row.shape[1]), "scales": (len(self.detector.layers),)}

    def restore(self, tensors: dict[str, np.ndarray], row: np.ndarray, image_size) -> None:
        pyramids = Pyramids(tensors["pyramids"], self.shapes)
        self.detector.fit_pyramids(pyramids, image_size, scales=tensors["scales"])

    def __str__(self) -> str:
        nearest = min(self.detector.n_images, len(self.detector.normal_))
        return f"SPADE with the {nearest} most similar images"

    def images_at_once(self) -> int:
        return self.detector._images_at_once()


PLACES = {"bank": BankPlaces, "spade": SpadePlaces}
