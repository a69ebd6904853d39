"""Learn from recorded data first, then in the environment: a pendulum, from a clumsy hand-written controller.

python examples/offline_to_online.py --offline-steps 2000 --online-steps 4000

Data of your own need no more than these arrays. Published ones have names: offline_dataset="ogbench:...",
"robomimic:..." or "minari:...", see docs/offline.md.
"""

import argparse

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_flow import SACFlow

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--offline-steps", type=int, default=2_000)
parser.add_argument("--online-steps", type=int, default=4_000)
parser.add_argument("--episodes", type=int, default=50)
args = parser.parse_args()


def swing_up(obs: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Pump energy into the swing, balance near the top, and hesitate now and then; actions are in [-1, 1]."""
    cosine, sine, speed = obs
    torque = -10 * sine - 2 * speed if cosine > 0.8 else np.sign(speed + 0.01)
    return np.clip([torque + 0.5 * rng.normal()], -1, 1).astype(np.float32) * (rng.random() > 0.2)


def record(env: gym.Env, episodes: int) -> dict[str, NDArray[np.generic]]:
    """Steps of whole episodes, one a row."""
    rng = np.random.default_rng(0)
    rows = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        ended = False
        while not ended:
            action = swing_up(obs, rng)
            next_obs, reward, terminated, truncated, _ = env.step(2 * action)  # the pendulum takes [-2, 2]
            ended = terminated or truncated
            rows.append((obs, action, next_obs, reward, not terminated, ended))
            obs = next_obs
    names = ("observations", "actions", "next_observations", "rewards", "masks", "terminals")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


env = gym.make("Pendulum-v1")
data = record(env, args.episodes)
print(f"{len(data['rewards'])} recorded steps, return of their episodes {data['rewards'].sum() / args.episodes:.0f}")

model = SACFlow(
    "FlowTPolicy",
    env,
    offline_dataset=data,
    bc_coef=(300.0, 1.0),  # close to the data while offline, freer online
    ent_coef=0.0,
    batch_size=128,
    policy_kwargs={"noise_std": 0.1, "net_arch": {"qf": [128, 128]}, "d_model": 64},
    seed=0,
)
model.learn_offline(args.offline_steps, progress_bar=True)
print(f"return after learning offline: {evaluate_policy(model, env, n_eval_episodes=10)[0]:.0f}")
model.learn(args.online_steps, progress_bar=True)
print(f"return after learning online: {evaluate_policy(model, env, n_eval_episodes=10)[0]:.0f}")
