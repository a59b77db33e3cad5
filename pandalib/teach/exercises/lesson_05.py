"""Lesson 05: cross-entropy without overflow, the balanced loop, unseen kinds alone."""

import copy

import numpy as np

from pandalib.metrics import roc_auc
from pandalib.teach.exercises.base import Exercise
from pandalib.teach.exercises.lesson_02 import by_its_weights, small_trainable


class BinaryCrossEntropy(Exercise):
    key = "binary_cross_entropy"
    tolerance = 1e-6

    def cases(self):
        rng = np.random.default_rng(51)
        for n, share in ((6, 0.5), (40, 0.3)):
            yield rng.normal(size=n) * 3, (rng.random(n) < share).astype(float)
        # Sure, and wrong.
        yield np.array([900.0, -900.0, 0.0, -40.0]), np.array([0.0, 1.0, 1.0, 0.0])

    def solution(self, logits, targets):
        return float(self._terms(logits, targets).mean())

    def mistakes(self, logits, targets):
        terms = self._terms(logits, targets)
        probability = 1 / (1 + np.exp(-logits))
        likelihood = np.where(targets == 1, np.log(probability), np.log(1 - probability))
        return {
            "flipped": self._terms(logits, 1 - targets).mean(),
            "overflow": -likelihood.mean(),
            "total": terms.sum(),
            "outliers_only": (targets * terms).mean(),
            "squared": ((probability - targets) ** 2).mean(),
            "sign": -terms.mean(),
            "each_image": terms,
        }

    def _terms(self, logits, targets):
        return np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))


class ExposureLoop(Exercise):
    key = "exposure_loop"
    tolerance = 1e-3

    def cases(self):
        import torch  # the lessons without a network need none

        # 70 normal images: two full batches and one of 6; piles larger and smaller than that.
        rng = np.random.default_rng(54)
        for n, n_outliers, epochs in ((70, 45, 2), (40, 90, 2)):
            normal, outliers, new = (
                torch.from_numpy(np.float32(rng.normal(size=(size, 3, 2, 2)) + shift))
                for size, shift in ((n, 1.0), (n_outliers, 0.4), (9, 0.7))
            )
            yield small_trainable(n), _small_layer(n), normal, outliers, new, epochs, 0.3, 0.2

    def solution(self, trainable, layer, normal, outliers, new, epochs, lr, max_grad_norm):
        settings = dict(epochs=epochs, lr=lr, max_grad_norm=max_grad_norm)
        return _exposed(trainable, layer, normal, outliers, new, **settings)

    def mistakes(self, trainable, layer, normal, outliers, new, epochs, lr, max_grad_norm):
        import torch  # the lessons without a network need none

        def run(**mistake):
            settings = dict(epochs=epochs, lr=lr, max_grad_norm=max_grad_norm) | mistake
            return _exposed(trainable, layer, normal, outliers, new, **settings)

        return {
            "targets_swapped": run(swapped=True),
            "outliers_from_the_top": run(turn="batch"),
            "each_epoch_from_the_top": run(turn="epoch"),
            "all_outliers_each_time": run(turn="all"),
            "training_mode": run(training_mode=True),
            "only_the_layer": run(train_network=False),
            "layer_forgotten": run(train_layer=False),
            "not_clipped": run(max_grad_norm=1e9),
            "same_order": run(new_order=False),
            "last_batch_lost": run(even=True),
            "gradients_pile_up": run(zero=False),
            "probabilities": torch.sigmoid(run()),
            "untrained": run(epochs=0),
            "epochs_from_zero": run(first=0),
            "no_momentum": run(momentum=0.0),
            "full_piles": run(turn="full"),
        }


def _small_layer(seed):
    """A linear layer of 4 features."""
    import torch  # the lessons without a network need none

    layer = by_its_weights(torch.nn.Linear, "a small layer")(4, 1)
    rng = np.random.default_rng(seed + 1)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.copy_(torch.from_numpy(rng.normal(size=tensor.shape)))
    return layer


def _exposed(
    trainable,
    layer,
    normal,
    outliers,
    new,
    *,
    epochs,
    lr,
    max_grad_norm,
    swapped=False,
    turn="never",
    training_mode=False,
    train_network=True,
    train_layer=True,
    new_order=True,
    even=False,
    zero=True,
    first=1,
    momentum=0.9,
):
    """The logits of new images after training; the options from `swapped` on are mistakes."""
    import torch  # the lessons without a network need none
    from torch.nn import functional as F  # the lessons without a network need none

    network = copy.deepcopy(trainable).requires_grad_(train_network).train(training_mode)
    layer = copy.deepcopy(layer).requires_grad_(train_layer)
    parameters = [one for one in (*network.parameters(), *layer.parameters()) if one.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    used = 0
    for epoch in range(first, first + epochs):
        order = np.random.default_rng((0, epoch if new_order else 1)).permutation(len(normal))
        if turn == "epoch":
            used = 0
        for rows in torch.from_numpy(order).split(32):
            if even and len(rows) < 32:
                continue
            n_others = 32 if turn == "full" else len(rows)
            others = (used + torch.arange(n_others)) % len(outliers)
            used += 0 if turn == "batch" else n_others
            if turn == "all":
                others = torch.arange(len(outliers))
            maps = network(torch.cat([normal[rows], outliers[others]]))
            logits = layer(maps.mean(dim=(2, 3)))[:, 0]
            targets = (torch.arange(len(logits)) >= len(rows)).float()
            loss = F.binary_cross_entropy_with_logits(logits, 1 - targets if swapped else targets)
            if zero:
                optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimiser.step()
    with torch.no_grad():
        return layer(network(new).mean(dim=(2, 3)))[:, 0]


class AucOnUnseen(Exercise):
    key = "auc_on_unseen"

    def cases(self):
        rng = np.random.default_rng(53)
        for n, n_kinds, seen in ((60, 5, [1, 3]), (90, 7, [2]), (40, 4, [1])):
            kinds = rng.integers(0, n_kinds, size=n)
            kinds[:n_kinds] = np.arange(n_kinds)
            scores = rng.normal(size=n) + (kinds > 0) + np.isin(kinds, seen)
            yield scores, kinds, seen  # a list, as in the lesson

    def solution(self, scores, kinds, seen):
        return self._auc(scores, kinds, ~np.isin(kinds, seen))

    def mistakes(self, scores, kinds, seen):
        unseen = sorted(set(kinds.tolist()) - {0, *seen})
        by_kind = [self._auc(scores, kinds, np.isin(kinds, [0, kind])) for kind in unseen]
        return {
            "everything": self._auc(scores, kinds, kinds >= 0),
            "seen_only": self._auc(scores, kinds, np.isin(kinds, [0, *seen])),
            "called_normal": roc_auc(np.isin(kinds, unseen), scores),
            "direction": 1 - self.solution(scores, kinds, seen),
            "mean_of_kinds": np.mean(by_kind),
            "kinds_counted": len(unseen),
        }

    def _auc(self, scores, kinds, rows):
        return roc_auc(kinds[rows] > 0, scores[rows])


EXERCISES = [BinaryCrossEntropy(), ExposureLoop(), AucOnUnseen()]
