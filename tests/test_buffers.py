"""Chunk sampling against a slow reference that walks the episodes one step at a time."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import VECTOR, RandomEnv, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow.common.buffers import Batch, ChunkDictReplayBuffer, ChunkReplayBuffer, to_batch

GAMMA = 0.9
OBS = spaces.Box(-np.inf, np.inf, (1,), np.float32)
ACTION = spaces.Box(-1, 1, (2,), np.float32)


class Step(NamedTuple):
    """One stored step; `tag` identifies it: it is the observation, and the next one's is tag + 0.5."""

    tag: float
    reward: float
    done: bool
    timeout: bool


class Layout(NamedTuple):
    """A buffer, and per environment the steps it should hold, oldest first."""

    buffer: ChunkReplayBuffer
    stored: list[list[Step]]


def action_of(tag: float) -> NDArray[np.float32]:
    return np.array([np.sin(tag), np.cos(tag)], dtype=np.float32)


def fill(buffer: Any, n_steps: int, seed: int, end_probability: float = 0.3) -> list[list[Step]]:
    """Add random episodes; returns what the buffer should hold, per environment, oldest first."""
    rng = np.random.default_rng(seed)
    history: list[list[Step]] = [[] for _ in range(buffer.n_envs)]
    for index in range(n_steps):
        row = []
        for env in range(buffer.n_envs):
            done = bool(rng.random() < end_probability)
            tag = float(index * buffer.n_envs + env)
            row.append(Step(tag, float(np.float32(rng.normal())), done, done and bool(rng.random() < 0.5)))
            history[env].append(row[-1])
        tags = np.array([[step.tag] for step in row], dtype=np.float32)
        obs, next_obs = (
            (tags, tags + 0.5)
            if isinstance(buffer.observation_space, spaces.Box)
            else (
                {"a": tags, "b": -tags},
                {"a": tags + 0.5, "b": -tags - 0.5},
            )
        )
        buffer.add(
            obs,
            next_obs,
            np.stack([action_of(step.tag) for step in row]),
            np.array([step.reward for step in row]),
            np.array([step.done for step in row]),
            [{"TimeLimit.truncated": step.timeout} for step in row],
        )
    return [steps[-buffer.buffer_size :] for steps in history]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    n_envs = draw(st.integers(1, 3))
    rows = draw(st.integers(1, 12))
    horizon = draw(st.integers(1, rows))
    buffer = ChunkReplayBuffer(rows * n_envs, OBS, ACTION, "cpu", n_envs, horizon_length=horizon, gamma=GAMMA)
    n_steps = draw(st.integers(horizon, 3 * rows))
    return Layout(buffer, fill(buffer, n_steps, draw(st.integers(0, 2**31)), draw(st.sampled_from([0.0, 0.3, 0.8]))))


def expected(steps: list[Step]) -> dict[str, Any]:
    """What one chunk must look like, step by step."""
    reward, alive, in_episode, terminated = 0.0, True, [], False
    for j, step in enumerate(steps):
        in_episode.append(float(alive))
        if alive:
            reward += GAMMA**j * step.reward
            terminated = step.done and not step.timeout
        if step.done:
            alive = False
    last = steps[-1]
    return {
        "observations": [steps[0].tag],
        "actions": np.concatenate([action_of(step.tag) for step in steps]),
        "next_observations": [last.tag + 0.5],
        "rewards": [reward],
        "dones": [float(terminated)],
        "discounts": [GAMMA ** len(steps)],
        "valid": [max(in_episode[-1], float(terminated))],
        "in_episode": np.repeat(in_episode, 2),
    }


@settings(deadline=None, max_examples=150)
@given(layout=layouts())
def test_every_sampled_chunk_is_what_walking_the_episode_gives(layout: Layout) -> None:
    buffer, stored = layout
    horizon = buffer.horizon_length
    starts = {steps[i].tag: steps[i : i + horizon] for steps in stored for i in range(len(steps) - horizon + 1)}
    samples = buffer.sample(64)
    # A KeyError is a chunk that starts where none may
    chunks = [expected(starts[float(tag)]) for tag in samples.observations]
    for name in chunks[0]:
        want = np.array([chunk[name] for chunk in chunks], np.float32)
        np.testing.assert_allclose(getattr(samples, name).numpy(), want, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("n_steps", [20, 30, 47])
def test_every_start_is_sampled_equally_often(n_steps: int) -> None:
    buffer = ChunkReplayBuffer(60, OBS, ACTION, "cpu", 2, horizon_length=4, gamma=GAMMA)
    stored = fill(buffer, n_steps, seed=1)
    starts = sorted(step.tag for steps in stored for step in steps[: len(steps) - 3])
    np.random.seed(0)
    tags = buffer.sample(40_000).observations.numpy().ravel()
    values, counts = np.unique(tags, return_counts=True)
    assert values.tolist() == starts
    assert stats.chisquare(counts).pvalue > 1e-3


@settings(deadline=None, max_examples=150)
@given(layout=layouts())
def test_targets_are_those_of_sb3s_n_step_buffer(layout: Layout) -> None:
    ours, horizon = layout.buffer, layout.buffer.horizon_length
    theirs = NStepReplayBuffer(
        ours.buffer_size * ours.n_envs, OBS, ACTION, "cpu", ours.n_envs, n_steps=horizon, gamma=GAMMA
    )
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        getattr(theirs, name)[:] = getattr(ours, name)
    theirs.pos, theirs.full = ours.pos, ours.full
    oldest = ours.pos if ours.full else 0
    starts = (oldest + np.arange(ours.size() - horizon + 1)) % ours.buffer_size
    seed = int(np.random.randint(2**31))
    np.random.seed(seed)
    chunks = to_batch(ours._get_samples(starts), GAMMA)
    np.random.seed(seed)  # of the environments that are drawn
    n_step = to_batch(theirs._get_samples(starts), GAMMA)
    assert chunks.valid is not None
    # Of a chunk that a time limit cuts short we make no target
    valid = chunks.valid.bool()
    th.testing.assert_close(chunks.observations, n_step.observations)
    th.testing.assert_close(target(chunks)[valid], target(n_step)[valid])
    assert chunks.dones.equal(n_step.dones)
    assert valid[chunks.dones == 1].all()


def target(batch: Batch) -> th.Tensor:
    """The TD target for some Q."""
    assert isinstance(batch.next_observations, th.Tensor)
    next_q = 10 * th.cos(batch.next_observations[:, 0])
    return batch.rewards + batch.discounts * (1 - batch.dones) * next_q


def test_dict_observations_are_gathered_key_by_key() -> None:
    space = spaces.Dict({"a": OBS, "b": OBS})
    arrays = ChunkReplayBuffer(20, OBS, ACTION, "cpu", 2, horizon_length=3, gamma=GAMMA)
    dicts = ChunkDictReplayBuffer(20, space, ACTION, "cpu", 2, horizon_length=3, gamma=GAMMA)
    fill(arrays, 17, seed=5)
    fill(dicts, 17, seed=5)
    np.random.seed(0)
    plain = arrays.sample(32)
    np.random.seed(0)
    keyed = dicts.sample(32)
    assert isinstance(keyed.next_observations, dict)
    assert isinstance(keyed.observations, dict)
    assert th.equal(keyed.observations["b"], -plain.observations)
    assert th.equal(keyed.next_observations["a"], plain.next_observations)
    assert th.equal(keyed.rewards, plain.rewards)
    assert th.equal(keyed.actions, plain.actions)


def test_rewards_and_observations_are_normalised_with_vec_normalize() -> None:
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(OBS)]), gamma=GAMMA)
    buffer = ChunkReplayBuffer(20, OBS, ACTION, "cpu", 1, horizon_length=2, gamma=GAMMA)
    fill(buffer, 10, seed=2, end_probability=0)
    env.obs_rms.mean, env.obs_rms.var = np.full(1, 3.0), np.full(1, 4.0)  # type: ignore[union-attr]
    env.ret_rms.var = np.asarray(25.0)
    np.random.seed(0)
    raw = buffer.sample(8)
    np.random.seed(0)
    normalised = buffer.sample(8, env=env)
    th.testing.assert_close(normalised.rewards, raw.rewards / 5, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(normalised.observations, ((raw.observations - 3) / 2).clamp(-10, 10), rtol=1e-4, atol=1e-4)


def test_a_single_step_batch_carries_the_plain_discount_and_no_masks() -> None:
    buffer = ChunkReplayBuffer(20, OBS, ACTION, "cpu", 1, horizon_length=1, gamma=GAMMA)
    fill(buffer, 10, seed=2)
    chunks = to_batch(buffer.sample(8), GAMMA)
    assert chunks.valid is not None
    assert chunks.valid.min() == 1
    th.testing.assert_close(chunks.discounts, th.full((8,), GAMMA))


@pytest.mark.parametrize(
    ("ours", "theirs", "space"),
    [
        (ChunkReplayBuffer, ReplayBuffer, VECTOR),
        (ChunkDictReplayBuffer, DictReplayBuffer, spaces.Dict({"a": VECTOR, "b": OBS})),
    ],
)
def test_sb3s_sac_learns_from_single_steps_exactly_as_from_its_own_buffer(ours: Any, theirs: Any, space: Any) -> None:
    def learned(buffer: Any, arguments: dict[str, Any]) -> Any:
        policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
        model = SAC(
            policy,
            DummyVecEnv([lambda: RandomEnv(space)] * 2),
            learning_starts=10,
            batch_size=8,
            buffer_size=100,  # while it fills, both draw the same steps
            gamma=GAMMA,
            seed=0,
            device="cpu",
            policy_kwargs={"net_arch": [8]},
            replay_buffer_class=buffer,
            replay_buffer_kwargs=arguments,
        )
        return model.learn(40)

    one, other = learned(ours, {"horizon_length": 1, "gamma": GAMMA}), learned(theirs, {})
    assert one._n_updates > 10
    for name, parameter in one.policy.state_dict().items():
        assert th.equal(parameter, other.policy.state_dict()[name]), name


def test_a_buffer_shorter_than_the_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"horizon_length=5.*buffer_size"):
        ChunkReplayBuffer(4, OBS, ACTION, "cpu", 1, horizon_length=5, gamma=GAMMA)


def test_sampling_before_a_whole_chunk_is_stored_says_what_to_raise() -> None:
    buffer = ChunkReplayBuffer(20, OBS, ACTION, "cpu", 1, horizon_length=5, gamma=GAMMA)
    fill(buffer, 4, seed=0)
    with pytest.raises(ValueError, match=r"holds 4 steps.*horizon_length=5.*learning_starts"):
        buffer.sample(8)


def test_sac_flow_takes_the_chunk_buffer_for_single_steps() -> None:
    model = make_model(replay_buffer_class=ChunkReplayBuffer).learn(20)
    assert isinstance(model.replay_buffer, ChunkReplayBuffer)
    assert (model.replay_buffer.horizon_length, model._n_updates) == (1, 10)
