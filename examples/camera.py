"""Learn from demonstrations with a camera, then in the environment: a gripper has to get around a block, left or right.

python examples/camera.py --offline-steps 2000 --online-steps 2000

An observation is a Dict: the picture, the only one to show where the target is, and where the gripper is. The
demonstrations go left and right in turns.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_flow import SACFlow

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--offline-steps", type=int, default=2_000)
parser.add_argument("--online-steps", type=int, default=2_000)
parser.add_argument("--episodes", type=int, default=100)
args = parser.parse_args()

PIXELS = np.linspace(-1, 1, 36)
BLOCK = 0.35  # radius


class Table(gym.Env):
    """A square table from above; a step costs 1 until the gripper is at the target."""

    observation_space = spaces.Dict(
        {"camera": spaces.Box(0, 255, (36, 36, 1), np.uint8), "gripper": spaces.Box(-1, 1, (2,), np.float32)}
    )
    action_space = spaces.Box(-0.2, 0.2, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.gripper = np.array([0, -0.8], np.float32)
        self.target = np.array([self.np_random.uniform(-0.8, 0.8), 0.8])
        self.steps = 0
        return self.seen(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        moved = np.clip(self.gripper + action, -1, 1).astype(np.float32)
        if np.linalg.norm(moved) > BLOCK:
            self.gripper = moved
        self.steps += 1
        success = bool(np.linalg.norm(self.gripper - self.target) < 0.15)
        return self.seen(), -1.0, success, self.steps == 40, {"is_success": success}

    def seen(self) -> dict[str, NDArray[Any]]:
        distance = np.hypot(PIXELS[None] - self.target[0], PIXELS[:, None] - self.target[1])
        camera = (255 * np.exp(-((distance / 0.15) ** 2))).astype(np.uint8)
        return {"camera": camera[:, :, None], "gripper": self.gripper}


def controller(env: Table, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Past the block on one side, then to the target, with a trembling hand; actions are in [-1, 1]."""
    goal = np.array([0.6 * side, 0.1]) if env.gripper[1] < 0 else env.target
    return np.clip((goal - env.gripper) / 0.2 + 0.2 * rng.normal(size=2), -1, 1).astype(np.float32)


def record(env: Table, episodes: int) -> dict[str, Any]:
    """Steps of whole episodes, one a row; the pictures channels first, as SB3's policies see them."""
    rng = np.random.default_rng(0)
    rows = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        ended = False
        while not ended:
            action = controller(env, 1 - 2 * (episode % 2), rng)
            next_obs, reward, terminated, truncated, _ = env.step(0.2 * action)
            ended = terminated or truncated
            rows.append((obs, next_obs, action, reward, not terminated, ended))
            obs = next_obs
    before, after, *signals = zip(*rows, strict=True)
    data: dict[str, Any] = {
        name: {
            "camera": np.array([obs["camera"].transpose(2, 0, 1) for obs in shown]),
            "gripper": np.array([obs["gripper"] for obs in shown]),
        }
        for name, shown in (("observations", before), ("next_observations", after))
    }
    return data | {
        name: np.array(signal)
        for name, signal in zip(("actions", "rewards", "masks", "terminals"), signals, strict=True)
    }


def evaluated(model: SACFlow) -> str:
    """Success in 50 episodes, without noise and with it."""
    rates = []
    for deterministic in (True, False):
        lengths = evaluate_policy(model, Monitor(Table()), 50, deterministic, return_episode_rewards=True)[1]
        rates.append(np.mean(np.array(lengths) < 40))
    return f"success {rates[0]:.2f}, with the policy's noise {rates[1]:.2f}"


env = Table()
data = record(env, args.episodes)
print(f"{len(data['rewards'])} recorded steps of {args.episodes} episodes")
model = SACFlow(
    "MultiInputPolicy",
    env,
    offline_dataset=data,
    bc_coef=(30.0, 10.0),  # close to the data while offline, freer online
    ent_coef=0.0,
    batch_size=64,
    buffer_size=10_000,
    policy_kwargs={"noise_std": 0.1, "net_arch": {"qf": [128, 128]}, "d_model": 64, "share_features_extractor": True},
    seed=0,
)
model.learn_offline(args.offline_steps, progress_bar=True)
print(f"after learning offline: {evaluated(model)}")
model.learn(args.online_steps, progress_bar=True)
print(f"after learning online: {evaluated(model)}")
