"""The flow policy's mathematics: rollout, path density, log-std bound and target entropy.

Everything here is a pure function of tensors; noise comes in as an argument. Equation numbers are those of SAC Flow
(arXiv 2509.25756). Shapes: B batch, D action dimension (the whole chunk), K flow steps.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch as th
from torch.nn.functional import softplus

RolloutKind = Literal["sde", "noise"]
ROLLOUT_KINDS: tuple[str, ...] = get_args(RolloutKind)
Likelihood = Literal["action", "path"]
LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)
MatchingTarget = Literal["atanh", "raw"]
MATCHING_TARGETS: tuple[str, ...] = get_args(MatchingTarget)
# Where atanh ends: actions at the bounds have no point of the flow
MAX_TARGET_ACTION = 0.99

LOG_2PI = math.log(2 * math.pi)
# log sigma* for which the path entropy at K = 4 under "sde" is the paper's target, 0 (docs/algorithm.md)
TARGET_LOG_STD = -1.08


class Velocity(NamedTuple):
    """What a velocity net says of one point of the path."""

    v: th.Tensor  # (B, D)
    log_std: th.Tensor  # (B, D), or anything that broadcasts to it; bounded


class Path(NamedTuple):
    """One sampled path, ended."""

    x: th.Tensor  # (B, D): A_1, before the squash; the action is tanh(x)
    log_prob: th.Tensor  # (B,): the log-density that is regularised, squash included; see `rollout`
    path_log_prob: th.Tensor  # (B,): joint log-density of the path, squash included (Eq. 15)
    log_std: th.Tensor  # (): mean log-std over batch, dimensions and steps


class Line(NamedTuple):
    """Where a straight path from noise to data starts, and the time at which the flow is compared with it."""

    x_0: th.Tensor  # (B, D) standard normal
    t: th.Tensor  # (B, 1) uniform in [0, 1)


VelocityFn = Callable[[th.Tensor, th.Tensor], Velocity]  # (x, t) -> Velocity, the context already bound


def drift(x: th.Tensor, v: th.Tensor, t: th.Tensor, std: th.Tensor) -> th.Tensor:
    """Drift of the SDE that has the marginals of the ODE `dx = v dt` (Eq. 13), for sigma that does not depend on x.

    It is `v + sigma^2/2 * score` with the rectified flow's score `(t v - x) / (1 - t)`, for x_0 ~ N(0, I).

    :param x: (B, D) current point
    :param v: (B, D) velocity at (x, t)
    :param t: time in [0, 1), broadcastable to (B, D)
    :param std: sigma at (x, t), broadcastable to (B, D)
    """
    return v + 0.5 * std.square() * (t * v - x) / (1 - t)


def rollout(velocity: VelocityFn, noise: th.Tensor, kind: RolloutKind = "sde", likelihood: Likelihood = "path") -> Path:
    """Integrate the noise-augmented flow from t = 0 to 1 in K Euler steps (Eq. 13-15).

    The deterministic path is the same call with all noise zero: x_0 = 0 and no diffusion, the drift correction kept.

    :param velocity: `(x, t) -> Velocity`; t has shape (1, 1)
    :param noise: (K + 1, B, D) standard normal: x_0, then the noise of each step
    :param kind: "sde" adds sigma sqrt(dt) eps with the drift correction, "noise" adds sigma eps without one
    :param likelihood: "path" for the joint density (Eq. 15), "action" for that of the action given the point before the
        last step: its entropy is at most the action's own, and noise that later steps cancel does not raise it
    """
    x, steps = noise[0], noise.shape[0] - 1
    dt = 1 / steps
    # log N(x_0; 0, I), then one Gaussian a step: (x_{i+1} - mean_i) / std_i is the noise itself
    gaussians = list((-0.5 * (noise.square() + LOG_2PI).sum(dim=2)).unbind())  # (K + 1, B, D) -> K + 1 times (B,)
    log_stds = []
    for i in range(steps):
        t = x.new_full((1, 1), i * dt)
        v, log_std = velocity(x, t)
        log_stds.append(log_std.mean())
        b, std = v, log_std.exp()
        if kind == "sde":
            b, std, log_std = drift(x, v, t, std), std * math.sqrt(dt), log_std + 0.5 * math.log(dt)
        x = x + b * dt + std * noise[i + 1]
        gaussians[i + 1] = gaussians[i + 1] - log_std.expand_as(x).sum(dim=1)
    log_det = log_det_tanh(x).sum(dim=1)
    path_log_prob = sum(gaussians) - log_det
    log_prob = path_log_prob if likelihood == "path" else gaussians[-1] - log_det
    return Path(x, log_prob, path_log_prob, th.stack(log_stds).mean())


def integrate(velocity: VelocityFn, x: th.Tensor, steps: int) -> th.Tensor:
    """The point at t = 1 of the ODE `dx = v dt`, by Euler steps.

    :param velocity: `(x, t) -> Velocity`; t has shape (1, 1)
    :param x: (..., D) the point at t = 0
    :param steps: K
    """
    for i in range(steps):
        x = x + velocity(x, x.new_full((1, 1), i / steps)).v / steps
    return x


def matching_error(velocity: VelocityFn, actions: th.Tensor, line: Line, target: MatchingTarget) -> th.Tensor:
    """Velocity minus that of the straight path from noise to the data, (B, D): what Eq. 3 squares.

    :param velocity: `(x, t) -> Velocity`
    :param actions: (B, D) in [-1, 1], the data
    :param line: noise and time
    :param target: the data before the squash: "atanh" of the actions, so that the squashed flow ends at them, or the
        actions themselves, "raw", as the authors' code has it
    """
    x_1 = actions
    if target == "atanh":
        x_1 = th.atanh(actions.clamp(-MAX_TARGET_ACTION, MAX_TARGET_ACTION))
    return velocity(th.lerp(line.x_0, x_1, line.t), line.t).v - (x_1 - line.x_0)


def log_det_tanh(x: th.Tensor) -> th.Tensor:
    """`log(1 - tanh(x)^2)`, elementwise, finite and exact for any finite x."""
    # softplus is the identity beyond its threshold; its default of 20 would cost float64 half of its digits
    return 2 * (math.log(2) - x - softplus(-2 * x, threshold=40))


def bound_log_std(raw: th.Tensor, low: th.Tensor | float, high: th.Tensor | float) -> th.Tensor:
    """Squash a head's output into [low, high]."""
    return low + 0.5 * (high - low) * (th.tanh(raw) + 1)


def constant_entropy(dim: int, steps: int, log_std: float, kind: RolloutKind, likelihood: Likelihood = "path") -> float:
    """Entropy in nats with constant sigma, squash left out: K + 1 complete Gaussians of `dim` numbers, or the last one.

    :param dim: D
    :param steps: K
    :param log_std: log sigma
    :param kind: "sde" scales each step's sigma by sqrt(1/K)
    :param likelihood: of the path or of the action
    """
    step_log_std = log_std - 0.5 * math.log(steps) if kind == "sde" else log_std
    one_step = 0.5 * (LOG_2PI + 1) + step_log_std
    return dim * (one_step if likelihood == "action" else 0.5 * (LOG_2PI + 1) + steps * one_step)


def auto_target_entropy(
    dim: int,
    steps: int,
    kind: RolloutKind,
    noise_std: float | None,
    likelihood: Likelihood = "path",
    highest_log_std: float = math.inf,
) -> float:
    """Target entropy of the temperature (Eq. 24) when the user gives none.

    With sigma learned: for the action -D, as SAC and CrossQ have it; for the path 0 at K = 4, the paper's, and at other
    K what asks for the same sigma. With sigma fixed only the squash can move the entropy: one nat of saturation per
    dimension is allowed, and so it is below what the bound of a learned sigma allows, if that is less.

    :param dim: D
    :param steps: K
    :param kind: the rollout
    :param noise_std: fixed sigma, or None when it is learned
    :param likelihood: whose entropy it is
    :param highest_log_std: bound of a learned log sigma
    """
    if noise_std is not None:
        return constant_entropy(dim, steps, math.log(noise_std), kind, likelihood) - dim
    reach = constant_entropy(dim, steps, highest_log_std, kind, likelihood) - dim
    if likelihood == "action":
        return min(-float(dim), reach)
    if steps == 4:
        return min(0.0, reach)
    log_std = TARGET_LOG_STD - (0.5 * math.log(4) if kind == "noise" else 0.0)
    return min(constant_entropy(dim, steps, log_std, kind), reach)
