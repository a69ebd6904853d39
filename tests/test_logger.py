"""What is logged, where and when."""

import csv
import json
import math
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import regular_arrays, trajectories
from helpers import CRITICS, GUESTS, LEARNING_STARTS, ONE_OF_EACH, POLICIES, RandomEnv, make_model, make_variant
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAIN_KEYS = {
    f"train/{name}"
    for name in (
        "actor_loss",
        "critic_loss",
        "ent_coef_loss",
        "ent_coef",
        "entropy",
        "path_entropy",
        "log_std",
        "q_mean",
        "saturated",
        "fps",
        "n_updates",
        "learning_rate",
    )
}
FQL_KEYS = {
    f"train/{name}"
    for name in ("actor_loss", "critic_loss", "matching_loss", "q_mean", "fps", "n_updates", "learning_rate")
}
ONE_STEP_KEYS = {"train/bc_loss", "train/saturated"}
BEHAVIOR_KEYS = {
    f"train/{name}"
    for name in (
        "behavior_critic_loss",
        "behavior_q_mean",
        "behavior_value_loss",
        "matching_weight",
        "matching_weight_cut_off",
        "saturated",
    )
}
QSM_KEYS = FQL_KEYS - {"train/matching_loss"} | {"train/bc_loss", "train/gradient_size", "train/score_loss"}
GUEST_KEYS = {"qc": FQL_KEYS, "flow_rl": FQL_KEYS | BEHAVIOR_KEYS, "qsm": QSM_KEYS}
TIME_KEYS = {"time/episodes", "time/fps", "time/time_elapsed", "time/total_timesteps"}
ROLLOUT_KEYS = {"rollout/ep_rew_mean", "rollout/ep_len_mean"}


def learned_rows(path: Path, steps: int, log_interval: int, **kwargs: Any) -> list[dict[str, str]]:
    """Train with a CSV log and read it."""
    model = make_model(**kwargs)
    model.set_logger(configure(str(path), ["csv"]))
    model.learn(steps, log_interval=log_interval)
    with (path / "progress.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("policy", POLICIES)
def test_training_logs_every_key_as_a_finite_number(policy: str, critic: str) -> None:
    model = make_model(policy, critic=critic).learn(10)
    model.train(6, batch_size=8)
    values = model.logger.name_to_value
    assert values.keys() >= TRAIN_KEYS
    assert all(math.isfinite(values[key]) for key in TRAIN_KEYS)
    assert all(isinstance(values[key], Real) for key in TRAIN_KEYS)
    assert values["train/n_updates"] == 6
    assert 0 <= values["train/saturated"] <= 1
    assert values["train/fps"] > 0
    assert -5 <= values["train/log_std"] <= np.log(2) / 2


@pytest.mark.parametrize("name", [name for name in GUESTS if name != "dime"])
def test_training_of_guests_logs_every_key_as_a_finite_number(name: str) -> None:
    model = make_variant(name).learn(10)
    model.train(6, batch_size=8)
    values = {key: value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}
    assert values.keys() == GUEST_KEYS.get(name, FQL_KEYS | ONE_STEP_KEYS)
    assert all(isinstance(value, Real) and math.isfinite(value) for value in values.values())
    assert values["train/n_updates"] == 6
    assert 0 <= values.get("train/saturated", 0) <= 1
    assert values["train/fps"] > 0


def test_training_of_dime_logs_every_key_as_a_finite_number() -> None:
    model = make_variant("dime").learn(10)
    model.train(6, batch_size=8)
    values = {key: value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}
    common = TRAIN_KEYS - {"train/entropy", "train/path_entropy", "train/log_std"}
    assert values.keys() == common | {
        "train/running_cost",
        "train/path_cost",
        "train/clipped_targets",
        "train/reward_scale",
        "train/qf_learning_rate",
    }
    assert all(isinstance(value, Real) and math.isfinite(value) for value in values.values())


def test_a_fixed_ent_coef_is_logged_without_a_loss() -> None:
    model = make_model(ent_coef=0.25).learn(10)
    model.train(3, batch_size=8)
    assert model.logger.name_to_value["train/ent_coef"] == 0.25
    assert "train/ent_coef_loss" not in model.logger.name_to_value


@pytest.mark.parametrize("name", ["flow_t", "qsm"])
def test_on_a_cpu_a_callback_finds_floats(name: str) -> None:
    model = make_variant(name).learn(10)
    model.train(3, batch_size=8)
    values = {key: value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}
    assert {type(value) for key, value in values.items() if key != "train/n_updates"} == {float}
    assert json.loads(json.dumps(values)) == values


def test_a_fixed_noise_is_logged() -> None:
    model = make_model(net={"noise_std": 0.3}).learn(10)
    model.train(3, batch_size=8)
    assert model.logger.name_to_value["train/log_std"] == pytest.approx(np.log(0.3), rel=1e-5)


def test_learning_rates_are_logged() -> None:
    model = make_model(learning_rate=1e-4, qf_learning_rate=2e-4).learn(10)
    model.train(1, batch_size=8)
    assert model.logger.name_to_value["train/learning_rate"] == 1e-4
    assert model.logger.name_to_value["train/qf_learning_rate"] == 2e-4


@pytest.mark.parametrize("log_interval", [1, 2])
def test_a_row_is_written_every_log_interval_episodes(log_interval: int, tmp_path: Path) -> None:
    rows = learned_rows(tmp_path, 40, log_interval)
    assert [int(row["time/episodes"]) for row in rows] == list(range(log_interval, 5, log_interval))
    assert [int(row["time/total_timesteps"]) for row in rows] == list(range(10 * log_interval, 41, 10 * log_interval))


def test_the_csv_log_has_every_key(tmp_path: Path) -> None:
    rows = learned_rows(tmp_path, 40, 2)
    assert rows[-1].keys() >= TRAIN_KEYS | TIME_KEYS | ROLLOUT_KEYS
    assert all(np.isfinite(float(value)) for value in rows[-1].values())
    # Updates come after the step at which an episode ends
    assert [int(row["train/n_updates"]) for row in rows] == [9, 29]
    assert float(rows[-1]["rollout/ep_len_mean"]) == 10


@pytest.mark.parametrize(("log_interval", "rows"), [(10, [10, 20, 30]), (7.0, [7, 14, 21, 28]), (None, [])])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_updates_from_data_are_logged_every_log_interval_updates(
    name: str, log_interval: int | None, rows: list[int], tmp_path: Path
) -> None:
    model = make_variant(name, offline_dataset=regular_arrays(trajectories([20, 30])))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn_offline(30, log_interval=log_interval)
    with (tmp_path / "progress.csv").open() as file:
        assert [int(row["train/n_updates"]) for row in csv.DictReader(file)] == rows
    with pytest.raises(ValueError, match="log_interval=0 is not allowed"):
        model.learn_offline(30, log_interval=0)


def test_nothing_is_written_without_log_interval(tmp_path: Path) -> None:
    assert learned_rows(tmp_path, 30, None) == []


def test_the_csv_log_of_fql_has_every_key(tmp_path: Path) -> None:
    model = make_variant("qc_fql")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(40, log_interval=2)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1].keys() >= FQL_KEYS | ONE_STEP_KEYS | TIME_KEYS | ROLLOUT_KEYS
    assert [int(row["train/n_updates"]) for row in rows] == [9, 29]


def test_tensorboard_gets_fql_under_its_name(tmp_path: Path) -> None:
    make_variant("fql", tensorboard_log=str(tmp_path)).learn(20, log_interval=2)
    events = EventAccumulator(str(tmp_path / "FQL_1")).Reload()
    assert set(events.Tags()["scalars"]) >= (FQL_KEYS | ONE_STEP_KEYS) - {"train/n_updates"}


@pytest.mark.parametrize("name", ["SACFlow", "other"])
def test_tensorboard_gets_every_key(name: str, tmp_path: Path) -> None:
    model = make_model(tensorboard_log=str(tmp_path))
    model.learn(40, log_interval=2, **({} if name == "SACFlow" else {"tb_log_name": name}))
    events = EventAccumulator(str(tmp_path / f"{name}_1")).Reload()
    scalars = set(events.Tags()["scalars"])
    # SB3 keeps counters that only repeat the x axis out of TensorBoard
    hidden = {"train/n_updates", "time/episodes", "time/time_elapsed", "time/total_timesteps"}
    assert scalars >= (TRAIN_KEYS | TIME_KEYS | ROLLOUT_KEYS) - hidden
    assert not scalars & hidden
    assert [event.step for event in events.Scalars("train/critic_loss")] == [20, 40]
    assert [event.step for event in events.Scalars("rollout/ep_len_mean")] == [20, 40]


def test_another_run_gets_another_folder(tmp_path: Path) -> None:
    model = make_model(tensorboard_log=str(tmp_path)).learn(10)
    model.learn(10)
    model.learn(10, reset_num_timesteps=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SACFlow_1", "SACFlow_2"]


def test_the_json_log_is_readable(tmp_path: Path) -> None:
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(40, log_interval=4)
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert len(rows) == 1
    assert rows[0].keys() >= TRAIN_KEYS


@pytest.mark.parametrize("verbose", [0, 1])
def test_verbose_prints_the_table(verbose: int, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(verbose=verbose).learn(20, log_interval=1)
    assert ("critic_loss" in capsys.readouterr().out) == bool(verbose)


def test_success_is_logged(tmp_path: Path) -> None:
    class Winner(RandomEnv):
        """Every episode succeeds."""

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            obs, reward, terminated, truncated, _ = super().step(action)
            return obs, reward, terminated, truncated, {"is_success": True}

    rows = learned_rows(tmp_path, 20, 1, env=Winner())
    assert [float(row["rollout/success_rate"]) for row in rows] == [1, 1]


def test_what_is_logged_stands_for_a_float_before_it_is_written() -> None:
    model = make_model().learn(LEARNING_STARTS + 2, log_interval=10**9)
    value: Any = model.logger.name_to_value["train/critic_loss"]
    number = float(value)
    assert not np.isnan(value)
    assert (round(value, 2), int(value), value**2) == (round(number, 2), int(number), number**2)
    assert np.mean([value, value]) == number
