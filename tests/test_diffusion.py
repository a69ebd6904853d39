"""DDPM's mathematics in float64, against brute force."""

import math
from typing import Any

import pytest
import torch as th
from helpers import randn

from sb3_flow.common.diffusion import NoiseSchedule, denoise, noised, reverse_step, vp_schedule

STEPS = [1, 2, 5, 20]


def schedule_of(steps: int) -> NoiseSchedule:
    schedule = vp_schedule(steps)
    return NoiseSchedule(*(values.double() for values in schedule))


@pytest.mark.parametrize("steps", STEPS)
def test_a_step_of_the_schedule_is_the_continuous_process_over_its_time(steps: int) -> None:
    alphas, alpha_bars = schedule_of(steps)
    fine = 100_000
    times = (th.arange(fine, dtype=th.float64) + 0.5) / fine
    betas = 0.1 + (10 - 0.1) * times
    integrals = betas.view(steps, -1).sum(dim=1) / fine
    th.testing.assert_close(alphas, th.exp(-integrals), rtol=1e-6, atol=1e-6)
    th.testing.assert_close(alpha_bars, alphas.cumprod(dim=0), rtol=1e-6, atol=1e-6)
    # However many steps there are, little of the action is left at the end
    assert alpha_bars[-1].item() == pytest.approx(math.exp(-5.05), rel=1e-5)


def test_the_schedule_of_five_steps_in_numbers() -> None:
    expected = [math.exp(-0.02 - 0.198 * (2 * t - 1)) for t in range(1, 6)]
    th.testing.assert_close(schedule_of(5).alphas, th.tensor(expected, dtype=th.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", STEPS)
def test_the_forward_marginal_is_that_of_all_steps_one_by_one(steps: int) -> None:
    alphas, alpha_bars = schedule_of(steps)
    x_0 = randn(3, 2)
    # Mean and variance of x <- sqrt(alpha) x + sqrt(1 - alpha) noise, step by step
    mean, variance = x_0, th.zeros(())
    for t in range(steps):
        mean, variance = alphas[t].sqrt() * mean, alphas[t] * variance + 1 - alphas[t]
        th.testing.assert_close(noised(x_0, th.zeros_like(x_0), alpha_bars[t]), mean, rtol=1e-6, atol=1e-6)
        noise = noised(x_0, th.ones_like(x_0), alpha_bars[t]) - mean
        th.testing.assert_close(noise.square(), variance.expand_as(noise), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_the_reverse_step_has_the_posterior_s_mean_and_the_forward_step_s_variance(t: int) -> None:
    alphas, alpha_bars = schedule_of(5)
    x_0, x_t = 0.3, -0.8
    # q(x_(t-1) | x_t, x_0) by brute force on a grid
    grid = th.linspace(-8, 8, 400_001, dtype=th.float64)
    before, a = alpha_bars[t - 1], alphas[t]
    log_q = -0.5 * (grid - before.sqrt() * x_0) ** 2 / (1 - before) - 0.5 * (x_t - a.sqrt() * grid) ** 2 / (1 - a)
    mean = (log_q.softmax(dim=0) * grid).sum()
    # The noise that x_t holds if x_0 is known
    epsilon = (x_t - alpha_bars[t].sqrt() * x_0) / (1 - alpha_bars[t]).sqrt()
    x = th.tensor([[x_t]], dtype=th.float64)
    zero = th.zeros_like(x)
    th.testing.assert_close(reverse_step(x, epsilon, zero, a, alpha_bars[t]).squeeze(), mean, rtol=1e-6, atol=1e-6)
    spread = reverse_step(x, epsilon, zero + 1, a, alpha_bars[t]) - reverse_step(x, epsilon, zero, a, alpha_bars[t])
    assert spread.item() == pytest.approx((1 - a).sqrt().item())


def test_data_at_one_point_are_generated_whatever_the_noise() -> None:
    schedule, point = schedule_of(5), th.tensor([0.3, -0.6], dtype=th.float64)

    def epsilon(x: th.Tensor, step: th.Tensor) -> th.Tensor:
        alpha_bar = schedule.alpha_bars[step.long()]
        return (x - alpha_bar.sqrt() * point) / (1 - alpha_bar).sqrt()

    x = denoise(epsilon, randn(5, 7, 2), schedule)
    th.testing.assert_close(x, point.expand(7, 2), rtol=1e-6, atol=1e-6)


def test_normal_data_are_generated_with_their_mean_and_spread() -> None:
    """The exact score of noised N(m, s^2) is known; many small steps bring its samples back."""
    schedule, mean, spread = schedule_of(400), 0.4, 0.25

    def epsilon(x: th.Tensor, step: th.Tensor) -> th.Tensor:
        alpha_bar = schedule.alpha_bars[step.long()]
        return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * mean) / (alpha_bar * spread**2 + 1 - alpha_bar)

    x = denoise(epsilon, randn(400, 20_000, 1), schedule)
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(spread, rel=0.03)


def test_steps_are_taken_from_the_last_to_the_first_and_the_last_adds_no_noise() -> None:
    schedule, asked = schedule_of(3), []

    def epsilon(x: th.Tensor, step: th.Tensor) -> th.Tensor:
        asked.append((step.shape, step.item(), x.clone()))
        return th.zeros_like(x)

    noise: Any = randn(3, 4, 2)
    x = denoise(epsilon, noise, schedule, bound=1.0)
    assert [(shape, t) for shape, t, _ in asked] == [((1, 1), 2.0), ((1, 1), 1.0), ((1, 1), 0.0)]
    expected = noise[0]  # which is not clipped itself
    for t, fresh in ((2, noise[1]), (1, noise[2]), (0, th.zeros(4, 2, dtype=th.float64))):
        expected = (expected / schedule.alphas[t].sqrt() + (1 - schedule.alphas[t]).sqrt() * fresh).clamp(-1, 1)
    th.testing.assert_close(x, expected)
