"""What a person did in the policy's place is what is learned from."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from gymnasium import spaces
from helpers import ON_POLICY, ONE_OF_EACH, UNEVEN, TakenOver, make_any, make_variant, scaled, warned
from hypothesis import given
from hypothesis import strategies as st
from interventions import WAYS, Helped
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_flow.common.interventions import executed

H = 3


class HelpedGoals(gym.Wrapper[Any, Any, Any, Any]):
    """Every third step a person flips the first bit alone."""

    def __init__(self) -> None:
        super().__init__(BitFlippingEnv(n_bits=3, continuous=True, max_steps=6))
        self.actions: list[Any] = []

    def step(self, action: Any) -> Any:
        acts = len(self.actions) % 3 == 2
        self.actions.append(np.array([1.0, -1.0, -1.0]) if acts else action)
        obs, reward, terminated, truncated, info = super().step(self.actions[-1])
        return obs, reward, terminated, truncated, {**info, "intervene_action": self.actions[-1] if acts else None}


def check_stored(model: Any, env: TakenOver) -> None:
    """The buffer has the actions that were executed, some of which the policy had not decided."""
    stored = model.replay_buffer.actions[: len(env.actions), 0]
    np.testing.assert_allclose(stored, scaled(env.actions), atol=1e-5)
    theirs = np.array(env.taken_over)
    assert theirs.any()
    assert np.abs(scaled(env.decided) - stored)[theirs].max() > 0.1
    np.testing.assert_array_equal(np.array(env.decided)[~theirs], np.array(env.actions)[~theirs])


@pytest.mark.parametrize("says", ["intervene_action", "teleop_action", "LeRobot"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_buffer_has_the_actions_that_were_executed(name: str, says: str) -> None:
    env = TakenOver(says)
    model = make_variant(name, env)
    model.learn(25)
    check_stored(model, env)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"horizon_length": H, "learning_starts": 5},
        {"n_steps": 3},
        {"train_freq": (1, "episode"), "gradient_steps": -1},
        {"sac_flow": {"noise_repeat": 4}},
    ],
    ids=["chunks", "n-step", "episodes", "noise"],
)
@pytest.mark.parametrize("from_step", [0, 4, 7])
def test_a_person_may_act_in_the_first_and_in_the_last_step_of_an_episode(
    from_step: int, kwargs: dict[str, Any]
) -> None:
    env = TakenOver(from_step=from_step)
    model = make_variant("flow_t", env, **kwargs)
    model.learn(30)
    check_stored(model, env)


def test_normalised_and_relabelled_experience_has_their_actions() -> None:
    env = TakenOver()
    model = make_variant("flow_t", VecNormalize(DummyVecEnv([lambda: env])))
    model.learn(25)
    check_stored(model, env)

    goals = HelpedGoals()
    buffer = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 2}}
    model = make_variant("flow_t", goals, policy="MultiInputPolicy", **buffer)
    model.learn(25)
    np.testing.assert_allclose(model.replay_buffer.actions[:25, 0], goals.actions, atol=1e-5)
    assert model._n_updates > 0


def test_of_several_environments_only_the_one_that_was_taken_over_is_another() -> None:
    envs = [TakenOver(from_step=4), TakenOver(from_step=1), TakenOver(from_step=100)]
    model = make_variant("flow_t", DummyVecEnv([lambda env=env: env for env in envs]))  # type: ignore[misc]
    model.learn(60)
    for i, env in enumerate(envs):
        np.testing.assert_allclose(model.replay_buffer.actions[:20, i], scaled(env.actions), atol=1e-5)
    assert not any(envs[2].taken_over)


@pytest.mark.slow
def test_workers_say_it_too() -> None:
    env = SubprocVecEnv([TakenOver, TakenOver])
    model = make_variant("flow_t", env)
    model.learn(20)
    env.close()
    theirs = scaled([[-1.5, 5.0], [-1.5, 6.0], [-1.5, 7.0]])
    for i in range(2):
        np.testing.assert_allclose(model.replay_buffer.actions[4:7, i], theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
def test_a_chunk_ends_where_a_person_takes_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was decided before they acted is for states that are not reached."""
    model = make_variant(name, TakenOver(), horizon_length=H, learning_starts=0)
    seen: list[int] = []
    forward = model.policy.actor.forward

    def record(obs: Any, deterministic: bool = False) -> th.Tensor:
        seen.append(model.num_timesteps)
        return forward(obs, deterministic)

    monkeypatch.setattr(model, "train", lambda **kwargs: None)
    monkeypatch.setattr(model.policy.actor, "forward", record)
    model.learn(20)
    # Chunks at 0 and 3, of which the second is broken off in its second step; while they act each step has its own
    assert seen == [0, 3, 5, 6, 7, 10, 13, 15, 16, 17]


@pytest.mark.parametrize(("from_step", "share"), [(8, 0.2), (100, None)])
def test_the_share_of_such_steps_is_logged_if_there_are(from_step: int, share: float | None, tmp_path: Path) -> None:
    model = make_variant("flow_t", TakenOver(from_step=from_step), learning_starts=0)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(30, log_interval=1)
    rows = pd.read_csv(tmp_path / "progress.csv")
    shares = rows["rollout/intervention_rate"].tolist() if "rollout/intervention_rate" in rows else None
    assert shares == (None if share is None else [share] * 3)


def test_the_share_counts_each_step_once(tmp_path: Path) -> None:
    """Of episodes that end together the log has a row each, at the same step."""
    model = make_variant("flow_t", DummyVecEnv([partial(TakenOver, from_step=8), TakenOver]), learning_starts=0)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(40, log_interval=1)
    shares = pd.read_csv(tmp_path / "progress.csv")["rollout/intervention_rate"]
    assert shares[shares.notna()].tolist() == [0.25, 0.25]


def test_an_environment_that_says_nothing_changes_nothing() -> None:
    env = TakenOver("")
    model = make_variant("flow_t", env)
    model.learn(20)
    np.testing.assert_allclose(model.replay_buffer.actions[:20, 0], scaled(env.decided), atol=1e-5)
    assert "rollout/intervention_rate" not in model.logger.name_to_value


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("says", ["intervene_action", "teleop_action"])
def test_on_policy_a_person_is_refused(name: str, says: str) -> None:
    model = make_any(name, TakenOver(says))
    with pytest.raises(ValueError, match="off-policy algorithms learn from both"):
        model.learn(20)
    make_any(name, TakenOver(says, from_step=100)).learn(20)


@pytest.mark.parametrize(
    ("info", "match"),
    [
        ({"intervene_action": [-90.0, 1.0]}, r"\[-90.0, 1.0\] is not allowed: it is far from what is between \[-2.0"),
        ({"intervene_action": [-8.0, 1.0]}, "in the units of the model's action space"),
        ({"intervene_action": [np.nan, 1.0]}, "it is not finite"),
        ({"intervene_action": [[0.0], [1.0]]}, "its shape is"),
        ({"intervene_action": {"delta_x": 1.0, "delta_y": 1.0}}, "an array of the shape"),
        ({"is_intervention": True, "teleop_action": [0.0, 1.0, 0.0]}, "its shape is"),
        ({"is_intervention": True}, "teleop_action"),
    ],
)
def test_what_cannot_have_been_an_action_is_refused(info: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        executed(np.zeros((1, 2)), [info], UNEVEN)


def test_what_is_a_little_outside_is_cut_off_and_pointed_out_once() -> None:
    """HIL-SERL's RelativeFrame turns an action of a box out of it."""
    infos = [{"intervene_action": [-2.6, 10.5]}]
    with pytest.warns(UserWarning, match=r"not between \[-2.0, 0.0\] and \[1.0, 10.0\]"):
        actions, _ = executed(np.zeros((1, 2)), infos, UNEVEN)
    np.testing.assert_array_equal(actions, [[-1.0, 1.0]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for x in (-2.7, -2.8, -2.9):
            executed(np.zeros((1, 2)), [{"intervene_action": [x, 0.0]}], UNEVEN)
    assert len(caught) == 1
    assert warned(lambda: executed(np.zeros((1, 2)), [{"intervene_action": [-2.00001, 0.0]}], UNEVEN)) == []


@pytest.mark.parametrize("shape", [(2,), (1, 2), (1, 1, 2)])
def test_actions_may_have_the_axis_of_a_batch(shape: tuple[int, ...]) -> None:
    theirs = th.tensor([-0.5, 10.0], requires_grad=True).reshape(shape)
    actions, _ = executed(np.zeros((1, 2)), [{"is_intervention": True, "action_intervention": theirs}], UNEVEN)
    np.testing.assert_allclose(actions, [[0.0, 1.0]])


def test_what_is_not_taken_over_stays() -> None:
    decided = np.zeros((3, 2), np.float32)
    infos = [{}, {"is_intervention": False, "teleop_action": [9.0, 9.0]}, {"intervene_action": None}]
    actions, taken_over = executed(decided, infos, UNEVEN)
    assert actions is decided
    assert not taken_over.any()


@given(st.floats(-2.0, 1.0, width=32), st.floats(0.0, 10.0, width=32))
def test_an_action_of_the_space_is_in_reach_of_the_policy(x: float, y: float) -> None:
    theirs = th.tensor([x, y])  # as LeRobot's processors have it
    actions, _ = executed(np.zeros((1, 2), np.float32), [{"intervene_action": theirs}], UNEVEN)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    np.testing.assert_allclose(actions[0], scaled([x, y]), atol=1e-6)


def test_matrices_of_actions_are_taken_over_whole() -> None:
    space = spaces.Box(-2.0, 2.0, (2, 3), np.float32)
    theirs = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    actions, _ = executed(np.zeros((1, 2, 3), np.float32), [{"intervene_action": theirs.ravel()}], space)
    np.testing.assert_allclose(actions[0], theirs / 2)


@pytest.mark.parametrize("way", WAYS)
def test_the_benchmarks_person_acts_after_watching_and_until_they_leave(way: str) -> None:
    env = Helped(way, watches=3, until=60)
    before, _ = env.reset(seed=0)
    said, moved = [], []
    for _ in range(100):
        obs, _, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        said.append("intervene_action" in info)
        moved.append(bool(np.abs(obs - before).max() > 0))
        before = env.reset()[0] if terminated or truncated else obs
    assert any(moved) is (way != "alone")
    assert said == (moved if way == "said" else [False] * 100)
    assert not any(moved[:3])
    assert not any(moved[60:])
