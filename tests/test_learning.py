"""Small tasks with a known answer are learned, with and without noise."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_flow import QSM, FlowRL, SACFlow


class Aim(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One step: hit a point that is a known function of the state. The best return is 0, a random one about -0.8."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state, {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        goal = 0.6 * self.state[::-1]
        return self.state, -float(np.square(action - goal).sum()), True, False, {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "rollout"),
    [("FlowTPolicy", "sde"), ("FlowGPolicy", "sde"), ("FlowMLPPolicy", "sde"), ("FlowGPolicy", "noise")],
)
def test_an_aimed_shot_is_learned_and_noise_costs_little(policy: str, rollout: str) -> None:
    net: dict[str, Any] = {"n_layers": 1, "d_model": 32} if policy == "FlowTPolicy" else {}
    widths = {"qf": [64, 64]} | ({} if policy == "FlowTPolicy" else {"pi": [64, 64]})
    model = SACFlow(
        policy,
        make_vec_env(Aim, n_envs=8),
        learning_rate=3e-3,
        learning_starts=400,
        batch_size=64,
        buffer_size=10_000,
        gradient_steps=1,
        policy_delay=1,
        ent_coef=0.001,
        policy_kwargs={"rollout": rollout, "net_arch": widths, **net},
        seed=0,
    )
    model.learn(400 + 8 * 400)
    env = make_vec_env(Aim, n_envs=20, seed=1)
    deterministic, _ = evaluate_policy(model, env, n_eval_episodes=200, deterministic=True)
    stochastic, _ = evaluate_policy(model, env, n_eval_episodes=200, deterministic=False)
    assert deterministic > -0.05
    assert stochastic > -0.15


GUESTS: dict[str, Any] = {"flow_rl": (FlowRL, {"policy_delay": 1}), "qsm": (QSM, {"q_coef": 1.0})}


@pytest.mark.slow
@pytest.mark.parametrize("name", GUESTS)
def test_an_aimed_shot_is_learned_by_guests(name: str) -> None:
    algorithm, kwargs = GUESTS[name]
    model = algorithm(
        "MlpPolicy",
        make_vec_env(Aim, n_envs=8),
        learning_rate=1e-3,
        learning_starts=400,
        batch_size=128,
        buffer_size=10_000,
        gradient_steps=1,
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
        **kwargs,
    )
    model.learn(400 + 8 * 250)
    env = make_vec_env(Aim, n_envs=20, seed=1)
    deterministic, _ = evaluate_policy(model, env, n_eval_episodes=200, deterministic=True)
    stochastic, _ = evaluate_policy(model, env, n_eval_episodes=200, deterministic=False)
    assert deterministic > -0.12
    assert stochastic > -0.2
