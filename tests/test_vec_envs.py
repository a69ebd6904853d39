"""Vectorized environments and their wrappers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import (
    EVERY_KIND,
    EVERY_MODEL,
    ONE_OF_EACH,
    VARIANTS,
    RandomEnv,
    make_any,
    make_model,
    make_variant,
    snapshot,
)
from stable_baselines3.common.buffers import ReplayBufferSamples
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    sync_envs_normalization,
)


def two(vec_env_class: type[VecEnv] = DummyVecEnv, **kwargs: Any) -> VecEnv:
    return vec_env_class([RandomEnv, RandomEnv], **kwargs)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_two_envs_fill_the_buffer_and_learn(vec_env: type[VecEnv], name: str) -> None:
    # Started by fork: a fresh interpreter would spend seconds importing torch
    env = two(vec_env, **({"start_method": "fork"} if vec_env is SubprocVecEnv else {}))
    model = make_variant(name, env, gradient_steps=-1)
    model.learn(20)
    env.close()
    assert (model.num_timesteps, model._n_updates) == (20, 10)
    assert model.replay_buffer.size() == 10
    assert model.replay_buffer.actions.shape[1] == 2
    assert not np.array_equal(model.replay_buffer.actions[:10, 0], model.replay_buffer.actions[:10, 1])


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_the_number_of_envs_is_free(name: str, critic: str | None) -> None:
    model = make_variant(name, DummyVecEnv([RandomEnv] * 5), critic).learn(20)
    assert model._n_updates == 2
    assert model.predict(model.get_env().reset())[0].shape == (5, 2)


class OneArray(VecEnvWrapper):
    """Shows every observation in the same array, as some simulators do."""

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        self.shown = venv.reset()

    def reset(self) -> Any:
        self.shown[:] = self.venv.reset()
        return self.shown

    def step_wait(self) -> Any:
        obs, *others = self.venv.step_wait()
        self.shown[:] = obs
        return self.shown, *others


@pytest.mark.parametrize("name", VARIANTS)
def test_an_environment_may_show_everything_in_one_array(name: str) -> None:
    buffers = [make_variant(name, wrap(two())).learn(30).replay_buffer for wrap in (lambda env: env, OneArray)]
    for array in ("observations", "next_observations", "actions"):
        np.testing.assert_array_equal(*(getattr(buffer, array) for buffer in buffers))


def test_an_environment_may_show_everything_in_one_array_on_policy() -> None:
    models = [make_any("reinflow", wrap(two())).learn(20) for wrap in (lambda env: env, OneArray)]
    np.testing.assert_array_equal(*(model.rollout_buffer.observations[""] for model in models))


def test_set_env_changes_where_it_learns() -> None:
    first, second = RandomEnv(), RandomEnv()
    model = make_model(env=first).learn(15)
    model.set_env(second)
    model.learn(12, reset_num_timesteps=False)
    assert (len(first.actions), len(second.actions)) == (15, 12)
    assert model.replay_buffer.size() == 27


def test_the_buffer_is_raw_and_batches_are_normalized() -> None:
    class Far(RandomEnv):
        """Observations around 100."""

        def _observe(self) -> Any:
            return super()._observe() + 100

    env = VecNormalize(DummyVecEnv([Far, Far]))
    model = make_model(env=env)
    batches: list[ReplayBufferSamples] = []
    sample = model.replay_buffer.sample

    def spy(*args: Any, **kwargs: Any) -> ReplayBufferSamples:
        batches.append(sample(*args, **kwargs))
        return batches[-1]

    model.replay_buffer.sample = spy
    model.learn(30)
    assert model.get_vec_normalize_env() is env
    assert model.replay_buffer.observations[:15].min() > 90
    assert len(batches) == 10
    assert all(batch.observations.abs().max() <= 10 for batch in batches)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_normalization_is_saved_beside_the_model(name: str, tmp_path: Path) -> None:
    model = make_any(name, VecNormalize(two())).learn(20)
    env = model.get_vec_normalize_env()
    assert env is not None
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "normalize.pkl"))
    loaded_env = VecNormalize.load(str(tmp_path / "normalize.pkl"), two())
    loaded = type(model).load(tmp_path / "model", env=loaded_env, device="cpu")
    assert loaded.get_vec_normalize_env() is loaded_env
    np.testing.assert_array_equal(loaded_env.obs_rms.mean, env.obs_rms.mean)
    raw = np.ones((2, 3), np.float32)
    actions = [m.predict(e.normalize_obs(raw), deterministic=True)[0] for m, e in ((model, env), (loaded, loaded_env))]
    np.testing.assert_array_equal(*actions)
    loaded.learn(20)
    assert loaded_env.obs_rms.count > env.obs_rms.count


def test_normalization_is_synchronized_for_evaluation() -> None:
    model = make_model(env=VecNormalize(two())).learn(20)
    train_env, eval_env = model.get_env(), VecNormalize(two(), training=False, norm_reward=False)
    assert isinstance(train_env, VecNormalize)
    sync_envs_normalization(train_env, eval_env)
    np.testing.assert_array_equal(train_env.obs_rms.mean, eval_env.obs_rms.mean)
    mean, std = evaluate_policy(model, VecMonitor(eval_env), n_eval_episodes=3)
    assert np.isfinite([mean, std]).all()


def test_set_env_replaces_the_normalization() -> None:
    model = make_model(env=VecNormalize(two())).learn(20)
    other = VecNormalize(two())
    model.set_env(other)
    assert model.get_vec_normalize_env() is other
    model.set_env(two())
    assert model.get_vec_normalize_env() is None


def test_episodes_are_monitored(tmp_path: Path) -> None:
    env = VecMonitor(two(), str(tmp_path / "log"))
    model = make_model(env=env).learn(40)
    env.close()
    assert model.ep_info_buffer is not None
    assert [info["l"] for info in model.ep_info_buffer] == [10] * 4
    assert len((tmp_path / "log.monitor.csv").read_text().splitlines()) == 2 + 4


@pytest.mark.filterwarnings("ignore:.*VecCheckNan")
def test_vec_check_nan_passes_good_numbers_on() -> None:
    model = make_model(env=VecCheckNan(two(), raise_exception=True)).learn(20)
    assert model._n_updates == 5


def test_terminal_observations_are_stored() -> None:
    class Counter(RandomEnv):
        """The observation is the step of the episode."""

        def _observe(self) -> Any:
            return np.full(3, self.elapsed, np.float32)

    model = make_model(env=DummyVecEnv([Counter, Counter])).learn(24)
    # Not the first observation of the next episode, that the vectorized environment returns at the end of one
    np.testing.assert_array_equal(model.replay_buffer.next_observations[:12, 0, 0], [*range(1, 11), 1, 2])
    np.testing.assert_array_equal(model.replay_buffer.observations[:12, 0, 0], [*range(10), 0, 1])


@pytest.mark.parametrize("name", EVERY_KIND)
def test_two_envs_see_different_noise(name: str) -> None:
    model = make_any(name, two())
    actions, _ = model.predict(np.zeros((2, 3), np.float32))
    assert not np.allclose(actions[0], actions[1])


def test_closing_the_env_leaves_the_model_usable() -> None:
    model = make_model(env=two()).learn(20)
    env = model.get_env()
    assert env is not None
    env.close()
    model.train(1, batch_size=8)
    assert all(th.isfinite(tensor).all() for tensor in snapshot(model).values())
