"""Lesson 01: features of a plain network, squared distances, whitening, the image left out."""

import copy

import numpy as np

from pandalib.teach.exercises.base import Exercise
from pandalib.teach.exercises.neighbours import leave_one_out, nearest_others, squared_distances

MEAN = np.array([0.485, 0.456, 0.406])[:, None, None]
STD = np.array([0.229, 0.224, 0.225])[:, None, None]


def some_images(n, height=6, width=5):
    """Images uint8 (n, 3, height, width), each colour of another brightness."""
    rng = np.random.default_rng(n)
    levels = np.array([200, 120, 60])[:, None, None]
    return (rng.random((n, 3, height, width)) * levels).astype(np.uint8)


class ImageNetInput(Exercise):
    key = "imagenet_input"

    def cases(self):
        for n in (2, 5):
            yield (some_images(n),)

    def solution(self, images):
        import torch  # as in `checks`: the lessons without a network need none

        pixels = torch.from_numpy(np.asarray(images)).float() / 255
        mean, std = (torch.tensor(numbers, dtype=torch.float32) for numbers in (MEAN, STD))
        return (pixels - mean) / std

    def mistakes(self, images):
        scaled = np.float64(images) / 255
        return {
            "not_scaled": (np.float64(images) - MEAN) / STD,
            "only_scaled": scaled,
            "no_std": scaled - MEAN,
            "no_mean": scaled / STD,
            "order": scaled / STD - MEAN,
            "colours_reversed": (scaled[:, ::-1] - MEAN) / STD,
            "own_statistics": (scaled - scaled.mean(axis=(0, 2, 3))[:, None, None])
            / scaled.std(axis=(0, 2, 3))[:, None, None],
        }


def small_network(n_classes):
    """Convolution, BatchNorm, ReLU, pooling and a classifier, fresh from its making: it trains."""
    import torch  # the lessons without a network need none
    from torch import nn  # the lessons without a network need none

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
            )
            self.classifier = nn.Linear(4, n_classes)

        def forward(self, x):
            return self.classifier(self.features(x).mean(dim=(2, 3)))

        def __eq__(self, other):  # by what must not change: the weights, and no hook is left
            return self._facts() == other._facts()

        __hash__ = nn.Module.__hash__

        def __repr__(self):
            return "a small network"

        def _facts(self):
            return [p.tolist() for p in self.parameters()], [
                len(module._forward_hooks) for module in self.modules()
            ]

    rng = np.random.default_rng(n_classes)
    network = Small()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.ndim:
                tensor.copy_(torch.from_numpy(rng.uniform(0.2, 1.0, size=tensor.shape)))
        network.features[0].weight -= 0.5
    return network


class ExtractFeatures(Exercise):
    key = "extract_features"
    tolerance = 1e-4
    returns = "array"
    batch = 32

    def cases(self):
        for n, n_classes in ((3, 7), (37, 5)):
            network = small_network(n_classes)
            yield network, "features", some_images(n)

    def solution(self, network, layer, images):
        return self._run(network, layer, images).mean(axis=(2, 3))

    def mistakes(self, network, layer, images):
        maps = self._run(network, layer, images)
        whole = len(images) // self.batch * self.batch
        return {
            "training_mode": self._run(network, layer, images, training=True).mean(axis=(2, 3)),
            "not_normalised": self._run(network, layer, images, scale=False).mean(axis=(2, 3)),
            "logits": self._run(network, "", images),
            "last_batch_only": maps[whole if whole < len(images) else -self.batch :].mean(
                axis=(2, 3)
            ),
            "maximum": maps.max(axis=(2, 3)),
            "summed": maps.sum(axis=(2, 3)),
            "over_channels": maps.mean(axis=1).reshape(len(images), -1),
            "not_pooled": maps,
            "flattened": maps.reshape(len(images), -1),
        }

    def _run(self, network, layer, images, *, training=False, scale=True):
        """The output of a layer, "" for the network's own, in batches."""
        import torch  # the lessons without a network need none

        network = copy.deepcopy(network).train(training)
        kept = []
        network.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output: kept.append(output.float().numpy())
        )
        with torch.inference_mode():
            for start in range(0, len(images), self.batch):
                part = images[start : start + self.batch]
                batch = ImageNetInput().solution(part) if scale else torch.from_numpy(part) / 255
                network(batch)
        return np.concatenate(kept)


def two_sets():
    """Yield galleries and queries of several sizes."""
    rng = np.random.default_rng(7)
    for n, m, d in ((5, 3, 2), (20, 7, 16), (1, 4, 3)):
        yield rng.normal(size=(n, d)), rng.normal(size=(m, d))


def distances_by_product(gallery, queries):
    """Squared distances (m, n) by one matrix product."""
    return (queries**2).sum(axis=1)[:, None] + (gallery**2).sum(axis=1) - 2 * queries @ gallery.T


class SquaredDistances(Exercise):
    key = "squared_distances"
    tolerance = 1e-9
    returns = "array"

    def cases(self):
        return two_sets()

    def solution(self, gallery, queries):
        return distances_by_product(gallery, queries)

    def mistakes(self, gallery, queries):
        squared = squared_distances(gallery, queries)
        product = queries @ gallery.T
        return {
            "root": np.sqrt(squared),
            "transposed": squared.T,
            "no_factor": squared + product,
            "sign": squared + 4 * product,
            "product_only": product,
            "mean": squared / queries.shape[1],
        }


class WhiteningMatrix(Exercise):
    key = "whitening_matrix"
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(12)
        for n, d, shrinkage in ((40, 3, 0.1), (25, 6, 0.3), (5, 8, 0.5)):
            mixed = rng.normal(size=(n, d)) * np.geomspace(3, 0.3, d)
            turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
            yield mixed @ turn + 2.0, shrinkage

    def solution(self, features, shrinkage):
        return self._matrix(self._covariance(features), shrinkage, -0.5)

    def mistakes(self, features, shrinkage):
        covariance = self._covariance(features)
        n, d = features.shape
        alone = np.diag(np.diag(covariance))
        return {
            "not_centred": self._matrix(features.T @ features / n, shrinkage, -0.5),
            "no_root": self._matrix(covariance, shrinkage, -1.0),
            "stretched": self._matrix(covariance, shrinkage, 0.5),
            "not_averaged": self._matrix(covariance * n, shrinkage, -0.5),
            "no_turn": self._matrix(alone, shrinkage, -0.5),
            "shares_swapped": self._matrix(covariance, 1 - shrinkage, -0.5),
            "fixed_floor": self._matrix(covariance + shrinkage * np.eye(d), 0.0, -0.5),
        }

    def _covariance(self, features):
        centred = np.float64(features) - np.float64(features).mean(axis=0)
        return centred.T @ centred / len(centred)

    def _matrix(self, covariance, shrinkage, power):
        spread, axes = np.linalg.eigh(covariance)
        spread = np.clip(spread, 1e-12, None)
        shrunk = (1 - shrinkage) * spread + shrinkage * spread.mean()
        return (axes * shrunk**power) @ axes.T


class LeaveOneOut(Exercise):
    key = "leave_one_out"
    tolerance = 1e-9
    by_name = ("k",)

    def cases(self):
        # With k = 1 sum, mean and last are the same; the other cases tell them apart.
        rng = np.random.default_rng(8)
        for n, d, k in ((12, 3, 2), (30, 8, 1), (25, 4, 3)):
            # Of few bits, so that a distance of zero is zero by the matrix product too.
            features = np.round(64 * rng.normal(size=(n, d))) / 64
            features[n // 2] = features[0]  # an image that is in the set twice
            yield features, k

    def solution(self, features, k):
        return leave_one_out(features, k)

    def mistakes(self, features, k):
        squared = squared_distances(features, features)
        nearest = nearest_others(features, k)
        return {
            "self_kept": np.sort(squared, axis=1)[:, :k].sum(axis=1),
            "zeros_dropped": np.sort(np.where(squared == 0, np.inf, squared))[:, :k].sum(axis=1),
            "root": np.sqrt(nearest).sum(axis=1),
            "mean": nearest.mean(axis=1),
            "last_only": nearest[:, -1],
            "sign": -nearest.sum(axis=1),
        }


EXERCISES = [
    ImageNetInput(),
    ExtractFeatures(),
    SquaredDistances(),
    WhiteningMatrix(),
    LeaveOneOut(),
]
