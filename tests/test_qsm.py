"""What QSM has and no other algorithm: a predicted noise that is fitted to Q's gradient, and what is sampled then."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from helpers import LEARNING_STARTS, RandomEnv, differences, make_variant, observations, randn, randomize, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_flow import QSM
from sb3_flow.common.buffers import Batch
from sb3_flow.common.diffusion import denoise, vp_schedule
from sb3_flow.common.layers import EnsembleLinear
from sb3_flow.common.log import Log
from sb3_flow.qsm.losses import actor_loss, target_epsilon
from sb3_flow.qsm.networks import EpsilonNet, critic_mlp
from sb3_flow.qsm.policies import QSMPolicy

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**30)
untimed = settings(deadline=None, max_examples=50)


def make_qsm(**kwargs: Any) -> QSM:
    model = make_variant("qsm", **kwargs)
    assert isinstance(model, QSM)
    return model


# Losses


@untimed
@given(
    batch=sizes,
    dim=sizes,
    seed=seeds,
    normalize=st.booleans(),
    masked=st.booleans(),
    bc_coef=st.sampled_from([0.0, 0.5, 30.0]),
)
def test_actor_loss_is_the_distance_to_the_gradient_and_to_the_noise(
    batch: int, dim: int, seed: int, normalize: bool, masked: bool, bc_coef: float
) -> None:
    epsilon, gradient, noise = (randn(batch, dim, seed=seed + i).requires_grad_(True) for i in range(3))
    mask = (th.arange(batch * dim).view(batch, dim) % 3 != 2).double() if masked else None
    result = actor_loss(epsilon, gradient, noise, 4.0, bc_coef, normalize, mask)
    size = sum(abs(g) for row in gradient.tolist() for g in row) / (batch * dim)
    score, cloning, counted = 0.0, 0.0, 0
    for b in range(batch):
        for j in range(dim):
            target = -4.0 * gradient[b, j].item() / (size if normalize else 1.0)
            score += (epsilon[b, j].item() - target) ** 2 / (batch * dim)
            if mask is None or mask[b, j]:
                cloning += (epsilon[b, j].item() - noise[b, j].item()) ** 2
                counted += 1
    assert result.score_loss.item() == pytest.approx(score)
    assert result.bc_loss.item() == pytest.approx(cloning / counted)
    assert result.gradient_size.item() == pytest.approx(size)
    assert result.loss.item() == pytest.approx(score + bc_coef * cloning / counted)
    # Nothing flows back into the critics, nor into what they judge
    assert th.autograd.grad(result.loss, gradient, allow_unused=True, retain_graph=True) == (None,)
    assert not any(part.requires_grad for part in result[1:])


def test_a_normalised_gradient_has_one_size_whatever_the_scale_of_q() -> None:
    gradient = randn(6, 2)
    for scale in (1e-6, 1.0, 1e6):
        target = target_epsilon(scale * gradient, 10.0, normalize_gradient=True)
        assert target.abs().mean().item() == pytest.approx(10.0)
        th.testing.assert_close(target, target_epsilon(gradient, 10.0, normalize_gradient=True))
    assert not target_epsilon(th.zeros(3, 2), 10.0, normalize_gradient=True).any()


def test_with_a_weight_on_the_data_the_best_prediction_lies_between_the_gradient_s_and_the_noise() -> None:
    gradient, noise, m_q, alpha = randn(6, 2), randn(6, 2, seed=1), 4.0, 3.0
    between = ((alpha * noise - m_q * gradient) / (1 + alpha)).requires_grad_(True)
    (slope,) = th.autograd.grad(actor_loss(between, gradient, noise, m_q, alpha).loss, between)
    th.testing.assert_close(slope, th.zeros_like(slope))


# The fixed point


def quadratic_qsm(k: float, best: float, **kwargs: Any) -> QSM:
    """Q(s, a) = -k/2 |a - best|^2, for every critic."""
    model = make_qsm(**kwargs)
    model.policy.double()

    def judge(features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return (-0.5 * k * (actions - best).square().sum(dim=1)).expand(2, -1)

    model.critic.judge = judge  # type: ignore[method-assign]
    return model


def some_batch(model: QSM, rows: int = 64) -> Batch:
    actions = randn(rows, model.policy.chunk_dim, seed=1).clamp(-1, 1)
    zeros = th.zeros(rows, dtype=th.float64)
    return Batch(randn(rows, 3), actions, randn(rows, 3, seed=2), zeros, zeros, 0.9)


@pytest.fixture
def _observations_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    # SB3 casts them to float32
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", lambda obs, *args, **kwargs: obs)


@pytest.mark.usefixtures("_observations_in_float64")
def test_the_loss_is_zero_where_the_score_of_every_step_is_that_of_the_boltzmann_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    m_q, k, best = 3.0, 2.0, 0.4
    model = quadratic_qsm(k, best, q_coef=m_q)

    def boltzmann(x: th.Tensor, step: th.Tensor) -> th.Tensor:
        """The noise -sigma_t times the score of `exp(M_q Q(s, a) / sigma_t)`, in every noised action."""
        sigma = (1 - model.actor.alpha_bars[step.long()]).sqrt()
        x = x.detach().requires_grad_(True)
        log_density = m_q / sigma * -0.5 * k * (x - best).square().sum(dim=1, keepdim=True)
        (score,) = th.autograd.grad(log_density.sum(), x)
        return -sigma * score

    monkeypatch.setattr(model.actor, "field", lambda obs: boltzmann)
    batch, steps = some_batch(model), model.actor.sample_steps(64)
    for bc_coef in (0.0, 2.0):
        noise = randn(64, 2, seed=3)
        loss = model._actor_loss(batch, steps, noise, th.tensor(bc_coef))
        assert loss.score_loss.item() == pytest.approx(0, abs=1e-20)
        assert loss.loss.item() == pytest.approx(bc_coef * loss.bc_loss.item())


@pytest.mark.parametrize("step", [0, 2, 4])
def test_langevin_steps_with_the_fixed_point_s_score_sample_the_boltzmann_policy(step: int) -> None:
    m_q, k, best = 3.0, 2.0, 0.4
    sigma = (1 - vp_schedule(5).alpha_bars[step].double()).sqrt().item()
    # x <- x + h score + sqrt(2 h) noise has, for a linear score, a normal distribution that is known: mean and variance
    # by their recursion
    h, mean, variance = 1e-3, 0.0, 1.0
    epsilon_slope = target_epsilon(th.tensor([[-k]]), m_q).item()  # Q's gradient has the slope -k
    for _ in range(20_000):
        mean -= h * epsilon_slope * (mean - best) / sigma
        variance = (1 - h * epsilon_slope / sigma) ** 2 * variance + 2 * h
    # exp(M_q Q / sigma) is normal around the best action with precision M_q k / sigma
    assert mean == pytest.approx(best)
    assert variance == pytest.approx(sigma / (m_q * k), rel=0.02)


@pytest.mark.parametrize(("m_q", "steps"), [(0.2, 5), (1.0, 5), (0.5, 20)])
def test_what_is_sampled_from_a_quadratic_q_is_normal_with_a_known_mean_and_variance(m_q: float, steps: int) -> None:
    k, best = 2.0, 0.1
    alphas, alpha_bars = (values.double() for values in vp_schedule(steps))
    # Each reverse step is linear in x: x <- slope x + (1/sqrt(alpha) - slope) best + sqrt(beta) noise
    mean, variance = 0.0, 1.0
    for t in reversed(range(steps)):
        alpha, sigma = alphas[t].item(), math.sqrt(1 - alpha_bars[t].item())
        slope = (1 - (1 - alpha) / sigma * m_q * k) / math.sqrt(alpha)
        mean = slope * mean + (1 / math.sqrt(alpha) - slope) * best
        variance = slope**2 * variance + (1 - alpha if t > 0 else 0.0)
    model = quadratic_qsm(k, best, q_coef=m_q, net={"diffusion_steps": steps})

    def fixed_point(x: th.Tensor, step: th.Tensor) -> th.Tensor:
        return target_epsilon(model._action_gradient(th.zeros(len(x), 3), x), m_q)

    x = denoise(fixed_point, randn(steps, 100_000, 2), model.actor.schedule)
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.var().item() == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("steps", [3, 5, 10, 20])
def test_the_last_step_by_a_normalised_gradient_of_slope_one_ends_near_the_best_action(steps: int) -> None:
    model = make_qsm(normalize_gradient=True, net={"diffusion_steps": steps})
    alpha = vp_schedule(steps).alphas[0].item()
    # sigma_0^2 = 1 - alpha_0 = beta_0; what is left of the distance to the best action
    assert abs(1 - math.sqrt(1 - alpha) * model.q_coef) / math.sqrt(alpha) < 0.3


@pytest.mark.slow
def test_actions_go_where_q_is_high_and_closer_with_a_higher_m_q() -> None:
    spread = []
    for q_coef in (0.3, 1.0):
        model = quadratic_qsm(2.0, 0.4, q_coef=q_coef, net={"net_arch": [32, 32]})
        model.policy.float()
        batch = Batch(*(part.float() if isinstance(part, th.Tensor) else part for part in some_batch(model)))
        model.actor.optimizer.param_groups[0]["lr"] = 3e-3
        for _ in range(300):
            steps, noise = model.actor.sample_steps(64), th.randn(64, 2)
            model._update(model.actor, Log(), model._actor_loss_fn, batch, steps, noise, th.tensor(0.0))
        actions, _ = model.predict(np.zeros((500, 3), np.float32))
        assert np.abs(actions.mean(axis=0) - 0.4).max() < 0.2
        spread.append(actions.std())
    assert spread[1] < 0.8 * spread[0]


# Networks


def test_the_noise_is_predicted_from_state_point_and_step() -> None:
    net = EpsilonNet(3, 2, [5, 4]).double()
    randomize(net)

    def mish(x: th.Tensor) -> th.Tensor:
        return x * th.tanh(th.log1p(x.exp()))

    s, x, step = randn(6, 3), randn(6, 2, seed=1), th.tensor([[0.0], [1], [2], [3], [4], [0]]).double()
    phase = 2 * math.pi * step @ net.step.frequencies[None]
    first, _, last = net.step.net
    embedded = last(mish(first(th.cat([phase.cos(), phase.sin()], dim=1))))
    assert embedded.shape == (6, 128)
    assert phase.shape == (6, 32)
    _, linear_2, _, linear_3 = net.rest
    h = mish(th.cat([s, x, embedded], dim=1) @ net.first.weight.T + net.first.bias)
    expected = linear_3(mish(linear_2(h)))
    th.testing.assert_close(net(net.encode(s), x, step), expected)
    th.testing.assert_close(net(net.encode(s), x, step[:1]), net(net.encode(s), x, step[:1].expand(6, 1)))


def test_the_critics_are_plain_relu_mlps() -> None:
    net = critic_mlp(2, 3, [5, 4]).double()
    randomize(net)
    first, _, second, _, last = net
    x = randn(2, 6, 3)
    h = (x @ first.weight + first.bias).clamp_min(0)
    th.testing.assert_close(net(x), (h @ second.weight + second.bias).clamp_min(0) @ last.weight + last.bias)


def test_the_nets_start_as_the_authors_do() -> None:
    policy = QSMPolicy(RandomEnv().observation_space, RandomEnv().action_space, lambda _: 3e-4)
    assert policy.diffusion_steps == 5
    for net, widths in ((policy.critic, [512, 512, 1]), (policy.actor.epsilon, [128, 128, 512, 512, 2])):
        linears: list[Any] = [layer for layer in net.modules() if isinstance(layer, th.nn.Linear | EnsembleLinear)]
        assert [layer.bias.shape[-1] for layer in linears] == widths
        for layer in linears:
            assert (layer.bias == 0).all()
            bound = math.sqrt(6 / sum(layer.weight.shape[-2:]))
            assert 0.85 * bound < layer.weight.abs().max() <= bound
    assert 0.1 < policy.actor.epsilon.step.frequencies.std().item() < 0.3


# What acts


def test_the_deterministic_policy_has_no_noise_at_any_step() -> None:
    model = make_qsm().learn(15)
    assert model.actor.sample_noise(3).shape == (5, 3, 2)
    assert not model.actor.fixed_noise(3).any()
    obs = th.as_tensor(observations(model))
    with th.no_grad():
        x, field, schedule = th.zeros(5, 2), model.actor.field(obs), model.actor.schedule
        for t in reversed(range(5)):
            epsilon = field(x, th.full((1, 1), float(t)))
            alpha, alpha_bar = schedule.alphas[t], schedule.alpha_bars[t]
            x = ((x - (1 - alpha) / (1 - alpha_bar).sqrt() * epsilon) / alpha.sqrt()).clamp(-1, 1)
    np.testing.assert_allclose(model.predict(obs.numpy(), deterministic=True)[0], x, atol=1e-6)


@pytest.mark.parametrize("horizon", [1, 3])
def test_noise_is_added_when_acting_in_training_only(horizon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_qsm(env=DummyVecEnv([RandomEnv, RandomEnv]), horizon_length=horizon, exploration_noise=0.5)
    monkeypatch.setattr(model.actor, "action_fn", lambda obs, noise: th.zeros(2, 2 * horizon))
    model.num_timesteps = LEARNING_STARTS
    model._last_obs, model._last_episode_starts = np.zeros((2, 3), np.float32), np.zeros(2, bool)
    acted, stored = np.stack([model._sample_action(LEARNING_STARTS, n_envs=2) for _ in range(500)], axis=1)
    np.testing.assert_allclose(acted, stored, atol=1e-6)  # in these spaces the units are the same
    assert np.abs(acted).max() == 1
    assert np.median(np.abs(acted)) == pytest.approx(0.5 * 0.6745, abs=0.03)  # of a normal distribution
    assert not model.predict(np.zeros((2, 3), np.float32))[0].any()
    # Random actions are left as they are
    model.num_timesteps = 0
    before = str(np.random.get_state())
    model._sample_action(LEARNING_STARTS, n_envs=2)
    assert str(np.random.get_state()) == before


# One update


def test_the_target_is_of_the_policy_that_explores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_qsm(exploration_noise=0.3).learn(20)
    batch, noise, exploration = model._sample(8), model.actor.sample_noise(8), th.randn(8, 2)
    with th.no_grad():
        action = (model.actor.action(batch.next_observations, noise) + 0.3 * exploration).clamp(-1, 1)
        next_q = model.critic_target(batch.next_observations, action).amin(0)
    th.testing.assert_close(model._critic_loss(batch, noise, exploration).next_q, next_q)


def test_the_gradient_is_of_the_critics_mean_at_the_noised_action(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_qsm(q_coef=50.0).learn(20)
    batch, noise, steps = model._sample(8), th.randn(8, 2), model.actor.sample_steps(8)
    seen: list[Any] = []
    original = model._action_gradient
    monkeypatch.setattr(model, "_action_gradient", lambda *args: (seen.append(args), original(*args))[1])
    loss = model._actor_loss(batch, steps, noise, th.tensor(0.0))
    alpha_bar = model.actor.alpha_bars[steps.flatten()][:, None]
    noised_actions = alpha_bar.sqrt() * batch.actions + (1 - alpha_bar).sqrt() * noise
    th.testing.assert_close(seen[0][1], noised_actions)
    x = noised_actions.requires_grad_(True)
    (gradient,) = th.autograd.grad(model.critic(batch.observations, x).mean(0).sum(), x)
    assert not th.allclose(gradient, th.zeros_like(gradient))
    assert loss.gradient_size.item() == pytest.approx(gradient.abs().mean().item(), rel=1e-5)
    predicted = model.actor.field(batch.observations)(x, steps.float())
    assert loss.score_loss.item() == pytest.approx((predicted + 50 * gradient).square().mean().item(), rel=1e-5)
    # The critics learn nothing from it
    critics = list(model.critic.parameters())
    assert th.autograd.grad(loss.loss, critics, allow_unused=True) == (None,) * len(critics)


def test_every_step_is_drawn() -> None:
    steps = make_qsm().actor.sample_steps(1000)
    assert steps.shape == (1000, 1)
    assert steps.unique().tolist() == [0, 1, 2, 3, 4]


def test_both_nets_and_the_target_move_at_every_update() -> None:
    model = make_qsm(tau=0.25).learn(LEARNING_STARTS)
    before = snapshot(model)
    model.train(1, batch_size=8)
    changed = differences(before, snapshot(model))
    for name in ("actor", "critic", "critic_target"):
        assert any(each.startswith(f"/policy/{name}.") for each in changed)


# Arguments


def test_the_weights_defaults_depend_on_what_is_learned_from() -> None:
    assert (make_qsm().normalize_gradient, make_qsm().q_coef, make_qsm().bc_coef) == (True, 0.4 * 5, 0.0)
    assert make_qsm(normalize_gradient=False).q_coef == 50.0
    assert make_qsm(q_coef=50.0).normalize_gradient is False
    assert make_qsm(q_coef=3.0, normalize_gradient=True).normalize_gradient is True
    assert make_qsm(normalize_gradient=True, net={"diffusion_steps": 20}).q_coef == 8.0
    data = {"offline_dataset": regular_arrays(trajectories([20])), "learning_starts": None}
    with_data = make_qsm(**data)
    assert (with_data.normalize_gradient, with_data.q_coef, with_data.bc_coef) == (False, 1.0, 10.0)
    assert make_qsm(normalize_gradient=True, **data).q_coef == 0.4 * 5
    model = make_qsm()
    model.normalize_gradient, model.q_coef = False, None
    assert model.learn(LEARNING_STARTS + 2).q_coef == 50.0
    model.normalize_gradient, model.q_coef = None, None  # as they are by default
    assert model.learn(LEARNING_STARTS + 2).q_coef == 0.4 * 5
    assert model.normalize_gradient is True
    chosen = make_qsm(q_coef=0.0, bc_coef=0.0, **data)
    assert (chosen.q_coef, chosen.bc_coef) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("q_coef", -1.0, "a number >= 0"),
        ("q_coef", math.nan, "a number >= 0"),
        ("q_coef", "50", "a number >= 0"),
        ("exploration_noise", -0.1, "a number >= 0"),
        ("exploration_noise", None, "a number >= 0"),
        ("normalize_gradient", "yes", "None, False, True"),
    ],
)
def test_its_own_arguments_are_checked(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value!r} .*{allowed}"):
        make_qsm(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("diffusion_steps", 0), ("diffusion_steps", 2.5), ("net_arch", {"pi": []})]
)
def test_policy_arguments_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.* is not allowed"):
        make_qsm(net={name: value})
