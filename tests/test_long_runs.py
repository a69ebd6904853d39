"""`benchmarks/learning.py` with algorithms whose rollouts are longer than an evaluation, and runs that were killed."""

import csv
import queue
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import learning
import numpy as np
import pytest
import spread
from dataset_files import pendulum_arrays
from helpers import RandomEnv, make_model
from on_policy import evaluated_in, ppo_settings
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow import ReinFlow

pytestmark = pytest.mark.usefixtures("short_episodes")
ROLLOUT = 30


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spread, "STATES", 10)

    def make(algo: str, **changes: Any) -> learning.Run:
        run = learning.Run("Pendulum-v1", algo, 1, 80, 10, 1, 10, 8, 8, Path("results"), {})
        return replace(run, **changes)

    return make


def reinflow(run_of: Any, **overrides: Any) -> learning.Run:
    net = {"net_arch": [8] * 3, "flow_steps": 1}
    made: learning.Run = run_of(
        "reinflow", overrides={"n_steps": ROLLOUT, "batch_size": 8, "policy_kwargs": net, **overrides}
    )
    return made


def steps_of(run: learning.Run) -> list[int]:
    with open(run.csv) as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def stop_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    save, saved = learning.save_model, []

    def save_and_stop(run: learning.Run, model: Any) -> None:
        save(run, model)
        saved.append(run)
        if len(saved) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(learning, "save_model", save_and_stop)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_rollout_that_passes_evaluations_leaves_none_out_wherever_the_run_is_stopped(
    stop: int, run_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reinflow(run_of)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            learning.train(run, queue.Queue())
    assert steps_of(run) == [10 * i for i in range(1, stop + 1)]
    learning.train(run, queue.Queue())
    assert steps_of(run) == [10 * i for i in range(1, 9)]


def test_reinflow_goes_on_in_the_environment_without_its_data(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez("data.npz", **pendulum_arrays([40]))
    run = reinflow(run_of, offline_dataset="data.npz", offline_steps=10, offline_batch_size=8)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            learning.train(run, queue.Queue())
    learning.train(run, queue.Queue())
    assert steps_of(run)[-1] == run.steps


def test_schedules_are_those_of_the_whole_run_and_not_of_the_next_evaluation(
    run_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []
    collect = ReinFlow.collect_rollouts

    def collect_rollouts(model: ReinFlow, *args: Any, **kwargs: Any) -> bool:
        goes_on = collect(model, *args, **kwargs)
        seen.append((model.num_timesteps, model.actor.high.item()))
        return goes_on

    monkeypatch.setattr(ReinFlow, "collect_rollouts", collect_rollouts)
    run = reinflow(run_of, n_steps=10, noise_hold=0.0, noise_decay=0.5)
    learning.train(run, queue.Queue())
    in_pieces = seen.copy()
    seen.clear()
    learning.make_model(run).learn(run.steps)
    assert len({bound for _, bound in seen}) == len(seen) == 8
    assert in_pieces == seen


def test_within_it_schedules_are_of_so_many_steps_and_nothing_stays() -> None:
    model = make_model()
    with learning.schedules_over(model, 40):
        model.learn(20)
    assert model._current_progress_remaining == 0.5
    assert "_update_current_progress_remaining" not in vars(model)


def test_a_run_that_was_killed_before_its_last_checkpoint_is_not_done(run_of: Any, monkeypatch: Any) -> None:
    run = run_of("flow_g", steps=20)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            learning.train(run, queue.Queue())
    with open(run.csv, "a") as file:
        file.write("20" + ",0" * (len(learning.FIELDS) - 1) + "\n")
    assert run.done_steps() == 20
    assert not run.is_done
    learning.train(run, queue.Queue())
    assert steps_of(run) == [10, 20, 20]
    assert run.is_done


@pytest.mark.parametrize("normalize", [False, True])
def test_the_states_of_the_spread_are_as_the_policy_sees_them(normalize: bool) -> None:
    env: Any = DummyVecEnv([lambda: gym.wrappers.TransformObservation(RandomEnv(), lambda x: 5 + x, None)])
    model = make_model(env=VecNormalize(env) if normalize else env).learn(30)
    states = spread.some_states(model, np.random.default_rng(0))
    assert states.shape == (spread.STATES, 3)
    assert abs(states.mean()) < 0.5 if normalize else states.mean() > 4


@pytest.mark.parametrize("norm_obs", [False, True])
def test_evaluations_see_what_training_sees_and_rewards_as_they_are(norm_obs: bool) -> None:
    def shifted() -> gym.Env[Any, Any]:
        return gym.wrappers.TransformObservation(RandomEnv(), lambda x: 5 + x, None)

    model = make_model(env=VecNormalize(DummyVecEnv([shifted]), norm_obs=norm_obs)).learn(30)
    env = evaluated_in(model, DummyVecEnv([shifted]))
    ones = np.ones((1, *env.action_space.shape), np.float32)
    observations = np.concatenate([env.reset(), *(env.step(ones)[0] for _ in range(10))])
    assert abs(observations.mean()) < 1.5 if norm_obs else observations.mean() > 4
    assert env.step(ones)[1][0] == shifted().step(ones[0])[1]


def test_linear_schedules_of_ppos_rows_are_schedules() -> None:
    settings = ppo_settings("BipedalWalkerHardcore-v3", 64)
    assert settings["learning_rate"](0.5) == pytest.approx(0.5 * 2.5e-4)
    assert settings["clip_range"](0.5) == pytest.approx(0.1)
