"""What a model has stored is data for another, and any data become a file."""

import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from dataset_files import compact_arrays, regular_arrays, trajectories
from gymnasium import spaces
from helpers import ACTION, ONE_OF_EACH, UNEVEN, RandomEnv, make_any, make_variant
from stable_baselines3 import DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_flow import ReinFlow, SACFlow
from sb3_flow.datasets import DataError, ShardedDataset, from_arrays, from_replay_buffer, load_dataset, save_dataset
from sb3_flow.datasets.ogbench import measure


class Counter(gym.Env[Any, Any]):
    """Shows its name, the episode and the step; each second episode terminates, the others are cut."""

    observation_space = spaces.Box(-1e6, 1e6, (3,), np.float64)
    action_space = spaces.Box(-2.0, 6.0, (2,), np.float32)

    def __init__(self, name: int = 0, length: int = 5):
        self.name, self.length, self.episode, self.elapsed = name, length, -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.elapsed = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.elapsed += 1
        over, terminates = self.elapsed == self.length, self.episode % 2 == 1
        return self._observe(), float(action.sum()), over and terminates, over and not terminates, {}

    def _observe(self) -> Any:
        return np.array([self.name, self.episode, self.elapsed], np.float64)


def filled(steps: int, size: int = 1_000, n_envs: int = 1, **kwargs: Any) -> ReplayBuffer:
    env = DummyVecEnv([partial(Counter, i) for i in range(n_envs)])
    model = SAC("MlpPolicy", env, learning_starts=10**6, buffer_size=size, seed=0, **kwargs)
    buffer: Any = model.learn(steps).replay_buffer
    return buffer


@pytest.mark.parametrize(("steps", "size"), [(33, 1_000), (33, 33), (61, 42)])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("saves_memory", [False, True])
def test_steps_are_those_that_were_stored_last_in_order(steps: int, size: int, n_envs: int, saves_memory: bool) -> None:
    kwargs: dict[str, Any] = {}
    if saves_memory:
        kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    data = from_replay_buffer(filled(steps * n_envs, size * n_envs, n_envs, **kwargs))
    held = min(steps, size - saves_memory) if steps >= size else steps
    assert len(data) == held * n_envs
    number = np.tile(np.arange(steps - held, steps), n_envs)  # of a step in its environment
    name = np.repeat(np.arange(n_envs), held)
    episode, elapsed = number // 5, number % 5
    observations = data.observations_at(np.arange(len(data)))
    np.testing.assert_array_equal(observations, np.stack([name, episode, elapsed], axis=1))
    last, terminates = elapsed == 4, episode % 2 == 1
    ends = last | (number == steps - 1)
    np.testing.assert_array_equal(data.ends, ends)
    # Where memory is saved SB3 takes time limits for terminal states
    np.testing.assert_array_equal(data.masks == 0, last & (terminates | saves_memory))
    counts = ~last if saves_memory else np.ones(len(data), np.bool_)
    after = np.stack([name, episode, elapsed + 1], axis=1)
    np.testing.assert_array_equal(data.next_observations(np.arange(len(data)))[counts], after[counts])
    # A reward is the sum of two numbers from -2 to 6, which the buffer has from -1 to 1
    np.testing.assert_allclose(data.rewards, (4 * data.actions + 2).sum(axis=1), atol=1e-5)
    data.check_chunks(3)


def test_an_episode_ends_where_a_second_learn_began_another() -> None:
    model = SAC("MlpPolicy", Counter(length=10), learning_starts=10**6, buffer_size=100)
    for _ in range(3):
        model.learn(4)
    data = from_replay_buffer(model.replay_buffer)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.flatnonzero(data.ends), [3, 7, 11])
    assert data.masks.all()
    data.check_chunks(4)


def test_goals_and_images_are_kept_by_their_keys() -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=4)
    model = SACFlow("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=30, buffer_size=50)
    buffer = model.learn(22).replay_buffer
    data = from_replay_buffer(buffer)
    assert data.observation_shape == {"achieved_goal": (3,), "desired_goal": (3,), "observation": (3,)}
    for key, part in data.observations.items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(part, buffer.observations[key][:22, 0])  # type: ignore[index]
    np.testing.assert_array_equal(data.rewards, buffer.rewards[:22, 0])


def test_actions_that_were_scaled_by_other_bounds_are_refused() -> None:
    other = SAC("MlpPolicy", RandomEnv(action_space=spaces.Box(-1.0, 3.0, (2,), np.float32)), learning_starts=10**6)
    stored = other.learn(20).replay_buffer
    with pytest.raises(DataError, match=r"-1 and 1 are the bounds of Box\(-1.0, 3.0.*RescaleAction"):
        make_variant("flow_t", RandomEnv(), offline_dataset=stored)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_keeps_the_bounds_by_which_actions_were_scaled(tmp_path: Path, compressed: bool) -> None:
    other = SAC("MlpPolicy", RandomEnv(action_space=UNEVEN), learning_starts=10**6)
    path = save_dataset(other.learn(20).replay_buffer, tmp_path / "stored")
    if compressed:
        with np.load(path) as arrays:
            np.savez_compressed(path, **arrays)
    kept = load_dataset(path).at(0).scaled_by
    assert kept is not None
    np.testing.assert_array_equal([kept.low, kept.high], [UNEVEN.low, UNEVEN.high])
    with pytest.raises(DataError, match=r"stored.npz: 'actions': .*-1 and 1 are the bounds of Box.*RescaleAction"):
        make_variant("flow_t", RandomEnv(), offline_dataset=path)
    make_variant("flow_t", RandomEnv(action_space=UNEVEN), offline_dataset=path)
    save_dataset(path, tmp_path / "again")
    assert load_dataset(tmp_path / "again.npz").at(0).scaled_by == kept


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"action_low": [-1.0, -1.0]}, "action_high.*it is missing, but there is action_low"),
        ({"action_low": [-1.0], "action_high": [1.0]}, r"action_low.*it has shape \(1,\), not \(2,\)"),
        ({"action_low": [-1.0, np.nan], "action_high": [1.0, 1.0]}, "action_low.*it is NaN or infinite"),
        ({"action_low": [1.0, -1.0], "action_high": [1.0, 1.0]}, "low below high"),
    ],
    ids=["one", "shape", "NaN", "empty"],
)
def test_bounds_that_are_none_are_refused(bounds: dict[str, Any], says: str) -> None:
    arrays = regular_arrays(trajectories([5]))
    arrays["actions"] = np.zeros((5, 2), np.float32)
    with pytest.raises(DataError, match=says):
        from_arrays({**arrays, **bounds})


def test_time_limits_that_count_as_ends_are_pointed_out() -> None:
    buffer = filled(12, replay_buffer_kwargs={"handle_timeout_termination": False})
    with pytest.warns(UserWarning, match="does not tell time limits from terminal states"):
        from_replay_buffer(buffer)


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "reinflow"])
def test_a_buffer_is_copied_when_it_is_read_and_may_be_given_again(name: str) -> None:
    other = TD3("MlpPolicy", RandomEnv(), learning_starts=10**6, buffer_size=100).learn(20)
    model = make_any(name, offline_dataset=other.replay_buffer, offline_steps=2)
    assert not isinstance(model.offline_dataset, ReplayBuffer)
    model.learn(2)
    other.learn(20)
    assert len(model.offline_dataset) == 20
    model.offline_dataset, model.offline_steps = other.replay_buffer, 4
    model.learn(2, reset_num_timesteps=False)
    assert len(model.offline_dataset) == 40
    assert model._n_offline == 4


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_more_memory_is_taken_than_the_data_have(n_envs: int, dtype: Any) -> None:
    buffer = ReplayBuffer(400 * n_envs, spaces.Box(-1.0, 1.0, (500,), dtype), ACTION, n_envs=n_envs)
    buffer.pos, buffer.full = 100, True
    tracemalloc.start()
    data = from_replay_buffer(buffer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) == 400 * n_envs
    assert peak < 1.3 * 2 * 400 * n_envs * 500 * 4


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_algorithm_learns_from_what_another_stored(name: str, tmp_path: Path) -> None:
    env = RandomEnv()
    other = TD3("MlpPolicy", env, learning_starts=10**6, buffer_size=100).learn(40)
    model = make_variant(name, env, offline_dataset=other.replay_buffer, offline_steps=3)
    model.learn(12)
    assert model._n_offline == 3
    assert model._n_updates > 3
    # A saved model holds no data
    model.save(tmp_path / "model")
    assert type(model).load(tmp_path / "model").offline_dataset is None


def test_a_model_may_begin_anew_from_what_it_stored_itself() -> None:
    first = make_variant("flow_t", horizon_length=3).learn(40)
    again = make_variant("flow_t", horizon_length=3, offline_dataset=first.replay_buffer, offline_steps=4, bc_coef=1.0)
    again.learn(10)
    assert again._dataset is not None
    assert len(again._dataset) == 40


@pytest.mark.parametrize("layout", [regular_arrays, compact_arrays])
def test_a_file_has_what_the_data_have(layout: Any, tmp_path: Path) -> None:
    arrays = layout(trajectories([7, 4]))
    arrays["masks"][3] = 0
    data = from_arrays(arrays)
    path = save_dataset(arrays, tmp_path / "folder" / "mine")
    assert path == tmp_path / "folder" / "mine.npz"
    again = load_dataset(path)
    assert (len(again), again.n_episodes) == (len(data), data.n_episodes)  # type: ignore[union-attr]
    rows = np.arange(len(data))
    np.testing.assert_array_equal(again.rows(rows), data.rows(rows))  # type: ignore[union-attr]
    for name in ("observations", "rewards", "masks", "ends", "after"):
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))
    np.testing.assert_allclose(again.actions, data.actions, atol=2e-5)  # type: ignore[union-attr]


def test_a_file_of_dicts_and_of_matrices_has_them_too(tmp_path: Path) -> None:
    space = spaces.Dict({"camera": spaces.Box(0, 255, (3, 36, 36), np.uint8), "arm": spaces.Box(-1, 1, (2,))})
    env = RandomEnv(space, spaces.Box(-1.0, 1.0, (2, 3), np.float32))
    model = make_variant("flow_t", env, policy="MultiInputPolicy", learning_starts=100).learn(25)
    path = save_dataset(model.replay_buffer, tmp_path / "mine.npz")
    assert measure(path).action_dim == 6
    data = load_dataset(path)
    assert data.observation_dtype == {"arm": np.float32, "camera": np.uint8}
    assert data.action_shape == (2, 3)
    make_variant("flow_t", env, policy="MultiInputPolicy", offline_dataset=path, offline_steps=2, bc_coef=1.0).learn(2)


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the replay buffer: it is empty"):
        from_replay_buffer(ReplayBuffer(10, Counter.observation_space, ACTION))
    with pytest.raises(DataError, match="a flow generates numbers"):
        from_replay_buffer(DQN("MlpPolicy", "CartPole-v1", buffer_size=10).replay_buffer)  # type: ignore[arg-type]
    on_policy = ReinFlow("ReinFlowPolicy", RandomEnv())
    with pytest.raises(ValueError, match="a replay buffer, or a dataset"):
        load_dataset(on_policy.rollout_buffer)  # type: ignore[arg-type]
    arrays = regular_arrays(trajectories([5]))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="is a folder; choose another name"):
        save_dataset(arrays, tmp_path / "folder")
    with pytest.raises(ValueError, match=r"'.*data.hdf5' is not allowed: files of ours end in"):
        save_dataset(arrays, tmp_path / "data.hdf5")
    for name in ("a", "b"):
        save_dataset(arrays, tmp_path / "several" / name)
    with pytest.warns(UserWarning, match="take turns"):
        several = load_dataset(tmp_path / "several")
    assert isinstance(several, ShardedDataset)
    with pytest.raises(ValueError, match="its files are read one after the other"):
        save_dataset(several, tmp_path / "c")


def test_a_file_that_is_named_without_its_ending_is_pointed_to(tmp_path: Path) -> None:
    save_dataset(regular_arrays(trajectories([5])), tmp_path / "stored")
    with pytest.raises(ValueError, match=r"there is '.*stored.npz'; give that"):
        load_dataset(tmp_path / "stored")
