"""SB3's callbacks, unchanged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import LEARNING_STARTS, ON_POLICY, VARIANTS, RandomEnv, make_any, make_model, make_variant
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

STEPS = 30


class Recorder(BaseCallback):
    """Writes down which of its hooks were called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.updates: list[int] = []

    def _on_training_start(self) -> None:
        self.calls.append("training_start")

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout_start")

    def _on_step(self) -> bool:
        assert isinstance(self.model, OffPolicyFlowAlgorithm)
        assert {"actions", "rewards", "dones", "infos", "new_obs", "replay_buffer"} <= self.locals.keys()
        self.calls.append("step")
        self.updates.append(self.model._n_updates)
        return True

    def _on_rollout_end(self) -> None:
        self.calls.append("rollout_end")

    def _on_training_end(self) -> None:
        self.calls.append("training_end")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_hook_is_called_in_order(name: str) -> None:
    recorder = Recorder()
    make_variant(name).learn(STEPS, recorder)
    rollout = ["rollout_start", "step", "rollout_end"]
    assert recorder.calls == ["training_start", *(STEPS * rollout), "training_end"]
    assert recorder.updates == [0] * (LEARNING_STARTS + 1) + list(range(1, STEPS - LEARNING_STARTS))


@pytest.mark.parametrize("name", [*VARIANTS, *ON_POLICY])
@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluation_saves_results_and_the_best_model(name: str, deterministic: bool, tmp_path: Path) -> None:
    callback = EvalCallback(
        Monitor(RandomEnv()),
        n_eval_episodes=2,
        eval_freq=10,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        deterministic=deterministic,
        verbose=0,
    )
    model = make_any(name).learn(STEPS, callback)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [10, 20, 30]
    assert evaluations["results"].shape == (3, 2)
    assert np.isfinite(evaluations["results"]).all()
    assert callback.best_mean_reward == evaluations["results"].mean(axis=1).max()
    best = type(model).load(tmp_path / "best_model", device="cpu")
    assert type(best.policy) is type(model.policy)
    assert best.num_timesteps in (10, 20, 30)


@pytest.mark.parametrize("name", ["flow_t", "qc_fql"])
def test_checkpoints_hold_model_buffer_and_normalization(name: str, tmp_path: Path) -> None:
    callback = CheckpointCallback(10, str(tmp_path), "m", save_replay_buffer=True, save_vecnormalize=True)
    model = make_variant(name, env=VecNormalize(DummyVecEnv([RandomEnv]))).learn(STEPS, callback)
    for steps in (10, 20, 30):
        loaded = type(model).load(tmp_path / f"m_{steps}_steps", device="cpu")
        assert loaded.num_timesteps == steps
        loaded.load_replay_buffer(tmp_path / f"m_replay_buffer_{steps}_steps")
        # The callback comes before the step is stored
        assert loaded.replay_buffer.size() == steps - 1
        assert (tmp_path / f"m_vecnormalize_{steps}_steps.pkl").is_file()


def test_training_stops_after_enough_episodes() -> None:
    model = make_model()
    model.learn(1000, StopTrainingOnMaxEpisodes(max_episodes=2, verbose=0))
    assert model.num_timesteps == 20


def test_training_stops_at_a_reward() -> None:
    reached = StopTrainingOnRewardThreshold(reward_threshold=-1e9, verbose=0)
    model = make_model()
    model.learn(1000, EvalCallback(Monitor(RandomEnv()), reached, n_eval_episodes=1, eval_freq=15, verbose=0))
    assert model.num_timesteps == 15


def test_training_stops_without_improvement() -> None:
    class WorseEnv(RandomEnv):
        """Every episode is worth less than the last."""

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            obs, _, terminated, truncated, info = super().step(action)
            return obs, -float(len(self.actions)), terminated, truncated, info

    stalled = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1, verbose=0)
    evaluation = EvalCallback(
        Monitor(WorseEnv()), callback_after_eval=stalled, n_eval_episodes=1, eval_freq=10, verbose=0
    )
    model = make_model()
    model.learn(1000, evaluation)
    assert model.num_timesteps == 30


def test_every_n_timesteps_calls_another() -> None:
    recorder = Recorder()
    make_model().learn(STEPS, EveryNTimesteps(7, recorder))
    assert recorder.calls.count("step") == STEPS // 7


def test_logs_are_written_every_n_timesteps(tmp_path: Path) -> None:
    model = make_model(tensorboard_log=str(tmp_path))
    recorder = LogEveryNTimesteps(10)
    model.learn(STEPS, recorder, log_interval=1000)
    assert recorder.last_time_trigger == 30
    assert list(tmp_path.glob("SACFlow_1/events*"))


@pytest.mark.parametrize("as_list", [True, False])
def test_several_callbacks_are_all_called(as_list: bool) -> None:
    callbacks: list[BaseCallback] = [Recorder(), Recorder()]
    make_model().learn(15, callbacks if as_list else CallbackList(callbacks))
    for callback in callbacks:
        assert isinstance(callback, Recorder)
        assert callback.calls.count("step") == 15


@pytest.mark.parametrize("wrap", [lambda f: f, ConvertCallback], ids=["function", "ConvertCallback"])
def test_a_function_stops_training(wrap: Any) -> None:
    def stop_at_12(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        return bool(locals_["self"].num_timesteps < 12)

    model = make_model()
    model.learn(STEPS, wrap(stop_at_12))
    assert model.num_timesteps == 12
    # The step at which it stops is not learned from
    assert model._n_updates == 1


def test_the_progress_bar_is_a_callback(capsys: pytest.CaptureFixture[str]) -> None:
    make_model().learn(12, ProgressBarCallback())
    captured = capsys.readouterr()
    assert "12/12" in captured.out + captured.err
