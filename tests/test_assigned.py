"""Arguments that are assigned to a model, as `model.learning_rate = 1e-4`, act from the next `learn` on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import regular_arrays, trajectories
from helpers import EVERY_KIND, ONE_OF_EACH, RandomEnv, make_any, make_variant, taking, warned
from stable_baselines3.common.vec_env import DummyVecEnv


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_learning_rate_that_is_assigned_acts(name: str) -> None:
    model = make_variant(name).learn(12)
    model.learning_rate = 0.125
    model.learn(1, reset_num_timesteps=False)
    model.train(1, 8)
    assert model.actor.optimizer.param_groups[0]["lr"] == 0.125
    model.lr_schedule = lambda _: 0.25  # as users of SB3 do
    model.learn(1, reset_num_timesteps=False)
    assert model.actor.optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("name", [name for name in taking("bc_coef", ONE_OF_EACH) if name != "qc"])
def test_a_weight_of_the_data_that_is_assigned_acts(name: str) -> None:
    model = make_variant(name).learn(12)
    model.bc_coef = (2.0, 0.5)
    model.learn(1, reset_num_timesteps=False)
    assert model._bc_coef_now() == 0.5


@pytest.mark.parametrize("name", taking("ent_coef", ONE_OF_EACH))
def test_alpha_and_the_critics_learning_rate_that_are_assigned_act(name: str) -> None:
    model: Any = make_variant(name).learn(12)
    learned = model.temperature.value.clone()
    begun_with = model.ent_coef
    model.ent_coef, model.qf_learning_rate = "auto_0.7", 0.125
    (message,) = warned(lambda: model.learn(1, reset_num_timesteps=False))
    assert "ent_coef='auto_0.7' says where a new model begins; alpha goes on from" in message
    assert model.ent_coef == begun_with
    assert abs(model.temperature.value - learned) < 0.1  # goes on
    assert model.critic.optimizer.param_groups[0]["lr"] == 0.125
    model.ent_coef = 0.7
    model.learn(1, reset_num_timesteps=False)
    assert model.temperature.value == np.float32(0.7)
    model.ent_coef = "auto_0.5"
    model.learn(1, reset_num_timesteps=False)
    assert model.log_ent_coef is not None


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_train_freq_that_is_assigned_acts(name: str) -> None:
    model = make_variant(name)
    model.train_freq = 4
    model.learn(28)
    assert model._n_updates == 5


@pytest.mark.parametrize(("argument", "value"), [("learning_rate", "1e-3"), ("batch_size", "8"), ("gamma", 2)])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_is_assigned_is_checked(name: str, argument: str, value: Any) -> None:
    model = make_variant(name).learn(12)
    setattr(model, argument, value)
    with pytest.raises(ValueError, match=argument):
        model.learn(1, reset_num_timesteps=False)


@pytest.mark.parametrize("name", ["fql", "reinflow"])
def test_data_that_are_assigned_are_learned_from(name: str) -> None:
    def data(steps: int) -> Any:
        return regular_arrays(trajectories([steps]))

    model = make_any(name, offline_dataset=data(20), offline_steps=4).learn(2)
    model.offline_dataset = data(30)
    model.learn(2, reset_num_timesteps=False)
    assert model._dataset is not None
    assert len(model._dataset.at(0)) == 30


@pytest.mark.parametrize("name", taking("offline_ratio", ONE_OF_EACH))
def test_data_that_are_taken_away_are_learned_from_no_more(name: str) -> None:
    model = make_variant(name, offline_dataset=regular_arrays(trajectories([20])), learning_starts=0)
    model.learn(12)
    model.offline_dataset = None
    (message,) = warned(lambda: model.learn(1, reset_num_timesteps=False))
    assert "Learning goes on without the offline data" in message
    assert model._dataset is None
    assert model.experience.offline_share(256, 0) == 0


def test_a_number_of_candidates_that_is_assigned_is_refused() -> None:
    model: Any = make_variant("qc").learn(12)
    model.best_of_n = 9
    with pytest.raises(ValueError, match=r"best_of_n=9 is not allowed: the policy draws 4; save the model and give"):
        model.learn(1, reset_num_timesteps=False)


@pytest.mark.parametrize("name", taking("bc_coef", ONE_OF_EACH))
def test_a_weight_that_gets_to_nan_between_the_probes_is_named(name: str) -> None:
    model = make_variant(name, learning_starts=0).learn(4)
    model.bc_schedules = model.bc_schedules._replace(online=lambda progress: float("nan"))
    with pytest.raises(ValueError, match="bc_coef"):
        model.train(1, 8)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_episodes_of_several_environments_are_refused_before_anything_is_learned(name: str) -> None:
    env = DummyVecEnv([RandomEnv] * 2)
    data = {"offline_dataset": regular_arrays(trajectories([20])), "offline_steps": 4}
    model = make_variant(name, env, **(data if name in taking("offline_steps", ONE_OF_EACH) else {}))
    model.train_freq = (1, "episode")
    with pytest.raises(ValueError, match=r"train_freq=\(1, 'episode'\).*of 2 environments each is in another episode"):
        model.learn(20)
    assert model.num_timesteps == model._n_updates == 0


@pytest.mark.parametrize("name", taking("n_steps", ONE_OF_EACH))
def test_an_n_that_the_buffer_cannot_have_is_refused_before_anything_is_learned(name: str) -> None:
    model = make_variant(name).learn(12)
    updates = model._n_updates
    model.n_steps = 3
    with pytest.raises(ValueError, match=r"n_steps|n-step"):
        model.learn(1, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (12, updates)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_compilation_that_is_assigned_is_refused(name: str) -> None:
    model = make_any(name)
    model.compile = True
    with pytest.raises(ValueError, match=r"compile=True.*it is False since the model was built; pass another one to"):
        model.learn(20)


@pytest.mark.parametrize(("built", "assigned"), [("auto", 0.05), (0.1, "auto_0.2")])
@pytest.mark.parametrize("name", taking("ent_coef", ONE_OF_EACH))
def test_a_model_is_saved_between_an_assigned_alpha_and_the_next_learn(
    name: str, built: Any, assigned: Any, tmp_path: Path
) -> None:
    model: Any = make_variant(name, ent_coef=built).learn(12)
    model.ent_coef = assigned
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=RandomEnv())
    assert loaded.temperature.value == model.temperature.value
    loaded.learn(1, reset_num_timesteps=False)
    assert float(loaded.temperature.value) == pytest.approx(0.2 if assigned == "auto_0.2" else 0.05, abs=1e-3)


@pytest.mark.parametrize("name", taking("qf_learning_rate", ONE_OF_EACH))
def test_a_schedule_that_is_assigned_acts(name: str) -> None:
    model: Any = make_variant(name).learn(12)
    model.qf_lr_schedule = lambda _: 0.25
    model.learn(1, reset_num_timesteps=False)
    assert model.critic.optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("name", taking("target_entropy", ONE_OF_EACH))
def test_a_target_entropy_that_is_assigned_acts(name: str) -> None:
    model: Any = make_variant(name)
    default = model.target_entropy
    for value, acts in ((-3, -3.0), ("auto", default)):
        model.target_entropy = value
        model.learn(12)
        assert model.target_entropy == acts
