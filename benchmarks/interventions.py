"""What a person's help is worth, and what it does if nobody says so: the same task learned in three ways.

    python benchmarks/interventions.py --ways alone said silent --seeds 1 2 3

A tool has to be brought to a small target. In the first half of training a person brings it there where the policy has
not in so many steps. `info` says so ("said"), or it does not ("silent"), so that the buffer has what the policy
decided and the environment did not do. Evaluated without the person, without noise.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from arguments import positive
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from shift import STEPS, Reach, success
from timing import write_as_measured

from sb3_flow import SACFlow

WAYS = ("alone", "said", "silent")


class SmallTarget(Reach):
    """Shows where tool and target are, in numbers."""

    observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
    reached_within = 0.03

    def _seen(self) -> NDArray[np.float32]:
        seen: NDArray[np.float32] = np.concatenate([self.tool, self.target]).astype(np.float32)
        return seen


class Helped(gym.Wrapper[Any, Any, Any, Any]):
    """A person watches for some steps of an episode, then acts until its end.

    :param way: one of `WAYS`
    :param watches: steps of an episode before they act
    :param until: steps of the environment after which they have left
    """

    def __init__(self, way: str, watches: int, until: int):
        super().__init__(TimeLimit(SmallTarget(), STEPS))
        self.way = way
        self.watches = watches
        self.until = until
        self.steps = self.elapsed = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.elapsed = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        acts = self.way != "alone" and self.elapsed >= self.watches and self.steps < self.until
        self.steps, self.elapsed = self.steps + 1, self.elapsed + 1
        if acts:
            person = self.env.unwrapped
            assert isinstance(person, Reach)
            action = person.demonstrated()
        obs, reward, terminated, truncated, info = super().step(action)
        if acts and self.way == "said":
            info["intervene_action"] = action
        return obs, reward, terminated, truncated, info


def run(way: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Success while learning and after it."""
    model = SACFlow(
        "FlowTPolicy",
        Helped(way, args.watches, args.steps // 2),
        learning_starts=args.random,
        batch_size=args.batch,
        buffer_size=args.steps,
        policy_kwargs={"net_arch": {"qf": [128, 128]}, "d_model": 32, "n_layers": 1},
        seed=seed,
        device=args.device,
    )
    row: dict[str, Any] = {"way": way, "seed": seed}
    for part in range(1, args.parts + 1):
        model.learn(args.steps // args.parts, reset_num_timesteps=part == 1)
        row[f"success_{model.num_timesteps}"] = success(model, args.episodes, SmallTarget)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=positive, default=4_000, help="of the environment")
    parser.add_argument("--parts", type=positive, default=4, help="evaluations, evenly over the steps")
    parser.add_argument("--random", type=int, default=500, help="steps of random actions before learning")
    parser.add_argument("--watches", type=int, default=15, help="steps of an episode before the person acts")
    parser.add_argument("--episodes", type=positive, default=100, help="of an evaluation")
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/interventions.csv"))
    args = parser.parse_args()
    th.set_num_threads(1)
    write_as_measured((run(way, seed, args) for seed in args.seeds for way in args.ways), args.out)


if __name__ == "__main__":
    main()
