"""Exploration noise that is kept for a zeta-distributed number of steps, each environment's own."""

from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import RandomEnv, make_model
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_flow.sac_flow.repeated_noise import RepeatedNoise, repeat_probs

NEVER = np.zeros(1, np.bool_)


class OneState(RandomEnv):
    """Shows the same observation always: equal noise makes equal actions."""

    def _observe(self) -> Any:
        return np.zeros(3, np.float32)


def lengths(rows: NDArray[Any]) -> list[int]:
    """How often each row is repeated in succession."""
    return [len(list(group)) for _, group in groupby(map(tuple, rows.tolist()))]


def test_probabilities_fall_with_the_square() -> None:
    np.testing.assert_allclose(repeat_probs(3), np.array([36, 9, 4]) / 49)
    np.testing.assert_allclose(repeat_probs(1), [1])
    assert repeat_probs(16).sum() == pytest.approx(1)


def test_noise_is_kept_as_often_as_the_distribution_says() -> None:
    np.random.seed(0)
    repeated, drawn = RepeatedNoise(), []
    for step in range(6000):
        noise = repeated.next(th.full((2, 1, 1), float(step)), NEVER, longest=4)
        drawn.append(noise[:, 0, 0].numpy())
    counts = np.bincount(lengths(np.array(drawn))[:-1], minlength=5)[1:]
    assert len(counts) == 4
    error = np.sqrt(repeat_probs(4) / counts.sum())
    assert (np.abs(counts / counts.sum() - repeat_probs(4)) < 4 * error).all()


def test_every_environment_has_its_own_and_an_episode_begins_with_new_noise() -> None:
    np.random.seed(1)
    repeated, n, drawn, starts = RepeatedNoise(), 50, [], []
    rng = np.random.default_rng(0)
    for step in range(40):
        starts.append(rng.random(n) < 0.1)
        fresh = th.full((3, n, 2), float(step))
        drawn.append(repeated.next(fresh, starts[-1], longest=16).numpy())
        assert (drawn[-1] == drawn[-1][:1, :, :1]).all()  # all numbers of a rollout are renewed together
    values = np.array(drawn)[:, 0, :, 0]  # (steps, n): the step at which each was drawn
    new = values == np.arange(40)[:, None]
    assert new[0].all()
    assert new[np.array(starts)].all()
    others = new[1:][~np.array(starts)[1:]]
    assert 0.2 < others.mean() < 0.9
    assert (new[1:].any(axis=1) & ~new[1:].all(axis=1)).mean() > 0.9
    assert (values[1:] == np.where(new[1:], values[1:], values[:-1])).all()


def test_another_number_of_environments_begins_anew() -> None:
    repeated = RepeatedNoise()
    repeated.next(th.zeros(2, 3, 1), np.zeros(3, np.bool_), longest=16)
    noise = repeated.next(th.ones(2, 4, 1), np.zeros(4, np.bool_), longest=16)
    assert (noise == 1).all()


@pytest.mark.parametrize("rollout", ["sde", "noise"])
def test_the_policy_acts_with_it_while_it_learns(rollout: str) -> None:
    env = DummyVecEnv([OneState, OneState])
    model = make_model(env=env, net={"rollout": rollout}, noise_repeat=16, gradient_steps=0, learning_starts=0)
    model.learn(120)
    actions = model.replay_buffer.actions[:60]  # (steps, n, D)
    for episode in actions.reshape(6, 10, 2, 2):
        kept = [lengths(episode[:, i]) for i in range(2)]
        assert all(sum(repeats) == 10 for repeats in kept)
    ends = np.arange(10, 60, 10)
    assert (actions[ends] != actions[ends - 1]).all()
    repeats = [lengths(actions[:, i]) for i in range(2)]
    assert max(map(max, repeats)) > 1
    assert repeats[0] != repeats[1]
    # Others who ask are not answered with it
    first, second = (model.predict(np.zeros(3, np.float32))[0] for _ in range(2))
    assert not np.array_equal(first, second)


def test_random_steps_and_one_step_a_draw_are_as_ever() -> None:
    def acted(**kwargs: Any) -> NDArray[Any]:
        return make_model(env=OneState(), gradient_steps=0, **kwargs).learn(20).replay_buffer.actions[:20, 0]

    plain, kept = acted(), acted(noise_repeat=8)
    np.testing.assert_array_equal(plain[:10], kept[:10])
    assert set(lengths(plain)) == {1}
    assert max(lengths(kept[10:])) > 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"noise_repeat": 0}, "an integer >= 1"),
        ({"noise_repeat": 1.5}, "an integer >= 1"),
        ({"noise_repeat": 2, "horizon_length": 3}, "use horizon_length=1"),
    ],
)
def test_what_cannot_be_repeated_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"noise_repeat={kwargs['noise_repeat']} is not allowed: .*{message}"):
        make_model(**kwargs)
