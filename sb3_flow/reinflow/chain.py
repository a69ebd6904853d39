"""The Markov chain that a noisy flow is, and how likely it makes a path that was taken before.

Everything here is a pure function of tensors; noise comes in as an argument. Source: ReinFlow (arXiv 2505.22094),
model/flow/ft_ppo/ppoflow.py of its authors' code. Shapes: B batch, D numbers in an action chunk, K flow steps.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_flow.common.flow import LOG_2PI

# Noise further out is cut off; the density of what is left differs by a factor that no parameter is in
HIGHEST_NOISE = 3.0


class Transition(NamedTuple):
    """Where the next point lies: a Gaussian with independent numbers."""

    mean: th.Tensor  # (B, D)
    log_std: th.Tensor  # (B, D)


TransitionFn = Callable[[int, th.Tensor], Transition]  # (i, x_i) -> that of x_{i+1}, the state already bound


class Score(NamedTuple):
    """What the chain says of paths, a mean over their (K + 1) D numbers, so that neither K nor D scales it."""

    log_prob: th.Tensor  # (B,): joint log-density
    entropy: th.Tensor  # (B,): sum of the entropies of x_0 and of the transitions from the path's points
    std: th.Tensor  # (): mean sigma


def sample(transition: TransitionFn, noise: th.Tensor) -> th.Tensor:
    """Take a path.

    :param transition: of the chain
    :param noise: (K + 1, B, D): x_0, then the noise of each step
    :return: (K + 1, B, D), its points from x_0 to x_K
    """
    points = [noise[0]]
    for i in range(len(noise) - 1):
        mean, log_std = transition(i, points[-1])
        points.append(mean + log_std.exp() * noise[i + 1])
    return th.stack(points)


def score(transition: TransitionFn, points: th.Tensor) -> Score:
    """The joint density of paths and the chain's entropy, under the parameters that `transition` has now.

    :param transition: of the chain; it is asked at the same times at which the paths were sampled
    :param points: (K + 1, B, D) of `sample`, under whatever parameters
    """
    steps, _, dim = points.shape
    log_prob = -0.5 * (points[0].square() + LOG_2PI).sum(dim=1)  # log N(x_0; 0, I)
    entropy = th.full_like(log_prob, 0.5 * (LOG_2PI + 1) * dim)
    stds = []
    for i in range(steps - 1):
        mean, log_std = transition(i, points[i])
        z = (points[i + 1] - mean) * (-log_std).exp()
        log_prob = log_prob - (0.5 * (z.square() + LOG_2PI) + log_std).sum(dim=1)
        entropy = entropy + (0.5 * (LOG_2PI + 1) + log_std).sum(dim=1)
        stds.append(log_std.detach().exp().mean())
    return Score(log_prob / (steps * dim), entropy / (steps * dim), th.stack(stds).mean())


def highest_std(low: float, high: float, done: float, hold: float, decay: float) -> float:
    """The upper bound of sigma in the course of training: it stays, then falls along half a cosine.

    :param low: sigma's lower bound
    :param high: its upper bound at the start
    :param done: share of training that is done, in [0, 1]
    :param hold: share after which the bound begins to fall
    :param decay: share of the way from `low` to `high` at which it ends
    """
    last = low + decay * (high - low)
    falling = min(max((done - hold) / max(1 - hold, 1e-12), 0.0), 1.0)
    return last + (high - last) * 0.5 * (1 + math.cos(math.pi * falling))
