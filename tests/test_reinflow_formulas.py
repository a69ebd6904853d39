"""ReinFlow's mathematics: the chain's density, PPO's loss on it, advantages of chunks, the noise's bounds."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import ACTION, VECTOR, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from torch.distributions import Normal

from sb3_flow.reinflow.buffers import PathRolloutBuffer
from sb3_flow.reinflow.chain import HIGHEST_NOISE, Transition, highest_std, sample, score
from sb3_flow.reinflow.losses import policy_loss
from sb3_flow.reinflow.policies import ReinFlowPolicy

K, B, D = 3, 5, 2
WEIGHTS = randn(K, D, D, seed=7)


def transition(i: int, x: th.Tensor) -> Transition:
    """Linear in x, another one in each step."""
    return Transition(x @ WEIGHTS[i], 0.3 * th.tanh(x) - 1.0 - 0.1 * i)


def make_policy(**kwargs: Any) -> ReinFlowPolicy:
    th.manual_seed(0)
    return ReinFlowPolicy(VECTOR, ACTION, lambda _: 1e-3, net_arch=[16] * 3, **kwargs)


def test_a_path_is_made_of_means_and_noise() -> None:
    noise = randn(K + 1, B, D)
    points = sample(transition, noise)
    x = noise[0]
    for i in range(K):
        assert th.equal(points[i], x)
        x = x @ WEIGHTS[i] + (0.3 * th.tanh(x) - 1.0 - 0.1 * i).exp() * noise[i + 1]
    th.testing.assert_close(points[K], x)


def test_the_score_of_a_path_is_a_product_of_gaussians_per_number_in_it() -> None:
    points = randn(K + 1, B, D, seed=1)  # taken by another chain
    scored = score(transition, points)
    for b in range(B):
        start = Normal(th.zeros(D, dtype=th.float64), 1.0)
        log_prob, entropy, stds = start.log_prob(points[0, b]).sum(), start.entropy().sum(), []
        for i in range(K):
            mean, log_std = transition(i, points[i, b : b + 1])
            step = Normal(mean[0], log_std[0].exp())
            log_prob = log_prob + step.log_prob(points[i + 1, b]).sum()
            entropy = entropy + step.entropy().sum()
        th.testing.assert_close(scored.log_prob[b], log_prob / ((K + 1) * D))
        th.testing.assert_close(scored.entropy[b], entropy / ((K + 1) * D))
    stds = [transition(i, points[i]).log_std.exp() for i in range(K)]
    th.testing.assert_close(scored.std, th.stack(stds).mean())


def test_a_path_is_scored_at_the_times_at_which_it_was_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = make_policy(flow_steps=4).actor
    times: list[float] = []
    forward = actor.velocity.forward
    monkeypatch.setattr(actor.velocity, "forward", lambda c, x, t: times.append(t.item()) or forward(c, x, t))
    obs = th.zeros(1, 3)
    points = actor.path(obs, actor.sample_noise(1))
    sampled, times[:] = list(times), []
    actor.score(obs, points)
    assert times == sampled == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("advantage_sign", [-1.0, 1.0])
def test_the_policys_loss_is_ppos(advantage_sign: float) -> None:
    points = randn(K + 1, B, D, seed=1)
    scored = score(transition, points)
    old = scored.log_prob + 0.1 * randn(B, seed=2)
    advantages = advantage_sign * (randn(B, seed=3) + 0.5)
    result = policy_loss(scored, old, advantages, th.tensor(0.05), 0.3)
    normal = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    total, kl, outside = 0.0, 0.0, 0
    for b in range(B):
        ratio = math.exp(scored.log_prob[b] - old[b])
        total -= min(normal[b].item() * ratio, normal[b].item() * min(max(ratio, 0.95), 1.05)) / B
        kl += (ratio - 1 - math.log(ratio)) / B
        outside += abs(ratio - 1) > 0.05
    assert 0 < outside < B
    assert result.policy_gradient_loss.item() == pytest.approx(total)
    assert result.loss.item() == pytest.approx(total - 0.3 * scored.entropy.mean().item())
    assert result.approx_kl.item() == pytest.approx(kl)
    assert result.clip_fraction.item() == pytest.approx(outside / B)


def test_the_noise_stays_in_its_bounds_and_is_cut_off() -> None:
    actor = make_policy(noise_std_range=(0.1, 0.3)).actor
    actor.bound_noise(0.2)
    transitions = actor.transitions(100 * th.randn(64, 3))
    stds = th.stack([transitions(i, th.randn(64, 2)).log_std.exp() for i in range(actor.flow_steps)])
    assert stds.min() >= 0.1 - 1e-6
    assert stds.max() <= 0.2 + 1e-6
    assert stds.std() > 0.01
    noise = actor.sample_noise(2000)
    assert noise[1:].abs().max() <= HIGHEST_NOISE < noise[0].abs().max()


def test_the_flow_stays_in_the_actions_range() -> None:
    actor = make_policy().actor
    with th.no_grad():
        for parameter in actor.velocity.rest[-1].parameters():
            parameter.fill_(10.0)
    mean, _ = actor.transitions(th.zeros(4, 3))(0, th.randn(4, 2))
    assert mean.abs().max() == 1
    assert actor.action(th.zeros(4, 3), actor.sample_noise(4)).abs().max() == 1


@pytest.mark.parametrize(
    ("done", "expected"),
    [(0.0, 0.24), (0.35, 0.24), (0.675, 0.219), (1.0, 0.198)],
)
def test_the_highest_sigma_stays_and_then_falls(done: float, expected: float) -> None:
    assert highest_std(0.1, 0.24, done, hold=0.35, decay=0.7) == pytest.approx(expected)
    assert highest_std(0.1, 0.24, done, hold=1.0, decay=1.0) == pytest.approx(0.24)


# --- Advantages ---


def filled(
    episode_starts: np.ndarray[Any, Any], decided: np.ndarray[Any, Any], rewards: np.ndarray[Any, Any]
) -> PathRolloutBuffer:
    steps, n_envs = rewards.shape
    buffer = PathRolloutBuffer(steps, VECTOR, ACTION, th.device("cpu"), 0.9, 0.8, n_envs, (3, 2))
    for t in range(steps):
        obs = np.full((n_envs, 3), t, np.float32)
        paths = np.full((n_envs, 3, 2), t, np.float32)
        buffer.add(obs, rewards[t], episode_starts[t], decided[t], paths)
    return buffer


def test_without_chunks_the_advantages_are_sb3s() -> None:
    rng = np.random.default_rng(0)
    steps, n_envs = 12, 3
    starts = rng.random((steps, n_envs)) < 0.2
    rewards = rng.normal(size=(steps, n_envs)).astype(np.float32)
    values = rng.normal(size=(steps, n_envs)).astype(np.float32)
    last, dones = rng.normal(size=n_envs).astype(np.float32), np.array([True, False, False])
    theirs = RolloutBuffer(steps, VECTOR, ACTION, "cpu", gae_lambda=0.8, gamma=0.9, n_envs=n_envs)
    for t in range(steps):
        zeros = np.zeros((n_envs, 3)), np.zeros((n_envs, 2))
        theirs.add(*zeros, rewards[t], starts[t], th.as_tensor(values[t]), th.zeros(n_envs))
    theirs.compute_returns_and_advantage(th.as_tensor(last), dones)
    ours = filled(starts, np.ones_like(starts), rewards)
    ours.finish(values.flatten(), np.zeros(steps * n_envs, np.float32), last, dones)
    np.testing.assert_allclose(ours.advantages, theirs.advantages.flatten(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.returns, theirs.returns.flatten(), rtol=1e-5, atol=1e-6)


def by_hand(decisions: list[tuple[list[float], float]], ends: list[bool], last: float) -> list[float]:
    """Advantages of one environment's decisions: rewards of the chunk and V of each, and whether an episode ended."""
    advantages, next_advantage, next_value = [], 0.0, last
    for (rewards, value), end in zip(reversed(decisions), reversed(ends), strict=True):
        worth = sum(0.9**j * reward for j, reward in enumerate(rewards))
        discount = 0.0 if end else 0.9 ** len(rewards)
        next_advantage = worth + discount * (next_value + 0.8 * next_advantage) - value
        next_value = value
        advantages.append(next_advantage)
    return advantages[::-1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_a_chunk_is_one_step_of_the_length_that_it_had(chunks: list[tuple[int, bool]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, ends = [length for length, _ in chunks], [end for _, end in chunks]
    steps = sum(lengths)
    first = np.cumsum([0, *lengths[:-1]])
    decided, starts = np.zeros((2, steps, 1), bool)
    decided[first] = True
    starts[[0, *first[1:][np.array(ends[:-1], bool)]]] = True
    rewards = rng.normal(size=(steps, 1)).astype(np.float32)
    values = rng.normal(size=len(chunks)).astype(np.float32)
    last = rng.normal(size=1).astype(np.float32)
    buffer = filled(starts, decided, rewards)
    buffer.finish(values, values, last, np.array([ends[-1]]))
    pieces = np.split(rewards[:, 0], first[1:])
    decisions = [(piece.tolist(), float(value)) for piece, value in zip(pieces, values, strict=True)]
    np.testing.assert_allclose(buffer.advantages, by_hand(decisions, ends, float(last[0])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3]), (4, [4, 2]), (5, [5]), (7, [6])])
def test_batches_hold_decisions_once_with_what_belongs_to_them_and_none_is_small(
    batch_size: int, sizes: list[int]
) -> None:
    decided = np.zeros((10, 2), bool)
    decided[[0, 3, 6, 9], 0] = decided[[0, 5], 1] = True
    buffer = filled(np.zeros_like(decided), decided, np.zeros((10, 2), np.float32))
    numbers = np.arange(6, dtype=np.float32)
    buffer.finish(np.zeros(6, np.float32), numbers, np.zeros(2, np.float32), np.zeros(2, bool))
    batches = list(buffer.batches(batch_size))
    assert [len(batch.paths) for batch in batches] == sizes
    seen = {}
    for batch in batches:
        assert isinstance(batch.observations, th.Tensor)
        assert th.equal(batch.observations[:, 0], batch.paths[:, 0, 0])
        seen |= dict(zip(batch.old_log_prob.tolist(), batch.observations[:, 0].tolist(), strict=True))
    assert len(seen) == sum(sizes)
    assert seen.items() <= dict(enumerate([0, 0, 3, 5, 6, 9])).items()


def test_the_buffer_keeps_every_key_of_dict_observations() -> None:
    space = spaces.Dict({"vector": VECTOR, "number": spaces.Discrete(4)})
    buffer = PathRolloutBuffer(2, space, ACTION, th.device("cpu"), 0.9, 0.8, 2, (3, 2))
    ones = np.ones(2, bool)
    for t in range(2):
        obs = {"vector": np.full((2, 3), t, np.float32), "number": np.full(2, t + 1)}
        buffer.add(obs, np.zeros(2, np.float32), ones, ones, np.zeros((2, 3, 2), np.float32))
    obs, _ = buffer.decisions(np.array([0, 3]))  # type: ignore[assignment]
    assert obs["vector"][:, 0].tolist() == [0, 1]
    assert obs["number"].tolist() == [[1], [2]]
