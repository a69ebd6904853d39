"""Action chunks are executed open loop, exactly as decided, wherever SB3 calls `predict`."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import (
    EVERY_MODEL,
    LEARNING_STARTS,
    VARIANTS,
    RandomEnv,
    differences,
    make_model,
    make_variant,
    snapshot,
    warned,
)
from numpy.typing import NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_flow import FQL, SACFlow
from sb3_flow.common.buffers import Batch
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

H = 5
# "fql" with chunks is "qc_fql"
CHUNKED = [name for name in VARIANTS if name != "fql"]


class Recorder(gym.Env[Any, Any]):
    """Shows its step number and writes down the actions of every episode; lengths are given and repeat."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-2.0, 1.0, (2,), np.float32)

    def __init__(self, lengths: list[int], name: int = 0):
        self.lengths = lengths
        self.name = name
        self.episodes: list[list[NDArray[np.float32]]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episodes.append([])
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        episode = self.episodes[-1]
        episode.append(np.array(action))
        over = len(episode) >= self.lengths[(len(self.episodes) - 1) % len(self.lengths)]
        return self._observe(), 0.0, over, False, {}

    def _observe(self) -> NDArray[np.float32]:
        return np.array([self.name, len(self.episodes[-1])], dtype=np.float32)


def envs(n: int) -> list[Recorder]:
    """Environments whose episodes have different lengths, most of them no multiple of H."""
    return [Recorder([3 + i, 2 * H, 7 + i], i) for i in range(n)]


def vec(recorders: list[Recorder]) -> DummyVecEnv:
    return DummyVecEnv([lambda env=env: env for env in recorders])  # type: ignore[misc]


def decided(model: OffPolicyFlowAlgorithm, name: int, step: int) -> NDArray[Any]:
    """The deterministic chunk for an observation of `Recorder`, (H, 2), in the environment's units."""
    obs, _ = model.policy.obs_to_tensor(np.array([[name, step]], dtype=np.float32))
    model.policy.set_training_mode(False)
    with th.no_grad():
        chunk = model.policy.actor(obs, deterministic=True).numpy().reshape(H, 2)
    return np.asarray(model.policy.unscale_action(chunk))


def check_episode(model: OffPolicyFlowAlgorithm, name: int, episode: list[NDArray[np.float32]]) -> None:
    for start in range(0, len(episode), H):
        executed = np.stack(episode[start : start + H])
        np.testing.assert_allclose(executed, decided(model, name, start)[: len(executed)], rtol=1e-4, atol=1e-5)


def recorder_model(
    name: str = "flow_t", critic: str | None = None, n: int = 1, **kwargs: Any
) -> OffPolicyFlowAlgorithm:
    return make_variant(name, vec(envs(n)), critic, horizon_length=H, **kwargs)


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("n", [1, 8])
def test_evaluate_policy_executes_every_chunk_as_decided(name: str, n: int) -> None:
    model = recorder_model(name)
    recorders = envs(n)
    evaluate_policy(model, vec(recorders), n_eval_episodes=3 * n, deterministic=True, warn=False)
    for recorder in recorders:
        finished = [e for e, length in zip(recorder.episodes, recorder.lengths, strict=False) if len(e) == length]
        assert len(finished) >= 3
        for episode in finished:
            check_episode(model, recorder.name, episode)


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
@pytest.mark.parametrize("n", [1, 8])
def test_eval_callback_executes_every_chunk_as_decided(n: int, name: str) -> None:
    model = recorder_model(name, n=n, learning_starts=10_000)
    recorders = envs(n)
    callback = EvalCallback(vec(recorders), n_eval_episodes=2 * n, eval_freq=4, verbose=0, warn=False)
    model.learn(4 * n, callback=callback)
    for recorder in recorders:
        # The two that count; of an environment that has done its share SB3 reports a new episode at every step
        for episode, length in zip(recorder.episodes[:2], recorder.lengths, strict=False):
            assert len(episode) == length
            check_episode(model, recorder.name, episode)


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
@pytest.mark.parametrize("n", [1, 8])
def test_learn_executes_every_chunk_as_decided_and_starts_episodes_with_a_new_one(
    n: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders = envs(n)
    model = make_variant(name, vec(recorders), horizon_length=H, learning_starts=0)
    monkeypatch.setattr(model, "train", lambda **kwargs: None)  # a fixed policy
    forward = model.policy.actor.forward
    monkeypatch.setattr(model.policy.actor, "forward", lambda obs, deterministic=False: forward(obs, True))
    model.learn(40 * n)
    for recorder in recorders:
        assert len(recorder.episodes) > 2
        for episode in recorder.episodes:
            check_episode(model, recorder.name, episode)


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
@pytest.mark.parametrize("n", [1, 8])
def test_a_chunk_is_executed_to_its_end_while_the_policy_changes(
    n: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders = envs(n)
    model = make_variant(name, vec(recorders), horizon_length=H, learning_starts=H * n)
    forward, drawn = model.policy.actor.forward, {}

    def record(obs: Any, deterministic: bool = False) -> th.Tensor:
        chunks = forward(obs, deterministic)
        drawn[model.num_timesteps // n] = model.policy.unscale_action(chunks.numpy().reshape(n, H, 2))
        return chunks

    monkeypatch.setattr(model.policy.actor, "forward", record)
    model.learn(40 * n)
    assert model._n_updates > 0
    for i, recorder in enumerate(recorders):
        starts = np.cumsum([len(episode) for episode in recorder.episodes])
        executed = np.concatenate([episode for episode in recorder.episodes if episode])
        decided_at = H  # what came before was random
        for step in range(H, 40):
            if step in starts or step == decided_at + H:
                decided_at = step
            np.testing.assert_array_equal(executed[step], drawn[decided_at][i, step - decided_at])


def test_the_buffer_holds_the_actions_that_were_executed() -> None:
    recorders = envs(2)
    model = make_model("FlowTPolicy", vec(recorders), horizon_length=H)
    model.learn(60)
    for i, recorder in enumerate(recorders):
        executed = np.concatenate([np.stack(e) for e in recorder.episodes if e])
        stored = model.policy.unscale_action(model.replay_buffer.actions[: len(executed), i])
        np.testing.assert_allclose(stored, executed, rtol=1e-4, atol=1e-5)


def test_without_a_state_predict_decides_anew_and_one_observation_gives_one_action() -> None:
    model = recorder_model()
    obs = np.array([0.0, 3.0], dtype=np.float32)
    first, state = model.predict(obs, deterministic=True)
    assert first.shape == (2,)
    np.testing.assert_allclose(first, decided(model, 0, 3)[0], rtol=1e-4, atol=1e-5)
    again, _ = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(first, again)
    second, _ = model.predict(np.zeros(2, dtype=np.float32), state, deterministic=True)
    np.testing.assert_allclose(second, decided(model, 0, 3)[1], rtol=1e-4, atol=1e-5)


def test_predict_leaves_the_state_it_was_given_alone() -> None:
    model = recorder_model()
    _, state = model.predict(np.zeros((3, 2), dtype=np.float32))
    assert state is not None
    before = [part.copy() for part in state]
    model.predict(np.ones((3, 2), dtype=np.float32), state, np.array([True, False, False]))
    for part, copy in zip(state, before, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize(("name", "critic"), [model for model in EVERY_MODEL if model.id != "fql"])
def test_chunks_train_save_and_load(name: str, critic: str | None, tmp_path: Any) -> None:
    model = recorder_model(name, critic, n=2, sac_flow={"bc_coef": 1.0})
    model.learn(LEARNING_STARTS + 20)
    assert model._n_updates > 0
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", device="cpu")
    assert loaded.horizon_length == H
    assert not differences(snapshot(model), snapshot(loaded))
    obs = np.ones((4, 2), dtype=np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)}),
        spaces.Box(0, 255, (3, 36, 36), np.uint8),
    ],
    ids=["dict", "image"],
)
def test_chunks_of_dict_and_image_observations_train(space: spaces.Space[Any], name: str) -> None:
    model = make_variant(name, RandomEnv(space), horizon_length=3)
    model.learn(LEARNING_STARTS + 6)
    assert model._n_updates > 0


def losses_of(model: OffPolicyFlowAlgorithm) -> list[Callable[[Batch], th.Tensor]]:
    """The losses that nothing beyond an episode's end may reach, with noise that is drawn once."""
    noise, alpha = model.actor.sample_noise(64), th.tensor(0.1)
    if isinstance(model, SACFlow):
        return [
            lambda batch: model._critic_loss(batch, noise, alpha).loss,
            lambda batch: model._actor_loss(batch, noise, alpha, th.tensor(10.0)).loss,
        ]
    # Not the actor's: the point at which its flow is asked is made of all numbers of the chunk, as in the authors' code
    assert isinstance(model, FQL)
    return [lambda batch: model._critic_loss(batch, model._next_actions(batch, noise)).loss]


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
def test_what_lies_beyond_an_episode_s_end_reaches_no_loss(name: str) -> None:
    model = recorder_model(name, "target", learning_starts=40)
    model.learn(39)
    # As if a time limit had ended these episodes: of one that terminates every chunk has a target
    model.replay_buffer.timeouts[:] = model.replay_buffer.dones
    batch = model._sample(64)
    assert batch.valid is not None
    assert batch.in_episode is not None
    assert 0 < batch.valid.sum() < 64
    changed = batch._replace(
        rewards=th.where(batch.valid == 1, batch.rewards, 1e3),
        actions=th.where(batch.in_episode == 1, batch.actions, 0.9),
    )
    for loss in losses_of(model):
        th.testing.assert_close(loss(changed), loss(batch))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon_length": 0}, "horizon_length=0"),
        ({"horizon_length": 2.5}, "horizon_length=2.5"),
        ({"horizon_length": 3, "n_steps": 2}, "n_steps=2"),
        ({"horizon_length": 3, "action_noise": NormalActionNoise(np.zeros(2), np.ones(2))}, "action_noise="),
        (
            {
                "horizon_length": 3,
                "optimize_memory_usage": True,
                "replay_buffer_kwargs": {"handle_timeout_termination": False},
            },
            "optimize_memory_usage=True",
        ),
    ],
)
def test_arguments_that_chunks_do_not_go_with_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
def test_a_policy_of_another_horizon_is_refused(name: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"horizon_length=1.*policy's is 3"):
        make_variant(name, net={"horizon_length": 3}, horizon_length=1)
    model = make_variant(name, horizon_length=3)
    model.save(tmp_path / "model")
    for horizon in (1, 5):
        with pytest.raises(ValueError, match=rf"horizon_length={horizon}.*policy's is 3"):
            type(model).load(tmp_path / "model", horizon_length=horizon)


@pytest.mark.parametrize("name", ["flow_t", "fql", "qsm"])
@pytest.mark.parametrize("given", [{}, {"replay_buffer_class": None}])
def test_chunks_are_not_given_to_a_saved_model_without(name: str, given: dict[str, Any], tmp_path: Any) -> None:
    model = make_variant(name)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"horizon_length=5 is not allowed: the policy's is 1; set it in"):
        type(model).load(tmp_path / "model", horizon_length=5, **given)


@pytest.mark.parametrize("given", [{"n_steps": 3}, {"replay_buffer_kwargs": {"n_steps": 3}}])
def test_a_buffer_of_ones_own_with_n_step_returns_is_not_said_to_have_none(given: dict[str, Any]) -> None:
    class OwnBuffer(NStepReplayBuffer):
        pass

    assert not warned(lambda: make_model(replay_buffer_class=OwnBuffer, **given))
    buffer = make_model(replay_buffer_class=OwnBuffer, **given).replay_buffer
    assert isinstance(buffer, OwnBuffer)
    assert buffer.n_steps == 3


def test_the_buffer_arguments_of_one_model_serve_the_next() -> None:
    shared: dict[str, Any] = {"handle_timeout_termination": True}
    make_model(horizon_length=3, replay_buffer_kwargs=shared)
    make_model(replay_buffer_kwargs=shared).learn(LEARNING_STARTS + 2)


@pytest.mark.parametrize("kwargs", [{"horizon_length": 3}, {"n_steps": 3}])
def test_a_reset_is_no_termination_where_time_limits_are(kwargs: dict[str, Any]) -> None:
    buffer = {"replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = make_model(env=RandomEnv(episode_length=10), **buffer, **kwargs)
    model.learn(15)
    model.learn(15)
    ended, cut = model.replay_buffer.dones[:30, 0], model.replay_buffer.timeouts[:30, 0]
    assert np.flatnonzero(ended).tolist() == [9, 14, 24]
    assert np.flatnonzero(cut).tolist() == [14]  # the environment's own are to be taken for terminations


@pytest.mark.parametrize("kwargs", [{"horizon_length": 3}, {"n_steps": 3}])
def test_a_reset_between_two_calls_of_learn_ends_the_episode_in_the_buffer(kwargs: dict[str, Any]) -> None:
    model = make_model(env=RandomEnv(episode_length=10), **kwargs)
    model.learn(15)
    model.learn(15)
    assert np.flatnonzero(model.replay_buffer.dones[:30, 0]).tolist() == [9, 14, 24]
    assert np.flatnonzero(model.replay_buffer.timeouts[:30, 0]).tolist() == [9, 14, 24]


def test_going_on_without_a_reset_leaves_the_episode_whole() -> None:
    model = make_model(env=RandomEnv(episode_length=10), horizon_length=3)
    model.learn(15)
    model.learn(15, reset_num_timesteps=False)
    assert np.flatnonzero(model.replay_buffer.dones[:30, 0]).tolist() == [9, 19, 29]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("flow_t", {"horizon_length": 3}), ("flow_t", {"n_steps": 3}), ("qc", {}), ("fql", {"n_steps": 3})],
)
@pytest.mark.parametrize("stop", [15, 20])
def test_after_a_callback_stopped_learning_no_chunk_spans_the_step_that_was_not_stored(
    name: str, kwargs: dict[str, Any], stop: int
) -> None:
    env = RandomEnv(episode_length=10)
    model = make_variant(name, env, **kwargs)
    model.learn(100, callback=lambda local, _: bool(local["self"].num_timesteps < stop))
    model.learn(15, reset_num_timesteps=False)
    # The buffer lacks step `stop`; the environment has started anew after it
    ends = [9, 13, 23] if stop == 15 else [9, 18, 28]
    buffer = model.replay_buffer
    assert np.flatnonzero(buffer.dones[: buffer.size(), 0]).tolist() == ends
    for i in range(buffer.size() - 1):
        follows = np.array_equal(buffer.next_observations[i], buffer.observations[i + 1])
        assert follows == (i not in ends)


def test_after_a_callback_stopped_learning_a_small_buffer_leads_from_no_episode_into_the_next() -> None:
    small = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = make_model(env=RandomEnv(episode_length=10), **small)
    model.learn(100, callback=lambda local, _: bool(local["self"].num_timesteps < 15))
    model.learn(5, reset_num_timesteps=False)
    # Its next observation is the row behind it, which the reset has overwritten
    assert np.flatnonzero(model.replay_buffer.dones[:, 0]).tolist() == [9, 13]


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
def test_chunks_go_on_without_the_replay_buffer(name: str, tmp_path: Any) -> None:
    model = make_variant(name, horizon_length=3).learn(LEARNING_STARTS + 5)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=RandomEnv(), device="cpu")
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded._n_updates == 5 + 8  # the first chunk is whole with the third step


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
def test_time_limits_shorter_than_a_chunk_are_warned_of(name: str) -> None:
    with pytest.warns(UserWarning, match=r"cuts short each of \d+ chunks.*horizon_length=4"):
        make_variant(name, RandomEnv(episode_length=3), horizon_length=4).learn(LEARNING_STARTS + 5)


def test_a_reset_between_two_calls_of_learn_ends_the_trajectory_of_hindsight_replay() -> None:
    env = BitFlippingEnv(n_bits=20, continuous=True, max_steps=10)  # not solved by chance
    model = make_model("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=100)
    model.learn(4)
    model.learn(4)
    buffer = model.replay_buffer
    assert isinstance(buffer, HerReplayBuffer)
    assert buffer.ep_start[:8, 0].tolist() == [0] * 4 + [4] * 4
    assert buffer.ep_length[:4, 0].tolist() == [4] * 4


@pytest.mark.parametrize("starts", [[True], [True, False, True]])
def test_starts_of_another_number_of_environments_are_refused(starts: list[bool]) -> None:
    model = make_model(env=DummyVecEnv([RandomEnv] * 2), horizon_length=3)
    with pytest.raises(ValueError, match=r"episode_start=.* is not allowed: one for each of 2 environments"):
        model.predict(np.zeros((2, 3), np.float32), episode_start=np.array(starts))


def test_a_reset_observation_with_its_info_is_refused() -> None:
    with pytest.raises(ValueError, match=r"observation=.*env.reset"):
        recorder_model().predict((np.zeros(2, dtype=np.float32), {}))  # type: ignore[arg-type]


def test_her_with_chunks_is_refused() -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=3)
    with pytest.raises(ValueError, match=r"horizon_length=2.*HerReplayBuffer"):
        make_model("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, horizon_length=2)
