"""Critics that say a distribution: its projection, its target, and the scale of rewards that it needs."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from helpers import RandomEnv, differences, make_model, randn, random_state_kept, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.testing import assert_close

from sb3_flow import SACFlow
from sb3_flow.common.categorical import Support, cross_entropy, expectation, one_of, project, target_distribution
from sb3_flow.common.critics import outputs_and_next
from sb3_flow.common.layers import Projected, UnitNormLinear
from sb3_flow.common.reward_scale import RewardScale

CATEGORICAL = ("categorical", "xqc")
SMALL = Support(n_atoms=7, bound=3.0)  # atoms at -3, -2, ..., 3
untimed = settings(deadline=None)


def distributions(*shape: int, seed: int = 0) -> th.Tensor:
    return (2 * randn(*shape, seed=seed)).softmax(dim=-1)


# --- Distributions ---


@untimed
@given(batch=st.integers(1, 4), n_atoms=st.integers(2, 12), spread=st.floats(0, 4), seed=st.integers(0, 2**31))
def test_projection_is_that_of_a_loop(batch: int, n_atoms: int, spread: float, seed: int) -> None:
    support = Support(n_atoms, 2.0)
    atoms = np.linspace(-2, 2, n_atoms)
    probs, values = distributions(batch, n_atoms, seed=seed), spread * randn(batch, n_atoms, seed=seed + 1)
    expected = np.zeros((batch, n_atoms))
    for row in range(batch):
        for p, value in zip(probs[row].tolist(), values[row].clamp(-2, 2).tolist(), strict=True):
            expected[row] += p * np.clip(1 - np.abs(atoms - value) / (atoms[1] - atoms[0]), 0, 1)
    projected = project(probs, values, support)
    np.testing.assert_allclose(projected, expected, atol=1e-12)
    assert_close(projected.sum(dim=1), th.ones(batch, dtype=th.float64))


def test_projection_keeps_what_is_on_atoms_and_ends_what_is_beyond_the_support() -> None:
    probs = distributions(5, 7)
    assert_close(project(probs, SMALL.atoms(probs).expand(5, 7), SMALL), probs)
    for value, end in ((1e30, 6), (3.0, 6), (-3.0, 0), (-1e30, 0)):
        assert_close(project(probs, th.full_like(probs, value), SMALL), th.eye(7, dtype=th.float64)[end].expand(5, 7))


def test_a_target_that_is_no_number_is_passed_on() -> None:
    values = SMALL.atoms(distributions(2, 7)).repeat(2, 1)
    values[1, 3] = np.nan
    projected = project(distributions(2, 7), values, SMALL)
    assert projected.isnan().any(dim=1).tolist() == [False, True]


def test_within_the_support_the_target_has_the_scalar_target_for_its_mean() -> None:
    probs = th.zeros(100, 7, dtype=th.float64)
    probs[:, 2:5] = distributions(100, 3)  # on [-1, 1]
    target_q, bootstrap = randn(100, seed=1).clamp(-1, 1), th.rand(100, dtype=th.float64)
    target = target_distribution(probs, target_q, bootstrap, SMALL)
    assert_close(expectation(target, SMALL), target_q)
    assert (target >= 0).all()


def test_a_target_without_a_bootstrap_is_the_reward_alone() -> None:
    rewards = th.tensor([2.0, -0.25, 9.0], dtype=th.float64)
    target = target_distribution(distributions(3, 7), rewards, th.zeros(3, dtype=th.float64), SMALL)
    expected = th.zeros(3, 7, dtype=th.float64)
    expected[0, 5], expected[1, 2], expected[1, 3], expected[2, 6] = 1, 0.25, 0.75, 1
    assert_close(target, expected)


def test_the_return_of_a_constant_reward_is_a_fixed_point_that_others_run_to() -> None:
    gamma, value = 0.5, 2.0
    certain = th.eye(7, dtype=th.float64)[5:6]
    bootstrap = th.full((1,), gamma, dtype=th.float64)
    probs = distributions(1, 7)
    for start, steps in ((certain, 1), (probs, 200)):
        reached = start
        for _ in range(steps):
            target_q = value * (1 - gamma) + gamma * expectation(reached, SMALL)
            reached = target_distribution(reached, target_q, bootstrap, SMALL)
        assert_close(reached, certain)


def test_of_several_critics_the_lowest_or_the_mixture_stands_for_all() -> None:
    probs = distributions(3, 50, 7)
    means = expectation(probs, SMALL)
    lowest = one_of(probs, True, SMALL)
    for row in range(50):
        assert th.equal(lowest[row], probs[means[:, row].argmin(), row])
    assert_close(one_of(probs, False, SMALL), (probs[0] + probs[1] + probs[2]) / 3)


def test_the_gradient_of_the_cross_entropy_is_softmax_less_target() -> None:
    logits, target = randn(2, 4, 7).requires_grad_(True), distributions(4, 7, seed=1)
    loss = cross_entropy(logits, target)
    assert_close(loss[1, 2], -(target[2] * logits[1, 2].softmax(0).log()).sum())
    (gradient,) = th.autograd.grad(loss.sum(), logits)
    assert_close(gradient, logits.detach().softmax(dim=-1) - target)


# --- Critics ---


@pytest.mark.parametrize("critic", CATEGORICAL)
@pytest.mark.parametrize(("n_critics", "pessimism"), [(1, None), (2, None), (2, 0.0), (3, 0.7)])
def test_the_target_distribution_has_the_verdict_for_its_mean(
    critic: str, n_critics: int, pessimism: float | None
) -> None:
    model = make_model(critic=critic, net={"n_critics": n_critics, "critic_pessimism": pessimism})
    next_outputs = 0.3 * randn(n_critics, 40, 101)
    next_q = model.critic.reduce(model.critic.q(next_outputs))
    rewards, ones = 0.1 * randn(40, seed=1), th.ones(40, dtype=th.float64)
    target = model.critic.target_distribution(next_outputs, rewards + 0.5 * next_q, 0.5 * ones)
    support = model.critic.support
    assert support is not None
    assert_close(expectation(target, support), rewards + 0.5 * next_q)
    lowest = model.critic.q(next_outputs).argmin(dim=0)
    alone = next_outputs.softmax(-1)[lowest, th.arange(40)] if pessimism is None else next_outputs.softmax(-1).mean(0)
    # Half of the next state's spread; sharing between neighbours adds a little
    variances = [expectation(p, support._replace()) for p in (target, alone)]
    atoms = support.atoms(target)
    spread, expected = (
        (p * (atoms - mean[:, None]).square()).sum(-1) for p, mean in zip((target, alone), variances, strict=True)
    )
    assert_close(spread, 0.25 * expected, rtol=0, atol=0.1**2 / 4)


@pytest.mark.parametrize("critic", [*CATEGORICAL, "flashsac"])
def test_s_and_s_prime_go_through_the_critics_together(critic: str) -> None:
    model = make_model(critic=critic).learn(20)
    obs, next_obs = randn(8, 3).float(), randn(8, 3, seed=1).float() + 2
    actions, next_actions = randn(8, 2, seed=2).float().tanh(), randn(8, 2, seed=3).float().tanh()
    model.critic.set_training_mode(True)
    outputs, next_outputs = outputs_and_next(model.critic, model.critic_target, obs, actions, next_obs, next_actions)
    both = th.cat([obs, next_obs]), th.cat([actions, next_actions])
    assert_close(outputs, model.critic.outputs(*both)[:, :8])
    of_next = model.critic if model.critic_target is None else model.critic_target
    assert_close(next_outputs, of_next.outputs(*both)[:, 8:])
    assert not th.allclose(next_outputs, of_next.outputs(next_obs, next_actions), atol=1e-3)
    assert (critic != "categorical") == (model.critic_target is not None)


def test_weights_of_xqc_stay_on_the_unit_sphere() -> None:
    model = make_model(critic="xqc")
    layers = [module for module in model.critic.modules() if isinstance(module, UnitNormLinear)]
    before = [layer.weight.clone() for layer in layers]
    model.learn(20)
    assert [layer.bias is None for layer in layers] == [True, True, False]
    for layer, old in zip(layers, before, strict=True):
        assert not th.equal(layer.weight, old)
        assert_close(layer.weight.norm(dim=1), th.ones(2, layer.weight.shape[2]))
    # The target is between unit vectors
    assert model.critic_target is not None
    for target in model.critic_target.modules():
        if isinstance(target, UnitNormLinear):
            assert (target.weight.norm(dim=1) < 1 + 1e-6).all()


def test_weights_of_flashsac_keep_their_norms() -> None:
    model = make_model(critic="flashsac")
    layers = [module for module in model.critic.modules() if isinstance(module, Projected)]
    before = [parameter.clone() for layer in layers for parameter in layer.parameters()]
    model.learn(20)
    after = [parameter.clone() for layer in layers for parameter in layer.parameters()]
    assert not any(th.equal(*pair) for pair in zip(before, after, strict=True))
    model.critic.project_weights(th.tensor(False))  # they are there already
    for layer in layers:
        if isinstance(layer, UnitNormLinear):
            assert_close(layer.weight.norm(dim=1), th.ones(2, layer.weight.shape[2]))
        else:
            squares = sum(parameter.square() for name, parameter in layer.named_parameters())
            assert_close(squares.mean(dim=-1), th.ones(2, 1))
    assert_close([parameter for layer in layers for parameter in layer.parameters()], after)


@pytest.mark.parametrize(("critic", "lowest"), [("xqc", 3e-5), ("flashsac", 1.5e-4)])
def test_the_learning_rate_falls_as_published(critic: str, lowest: float) -> None:
    model = make_model(critic=critic)
    for steps, expected in ((20, (3e-4 + lowest) / 2), (40, lowest)):
        model.learn(40, callback=lambda locals_, _, steps=steps: locals_["self"].num_timesteps <= steps)
        assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("critic", CATEGORICAL)
def test_alpha_begins_on_the_scale_of_the_returns_unless_told_otherwise(critic: str) -> None:
    for given_alpha, expected in ((None, 0.01), ("auto_0.3", 0.3)):
        model = make_model(critic=critic, ent_coef=given_alpha)
        assert model.log_ent_coef is not None
        assert model.log_ent_coef.exp().item() == pytest.approx(expected)


def test_a_reward_that_is_far_too_high_ends_at_the_support() -> None:
    model = make_model(critic="categorical").learn(20)
    model.replay_buffer.rewards[:] = 1e38
    model.train(3, batch_size=8)
    assert all(th.isfinite(tensor).all() for tensor in snapshot(model).values())


# --- The scale of rewards ---


def by_hand(rewards: Any, dones: Any, gamma: float, bound: float) -> float:
    """The scale after steps of several environments, both (T, n_envs)."""
    seen = []
    for column in range(rewards.shape[1]):
        running = 0.0
        for reward, done in zip(rewards[:, column], dones[:, column], strict=True):
            running = gamma * running + reward
            seen.append(running)
            running = 0.0 if done else running
    return max(np.std(seen), np.abs(seen).max() / bound)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize(("offset", "outlier"), [(0.0, 0.0), (3.0, 0.0), (0.0, 500.0)])
def test_the_scale_is_the_larger_of_the_spread_and_a_share_of_the_highest(
    size: float, offset: float, outlier: float
) -> None:
    rng = np.random.default_rng(0)
    rewards, dones = size * (offset + rng.normal(size=(60, 3))), rng.random((60, 3)) < 0.1
    rewards[30, 1] += size * outlier
    scale = RewardScale(5.0)
    scale.begin(3)
    for reward, done in zip(rewards, dones, strict=True):
        scale.step(reward, done, 0.9)
    assert scale.value == pytest.approx(by_hand(rewards, dones, 0.9, 5.0), rel=1e-9)
    assert (scale.value == scale.highest / 5) == (outlier > 0)


def test_the_scale_of_nothing_is_1_and_what_is_not_finite_is_left_out() -> None:
    scale = RewardScale(5.0)
    assert scale.value == 1.0
    scale.begin(2)
    scale.step(np.zeros(2), np.zeros(2), 0.9)
    assert scale.value == 1.0
    scale.step(np.array([np.nan, 2.0]), np.zeros(2), 0.9)
    assert scale.count == 3
    assert scale.highest == 2.0
    scale.step(np.array([1.0, np.inf]), np.ones(2), 0.9)
    scale.step(np.ones(2), np.ones(2), 0.9)
    assert scale.count == 5
    assert np.isfinite(scale.value)


class Scaled(gym.RewardWrapper[Any, Any]):
    """Rewards times a power of two, which rounds nothing."""

    def __init__(self, factor: float = 1024.0):
        super().__init__(RandomEnv())
        self.factor = factor

    def reward(self, reward: Any) -> Any:
        return self.factor * reward


@pytest.mark.parametrize("kwargs", [{}, {"n_steps": 3}, {"horizon_length": 3}, {"ent_coef": 0.1}], ids=str)
@pytest.mark.parametrize("critic", CATEGORICAL)
def test_rewards_a_thousand_times_as_high_give_the_same_updates(critic: str, kwargs: dict[str, Any]) -> None:
    models = [
        make_model(critic=critic, env=DummyVecEnv([lambda f=f: Scaled(f)] * 2), **kwargs).learn(40)
        for f in (1.0, 1024.0)
    ]
    assert models[0]._n_updates > 0
    assert not differences(*map(snapshot, models))
    scales = [model.reward_scale.value for model in models if model.reward_scale is not None]
    assert scales[1] == 1024 * scales[0]
    assert differences(snapshot(models[0]), snapshot(make_model(critic=critic, env=RandomEnv()).learn(20)))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("horizon", [1, 3])
def test_a_batch_has_returns_on_the_scale(horizon: int, normalized: bool) -> None:
    envs: Any = DummyVecEnv([RandomEnv] * 2)
    if normalized:
        envs = VecNormalize(envs, norm_obs=False, gamma=0.9)
    model = make_model(critic="categorical", env=envs, horizon_length=horizon, gamma=0.5, learning_starts=100)
    model.learn(60)
    raw = model.replay_buffer.rewards[: model.replay_buffer.pos]  # (30, 2)
    ends = model.replay_buffer.dones[: model.replay_buffer.pos]
    assert model.reward_scale is not None
    assert model.reward_scale.value == pytest.approx(by_hand(raw, ends, 0.5, 5.0), rel=1e-6)
    discounts = 0.5 ** np.arange(horizon)
    within = [t for t in range(30 - horizon + 1) if not ends[t : t + horizon - 1].any()]
    expected = np.array([discounts @ raw[t : t + horizon] for t in within]).flatten() / model.reward_scale.value
    batch = model._sample(200)
    valid = np.ones(200, bool) if batch.valid is None else batch.valid.numpy() == 1
    distances = np.abs(batch.rewards.numpy()[valid, None] - expected).min(axis=1)
    assert distances.max() < 1e-4
    assert np.ptp(batch.rewards.numpy()) > 0.01


@pytest.mark.parametrize("critic", CATEGORICAL)
def test_the_scale_is_saved_and_goes_on(critic: str, tmp_path: Path) -> None:
    def fresh() -> SACFlow:
        return make_model(critic=critic, env=DummyVecEnv([RandomEnv] * 2), qf_learning_rate=1e-3)

    unstopped, model = fresh().learn(58), fresh().learn(30)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    with random_state_kept():
        loaded = SACFlow.load(tmp_path / "model", env=model.get_env(), device="cpu", force_reset=False)
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    loaded.learn(28, reset_num_timesteps=False)
    assert not differences(snapshot(unstopped), snapshot(loaded))
    for scale in (loaded.reward_scale, unstopped.reward_scale):
        assert scale is not None
        assert scale.count == 58
    np.testing.assert_equal(vars(loaded.reward_scale), vars(unstopped.reward_scale))


def test_every_environment_begins_anew_where_it_is_reset() -> None:
    model = make_model(critic="categorical", env=DummyVecEnv([RandomEnv] * 2), learning_starts=100)
    model.learn(6)
    assert model.reward_scale is not None
    assert (model.reward_scale.running != 0).all()
    model.learn(2)
    np.testing.assert_array_equal(model.reward_scale.running, model.replay_buffer.rewards[3])


def test_the_scale_knows_the_data_once_and_then_the_environment() -> None:
    data = regular_arrays(trajectories([20, 30]))
    model = make_model(critic="categorical", offline_dataset=data, learning_starts=0, gamma=0.9)
    model.learn_offline(3)
    ends = np.zeros((50, 1), bool)
    ends[[19, 49]] = True
    scale = model.reward_scale
    assert scale is not None
    assert scale.count == 50
    assert scale.value == pytest.approx(by_hand(data["rewards"][:, None], ends, 0.9, 5.0), rel=1e-6)
    model.learn_offline(2)
    assert scale.count == 50
    model.learn(12)
    assert scale.count == 62


def test_critics_of_one_number_have_no_scale() -> None:
    for critic in ("crossq", "target"):
        assert make_model(critic=critic).reward_scale is None
