"""Episodes of a trained model, from an environment whose successes are known."""

import evaluate
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flow import SACFlow


class Alternating(gym.Env):
    """Episodes of two steps; every other one, beginning with the second, succeeds and returns 1."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        ends, succeeds = self.steps == 2, self.episode % 2 == 1
        return np.zeros(2, np.float32), float(ends and succeeds), ends, False, {"is_success": succeeds}


class Silent(Alternating):
    """The same, and does not tell whether an episode succeeded."""

    def step(self, action):
        return (*super().step(action)[:-1], {})


@pytest.fixture
def model():
    return SACFlow("FlowMLPPolicy", Alternating(), policy_kwargs={"net_arch": [4], "flow_steps": 2})


@pytest.mark.parametrize("deterministic", [True, False])
def test_returns_and_successes_are_those_of_the_episodes(model, deterministic):
    env = make_vec_env(Alternating, n_envs=1, seed=0)
    of = evaluate.episodes(model, env, 6, deterministic)
    assert of.returns.tolist() == [0, 1, 0, 1, 0, 1]
    assert of.successes == [False, True] * 3
    assert of.success_rate == 0.5


def test_without_successes_there_is_no_rate(model):
    of = evaluate.episodes(model, make_vec_env(Silent, n_envs=2, seed=0), 4, deterministic=True)
    assert of.success_rate is None
    assert "success" not in evaluate.described("deterministic", of)


def test_both_ways_to_act_see_the_same_first_states_as_the_model_learned_to(tmp_path, monkeypatch, capsys):
    venv = VecNormalize(make_vec_env("Pendulum-v1"))
    model = SAC("MlpPolicy", venv, policy_kwargs={"net_arch": [4]}).learn(50)
    model.save(tmp_path / "model.zip")
    venv.save(str(tmp_path / "vecnormalize.pkl"))
    seen = []

    def first_states(model, env, number, deterministic):
        seen.append(env.reset())
        return evaluate.Episodes(np.zeros(number), [])

    monkeypatch.setattr(evaluate, "episodes", first_states)
    arguments = ["evaluate", str(tmp_path / "model.zip"), "--env", "Pendulum-v1", "--algo", "sac", "--episodes", "3"]
    monkeypatch.setattr("sys.argv", arguments)
    evaluate.main()
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: return 0.0, standard deviation 0.0" for name in ("deterministic", "stochastic")
    ]
    np.testing.assert_array_equal(seen[0], seen[1])
    plain = make_vec_env("Pendulum-v1", n_envs=3, seed=20_000)
    np.testing.assert_allclose(seen[0], venv.normalize_obs(plain.reset()), rtol=1e-5)


def test_a_line_has_the_interval_of_the_rate():
    of = evaluate.Episodes(np.full(100, -2.0), [True] * 85 + [False] * 15)
    assert evaluate.described("stochastic", of) == (
        "stochastic: return -2.0, standard deviation 0.0, success 0.850, 95 % CI 0.767 to 0.907"
    )
