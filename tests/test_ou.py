"""Controlled OU processes: kernels and costs against closed forms and brute force, in float64."""

import math

import pytest
import torch as th
from helpers import randn
from torch.distributions import Normal
from torch.testing import assert_close

from sb3_flow.common.ou import ControlledOU, cosine_schedule, path_cost, simulate

K, B, D, S = 6, 5, 3, 2.5


def step_sizes(steps: int = K, dim: int = D) -> th.Tensor:
    return 0.3 * randn(steps, dim, seed=9).exp()


def process_of(scale: float = 1.0) -> ControlledOU:
    """A control that depends on the step and on the point."""
    return ControlledOU(lambda i, x: scale * th.sin(x + i), step_sizes(), S)


def test_the_kernels_are_gaussians_of_the_drift_to_the_prior() -> None:
    process, x = process_of(), randn(B, D)
    mean, std = process.transition(2, x)
    eta = step_sizes()[2]
    score = Normal(0.0, S).log_prob(x.requires_grad_(True)).sum()
    (score,) = th.autograd.grad(score, x)
    assert_close(mean, x + eta * (score + th.sin(x + 2)))
    assert_close(std.square(), 2 * eta)
    points = randn(K + 1, B, D, seed=1)
    back_mean, back_std = process.reversal(points)
    uncontrolled = ControlledOU(lambda i, x: th.zeros_like(x), step_sizes(), S)
    for i in range(K):
        expected = uncontrolled.transition(i, points[i + 1])
        assert_close(back_mean[i], expected.mean)
        assert_close(back_std[i].expand(B, D), expected.std.expand(B, D))


def test_a_path_is_its_transitions_one_after_the_other() -> None:
    process, noise = process_of(), randn(K + 1, B, D)
    points = simulate(process, noise)
    assert points.shape == (K + 1, B, D)
    assert_close(points[0], S * noise[0])
    for i in range(K):
        mean, std = process.transition(i, points[i])
        assert_close(points[i + 1], mean + std * noise[i + 1])


def test_the_cost_is_that_of_the_log_densities_number_by_number() -> None:
    process, noise = process_of(), randn(K + 1, B, D)
    points = simulate(process, noise)
    cost = path_cost(process, points, noise)
    for b in range(B):
        running, eta = 0.0, step_sizes()
        for i in range(K):
            forward = process.transition(i, points[i])
            for d in range(D):
                std = math.sqrt(2 * eta[i, d])
                back = points[i + 1, b, d] * (1 - eta[i, d] / S**2)
                running += Normal(forward.mean[b, d], std).log_prob(points[i + 1, b, d])
                running -= Normal(back, std).log_prob(points[i, b, d])
        running -= th.log1p(-th.tanh(points[-1, b]).square()).sum()
        assert_close(cost.running[b], th.as_tensor(running))
        assert_close(cost.prior[b], Normal(0.0, S).log_prob(points[0, b]).sum())
        assert_close(cost.total[b], cost.running[b] + cost.prior[b])


def test_the_gradient_of_the_cost_is_that_of_the_log_densities() -> None:
    theta, eta = th.tensor(0.7, dtype=th.float64, requires_grad=True), step_sizes().requires_grad_(True)
    process, noise = ControlledOU(lambda i, x: theta * th.sin(x + i), eta, S), randn(K + 1, B, D)
    points = simulate(process, noise)
    expected = th.zeros((), dtype=th.float64)
    for i in range(K):
        forward, std = process.transition(i, points[i]), (2 * eta[i]).sqrt()
        back = points[i + 1] * (1 - eta[i] / S**2)
        expected = expected + (Normal(forward.mean, std).log_prob(points[i + 1])).sum()
        expected = expected - Normal(back, std).log_prob(points[i]).sum()
    expected = expected - th.log1p(-th.tanh(points[-1]).square()).sum() + Normal(0.0, S).log_prob(points[0]).sum()
    found = path_cost(process, points, noise).total.sum()
    assert_close(found, expected)
    for mine, theirs in zip(
        th.autograd.grad(found, [theta, eta], retain_graph=True), th.autograd.grad(expected, [theta, eta]), strict=True
    ):
        assert_close(mine, theirs)


def test_a_process_without_control_stays_at_its_prior_for_small_steps_and_costs_the_prior_alone() -> None:
    # One number, K small steps: x_K ~ N(0, s^2), and forward and backward kernels are each other's reversal
    steps, eta = 50, 0.02
    process = ControlledOU(lambda i, x: th.zeros_like(x), th.full((steps, 1), eta, dtype=th.float64), S)
    noise = randn(steps + 1, 20_000, 1)
    points = simulate(process, noise)
    assert points[-1].std().item() == pytest.approx(S, rel=0.02)
    log_det = th.log1p(-th.tanh(points[-1]).square()).sum(dim=1)
    # What is left of the kernels is half the difference of log-densities at both ends, up to O(eta)
    ends = Normal(0.0, S).log_prob(points[-1]).sum(1)
    cost = path_cost(process, points, noise)
    assert (cost.total - (ends - log_det)).abs().mean() < 0.01


def test_the_mean_cost_is_at_least_the_negative_entropy_of_the_actions_and_meets_it_where_it_can() -> None:
    # One step of a linear control in 1-D: x_1 is Gaussian, the backward kernel its exact posterior or not
    def mean_cost(gain: float, eta: float) -> tuple[float, float]:
        process = ControlledOU(lambda i, x: gain * x, th.full((1, 1), eta, dtype=th.float64), S)
        noise = randn(2, 200_000, 1)
        points = simulate(process, noise)
        cost = path_cost(process, points, noise)
        log_det = th.log1p(-th.tanh(points[-1]).square()).sum(dim=1)
        variance = S**2 * (1 + eta * (gain - 1 / S**2)) ** 2 + 2 * eta
        negative_entropy = -0.5 * math.log(2 * math.pi * math.e * variance)
        return (cost.total + log_det).mean().item(), negative_entropy

    for gain in (-2.0, -0.5, 0.0, 0.4):
        found, bound = mean_cost(gain, 0.2)
        assert found > bound - 0.01
    found, bound = mean_cost(0.0, 1e-3)
    assert found == pytest.approx(bound, abs=0.01)
    found, bound = mean_cost(-2.0, 0.2)
    assert found > bound + 0.3


def test_steps_fall_by_a_squared_cosine() -> None:
    schedule = cosine_schedule(16)
    assert schedule.shape == (16,)
    assert (schedule.diff() < 0).all()
    for i in (0, 7, 15):
        angle = math.pi / 2 * (1.008 - (16 - i) / 16) / 1.008
        assert schedule[i].item() == pytest.approx(0.999 * math.cos(angle) ** 2 + 1e-3, rel=1e-5)
