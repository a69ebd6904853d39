"""ReinFlow's arguments while it learns: what is assigned, what schedules go by, and what cloning again begins with."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from helpers import EVERY_KIND, RandomEnv, make_any, observations

from sb3_flow import ReinFlow


def data() -> dict[str, Any]:
    return regular_arrays(trajectories([20, 30]))


def test_what_is_assigned_acts_from_the_next_learn_on() -> None:
    model = make_any("reinflow").learn(20)
    model.learning_rate, model.vf_learning_rate = 0.125, lambda _: 0.25
    model.gamma, model.gae_lambda, model.n_steps = 0.5, 0.75, 16
    model.learn(16)
    assert [net.optimizer.param_groups[0]["lr"] for net in (model.actor, model.critic)] == [0.125, 0.25]
    buffer = model.rollout_buffer
    assert (buffer.gamma, buffer.gae_lambda, len(buffer.rewards), model.num_timesteps) == (0.5, 0.75, 16, 16)


@pytest.mark.parametrize(("argument", "value"), [("clip_range", "0.1"), ("n_steps", 1), ("noise_hold", 2.0)])
def test_what_is_assigned_is_checked(argument: str, value: Any) -> None:
    model = make_any("reinflow").learn(20)
    setattr(model, argument, value)
    with pytest.raises(ValueError, match=argument):
        model.learn(20)


def test_positions_are_those_of_ppo() -> None:
    model = ReinFlow("MlpPolicy", RandomEnv(), 1e-4, 32, 16, 2, 0.9, 0.8, 0.05, device="cpu")
    assert (model.n_steps, model.batch_size, model.n_epochs) == (32, 16, 2)
    assert (model.learning_rate, model.gamma, model.gae_lambda, model.clip_range) == (1e-4, 0.9, 0.8, 0.05)
    with pytest.raises(TypeError, match="positional"):
        ReinFlow("MlpPolicy", RandomEnv(), 1e-4, 32, 16, 2, 0.9, 0.8, 0.05, None)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("argument", "advice"), [("vf_coef", "set vf_learning_rate"), ("clip_range_vf", "not clipped")]
)
def test_arguments_that_only_ppo_has_are_not_mistaken_for_ours(argument: str, advice: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is no argument of ReinFlow: .*{advice}"):
        make_any("reinflow", **{argument: 0.5})


def test_values_are_those_of_the_critic_and_the_clip_range_is_logged() -> None:
    model = make_any("reinflow").learn(10)
    obs = th.as_tensor(observations(model))
    th.testing.assert_close(model.policy.predict_values(obs)[:, 0], model.critic(obs))
    assert model.logger.name_to_value["train/clip_range"] == 0.01


def test_learning_without_an_environment_is_refused(tmp_path: Path) -> None:
    make_any("reinflow").save(tmp_path / "model")
    with pytest.raises(ValueError, match="env=None is not allowed: pass it to `load`"):
        ReinFlow.load(tmp_path / "model", device="cpu").learn(10)


def test_a_schedule_that_is_assigned_acts() -> None:
    model = make_any("reinflow")
    model.lr_schedule = lambda _: 0.25  # as users of SB3 do
    model.learn(10)
    assert model.actor.optimizer.param_groups[0]["lr"] == 0.25


def bounds(model: ReinFlow, *learn: Any) -> list[float]:
    """The upper bound of the noise in each step that is made in the environment."""
    seen = []

    def record(*_: Any) -> bool:
        if not model.is_offline:
            seen.append(round(float(model.actor.high.exp()), 4))
        return True

    model.learn(*learn, callback=record)
    return seen


def test_the_noise_falls_over_fine_tuning_however_it_was_cloned() -> None:
    before = make_any("reinflow", noise_hold=0.0).pretrain(data(), 40)
    within = make_any("reinflow", noise_hold=0.0, offline_dataset=data(), offline_steps=40)
    falls = bounds(before, 40)
    assert falls == bounds(within, 80)[-40:]
    assert falls[0] > falls[10] > falls[20] > falls[30]
    assert bounds(before, 40) == falls  # not from where the last one ended


def test_each_cloning_begins_with_its_own_learning_rate() -> None:
    model = make_any("reinflow", offline_learning_rate=1.0)
    for _ in range(2):
        rates: list[float] = []

        def record(*_: Any, rates: list[float] = rates) -> bool:
            rates.append(model.actor.optimizer.param_groups[0]["lr"])
            return True

        model.pretrain(data(), 10, callback=record)
        assert rates[0] == 1.0
        assert rates[-1] < 0.2


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_rate_is_never_negative_where_the_last_rollout_ends_late(name: str) -> None:
    late = {} if name == "reinflow" else {"train_freq": (1, "episode")}
    model = make_any(name, learning_rate=lambda progress: 1e-3 * progress, **late).learn(25)
    assert model.num_timesteps == 30
    assert model.actor.optimizer.param_groups[0]["lr"] == 0
