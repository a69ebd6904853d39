"""`proximity="behavior"`: the policy is held to a second flow for the same noise, and keeps the modes of the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import two_modes
from dataset_files import regular_arrays, trajectories
from helpers import POLICIES, RandomEnv, differences, make_model, observations, random_state_kept, snapshot
from torch.testing import assert_close

from sb3_flow import SACFlow
from sb3_flow.export import ActingPolicy


def behavior_model(policy: str = "FlowTPolicy", critic: str = "target", **kwargs: Any) -> SACFlow:
    """A tiny model that has made 12 updates from data and 8 in the environment, or is about to."""
    defaults: dict[str, Any] = {
        "proximity": "behavior",
        "bc_coef": 3.0,
        "offline_dataset": regular_arrays(trajectories([20, 30])),
        "offline_steps": 12,
        "learning_starts": None,
    }
    return make_model(policy, critic=critic, **(defaults | kwargs))


def shares(contender: two_modes.Contender, bc_coef: float, updates: int = 900) -> two_modes.Shares:
    """Where the actions of a policy are that learned from data with two equally good ones."""
    settings: dict[str, Any] = {"policy": "FlowMLPPolicy", "seed": 0, "learning_rate": lambda left: 4e-3 * left}
    return two_modes.shares_of(two_modes.train(contender, bc_coef, updates, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("bc_coef", [10.0, 300.0])
@pytest.mark.parametrize("contender", ["behavior", "fql"])
def test_both_modes_of_the_data_are_kept(contender: two_modes.Contender, bc_coef: float) -> None:
    low, high, between = shares(contender, bc_coef)
    assert min(low, high) > 0.35
    assert between < 0.2


@pytest.mark.slow
def test_eq_12_ends_between_the_modes() -> None:
    low, high, between = shares("data", 10.0, updates=300)
    assert max(low, high) < 0.05
    assert between > 0.9


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("critic", ["crossq", "target"])
@pytest.mark.parametrize("horizon", [1, 3])
def test_it_trains_in_both_phases_and_the_flow_learns_in_each(policy: str, critic: str, horizon: int) -> None:
    model = behavior_model(policy, critic, horizon_length=horizon, policy_delay=1)
    assert model.behavior is not None
    for steps, offline in ((12, True), (10, False)):
        assert model.is_offline == offline
        before = {name: value.clone() for name, value in model.behavior.state_dict().items()}
        model.learn(steps, reset_num_timesteps=False, log_interval=10**9)
        moved = [name for name, value in model.behavior.state_dict().items() if not th.equal(value, before[name])]
        assert any("velocity" in name for name in moved)
        assert model.logger.name_to_value["train/matching_loss"] > 0
        assert model.logger.name_to_value["train/bc_loss"] > 0


@pytest.mark.parametrize("noise_std", [0.1, None])
def test_the_distance_is_to_the_action_for_the_same_noise(noise_std: float | None) -> None:
    model = behavior_model(horizon_length=3, net={"noise_std": noise_std})
    model.learn(20)
    assert model.behavior is not None
    batch, noise, zero = model._sample(8), model.actor.sample_noise(8), th.zeros(())
    model.policy.set_training_mode(False)
    model.behavior.set_training_mode(False)
    loss = model._actor_loss(batch, noise, zero, th.tensor(2.0))
    own = model.actor.action(batch.observations, noise)
    if noise_std is None:  # the flow has not learned how much noise there is: its paths have none
        x = noise[0]
        for i in range(model.policy.flow_steps):
            t = th.full((1, 1), i / model.policy.flow_steps)
            x = x + model.behavior.field(batch.observations)(x, t).v / model.policy.flow_steps
        near = th.tanh(x)
    else:
        near = model.behavior.action(batch.observations, noise)
    assert_close(loss.bc_loss, (own - near).square().mean())
    q = model.critic.reduce(model.critic(batch.observations, own))
    assert_close(loss.loss, 2 * (own - near).square().mean() - q.mean())


def test_a_policy_that_was_held_may_be_let_loose() -> None:
    model = behavior_model()
    model.learn_offline(3)
    model.bc_coef = 0.0
    model.learn(3)
    assert model._bc_coef_now() == 0
    model.proximity = "data"
    with pytest.raises(ValueError, match="a saved model keeps its own, and so does this one"):
        model.learn(3)


def test_the_policys_loss_has_no_gradient_in_the_flow() -> None:
    model = behavior_model().learn(20)
    assert model.behavior is not None
    model.behavior.optimizer.zero_grad()
    batch = model._sample(8)
    model._actor_loss(batch, model.actor.sample_noise(8), th.zeros(()), th.tensor(2.0)).loss.backward()
    assert all(parameter.grad is None for parameter in model.behavior.parameters())


def test_the_flow_is_matched_to_what_was_done_and_to_nothing_else() -> None:
    model = behavior_model(horizon_length=3).learn(20)
    assert model.behavior is not None
    batch, line = model._sample(8), model.actor.sample_line(8)
    in_episode = th.ones_like(batch.actions)
    in_episode[:, 2:] = 0
    batch = batch._replace(in_episode=in_episode)
    x_1 = th.atanh(batch.actions.clamp(-0.99, 0.99))
    v = model.behavior.field(batch.observations)(th.lerp(line.x_0, x_1, line.t), line.t).v
    expected = (v - (x_1 - line.x_0))[:, :2].square().mean()
    assert_close(model._behavior_loss(batch, line).loss, expected)


def test_the_flow_is_no_part_of_what_acts() -> None:
    model = behavior_model().learn(20)
    assert model.behavior is not None
    before = model.predict(observations(model), deterministic=True)[0]
    with th.no_grad():
        for parameter in model.behavior.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(model.predict(observations(model), deterministic=True)[0], before)
    names = ActingPolicy(model.policy).state_dict()
    assert not [name for name in names if "behavior" in name]


@pytest.mark.parametrize("stop", [7, 16])
def test_a_model_that_was_saved_goes_on_to_the_last_bit(stop: int, tmp_path: Path) -> None:
    data = regular_arrays(trajectories([20, 30]))
    model = behavior_model(env=RandomEnv(episode_length=4)).learn(stop)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = SACFlow.load(tmp_path / "model", env=RandomEnv(episode_length=4), device="cpu", offline_dataset=data)
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    assert not differences(snapshot(model), snapshot(loaded))
    assert "behavior.optimizer" in model.get_parameters()
    loaded._load_dataset()
    loaded.set_logger(model.logger)
    for one in (model, loaded):
        with random_state_kept():
            np.random.seed(5)
            th.manual_seed(5)
            one.train(3, 8)
    assert model.behavior is not None
    assert not differences(snapshot(model), snapshot(loaded))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"proximity": "flow"}, r"proximity='flow' .*'data', 'behavior'"),
        ({"bc_coef": 0.0}, r"proximity='behavior' .*bc_coef=0.*'data'"),
        ({"bc_coef": [0.0, 0.0]}, r"proximity='behavior' .*bc_coef=0"),
    ],
)
def test_what_means_nothing_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        behavior_model(**kwargs)


def test_a_saved_model_keeps_what_it_is_held_to(tmp_path: Path) -> None:
    behavior_model(bc_coef=[0.0, 2.0]).save(tmp_path / "behavior")
    make_model(bc_coef=1.0).save(tmp_path / "data")
    with pytest.raises(ValueError, match=r"proximity='data' .*a saved model keeps its own"):
        SACFlow.load(tmp_path / "behavior", proximity="data")
    with pytest.raises(ValueError, match=r"proximity='behavior' .*a saved model keeps its own"):
        SACFlow.load(tmp_path / "data", proximity="behavior")
