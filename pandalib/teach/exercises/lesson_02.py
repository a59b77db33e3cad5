"""Lesson 02: the training loop, from its loss through a clipped gradient and one step."""

import copy

import numpy as np

from pandalib.teach.exercises.base import Exercise


class CompactnessLoss(Exercise):
    key = "compactness_loss"
    given = "tensors_with_gradients"

    def cases(self):
        rng = np.random.default_rng(9)
        for n, d in ((4, 3), (32, 16), (7, 5)):
            yield rng.normal(size=(n, d)) + 1.5, rng.normal(size=d)

    def solution(self, features, centre):
        return ((features - centre) ** 2).mean()

    def mistakes(self, features, centre):
        squares = (features - centre) ** 2
        return {
            "batch_centre": ((features - features.mean(axis=0)) ** 2).mean(),
            "not_over_d": squares.sum(axis=1).mean(),
            "total": squares.sum(),
            "root": np.sqrt(squares.sum(axis=1)).mean(),
            "absolute": np.abs(features - centre).mean(),
            "each_image": squares.mean(axis=1),
            "mean_first": ((features.mean(axis=0) - centre) ** 2).mean(),
        }


class ClipGradient(Exercise):
    key = "clip_gradient"
    given = "tensors"

    def cases(self):
        # Two beyond the limit and two within it: what is short enough has to stay as it is.
        rng = np.random.default_rng(10)
        for n, size, limit in ((6, 2.0, 1.0), (50, 1.0, 0.1), (5, 0.01, 0.1), (20, 0.1, 3.0)):
            yield size * rng.normal(size=n), limit

    def solution(self, gradient, limit):
        length = (gradient**2).sum() ** 0.5
        return gradient * min(1.0, limit / length)

    def mistakes(self, gradient, limit):
        length = np.linalg.norm(gradient)
        return {
            "each_entry": np.clip(gradient, -limit, limit),
            "always": gradient * limit / length,
            "squared_norm": gradient * min(1.0, limit / length**2),
            "largest_entry": gradient * min(1.0, limit / np.abs(gradient).max()),
            "unit": gradient if length <= limit else gradient / length,
            "untouched": gradient,
        }


class SGDStep(Exercise):
    key = "sgd_step"

    def cases(self):
        import torch  # the lessons without a network need none

        # A first step, one amid a run, and one whose gradient is short enough.
        rng = np.random.default_rng(14)
        for n, size, moving in ((6, 2.0, 0.0), (9, 1.0, 1.0), (5, 0.01, 0.3)):
            weights, velocity, gradient = (
                torch.from_numpy(np.float32(scale * rng.normal(size=n)))
                for scale in (1.0, moving, size)
            )
            yield weights, velocity, gradient, 0.25, 0.9, 0.5

    def solution(self, weights, velocity, gradient, lr, momentum, max_grad_norm):
        gradient = ClipGradient().solution(gradient, max_grad_norm)
        velocity = momentum * velocity + gradient
        return weights - lr * velocity, velocity

    def mistakes(self, weights, velocity, gradient, lr, momentum, max_grad_norm):
        clipped = ClipGradient().solution(gradient, max_grad_norm)
        moved = momentum * velocity + clipped
        dampened = momentum * velocity + (1 - momentum) * clipped
        unclipped = momentum * velocity + gradient
        late = ClipGradient().solution(unclipped, max_grad_norm)
        scaled = momentum * velocity + lr * clipped
        return {
            "uphill": (weights + lr * moved, moved),
            "no_momentum": (weights - lr * clipped, clipped),
            "not_clipped": (weights - lr * unclipped, unclipped),
            "velocity_clipped": (weights - lr * late, late),
            "dampened": (weights - lr * dampened, dampened),
            "rate_in_velocity": (weights - scaled, scaled),
            "old_velocity": (weights - lr * velocity, moved),
            "gradient_only": (weights - lr * clipped, moved),
        }


class TrainingLoop(Exercise):
    key = "training_loop"
    tolerance = 1e-4

    def cases(self):
        import torch  # the lessons without a network need none

        # 70 images: two full batches of 32, and a last one of 6; then one batch alone.
        rng = np.random.default_rng(15)
        for n, epochs in ((70, 2), (10, 1)):
            frozen_features = torch.from_numpy(np.float32(rng.normal(size=(n, 3, 2, 2)) + 1))
            network = small_trainable(n)
            centre = network(frozen_features).mean(dim=(0, 2, 3)).detach()
            yield network, frozen_features, centre, epochs, 0.5, 0.1

    def solution(
        self,
        trainable,
        frozen_features,
        centre,
        epochs,
        lr,
        max_grad_norm,
        momentum=0.9,
        seed=0,
        loss=None,
    ):
        settings = dict(epochs=epochs, lr=lr, max_grad_norm=max_grad_norm, seed=seed, loss=loss)
        return _train(trainable, frozen_features, centre, momentum=momentum, **settings)

    def mistakes(self, trainable, frozen_features, centre, epochs, lr, max_grad_norm):
        def run(**mistake):
            settings = dict(epochs=epochs, lr=lr, max_grad_norm=max_grad_norm)
            return _train(trainable, frozen_features, centre, **settings, **mistake)

        right = run()
        return {
            "moving_centre": run(moving_centre=True),
            "training_mode": run(training_mode=True),
            "not_written_back": run(write_back=False),
            "same_order": run(new_order=False),
            "velocity_forgotten": run(forget="epoch"),
            "no_momentum": run(forget="step"),
            "last_batch_lost": run(even=True),
            "uphill": run(sign=-1),
            "without_the_first": right[1:],
            "last_only": right[-1],
            "all_the_same": [right[-1]] * len(right),
        }


def by_its_weights(module, words):
    """A class of such modules that are equal if their weights are, as what is handed over must be
    after a call; it prints these words.
    """
    import torch  # the lessons without a network need none

    class Small(module):
        def __eq__(self, other):
            return all(map(torch.equal, self.state_dict().values(), other.state_dict().values()))

        __hash__ = module.__hash__

        def __repr__(self):
            return words

    return Small


def small_trainable(seed):
    """A convolution with BatchNorm in evaluation mode; its running statistics are not 0 and 1."""
    import torch  # the lessons without a network need none
    from torch import nn  # the lessons without a network need none

    rng = np.random.default_rng(seed)
    small = by_its_weights(nn.Sequential, "a small network")
    network = small(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.ndim:
                tensor.copy_(torch.from_numpy(rng.uniform(0.3, 1.0, size=tensor.shape)))
    return network.requires_grad_(False)


def _train(
    trainable,
    frozen_features,
    centre,
    *,
    epochs,
    lr,
    max_grad_norm,
    momentum=0.9,
    seed=0,
    loss=None,
    moving_centre=False,
    training_mode=False,
    write_back=True,
    new_order=True,
    forget="never",
    even=False,
    sign=1,
):
    """The weights at first and after each epoch; the last options are mistakes."""
    import torch  # the lessons without a network need none
    from torch.nn.utils import vector_to_parameters  # the lessons without a network need none

    network = copy.deepcopy(trainable).requires_grad_(True).train(training_mode)
    parameters = list(network.parameters())
    weights = torch.cat([one.detach().flatten() for one in parameters])
    velocity, kept = torch.zeros_like(weights), [weights]
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng((seed, epoch if new_order else 1))
        order = torch.from_numpy(order.permutation(len(frozen_features)))
        if forget == "epoch":
            velocity = torch.zeros_like(weights)
        for rows in order.split(32):
            if even and len(rows) < 32:
                continue
            features = network(frozen_features[rows]).mean(dim=(2, 3))
            centre = features.detach().mean(dim=0) if moving_centre else centre
            value = (loss or CompactnessLoss().solution)(features, centre)
            pieces = torch.autograd.grad(value, parameters)
            gradient = sign * torch.cat([piece.flatten() for piece in pieces])
            if forget == "step":
                velocity = torch.zeros_like(weights)
            weights, velocity = SGDStep().solution(
                weights, velocity, gradient, lr, momentum, max_grad_norm
            )
            if write_back:
                vector_to_parameters(weights, parameters)
        kept.append(weights)
    return kept


EXERCISES = [CompactnessLoss(), ClipGradient(), SGDStep(), TrainingLoop()]
