"""What `random_shift` is worth: a robot that sees by a camera alone learns from a few demonstrations, then by itself.

    python benchmarks/shift.py --shifts 0 2 4 --seeds 1 2 3

A tool has to be brought to a target; both are dots in a picture of 48 x 48, and the actions are its velocity. Evaluated
without noise in as many other episodes after the offline and after the online phase.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from arguments import positive
from evaluate import episodes
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from stable_baselines3.common.env_util import make_vec_env
from timing import write_as_measured

from sb3_flow import SACFlow

SIZE, DOT, SPEED, STEPS = 48, 2, 0.1, 40


class Reach(gym.Env[Any, NDArray[np.float32]]):
    """A tool, blue, and its target, red, in [0, 1]^2, seen from above. A step costs 1, until it is reached."""

    observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    reached_within = 0.12
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.tool, self.target = self.np_random.uniform(0.1, 0.9, (2, 2))
        return self._seen(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.tool = np.clip(self.tool + SPEED * action, 0.0, 1.0)
        reached = bool(np.linalg.norm(self.tool - self.target) < self.reached_within)
        return self._seen(), -1.0, reached, False, {"is_success": reached}

    def demonstrated(self) -> NDArray[np.float32]:
        """What a person would do, more or less."""
        action = (self.target - self.tool) / SPEED / 2 + self.np_random.normal(0.0, 0.3, 2)
        clipped: NDArray[np.float32] = np.clip(action, -1, 1).astype(np.float32)
        return clipped

    def _seen(self) -> NDArray[Any]:
        picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
        for (x, y), colour in ((self.target, (255, 0, 0)), (self.tool, (0, 0, 255))):
            row, column = round(y * (SIZE - 1)), round(x * (SIZE - 1))
            picture[max(0, row - DOT) : row + DOT + 1, max(0, column - DOT) : column + DOT + 1] = colour
        return picture


def demonstrations(number: int, seed: int) -> dict[str, NDArray[Any]]:
    """Episodes of the person, as arrays."""
    env, rows = Reach(), []
    for episode in range(number):
        picture, _ = env.reset(seed=1000 * seed + episode)
        for step in range(STEPS):
            action = env.demonstrated()
            after, reward, reached, _, _ = env.step(action)
            ended = reached or step == STEPS - 1
            rows.append((picture.transpose(2, 0, 1), action, reward, after.transpose(2, 0, 1), not reached, ended))
            picture = after
            if ended:
                break
    names = ("observations", "actions", "rewards", "next_observations", "masks", "terminals")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def success(model: SACFlow, number: int, task: type[Reach] = Reach) -> float:
    """Share of episodes in which the target is reached.

    :param number: of episodes
    :param task: what they are of
    """
    env = make_vec_env(lambda: TimeLimit(task(), STEPS), n_envs=10, seed=90_000)
    rate = episodes(model, env, number, deterministic=True).success_rate
    assert rate is not None
    return rate


def run(pixels: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Success after each phase."""
    model = SACFlow(
        "CnnPolicy",
        TimeLimit(Reach(), STEPS),
        offline_dataset=demonstrations(args.demonstrations, seed),
        batch_size=args.batch,
        bc_coef=(10.0, 1.0),
        ent_coef=0.0,
        buffer_size=args.online,
        random_shift=pixels,
        policy_kwargs={
            "noise_std": 0.1,
            "net_arch": {"qf": [256, 256]},
            "d_model": 64,
            "share_features_extractor": True,
            "features_extractor_kwargs": {"features_dim": 128},
        },
        seed=seed,
        device=args.device,
    )
    model.learn_offline(args.offline)
    offline = success(model, args.episodes)
    model.learn(args.online)
    return {"random_shift": pixels, "seed": seed, "offline": offline, "online": success(model, args.episodes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shifts", nargs="+", type=int, default=[0, 2, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--demonstrations", type=positive, default=20)
    parser.add_argument("--offline", type=positive, default=3_000, help="updates from the demonstrations alone")
    parser.add_argument("--online", type=positive, default=1_000, help="steps of the environment after that")
    parser.add_argument("--episodes", type=positive, default=100, help="of an evaluation")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/shift.csv"))
    args = parser.parse_args()
    th.set_num_threads(1)
    write_as_measured((run(pixels, seed, args) for seed in args.seeds for pixels in args.shifts), args.out)


if __name__ == "__main__":
    main()
