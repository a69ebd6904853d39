"""Controlled Ornstein-Uhlenbeck processes: policies that are paths from a wide Gaussian, and what such a path costs.

The process without control has the prior N(0, s^2 I) for its stationary distribution and runs back in time as it does
forward. What a control adds to that is the cost of its path: the log-density of the path forward less that of the same
path backward, whose mean over paths is at least the negative entropy of their ends (arXiv 2502.02316).

Pure functions of tensors and noise. Shapes: B batch, D action dimension (the whole chunk), K steps.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_flow.common.flow import LOG_2PI, log_det_tanh

Control = Callable[[int, th.Tensor], th.Tensor]  # (i, (B, D)) -> (B, D), the state already bound


class Kernel(NamedTuple):
    """A Gaussian with independent numbers."""

    mean: th.Tensor
    std: th.Tensor  # of a shape that broadcasts to that of the mean


class ControlledOU(NamedTuple):
    """`dx = (-x / s^2 + u) d eta + sqrt(2 d eta) eps`, in K Euler-Maruyama steps."""

    control: Control
    step_sizes: th.Tensor  # (K, D) eta
    prior_std: float  # s

    def transition(self, i: int, x: th.Tensor) -> Kernel:
        """Of x_{i+1} given x_i, (B, D)."""
        eta = self.step_sizes[i]
        return Kernel(x + eta * (self.control(i, x) - x / self.prior_std**2), (2 * eta).sqrt())

    def reversal(self, points: th.Tensor) -> Kernel:
        """Of x_i given x_{i+1} for all i at once, (K, B, D): that of the process without control.

        :param points: (K + 1, B, D)
        """
        eta = self.step_sizes.unsqueeze(1)  # (K, 1, D)
        x_next = points[1:]
        return Kernel(x_next - eta * x_next / self.prior_std**2, (2 * eta).sqrt())


class PathCost(NamedTuple):
    """What a path costs, in nats; the sum of both is in the losses."""

    running: th.Tensor  # (B,): sum of log forward less log backward kernels, squash included
    prior: th.Tensor  # (B,): log-density of x_0

    @property
    def total(self) -> th.Tensor:
        return self.running + self.prior


def cosine_schedule(steps: int, lowest: float = 1e-3, offset: float = 0.008) -> th.Tensor:
    """Relative sizes of K steps, from 1 down to almost `lowest`, (K,).

    With t = (K - i) / K they are `(1 - lowest) cos^2(pi/2 (1 + offset - t) / (1 + offset)) + lowest`.

    :param steps: K
    :param lowest: > 0
    :param offset: keeps the first step below 1
    """
    t = 1 - th.arange(steps) / steps
    return (1 - lowest) * (math.pi / 2 * (1 + offset - t) / (1 + offset)).cos().square() + lowest


def simulate(process: ControlledOU, noise: th.Tensor) -> th.Tensor:
    """The points x_0 ... x_K of paths, before the squash, (K + 1, B, D).

    :param process: the process
    :param noise: (K + 1, B, D) standard normal: of x_0, then of each step
    """
    points = [process.prior_std * noise[0]]
    for i in range(noise.shape[0] - 1):
        mean, std = process.transition(i, points[-1])
        points.append(mean + std * noise[i + 1])
    return th.stack(points)


def path_cost(process: ControlledOU, points: th.Tensor, noise: th.Tensor) -> PathCost:
    """Cost of simulated paths, whose ends are squashed by tanh.

    Both kernels of a step have the same standard deviation, of which nothing is left in the difference of their
    log-densities.

    :param process: the process
    :param points: (K + 1, B, D) of `simulate`
    :param noise: (K + 1, B, D) that they were made from
    """
    mean, std = process.reversal(points)
    backward = (points[:-1] - mean) / std  # (K, B, D)
    log_ratio = 0.5 * (backward.square() - noise[1:].square()).sum(dim=(0, 2))
    log_prior = -0.5 * (noise[0].square() + LOG_2PI).sum(dim=1) - noise.shape[2] * math.log(process.prior_std)
    return PathCost(log_ratio - log_det_tanh(points[-1]).sum(dim=1), log_prior)
