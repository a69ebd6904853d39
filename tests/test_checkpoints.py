"""Checkpoints: what they hold, which are kept, and that a run goes on from them as if it had never stopped."""

import os
import random
import time
import warnings
from copy import deepcopy
from functools import partial
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
    TakenOver,
    differences,
    make_any,
    make_model,
    make_variant,
    snapshot,
    warned,
)
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_flow import SACFlow
from sb3_flow.common.checkpoints import CheckpointCallback, checkpoints
from sb3_flow.common.files import LEFTOVER_AGE
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

CALLS = 15  # of the callback, in one run


def data() -> dict[str, Any]:
    return regular_arrays(trajectories([20, 30]))


# What a run is made of, and its phase
PHASES: dict[str, dict[str, Any]] = {
    "from scratch": {"env": RandomEnv, "normalize": True, "sac_flow": {"noise_repeat": 16}},
    "n-step returns": {"env": RandomEnv, "n_steps": 3},
    "chunks": {"env": RandomEnv, "horizon_length": 3, "normalize": True},
    "with a person's help": {"env": TakenOver, "horizon_length": 3},
    "offline": {"env": RandomEnv, "offline_dataset": data, "offline_steps": 10**6, "normalize": True},
    "offline chunks": {"env": RandomEnv, "offline_dataset": data, "offline_steps": 10**6, "horizon_length": 3},
    "online with data": {"env": RandomEnv, "offline_dataset": data, "offline_ratio": 0.5, "learning_starts": 0},
    "both phases": {"env": RandomEnv, "offline_dataset": data, "offline_steps": 8, "learning_starts": None},
    "hindsight": {
        "env": lambda: BitFlippingEnv(n_bits=3, continuous=True, max_steps=3),
        "policy": "MultiInputPolicy",
        "replay_buffer_class": HerReplayBuffer,
    },
}
SINGLE_STEPS = ("n-step returns", "hindsight")
RUNS = [
    pytest.param(name, phase, n_envs, id=f"{name}-{phase}-{n_envs}")
    for i, (name, variant) in enumerate(VARIANTS.items())
    for j, phase in enumerate(PHASES)
    # Each with one number of environments, both over the table
    for n_envs in ((1, 4)[(i + j) % 2],)
    if not ("horizon_length" in variant.kwargs and phase in SINGLE_STEPS)
]


def make_run(name: str, phase: str, n_envs: int) -> OffPolicyFlowAlgorithm:
    arguments = dict(PHASES[phase])
    env: VecEnv = DummyVecEnv([arguments.pop("env")] * n_envs)
    if arguments.pop("normalize", False):
        env = VecNormalize(env)
    if "offline_dataset" in arguments:
        arguments["offline_dataset"] = arguments["offline_dataset"]()
    return make_variant(name, env=env, **{"learning_starts": 4, **arguments})


class CopyOfTheEnvironment(BaseCallback):
    """Keeps the environment as it is when the checkpoint is made."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at
        self.env: Any = None

    def _on_step(self) -> bool:
        assert isinstance(self.model, OffPolicyFlowAlgorithm)
        if self.n_calls == self.at:
            self.model.call_between_steps(self._copy)
        return True

    def _copy(self) -> None:
        env = self.model.get_env()
        self.env = deepcopy(env)
        if isinstance(env, VecNormalize):  # its copy lacks what is not pickled
            self.env.set_venv(deepcopy(env.venv))


@pytest.mark.parametrize(("name", "phase", "n_envs"), RUNS)
def test_a_run_goes_on_from_a_checkpoint_bit_identically(name: str, phase: str, n_envs: int, tmp_path: Path) -> None:
    stop = random.SystemRandom().randint(1, CALLS - 2)
    model = make_run(name, phase, n_envs)
    copy = CopyOfTheEnvironment(stop)
    model.learn(CALLS * n_envs, callback=[CheckpointCallback(stop, tmp_path, keep=None), copy])
    given = {} if model.offline_dataset is None else {"offline_dataset": model.offline_dataset}
    checkpoint = checkpoints(tmp_path)[0].model
    resumed = type(model).resume(checkpoint, copy.env, "cpu", force_reset=False, **given)
    assert resumed.num_timesteps == stop * n_envs
    resumed.learn(CALLS * n_envs - resumed.num_timesteps, reset_num_timesteps=False)
    assert differences(snapshot(model), snapshot(resumed)) == [], f"stopped after {stop} calls"
    assert (resumed._n_updates, resumed._n_offline) == (model._n_updates, model._n_offline)
    for key in ("actions", "rewards", "dones"):
        np.testing.assert_array_equal(getattr(model.replay_buffer, key), getattr(resumed.replay_buffer, key))
    assert model._n_updates > 0


def test_statistics_that_nobody_takes_are_pointed_out(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([RandomEnv]))
    make_model(env=env).learn(12, callback=CheckpointCallback(6, tmp_path))
    (message,) = warned(lambda: SACFlow.resume(tmp_path, device="cpu"))
    assert "rl_model_vecnormalize_12_steps.pkl are not used: pass env to `resume`" in message
    assert not warned(lambda: SACFlow.resume(tmp_path, RandomEnv(), device="cpu"))
    with pytest.raises(ValueError, match=r"env=Dict.* the VecNormalize of .* is one of Box"):
        SACFlow.resume(tmp_path, RandomEnv(spaces.Dict({"joints": spaces.Box(-1, 1, (3,))})), device="cpu")
    with pytest.raises(ValueError, match=r"env=Box.*\(5,\).* the VecNormalize of .* is one of Box"):
        SACFlow.resume(tmp_path, RandomEnv(spaces.Box(-1.0, 1.0, (5,))), device="cpu")


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_refused_learn_counts_as_none(name: str, tmp_path: Path) -> None:
    class Refuses(BaseCallback):
        def _on_training_start(self) -> None:
            raise ValueError("no")

        def _on_step(self) -> bool:
            return True

    model = make_any(name, offline_dataset=data(), offline_steps=10, **({"bc_coef": 1.0} if name == "flow_t" else {}))
    callback = CheckpointCallback(5, tmp_path)
    model.learn(10, callback=callback)
    with pytest.raises(ValueError, match="reset_num_timesteps=False"):
        model.learn(10, callback=callback)
    with pytest.raises(ValueError, match="no"):
        model.learn(10, callback=Refuses())
    assert model.num_timesteps == 10
    model.learn(10, callback=callback, reset_num_timesteps=False)  # as the error says
    assert model.num_timesteps == 20


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_refused_phase_of_data_leaves_the_planned_one(name: str) -> None:
    model = make_any(name, offline_dataset=data(), offline_steps=7)
    learn_offline = partial(model.pretrain, data(), 3) if name == "reinflow" else partial(model.learn_offline, 3)
    with pytest.raises(TypeError):
        learn_offline(log_intervall=1)
    assert model.is_offline
    assert model.offline_steps == 7
    learn_offline()
    assert model.offline_steps == 3


def test_a_checkpoint_inside_of_another_callback_has_the_models_number(tmp_path: Path) -> None:
    callback = EveryNTimesteps(10, CheckpointCallback(1, tmp_path, keep=None))
    make_model(train_freq=7).learn(42, callback=callback)
    assert [checkpoint.steps for checkpoint in checkpoints(tmp_path)] == [14, 21, 35, 42]
    for checkpoint in checkpoints(tmp_path):
        assert SACFlow.load(checkpoint.model).num_timesteps == checkpoint.steps


def test_a_resumed_run_begins_with_a_reset_and_other_episodes_than_the_first(tmp_path: Path) -> None:
    env = RandomEnv()
    model = make_model(env=env).learn(15, callback=CheckpointCallback(5, tmp_path))
    first = model.replay_buffer.observations[0, 0]
    resumed = SACFlow.resume(tmp_path, RandomEnv(), "cpu")
    assert resumed.num_timesteps == 15
    assert resumed.replay_buffer.size() == 15
    resumed.learn(3, reset_num_timesteps=False)
    assert resumed.num_timesteps == 18
    assert not np.array_equal(resumed.replay_buffer.observations[15, 0], first)


@pytest.mark.parametrize("keep", [1, 3, None])
@pytest.mark.parametrize("keep_models", [False, True])
def test_the_last_checkpoints_are_kept(keep: int | None, keep_models: bool, tmp_path: Path) -> None:
    callback = CheckpointCallback(3, tmp_path, "m", keep=keep, keep_models=keep_models)
    make_model(env=VecNormalize(DummyVecEnv([RandomEnv]))).learn(16, callback=callback)
    all_steps = [3, 6, 9, 12, 15]
    kept = all_steps[-keep:] if keep else all_steps
    assert [checkpoint.steps for checkpoint in checkpoints(tmp_path)] == (all_steps if keep_models else kept)
    # Without its statistics a model does not play as it learned
    assert all(checkpoint.vecnormalize.exists() for checkpoint in checkpoints(tmp_path))
    assert sorted(tmp_path.glob("m_replay_buffer_*")) == sorted(
        tmp_path / f"m_replay_buffer_{steps}_steps.pkl" for steps in kept
    )


@pytest.mark.parametrize("keep_models", [False, True])
def test_what_kills_have_left_is_removed_by_the_next_checkpoint(keep_models: bool, tmp_path: Path) -> None:
    names = ["m_replay_buffer_4_steps.pkl", "m_vecnormalize_4_steps.pkl", ".m_4_steps.zip.0.tmp"]
    others = ["m_replay_buffer_80_steps.pkl", "other_replay_buffer_4_steps.pkl", ".other_4_steps.zip.0.tmp", "m.txt"]
    for name in names + others:
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - 2 * LEFTOVER_AGE,) * 2)
    make_model().learn(13, callback=CheckpointCallback(6, tmp_path, "m", keep=2, keep_models=keep_models))
    assert [checkpoint.steps for checkpoint in checkpoints(tmp_path)] == [6, 12]
    assert {path.name for path in tmp_path.iterdir()} >= set(others)
    assert not {path.name for path in tmp_path.iterdir()} & set(names)


@pytest.mark.parametrize("asked", [40, 300])
def test_a_buffer_keeps_its_size_and_says_so_where_another_was_asked_for(asked: int, tmp_path: Path) -> None:
    env = DummyVecEnv([RandomEnv] * 2)
    make_model(env=env, buffer_size=100).learn(30, callback=CheckpointCallback(5, tmp_path))
    with pytest.warns(UserWarning, match=f"buffer_size={asked} has no effect: .* room for 100 transitions"):
        resumed = SACFlow.resume(tmp_path, env, "cpu", buffer_size=asked)
    assert (resumed.buffer_size, resumed.replay_buffer.buffer_size) == (100, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SACFlow.resume(tmp_path, env, "cpu", buffer_size=101)  # 50 for each of the two


def test_a_checkpoint_holds_every_step_and_the_statistics(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([RandomEnv]))
    make_model(env=env).learn(10, callback=CheckpointCallback(5, tmp_path))
    fresh = VecNormalize(DummyVecEnv([RandomEnv]))
    for given in (fresh, DummyVecEnv([RandomEnv]), RandomEnv()):
        resumed = SACFlow.resume(tmp_path, given, "cpu")
        assert resumed.replay_buffer.size() == resumed.num_timesteps == 10
        normalize = resumed.get_vec_normalize_env()
        assert normalize is not None
        np.testing.assert_array_equal(normalize.obs_rms.mean, env.obs_rms.mean)  # type: ignore[union-attr]
        assert normalize.ret_rms.count == env.ret_rms.count


@pytest.mark.parametrize("wrap", [lambda c: EveryNTimesteps(6, c), lambda c: CallbackList([c])], ids=["every", "list"])
def test_checkpoints_are_made_by_callbacks_within_callbacks(wrap: Any, tmp_path: Path) -> None:
    make_model().learn(14, callback=wrap(CheckpointCallback(1, tmp_path, keep=None)))
    steps = [checkpoint.steps for checkpoint in checkpoints(tmp_path)]
    assert steps[-1] in (12, 14)
    assert checkpoints(tmp_path)[-1].replay_buffer.exists()


def test_a_checkpoint_whose_model_is_not_there_yet_is_none(tmp_path: Path) -> None:
    make_model().learn(10, callback=CheckpointCallback(5, tmp_path))
    checkpoints(tmp_path)[-1].model.unlink()  # it is written last
    assert SACFlow.resume(tmp_path, RandomEnv(), "cpu").num_timesteps == 5


def test_the_phase_is_kept_though_learn_offline_named_it(tmp_path: Path) -> None:
    model = make_model(offline_dataset=data(), critic="target")
    model.learn_offline(20, callback=CheckpointCallback(6, tmp_path, keep=1))
    resumed = SACFlow.resume(tmp_path, RandomEnv(), "cpu", offline_dataset=data())
    assert (resumed.num_timesteps, resumed.is_offline) == (18, True)
    resumed.learn(2 + 3, reset_num_timesteps=False)
    assert (resumed._n_offline, resumed.replay_buffer.size()) == (20, 3)


def test_a_run_without_its_buffer_goes_on_with_a_warning(tmp_path: Path) -> None:
    make_model().learn(15, callback=CheckpointCallback(5, tmp_path, save_replay_buffer=False))
    with pytest.warns(UserWarning, match="no replay buffer beside it"):
        resumed = SACFlow.resume(tmp_path, RandomEnv(), "cpu")
    resumed.learn(5, reset_num_timesteps=False)
    assert resumed.replay_buffer.size() == 5


def test_a_run_from_data_alone_has_no_buffer_to_miss(tmp_path: Path) -> None:
    model = make_model(offline_dataset=data(), critic="target")
    model.learn_offline(12, callback=CheckpointCallback(6, tmp_path, save_replay_buffer=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = SACFlow.resume(tmp_path, RandomEnv(), "cpu", offline_dataset=data())
    assert resumed._n_offline == 12


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    make_model().learn(10, callback=CheckpointCallback(5, tmp_path))
    with pytest.raises(ValueError, match=r"save_path=.*rl_model_10_steps.*resume that, or take a new folder"):
        make_model().learn(10, callback=CheckpointCallback(5, tmp_path))
    with pytest.raises(ValueError, match=r"path=.*no whole checkpoint"):
        SACFlow.resume(tmp_path / "nothing", RandomEnv())


@pytest.mark.parametrize(("name", "value"), [("save_freq", 0), ("keep", 0), ("keep", 1.5)])
def test_numbers_of_checkpoints_are_checked(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value} is not allowed"):
        CheckpointCallback(**({"save_freq": 5, "save_path": tmp_path} | {name: value}))


def test_checkpoints_of_an_exception_are_not_made(tmp_path: Path) -> None:
    class Fails(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 10:
                raise RuntimeError("the logger's disk is full")
            return True

    model = make_model()
    with pytest.raises(RuntimeError):
        model.learn(20, callback=[CheckpointCallback(5, tmp_path), Fails()])
    assert [checkpoint.steps for checkpoint in checkpoints(tmp_path)] == [5]  # the tenth step was not stored
    model.learn(4, reset_num_timesteps=False)
    assert [checkpoint.steps for checkpoint in checkpoints(tmp_path)] == [5]


def test_plain_models_hold_no_generators(tmp_path: Path) -> None:
    model = make_model().learn(5, callback=CheckpointCallback(5, tmp_path))
    assert model._generators is None
    loaded = SACFlow.load(checkpoints(tmp_path)[0].model, device="cpu")
    loaded.save(tmp_path / "again")
    assert SACFlow.load(tmp_path / "again", device="cpu")._generators is None


def test_an_environment_may_be_named(tmp_path: Path) -> None:
    gym.register("RandomForCheckpoints-v0", RandomEnv)
    make_model(env="RandomForCheckpoints-v0").learn(6, callback=CheckpointCallback(5, tmp_path))
    assert isinstance(SACFlow.resume(tmp_path, "RandomForCheckpoints-v0", "cpu").observation_space, spaces.Box)
