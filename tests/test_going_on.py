"""What happens after a stop, a load or a change of arguments: nothing is lost, and nothing becomes another thing."""

import contextlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from dataset_files import regular_arrays, trajectories
from gymnasium import spaces
from helpers import (
    EVERY_KIND,
    VARIANTS,
    RandomEnv,
    differences,
    make_any,
    make_model,
    make_variant,
    observations,
    random_state_kept,
    snapshot,
    taking,
    warned,
)
from numpy.typing import NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow import SACFlow
from sb3_flow.common.checkpoints import CheckpointCallback, checkpoints

SINGLE = [name for name, variant in VARIANTS.items() if "horizon_length" not in variant.kwargs]
KINDS: list[dict[str, Any]] = [{}, {"n_steps": 3}, {"horizon_length": 3}]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: ",".join(kind) or "single")


class CountingEnv(gym.Env[Any, Any]):
    """Shows (number of the episode, step in it): whether two observations follow each other can be read off."""

    def __init__(self, length: int = 20):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.length, self.episode, self.t = length, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action: NDArray[Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.array([self.episode, self.t], np.float32), float(self.t), False, self.t >= self.length, {}


def impossible(buffer: ReplayBuffer) -> int:
    """How many rows of a buffer of `CountingEnv` lead elsewhere than to the next step."""
    obs, after = (array[: buffer.size()] for array in (buffer.observations, buffer.next_observations))
    return int(((after[..., 0] != obs[..., 0]) | (after[..., 1] != obs[..., 1] + 1)).sum())


class Stops(BaseCallback):
    """Raises at a step, or returns False."""

    def __init__(self, at: int, how: BaseException | None):
        super().__init__()
        self.at, self.how = at, how

    def _on_step(self) -> bool:
        if self.num_timesteps < self.at:
            return True
        if self.how is not None:
            raise self.how
        return False


# --- Buffers ---


@every_kind
@pytest.mark.parametrize(("saved", "now"), [(1, 2), (2, 1), (2, 3)])
def test_a_buffer_of_another_number_of_environments_is_refused(
    kind: dict[str, Any], saved: int, now: int, tmp_path: Path
) -> None:
    make_model(env=DummyVecEnv([RandomEnv] * saved), **kind).learn(12).save_replay_buffer(tmp_path / "buffer")
    model = make_model(env=DummyVecEnv([RandomEnv] * now), **kind)
    kept = model.replay_buffer
    with pytest.raises(ValueError, match=rf"number of environments={now} is not allowed: .* of {saved}; pass as many"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is kept
    model.learn(24)


def test_a_buffer_of_other_spaces_is_refused(tmp_path: Path) -> None:
    other = RandomEnv(action_space=spaces.Box(-1.0, 1.0, (3,), np.float32))
    make_model(env=other).learn(12).save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"action_space=.*has steps of another"):
        make_model().load_replay_buffer(tmp_path / "buffer")


@pytest.mark.parametrize(("saved", "now"), [(3, 1), (3, 5), (2, 3)])
def test_a_loaded_buffer_has_the_n_steps_of_the_model(saved: int, now: int, tmp_path: Path) -> None:
    make_model(env=CountingEnv(), n_steps=saved, gamma=0.5).learn(19).save_replay_buffer(tmp_path / "buffer")
    model = make_model(env=CountingEnv(), n_steps=saved, gamma=0.9)
    model.n_steps = now
    model.load_replay_buffer(tmp_path / "buffer")
    samples = model.replay_buffer.sample(200)
    t = samples.observations[:, 0 + 1].numpy()  # type: ignore[index]
    whole = t + now <= 19
    returns = sum(0.9**j * (t + 1 + j) for j in range(now))
    np.testing.assert_allclose(samples.rewards.flatten().numpy()[whole], returns[whole], rtol=1e-5)


def test_a_buffer_of_single_steps_is_refused_where_n_step_returns_are_learned_from(tmp_path: Path) -> None:
    make_model().learn(12).save_replay_buffer(tmp_path / "buffer")
    model = make_model(n_steps=5)
    with pytest.raises(ValueError, match=r"n_steps=5 is not allowed: .*a ReplayBuffer, which has no n-step returns"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert isinstance(model.replay_buffer, NStepReplayBuffer)


@pytest.mark.parametrize("now", [1, 2])
def test_load_changes_n_steps_both_ways(now: int, tmp_path: Path) -> None:
    make_model(n_steps=3).learn(12).save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", env=RandomEnv(), device="cpu", n_steps=now, gamma=0.5).learn(15)
    discounts = loaded.replay_buffer.sample(50).discounts
    assert 0.5**now == (0.5 if discounts is None else discounts.min())


@every_kind
def test_gamma_may_be_changed(kind: dict[str, Any]) -> None:
    model = make_model(**kind).learn(15)
    model.gamma = 0.5
    discounts = model._sample(100).discounts
    assert np.min(np.asarray(discounts)) == 0.5 ** kind.get("n_steps", kind.get("horizon_length", 1))


@pytest.mark.parametrize(
    ("kwargs", "wanted"), [({"n_steps": 2}, 2), ({"n_steps": 2, "gamma": 0.99}, 2), ({"gamma": 0.5}, None), ({}, None)]
)
def test_n_steps_that_the_buffer_is_given_are_the_models(kwargs: dict[str, Any], wanted: int | None) -> None:
    arguments = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": kwargs}
    if wanted is None:
        with pytest.raises(ValueError, match=r"replay_buffer_kwargs=.*hands its own n_steps and gamma"):
            make_model(**arguments)
    else:
        model = make_model(**arguments)
        assert (model.n_steps, model.replay_buffer.n_steps) == (wanted, wanted)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["flow_t", "qc"])
def test_the_users_dicts_stay_as_they_are(name: str) -> None:
    net: dict[str, Any] = {"flow_steps": 2}
    buffer: dict[str, Any] = {"handle_timeout_termination": True}
    kinds = {} if "horizon_length" in VARIANTS[name].kwargs else {"n_steps": 3}
    make_variant(name, policy_kwargs=net, replay_buffer_kwargs=buffer, **kinds)
    assert net == {"flow_steps": 2}
    assert buffer == {"handle_timeout_termination": True}


def test_hindsight_waits_for_its_first_episode(tmp_path: Path) -> None:
    def goals() -> Any:
        return BitFlippingEnv(n_bits=4, continuous=True, max_steps=12)

    model = make_model("MultiInputPolicy", goals(), replay_buffer_class=HerReplayBuffer).learn(30)
    model.save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", env=goals(), device="cpu")
    before = loaded._n_updates
    loaded.learn(5, reset_num_timesteps=False)
    assert loaded._n_updates == before
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded._n_updates > before


# --- Playing ---


@every_kind
@pytest.mark.parametrize("change", [{"buffer_size": 1}, {"buffer_size": 10**13}], ids=["1", "1e13"])
def test_a_model_is_loaded_to_play_whatever_its_buffer(
    kind: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(**kind).learn(12)
    model.save(tmp_path / "model")
    expected = model.predict(observations(model), deterministic=True)[0]
    for env in (None, RandomEnv()):
        loaded = SACFlow.load(tmp_path / "model", env=env, device="cpu", **change)
        np.testing.assert_array_equal(loaded.predict(observations(model), deterministic=True)[0], expected)


def test_a_buffer_that_does_not_fit_says_what_to_lower() -> None:
    with pytest.raises(MemoryError, match=r"buffer_size=\d+ does not fit into memory"):
        make_model(buffer_size=10**13)


def test_chunks_need_a_buffer_of_their_length_to_learn(tmp_path: Path) -> None:
    make_model(horizon_length=3).save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", env=RandomEnv(), device="cpu", buffer_size=1)
    with pytest.raises(ValueError, match="horizon_length=3 is not allowed: the buffer holds only 1 steps"):
        loaded.learn(5)


# --- After a stop ---


@pytest.mark.parametrize(
    "how", [None, KeyboardInterrupt(), RuntimeError("disk full")], ids=["False", "Ctrl-C", "error"]
)
@pytest.mark.parametrize("name", ["flow_t", "qc_fql"])
def test_after_a_stop_only_what_happened_is_stored(how: BaseException | None, name: str) -> None:
    model = make_variant(name, env=CountingEnv())
    with contextlib.suppress(KeyboardInterrupt, RuntimeError):
        model.learn(40, callback=Stops(25, how))
    model.learn(30, reset_num_timesteps=False)
    assert model.replay_buffer.size() > 50
    assert impossible(model.replay_buffer) == 0


# --- Phases ---


def data() -> dict[str, Any]:
    return regular_arrays(trajectories([20, 30]))


@pytest.mark.parametrize("name", SINGLE[:1] + SINGLE[-1:])
def test_the_phases_one_by_one_are_the_phases_in_one_call(name: str) -> None:
    once = make_variant(name, offline_dataset=data(), offline_steps=20, learning_starts=25)
    once.learn(20 + 29)
    apart = make_variant(name, offline_dataset=data(), learning_starts=25)
    apart.learn_offline(20)
    apart.learn(15)
    apart.learn(14, reset_num_timesteps=False)
    assert once._n_updates == apart._n_updates == 20 + 29 - 5
    np.testing.assert_array_equal(once.replay_buffer.actions[:5], apart.replay_buffer.actions[:5])  # random ones


@pytest.mark.parametrize(("n_envs", "offline"), [(1, 10), (4, 12), (4, 10), (3, 10)])
def test_the_progress_bar_ends_where_the_timesteps_do(n_envs: int, offline: int) -> None:
    class Watched(ProgressBarCallback):
        shown = 0

        def _on_training_end(self) -> None:
            self.shown = int(self.pbar.n)
            super()._on_training_end()

    env = DummyVecEnv([RandomEnv] * n_envs)
    model = make_model(env=env, critic="target", offline_dataset=data(), offline_steps=offline, learning_starts=0)
    bars = [Watched(), Watched()]
    model.learn(offline, callback=[bars[0]])
    model.learn(4 * n_envs, callback=bars[1], reset_num_timesteps=False)
    assert [bar.shown for bar in bars] == [offline, 4 * n_envs]


def test_a_new_vec_normalize_is_taught_the_data_and_one_that_was_saved_is_not(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([RandomEnv]))
    model = make_model(env=env, critic="target", offline_dataset=data(), offline_steps=20, learning_starts=0)
    model.learn(10)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    count = env.obs_rms.count  # type: ignore[union-attr]
    assert count > 50
    known = VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), DummyVecEnv([RandomEnv]))
    for given in (VecNormalize(DummyVecEnv([RandomEnv])), known):
        loaded = SACFlow.load(tmp_path / "model", env=given, offline_dataset=data(), device="cpu")
        loaded.learn(5, reset_num_timesteps=False)
        assert 50 < given.obs_rms.count < count + 5  # type: ignore[union-attr]


class Refusing(BaseCallback):
    """Does not let a run begin."""

    def _on_training_start(self) -> None:
        raise RuntimeError("no")

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("name", EVERY_KIND)
def test_other_statistics_than_a_model_learned_with_are_pointed_out_when_it_goes_on(name: str, tmp_path: Path) -> None:
    known = VecNormalize(DummyVecEnv([RandomEnv]))
    model = make_any(name, env=known).learn(20)
    model.save(tmp_path / "model")

    def said(env: Any) -> list[str]:
        loaded = type(model).load(tmp_path / "model", env=env, device="cpu")
        messages = warned(lambda: loaded.learn(5, reset_num_timesteps=False))
        return [message for message in messages if "VecNormalize" in message]

    (message,) = said(VecNormalize(DummyVecEnv([RandomEnv])))
    assert "VecNormalize has seen nothing" in message
    for raw in (RandomEnv(), VecNormalize(DummyVecEnv([RandomEnv]), norm_obs=False)):
        (message,) = said(raw)
        assert "its environment shows raw ones" in message
    # Data teach a VecNormalize, but do not replace one
    if name in taking("offline_dataset", [*VARIANTS]):
        arrays = regular_arrays(trajectories([20, 30]))
        given = {"env": RandomEnv(), "device": "cpu", "offline_dataset": arrays}
        loaded = type(model).load(tmp_path / "model", **given)
        messages = warned(lambda: loaded.learn(5, reset_num_timesteps=False))
        assert any("its environment shows raw ones" in message for message in messages)
    # A run that a callback refuses counts as none
    loaded = type(model).load(tmp_path / "model", env=RandomEnv(), device="cpu")
    with pytest.raises(RuntimeError):
        loaded.learn(5, callback=Refusing(), reset_num_timesteps=False)
    assert loaded._was_normalized
    known.save(str(tmp_path / "vecnormalize.pkl"))
    assert not said(VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), DummyVecEnv([RandomEnv])))


@pytest.mark.parametrize("name", EVERY_KIND)
def test_the_checkpoint_of_the_step_at_which_a_callback_stops_is_saved(name: str, tmp_path: Path) -> None:
    def stop(local: Any, _: Any) -> bool:
        return local["self"].num_timesteps < 20

    model = make_any(name).learn(40, callback=[CheckpointCallback(20, str(tmp_path)), ConvertCallback(stop)])
    assert model.num_timesteps == 20
    (checkpoint,) = checkpoints(tmp_path)
    resumed = type(model).resume(checkpoint.model, RandomEnv())
    assert differences(snapshot(model), snapshot(resumed)) == []
    assert resumed.learn(10, reset_num_timesteps=False).num_timesteps == 30


def test_a_model_goes_on_without_its_data_as_often_as_it_is_told(tmp_path: Path) -> None:
    data = {"offline_dataset": regular_arrays(trajectories([20, 30])), "offline_steps": 10, "start_training": 5}
    make_model(**data).learn(20).save(tmp_path / "model")
    model = SACFlow.load(tmp_path / "model", env=RandomEnv())
    with pytest.warns(UserWarning, match="without the offline data"):
        model.learn(10, reset_num_timesteps=False)
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 40


@pytest.mark.parametrize("critic", ["xqc", "flashsac", "target"])
def test_evaluation_mode_between_two_learns_changes_nothing(critic: str) -> None:
    models = [make_model(critic=critic).learn(15) for _ in range(2)]
    models[1].policy.eval()
    with random_state_kept():
        models[0].train(5, 8)
    models[1].train(5, 8)
    assert differences(*(snapshot(model) for model in models)) == []


def test_random_steps_that_updates_from_data_stand_for_are_not_pointed_out(recwarn: pytest.WarningsRecorder) -> None:
    model = make_model(offline_dataset=regular_arrays(trajectories([20, 30])), learning_starts=40)
    model.learn_offline(50).learn(30)
    assert not [warning for warning in recwarn if "random" in str(warning.message)]
