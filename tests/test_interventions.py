"""What a person did in the policy's place is what is learned from."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import ON_POLICY, ONE_OF_EACH, RandomEnv, make_any, make_variant
from hypothesis import given
from hypothesis import strategies as st
from interventions import WAYS, Helped
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_flow.common.interventions import executed

UNEVEN = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32))
H = 3


class TakenOver(RandomEnv):
    """A person acts in steps 4, 5, 6 of every ten; in one of two ways `info` says so."""

    def __init__(self, says: str = "intervene_action", from_step: int = 4, **kwargs: Any):
        super().__init__(action_space=UNEVEN, **kwargs)
        self.says = says
        self.from_step = from_step
        self.decided: list[NDArray[Any]] = []
        self.taken_over: list[bool] = []

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.decided.append(np.copy(action))
        acts = self.from_step <= self.elapsed < self.from_step + 3
        self.taken_over.append(acts)
        if acts:
            action = np.array([-1.5, 1.0 + self.elapsed], np.float32)
        obs, reward, terminated, truncated, info = super().step(action)
        if self.says == "intervene_action":
            info |= {"intervene_action": action} if acts else {}
        elif self.says == "teleop_action":
            info |= {"is_intervention": acts, "teleop_action": action}
        return obs, reward, terminated, truncated, info


def scaled(actions: Any) -> NDArray[Any]:
    low, high = UNEVEN.low, UNEVEN.high
    return np.asarray(2 * (np.asarray(actions) - low) / (high - low) - 1)


@pytest.mark.parametrize("says", ["intervene_action", "teleop_action"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_buffer_has_the_actions_that_were_executed(name: str, says: str) -> None:
    env = TakenOver(says)
    model = make_variant(name, env)
    model.learn(25)
    stored = model.replay_buffer.actions[:25, 0]
    np.testing.assert_allclose(stored, scaled(env.actions[:25]), atol=1e-5)
    policys = ~np.array(env.taken_over)
    np.testing.assert_array_equal(np.array(env.decided)[policys], np.array(env.actions)[policys])
    assert np.abs(scaled(env.decided) - stored)[~policys].max() > 0.1


def test_of_several_environments_only_the_one_that_was_taken_over_is_another() -> None:
    envs = [TakenOver(from_step=4), TakenOver(from_step=1), TakenOver(from_step=100)]
    model = make_variant("flow_t", DummyVecEnv([lambda env=env: env for env in envs]))  # type: ignore[misc]
    model.learn(60)
    for i, env in enumerate(envs):
        np.testing.assert_allclose(model.replay_buffer.actions[:20, i], scaled(env.actions), atol=1e-5)
    assert not any(envs[2].taken_over)


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


def test_the_share_of_such_steps_is_logged_once_there_was_one() -> None:
    model = make_variant("flow_t", TakenOver())
    model.learn(3, log_interval=None)
    assert "rollout/intervention_rate" not in model.logger.name_to_value
    model.learn(10, log_interval=None)
    # From the first of them on: 3 of the 6 steps that are left of the episode
    assert model.logger.name_to_value["rollout/intervention_rate"] == pytest.approx(3 / 6)


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
        ({"intervene_action": [-2.5, 1.0]}, r"\[-2.5, 1.0\] is not allowed: it is not between \[-2.0, 0.0\] and"),
        ({"intervene_action": [np.nan, 1.0]}, "cut it off there"),
        ({"is_intervention": True, "teleop_action": [0.0, 1.0, 0.0]}, "3 numbers, and an action has the shape"),
        ({"is_intervention": True}, "teleop_action"),
    ],
)
def test_what_cannot_have_been_an_action_is_refused(info: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        executed(np.zeros((1, 2)), [info], UNEVEN)


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
