"""Train on an environment of your own: a point that has to reach one of two goals.

python examples/custom_env.py --steps 6000
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_flow import SACFlow


class TwoGoals(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A point in the plane starts at the origin; goals lie to its left and right."""

    GOALS = np.array([[-1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    EPISODE_STEPS = 20

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-2.0, 2.0, (2,), np.float32)
        self.action_space = spaces.Box(-0.2, 0.2, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.position = np.zeros(2, dtype=np.float32)
        self.steps = 0
        return self.position.copy(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + action, -2.0, 2.0).astype(np.float32)
        self.steps += 1
        distance = float(np.linalg.norm(self.GOALS - self.position, axis=1).min())
        return self.position.copy(), -distance, False, self.steps >= self.EPISODE_STEPS, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6_000)
    args = parser.parse_args()

    check_env(TwoGoals())
    model = SACFlow(
        "FlowTPolicy",
        TwoGoals(),
        learning_starts=min(500, args.steps // 2),
        gamma=0.9,
        policy_kwargs={"net_arch": {"qf": [128, 128]}, "d_model": 32, "n_layers": 1},
        seed=0,
    )
    model.learn(args.steps)
    mean, _ = evaluate_policy(model, Monitor(TwoGoals()), n_eval_episodes=10)
    print(f"return {mean:.2f}; the best is about -2")


if __name__ == "__main__":
    main()
