"""The flow's mathematics against closed forms, torch.distributions and quadrature, in float64 and without sampling."""

import math

import numpy as np
import pytest
import torch as th
from helpers import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from sb3_flow.common.flow import (
    LIKELIHOODS,
    ROLLOUT_KINDS,
    Likelihood,
    RolloutKind,
    Velocity,
    VelocityFn,
    auto_target_entropy,
    bound_log_std,
    constant_entropy,
    drift,
    integrate,
    log_det_tanh,
    rollout,
)

# Targets N(MU, S^2), one a dimension: narrower and wider than the N(0, 1) that the flow starts from
MU = th.tensor([0.7, -1.5, 0.0], dtype=th.float64)
S = th.tensor([0.4, 0.8, 1.5], dtype=th.float64)

kinds = pytest.mark.parametrize("kind", ROLLOUT_KINDS)


def gaussian_field(sigma: float) -> VelocityFn:
    """The exact velocity `E[x_1 - x_0 | x_t]` for data ~ N(MU, S^2), with constant noise."""

    def field(x: th.Tensor, t: th.Tensor) -> Velocity:
        slope = (t * S**2 - (1 - t)) / ((1 - t) ** 2 + (t * S) ** 2)
        return Velocity(MU + slope * (x - t * MU), th.full((1, 1), sigma, dtype=th.float64).log())

    return field


def curved_field(x: th.Tensor, t: th.Tensor) -> Velocity:
    """A velocity and a log-std that are not linear in the state and couple the dimensions."""
    rolled = x.roll(1, dims=1)
    return Velocity(th.sin(x) - 1.2 * x - 0.5 * t * rolled + 0.3, -0.7 + 0.3 * th.cos(rolled + 2 * t))


def step_law(field: VelocityFn, x: th.Tensor, i: int, steps: int, kind: str) -> Normal:
    """Law of x_{i+1} given x_i, as the paper writes it (Eq. 13, 14)."""
    t = i / steps
    v, log_std = field(x, th.full((1, 1), t, dtype=x.dtype))
    sigma = log_std.exp()
    if kind == "noise":
        return Normal(x + v / steps, sigma.expand_as(x))
    b = (1 - t + t * sigma**2 / 2) / (1 - t) * v - sigma**2 / (2 * (1 - t)) * x
    return Normal(x + b / steps, (sigma / steps**0.5).expand_as(x))


def noise_of_path(field: VelocityFn, path: th.Tensor, kind: str) -> th.Tensor:
    """The noise that makes the rollout visit these points, (K + 1, B, D)."""
    steps = len(path) - 1
    laws = [step_law(field, path[i], i, steps, kind) for i in range(steps)]
    return th.stack([path[0], *((path[i + 1] - law.loc) / law.scale for i, law in enumerate(laws))])


def terminal_moments(field: VelocityFn, steps: int, kind: RolloutKind) -> tuple[th.Tensor, th.Tensor]:
    """Exact mean and variance of x_K under a field that is affine in x: the rollout is then affine in its noise.

    One batch holds the path without noise and one path for each unit of noise.
    """
    noise = th.zeros(steps + 1, steps + 2, len(MU), dtype=th.float64)
    noise[range(steps + 1), range(steps + 1)] = 1
    x = rollout(field, noise, kind).x
    mean = x[-1]
    return mean, (x[:-1] - mean).square().sum(dim=0)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 33])
def test_sde_with_the_exact_gaussian_velocity_has_the_exact_mean_at_every_step_count(sigma: float, steps: int) -> None:
    # On the line x = t MU the velocity is constant and the score is 0, so that Euler steps make no error there
    mean, _ = terminal_moments(gaussian_field(sigma), steps, "sde")
    th.testing.assert_close(mean, MU, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 1.0])
def test_sde_terminal_variance_converges_to_the_data_s_at_first_order_for_every_sigma(sigma: float) -> None:
    variances = [terminal_moments(gaussian_field(sigma), k, "sde")[1] for k in (64, 128, 256, 512)]
    errors = (th.stack(variances) - S**2).abs()
    assert (errors[-1] < 0.01 * S**2).all()
    th.testing.assert_close(errors[:-1] / errors[1:], th.full_like(errors[1:], 2), rtol=0.1, atol=0)


def test_sde_last_step_multiplies_x_by_one_minus_half_the_variance() -> None:
    # What bounds sigma: without a velocity the drift of the last step is -sigma^2/2 x / dt, whatever K
    x = th.tensor([[1.0, -2.0]], dtype=th.float64)
    t, dt = th.tensor([[3 / 4]], dtype=th.float64), 1 / 4
    for sigma in (0.5, 1.0, 2.0):
        step = x + drift(x, th.zeros_like(x), t, th.tensor([[sigma]], dtype=th.float64)) * dt
        th.testing.assert_close(step, (1 - sigma**2 / 2) * x)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_drift_is_the_velocity_plus_half_sigma_squared_times_the_score(t: float) -> None:
    x = th.linspace(-3, 3, 21, dtype=th.float64)[:, None].expand(-1, 3).clone().requires_grad_(True)
    time = th.tensor([[t]], dtype=th.float64)
    (score,) = th.autograd.grad(Normal(t * MU, ((1 - t) ** 2 + (t * S) ** 2).sqrt()).log_prob(x).sum(), x)
    v = gaussian_field(1.0)(x, time).v
    std = th.tensor([[0.1, 0.7, 2.0]], dtype=th.float64)
    th.testing.assert_close(drift(x, v, time, std), v + std**2 / 2 * score)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_noise_without_a_velocity_adds_its_variance_once_a_step(steps: int) -> None:
    def still(x: th.Tensor, t: th.Tensor) -> Velocity:
        return Velocity(th.zeros_like(x), th.full((1, 1), math.log(0.3), dtype=th.float64))

    mean, variance = terminal_moments(still, steps, "noise")
    th.testing.assert_close(mean, th.zeros_like(mean))
    th.testing.assert_close(variance, th.full_like(variance, 1 + steps * 0.3**2))


def test_noise_without_drift_correction_widens_the_gaussian_by_the_transported_noise() -> None:
    # With c / sqrt(K) a step, as K grows: S^2 + c^2 \int S^2 / Var(x_t) dt, and the integral of 1 / Var is pi / (2 S)
    c = 0.5
    expected = S**2 + c**2 * S * math.pi / 2
    moments = [terminal_moments(gaussian_field(c / k**0.5), k, "noise") for k in (128, 256, 512)]
    for mean, _ in moments:
        th.testing.assert_close(mean, MU)
    errors = th.stack([(variance - expected).abs() for _, variance in moments])
    assert (errors[-1] < 0.01 * expected).all()
    th.testing.assert_close(errors[:-1] / errors[1:], th.full_like(errors[1:], 2), rtol=0.1, atol=0)


@kinds
@settings(deadline=None, max_examples=30)
@given(
    steps=st.integers(1, 6),
    batch=st.integers(1, 4),
    dim=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    sigma=st.sampled_from(["learned", "fixed", "one a dimension"]),
)
def test_log_prob_is_the_sum_of_the_step_densities_and_of_the_squash(
    kind: RolloutKind, steps: int, batch: int, dim: int, seed: int, sigma: str
) -> None:
    def field(x: th.Tensor, t: th.Tensor) -> Velocity:
        v, log_std = curved_field(x, t)
        if sigma == "fixed":
            log_std = th.full((1, 1), math.log(0.1), dtype=th.float64)
        elif sigma == "one a dimension":
            log_std = th.linspace(-2, 0, dim, dtype=th.float64)[None]
        return Velocity(v, log_std)

    noise = th.randn(steps + 1, batch, dim, dtype=th.float64, generator=th.Generator().manual_seed(seed))
    points = [noise[0]]
    for i in range(steps):
        law = step_law(field, points[-1], i, steps, kind)
        points.append(law.loc + law.scale * noise[i + 1])
    path = rollout(field, noise, kind)
    th.testing.assert_close(path.x, points[-1])

    expected = Normal(0.0, 1.0).log_prob(points[0])
    for i in range(steps - 1):
        expected = expected + step_law(field, points[i], i, steps, kind).log_prob(points[i + 1])
    # The transform's inverse is given x itself, since atanh(tanh(x)) has lost digits by |x| = 8
    squash = TanhTransform(cache_size=1)
    squashed = TransformedDistribution(step_law(field, points[-2], steps - 1, steps, kind), [squash])
    last = squashed.log_prob(squash(points[-1]))
    th.testing.assert_close(path.log_prob, (expected + last).sum(dim=1))
    of_action = rollout(field, noise, kind, "action")
    th.testing.assert_close(of_action.log_prob, last.sum(dim=1))
    th.testing.assert_close(of_action.path_log_prob, path.log_prob)


@kinds
@pytest.mark.parametrize("steps", [1, 2])
def test_log_prob_marginalised_over_the_path_is_the_density_of_the_action(kind: RolloutKind, steps: int) -> None:
    # The trapezoidal rule on Gaussians this wide is exact to far below the tolerance
    grid, weight = th.linspace(-8, 8, 129, dtype=th.float64), 0.125
    nodes, node_weights = (th.from_numpy(a) for a in np.polynomial.legendre.leggauss(100))
    action = nodes.clone().requires_grad_(True)

    # From samples alone: P(a <= c), the last step's Gaussian integrated in closed form, all noise before it on the grid
    before = th.cartesian_prod(*[grid] * steps).view(-1, steps).T[:, :, None]  # (K, B, 1)
    last = th.zeros(1, before.shape[1], 1, dtype=th.float64)
    mean = rollout(curved_field, th.cat([before, last]), kind).x
    std = rollout(curved_field, th.cat([before, last + 1]), kind).x - mean
    probability = Normal(0.0, 1.0).log_prob(before).sum(dim=0).exp() * weight**steps  # (B, 1)
    cdf = (probability * Normal(mean, std).cdf(th.atanh(action))).sum(dim=0)
    (expected,) = th.autograd.grad(cdf.sum(), action)

    # From log_prob: the joint density of (x_0, ..., x_{K-1}, a) summed over x_0, ..., x_{K-1}
    points = th.cartesian_prod(*[grid] * steps, th.atanh(nodes)).T[:, :, None]  # (K + 1, B, 1)
    path = rollout(curved_field, noise_of_path(curved_field, points, kind), kind)
    th.testing.assert_close(path.x, points[-1])
    density = path.log_prob.exp().view(-1, len(nodes)).sum(dim=0) * weight**steps

    th.testing.assert_close(density, expected, rtol=1e-7, atol=1e-9)
    assert float(density @ node_weights) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_log_prob_marginalised_over_the_path_is_the_squashed_gaussian_of_an_affine_field(sigma: float) -> None:
    def field(x: th.Tensor, t: th.Tensor) -> Velocity:
        return Velocity(0.4 - 0.8 * x, th.full((1, 1), math.log(sigma), dtype=th.float64))

    grid, weight = th.linspace(-8, 8, 801, dtype=th.float64), 0.02
    action = th.linspace(-0.95, 0.95, 39, dtype=th.float64)
    points = th.cartesian_prod(grid, th.atanh(action)).T[:, :, None]
    path = rollout(field, noise_of_path(field, points, "sde"), "sde")
    density = path.log_prob.exp().view(-1, len(action)).sum(dim=0) * weight
    # One step of the SDE: x_1 = x_0 + (v - sigma^2/2 x_0) + sigma eps, a Gaussian as x_0 is one
    std = math.hypot(1 - 0.8 - sigma**2 / 2, sigma)
    gaussian = Normal(0.4, th.tensor(std, dtype=th.float64))
    th.testing.assert_close(density, gaussian.log_prob(th.atanh(action)).exp() / (1 - action**2), rtol=1e-8, atol=1e-12)


def test_noise_that_the_next_step_cancels_raises_the_entropy_of_the_path_alone() -> None:
    def field(log_std: float) -> VelocityFn:
        # Two steps without a correction: the second takes x_1 to 0, whatever the first added
        return lambda x, t: Velocity(-2 * x, th.full((1, 1), log_std if t.item() == 0 else -1.0, dtype=th.float64))

    noise = randn(3, 50_000, 1)
    quiet, loud = (rollout(field(log_std), noise, "noise", "action") for log_std in (-3.0, 0.0))
    th.testing.assert_close(loud.x, quiet.x)
    assert -loud.path_log_prob.mean() == pytest.approx(3 - quiet.path_log_prob.mean().item())
    assert loud.log_prob.mean() == pytest.approx(quiet.log_prob.mean().item())


@pytest.mark.parametrize("slope", [-1.8, -1.0, 0.5])
def test_the_entropy_of_the_action_given_the_point_before_is_at_most_its_own(slope: float) -> None:
    def field(x: th.Tensor, t: th.Tensor) -> Velocity:
        return Velocity(slope * x, th.full((1, 1), math.log(0.3), dtype=th.float64))

    path = rollout(field, randn(3, 100_000, 1), "noise", "action")
    before_squash = path.log_prob + log_det_tanh(path.x).sum(dim=1)
    own = Normal(0.0, path.x.std()).entropy()  # the field is linear: x_K is Gaussian
    assert -before_squash.mean() <= own + 1e-2
    assert slope != -1.8 or -before_squash.mean() > own - 0.1  # what is cancelled leaves the bound tight


@kinds
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_path_reports_the_log_std_of_the_field_whatever_the_step(kind: RolloutKind, steps: int) -> None:
    def field(x: th.Tensor, t: th.Tensor) -> Velocity:
        return Velocity(x, (t - 2).expand(x.shape))

    path = rollout(field, th.zeros(steps + 1, 3, 2, dtype=th.float64), kind)
    # t runs over 0, 1/K, ..., (K - 1)/K
    assert path.log_std.item() == pytest.approx((steps - 1) / (2 * steps) - 2)


@kinds
def test_rollout_calls_the_velocity_once_a_step_at_the_start_of_each_step(kind: RolloutKind) -> None:
    times: list[th.Tensor] = []

    def field(x: th.Tensor, t: th.Tensor) -> Velocity:
        times.append(t)
        return curved_field(x, t)

    rollout(field, th.zeros(6, 3, 2, dtype=th.float64), kind)
    assert [t.shape for t in times] == [(1, 1)] * 5
    th.testing.assert_close(th.cat(times).flatten(), th.tensor([0, 0.2, 0.4, 0.6, 0.8], dtype=th.float64))


@pytest.mark.parametrize("x", [0.0, 0.3, -1.0, 5.0, -5.0, 20.0, -20.0, 300.0, -300.0])
def test_log_det_tanh_is_exact_in_value_and_gradient(x: float) -> None:
    point = th.tensor(x, dtype=th.float64, requires_grad=True)
    value = log_det_tanh(point)
    (gradient,) = th.autograd.grad(value, point)
    # 1 - tanh^2 = 1 / cosh^2, which floats can hold up to |x| = 700
    assert value.item() == pytest.approx(-2 * math.log(math.cosh(x)), rel=1e-14, abs=1e-14)
    assert gradient.item() == pytest.approx(-2 * math.tanh(x), rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("x", [1e-3, 3.0, 20.0, 1e4])
def test_log_det_tanh_keeps_single_precision_far_in_the_tails(x: float) -> None:
    points = th.tensor([x, -x], requires_grad=True)
    values = log_det_tanh(points)
    (gradient,) = th.autograd.grad(values.sum(), points)
    exact = 2 * (math.log(2) - x - math.log1p(math.exp(-2 * x)))
    th.testing.assert_close(values, th.full((2,), exact), rtol=1e-6, atol=3e-7)
    th.testing.assert_close(gradient, -2 * th.tanh(points.detach()), rtol=1e-6, atol=3e-7)


@settings(deadline=None)
@given(raw=st.floats(-1e6, 1e6), low=st.floats(-10, 0), width=st.floats(0.1, 10))
def test_bound_log_std_is_monotone_onto_its_range(raw: float, low: float, width: float) -> None:
    high = low + width
    bounded = bound_log_std(th.tensor([-math.inf, 0.0, raw, raw + 1, math.inf], dtype=th.float64), low, high)
    exact = [low, (low + high) / 2, high]
    th.testing.assert_close(bounded[[0, 1, 4]], th.tensor(exact, dtype=th.float64))
    assert bounded[2] <= bounded[3]
    assert low - 1e-12 <= bounded[2] <= high + 1e-12


@kinds
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_constant_entropy_is_minus_the_mean_log_density_before_the_squash(
    kind: RolloutKind, likelihood: Likelihood, steps: int, dim: int
) -> None:
    log_std = -0.9

    def field(x: th.Tensor, t: th.Tensor) -> Velocity:
        return Velocity(th.sin(x), th.full((1, 1), log_std, dtype=th.float64))

    # The log-density is linear in the squares of the noise, whose mean is 1: noise of +-1 gives the mean itself
    noise = 2.0 * th.arange((steps + 1) * dim, dtype=th.float64).fmod(2).view(steps + 1, 1, dim) - 1
    path = rollout(field, noise, kind, likelihood)
    before_squash = path.log_prob + log_det_tanh(path.x).sum(dim=1)
    assert constant_entropy(dim, steps, log_std, kind, likelihood) == pytest.approx(-before_squash.item(), rel=1e-12)


@kinds
@pytest.mark.parametrize("dim", [1, 6, 17])
def test_learned_sigma_has_the_target_of_sac_for_the_action(kind: RolloutKind, dim: int) -> None:
    assert auto_target_entropy(dim, 7, kind, None, "action") == -dim


@kinds
@pytest.mark.parametrize("dim", [1, 6, 17])
def test_learned_sigma_has_target_zero_at_four_steps(kind: RolloutKind, dim: int) -> None:
    assert auto_target_entropy(dim, 4, kind, None) == 0.0


@kinds
@pytest.mark.parametrize("dim", [1, 6])
def test_learned_sigma_has_the_target_that_asks_for_the_same_step_at_every_step_count(
    kind: RolloutKind, dim: int
) -> None:
    def log_std_at(steps: int) -> float:
        # constant_entropy is affine in log_std: solve it for the target
        offset, slope = constant_entropy(dim, steps, 0.0, kind), steps * dim
        return (auto_target_entropy(dim, steps, kind, None) - offset) / slope

    for steps in (1, 2, 3, 5, 7, 10, 20):
        # TARGET_LOG_STD is written to two decimals
        assert log_std_at(steps) == pytest.approx(log_std_at(4), abs=1e-3)


@kinds
@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("noise_std", [0.05, 0.1, 1.0])
def test_fixed_sigma_has_its_own_entropy_less_one_nat_a_dimension(
    kind: RolloutKind, steps: int, noise_std: float
) -> None:
    std = noise_std / steps**0.5 if kind == "sde" else noise_std
    one_step = Normal(0.0, th.tensor(std, dtype=th.float64)).entropy()
    entropy = Normal(0.0, 1.0).entropy() + steps * one_step
    assert auto_target_entropy(5, steps, kind, noise_std) == pytest.approx(5 * (entropy.item() - 1), rel=1e-6)
    of_action = auto_target_entropy(5, steps, kind, noise_std, "action")
    assert of_action == pytest.approx(5 * (one_step.item() - 1), rel=1e-6)


@kinds
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_of_the_rollout_are_the_finite_differences(
    kind: RolloutKind, likelihood: Likelihood, steps: int
) -> None:
    weights = th.randn(3, 4, dtype=th.float64, generator=th.Generator().manual_seed(0)).requires_grad_(True)
    noise = th.randn(steps + 1, 2, 2, dtype=th.float64, generator=th.Generator().manual_seed(1)).requires_grad_(True)

    def end(weights: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, ...]:
        def field(x: th.Tensor, t: th.Tensor) -> Velocity:
            v, log_std = th.sin(th.cat([x, t.expand(len(x), 1)], dim=1) @ weights).chunk(2, dim=1)
            return Velocity(v, log_std)

        return tuple(rollout(field, noise, kind, likelihood))

    assert th.autograd.gradcheck(end, (weights, noise))


def test_sigma_that_depends_on_x_moves_the_marginal_until_its_own_drift_is_added() -> None:
    # Why the marginal law is claimed for sigma(s, t) only: the missing term is half the derivative of sigma^2
    target_std, steps = 0.4, 200
    noise = th.randn(steps + 1, 20_000, 1, dtype=th.float64, generator=th.Generator().manual_seed(0))

    def field(x: th.Tensor, t: th.Tensor, corrected: bool) -> Velocity:
        slope = (t * target_std**2 - (1 - t)) / ((1 - t) ** 2 + (t * target_std) ** 2)
        log_std = -0.35 + 0.35 * th.tanh(4 * x)
        half_slope_of_variance = (2 * log_std).exp() * 0.35 * 4 * (1 - th.tanh(4 * x) ** 2)
        # `rollout` scales v by 1 + t sigma^2 / (2 (1 - t)) on its way into the drift
        scale = 1 + 0.5 * t * (2 * log_std).exp() / (1 - t)
        return Velocity(slope * x + corrected * half_slope_of_variance / scale, log_std)

    plain = rollout(lambda x, t: field(x, t, False), noise, "sde").x
    corrected = rollout(lambda x, t: field(x, t, True), noise, "sde").x
    assert plain.mean() < -0.09
    assert abs(corrected.mean()) < 0.02
    assert abs(corrected.std() - target_std) < 0.02


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("shape", [(5, 3), (4, 5, 3)], ids=["rows", "candidates"])
def test_euler_steps_of_a_linear_ode_are_its_closed_form(shape: tuple[int, ...], steps: int) -> None:
    a, b = th.tensor([-1.5, 0.3, 2.0], dtype=th.float64), th.tensor([0.7, -0.2, 1.0], dtype=th.float64)
    x = randn(*shape)
    end = integrate(lambda x, t: Velocity(a * x + b, th.zeros(())), x, steps)
    growth = (1 + a / steps) ** steps
    th.testing.assert_close(end, growth * x + (growth - 1) * b / a)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_euler_steps_take_the_velocity_at_their_beginning(steps: int) -> None:
    x, times = randn(5, 3), []

    def field(x: th.Tensor, t: th.Tensor) -> Velocity:
        times.append((tuple(t.shape), t.item()))
        return Velocity(t.expand_as(x), th.zeros(()))

    # The sum of i / K^2 for i below K
    th.testing.assert_close(integrate(field, x, steps), x + (steps - 1) / (2 * steps))
    assert times == [((1, 1), pytest.approx(i / steps)) for i in range(steps)]
