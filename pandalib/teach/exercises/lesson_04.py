"""Lesson 04: the Fisher information from its definition, the penalty, and the loop of EWC."""

import numpy as np

from pandalib.teach.exercises.base import Exercise


class FisherDiagonal(Exercise):
    key = "fisher_diagonal"
    tolerance = 1e-6
    returns = "array"

    def cases(self):
        # Their mean is not zero, as with true labels, so that its square is another number.
        rng = np.random.default_rng(41)
        for n, p in ((8, 5), (32, 12), (50, 2)):
            yield (rng.normal(size=(n, p)) * np.geomspace(2, 0.3, p) + 0.4,)

    def solution(self, gradients):
        return (gradients**2).mean(axis=0)

    def mistakes(self, gradients):
        squares = gradients**2
        return {
            "square_of_mean": gradients.mean(axis=0) ** 2,
            "sum": squares.sum(axis=0),
            "mean": gradients.mean(axis=0),
            "absolute": np.abs(gradients).mean(axis=0),
            "variance": gradients.var(axis=0),
            "root": np.sqrt(squares.mean(axis=0)),
            "each_sample": squares.mean(axis=1),
            "matrix": gradients.T @ gradients / len(gradients),
        }


class FisherFromDefinition(Exercise):
    key = "fisher_from_definition"
    tolerance = 1e-6
    returns = "array"

    def cases(self):
        rng = np.random.default_rng(45)
        for n, d, n_classes in ((6, 3, 2), (40, 4, 5), (25, 2, 3)):
            yield rng.normal(size=(n, d)) + 0.3, 1.5 * rng.normal(size=(n_classes, d))

    def solution(self, x, weights):
        p, gradients = self._parts(x, weights)
        return (p.T[:, :, None, None] * gradients**2).sum(axis=0).mean(axis=0)

    def mistakes(self, x, weights):
        p, gradients = self._parts(x, weights)  # (n, c) and (c, n, c, d): label, sample, parameter
        squares = gradients**2
        each = p.T[:, :, None, None] * squares
        likeliest = p.argmax(axis=1)
        mixed = (p.T[:, :, None, None] * gradients).mean(axis=1)
        return {
            "zero": np.zeros_like(weights),
            "likeliest": squares[likeliest, np.arange(len(x))].mean(axis=0),
            "uniform": squares.mean(axis=(0, 1)),
            "unweighted": squares.sum(axis=0).mean(axis=0),
            "total": each.sum(axis=(0, 1)),
            "square_of_mean": (mixed**2).sum(axis=0),
            "of_p": ((p**2).T[:, :, None, None] * each).sum(axis=0).mean(axis=0),
            "weights_squared": (p.T[:, :, None, None] * each).sum(axis=0).mean(axis=0),
        }

    def _parts(self, x, weights):
        p = _softmax(x @ weights.T)
        labels = np.eye(len(weights))[:, None, :]  # one row for each label
        return p, (labels - p)[..., None] * x[:, None, :]


def _softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


class PenaltyGradient(Exercise):
    key = "penalty_gradient"
    given = "tensors"

    def cases(self):
        # The lesson hands over a layer at a time, so one case has the shape of a convolution.
        rng = np.random.default_rng(42)
        for shape, ewc_lambda in (((4,), 10.0), ((3, 2, 2, 2), 0.5), ((7,), 3.0)):
            theta, start = rng.normal(size=shape), rng.normal(size=shape)
            yield theta, start, rng.gamma(1.0, size=shape), ewc_lambda

    def solution(self, theta, start, fisher, ewc_lambda):
        return ewc_lambda * fisher * (theta - start)

    def mistakes(self, theta, start, fisher, ewc_lambda):
        moved = theta - start
        gradient = ewc_lambda * fisher * moved
        return {
            "no_strength": fisher * moved,
            "no_fisher": ewc_lambda * moved,
            "half": gradient / 2,
            "twice": 2 * gradient,
            "sign": -gradient,
            "to_zero": ewc_lambda * fisher * theta,
            "squared": gradient * moved,
            "value": (gradient * moved).sum() / 2,
        }


class EWCLoop(Exercise):
    key = "ewc_loop"
    tolerance = 1e-4

    def cases(self):
        import torch  # the lessons without a network need none

        # A limit that shortens every step, one that shortens only the first, and none to speak of.
        rng = np.random.default_rng(44)
        for n, limit, steps in ((5, 0.5, 6), (12, 3.0, 5), (4, 100.0, 4)):
            start, goal = rng.normal(size=n), rng.normal(scale=3, size=n)
            fisher = rng.gamma(1.0, size=n)
            start, fisher = (torch.from_numpy(np.float32(array)) for array in (start, fisher))
            yield start, fisher, 2.0, Bowl(goal), 0.1, limit, steps

    def solution(self, start, fisher, ewc_lambda, loss_of, lr, max_grad_norm, steps):
        return _adapt(start, fisher, ewc_lambda, loss_of, lr, max_grad_norm, steps)

    def mistakes(self, start, fisher, ewc_lambda, loss_of, lr, max_grad_norm, steps):
        def run(weights=fisher, n_steps=steps, **mistake):
            pace = (lr, max_grad_norm, n_steps)
            return _adapt(start, weights, ewc_lambda, loss_of, *pace, **mistake)

        return {
            "no_penalty": run(strength=0),
            "no_fisher": run(weights=fisher * 0 + 1),
            "twice": run(strength=2),
            "pushed_away": run(strength=-1),
            "to_zero": run(target=0 * start),
            "clipped_early": run(clip="loss"),
            "not_clipped": run(clip="never"),
            "each_entry": run(clip="entry"),
            "uphill": run(sign=-1),
            "one_step_missing": run(n_steps=steps - 1),
            "first_gradient": run(at_start=True),
        }


class Bowl:
    """A loss of the parameters, lowest at a goal: stands for compactness in the check."""

    def __init__(self, goal):
        self.goal = goal

    def __call__(self, theta):
        import torch  # the lessons without a network need none

        return ((theta - torch.as_tensor(self.goal, dtype=theta.dtype)) ** 2).sum() / 2

    def __eq__(self, other):
        return isinstance(other, Bowl) and np.array_equal(self.goal, other.goal)

    __hash__ = None

    def __repr__(self):
        return "loss_of"


def _adapt(
    start,
    fisher,
    ewc_lambda,
    loss_of,
    lr,
    max_grad_norm,
    steps,
    *,
    strength=1,
    target=None,
    clip="all",
    sign=1,
    at_start=False,
):
    """The parameters after the last step; the last options are mistakes."""
    import torch  # the lessons without a network need none

    target = start if target is None else target
    theta = start.detach().clone()
    for _ in range(steps):
        at = (start if at_start else theta).detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss_of(at), at)
        pull = strength * ewc_lambda * fisher * (at.detach() - target)
        if clip == "loss":
            gradient = gradient * min(1.0, max_grad_norm / float(gradient.norm())) + pull
        else:
            gradient = gradient + pull
        if clip == "all":
            gradient = gradient * min(1.0, max_grad_norm / float(gradient.norm()))
        elif clip == "entry":
            gradient = gradient.clamp(-max_grad_norm, max_grad_norm)
        theta = theta - sign * lr * gradient
    return theta


EXERCISES = [FisherDiagonal(), FisherFromDefinition(), PenaltyGradient(), EWCLoop()]
