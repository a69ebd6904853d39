"""Denoising diffusion (DDPM, arXiv 2006.11239): the noise schedule, the forward marginal and the reverse step.

Pure functions of tensors; noise comes in as an argument. Steps are counted from 0, the least noise, to T - 1.
Shapes: B batch, D action dimension (the whole chunk), T diffusion steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch as th

EpsilonFn = Callable[[th.Tensor, th.Tensor], th.Tensor]  # (x, step) -> predicted noise, the context already bound

# Of the variance-preserving process that `vp_schedule` discretises (arXiv 2011.13456)
BETA_MIN, BETA_MAX = 0.1, 10.0


class NoiseSchedule(NamedTuple):
    """How much of the signal each step keeps."""

    alphas: th.Tensor  # (T,): alpha_t = 1 - beta_t
    alpha_bars: th.Tensor  # (T,): products of these up to t


def vp_schedule(steps: int) -> NoiseSchedule:
    """The variance-preserving schedule in T steps, `alpha_t = exp(-integral of beta over the step)`.

    Its beta(time) rises linearly from `BETA_MIN` to `BETA_MAX` over a time of 1, so that T is the number of steps and
    not how much noise there is.

    :param steps: T
    """
    t = th.arange(1, steps + 1, dtype=th.float64)
    log_alphas = -BETA_MIN / steps - 0.5 * (BETA_MAX - BETA_MIN) * (2 * t - 1) / steps**2
    dtype = th.get_default_dtype()
    return NoiseSchedule(log_alphas.exp().to(dtype), log_alphas.cumsum(dim=0).exp().to(dtype))


def noised(x_0: th.Tensor, noise: th.Tensor, alpha_bar: th.Tensor) -> th.Tensor:
    """The forward process after some steps at once, `N(sqrt(alpha_bar) x_0, 1 - alpha_bar)`.

    :param x_0: (B, D) without noise
    :param noise: (B, D) standard normal
    :param alpha_bar: of the last of these steps, broadcastable to (B, D)
    """
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise


def reverse_step(
    x: th.Tensor, epsilon: th.Tensor, noise: th.Tensor, alpha: th.Tensor, alpha_bar: th.Tensor
) -> th.Tensor:
    """One step back, `N((x - beta / sqrt(1 - alpha_bar) epsilon) / sqrt(alpha), beta)`.

    :param x: (B, D)
    :param epsilon: (B, D) the noise that x is taken to hold
    :param noise: (B, D) standard normal
    :param alpha: () of this step
    :param alpha_bar: () of this step
    """
    mean = (x - (1 - alpha) / (1 - alpha_bar).sqrt() * epsilon) / alpha.sqrt()
    return mean + (1 - alpha).sqrt() * noise


def denoise(epsilon: EpsilonFn, noise: th.Tensor, schedule: NoiseSchedule, bound: float | None = None) -> th.Tensor:
    """The whole reverse process, (B, D); its last step adds no noise.

    :param epsilon: `(x, step) -> predicted noise`; the step has shape (1, 1)
    :param noise: (T, B, D) standard normal: x_T, then the noise of each step but the last
    :param schedule: of T steps
    :param bound: clip to [-bound, bound] after every step; None to leave x as it is
    """
    x, steps = noise[0], noise.shape[0]
    for i in range(steps):
        t = steps - 1 - i
        fresh = noise[i + 1] if t > 0 else th.zeros_like(x)
        predicted = epsilon(x, x.new_full((1, 1), t))
        x = reverse_step(x, predicted, fresh, schedule.alphas[t], schedule.alpha_bars[t])
        if bound is not None:
            x = x.clamp(-bound, bound)
    return x
