"""The train step on images, with a features extractor in each net and with one for all: milliseconds an update.

    python benchmarks/images.py                     # 64 x 64 x 3, batch 256, critics 256-256, one thread
    python benchmarks/images.py --policies fql --rounds 5

An update is one of the critics and, as often as the algorithm has it, one of the actor; sampling included. The order
changes at random in every round, the first rounds warm up, and the figures are medians with the quartiles.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from arguments import positive
from contenders import OURS
from gymnasium import spaces
from records import machine
from stable_baselines3.common.logger import configure
from timing import interleaved, write_timings

from sb3_flow import SACFlow
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

UPDATES = 3  # in one measurement: one of the actor with the default delay
ROWS = 300
SEPARATE, SHARED = "", "+shared"


class Pictures(gym.Env[Any, Any]):
    """An environment of which only the spaces are used."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)


def make_model(name: str, share: bool, args: argparse.Namespace) -> OffPolicyFlowAlgorithm:
    """A contender whose buffer holds random pictures."""
    ours = OURS[name]
    net = {"net_arch": {"qf": [args.width] * 2}, "share_features_extractor": share}
    policy = ours.policy if ours.algorithm is SACFlow else "CnnPolicy"
    kwargs = {**ours.arguments, "policy_kwargs": net, "buffer_size": ROWS, "device": args.device, "seed": 0}
    model: OffPolicyFlowAlgorithm = ours.algorithm(policy, Pictures(), batch_size=args.batch, **kwargs)
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    for stored in (buffer.observations, buffer.next_observations):
        stored[:] = rng.integers(0, 256, stored.shape, np.uint8)
    buffer.actions[:] = rng.uniform(-1, 1, buffer.actions.shape)
    buffer.full = True
    model.set_logger(configure(None, []))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", choices=OURS, default=["flow_t"])
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--width", type=positive, default=256, help="of the two critic layers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--warmup", type=positive, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/images.csv"))
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for name in args.policies:
        models = {name + suffix: make_model(name, suffix == SHARED, args) for suffix in (SEPARATE, SHARED)}
        runs: dict[str, Callable[[], None]] = {
            key: partial(model.train, UPDATES, args.batch) for key, model in models.items()
        }
        timings = interleaved(runs, args.rounds, args.warmup, scale=1000 / UPDATES)
        ratio = timings[name]["median"] / timings[name + SHARED]["median"]
        sizes = {"batch": args.batch, "width": args.width, "threads": args.threads}
        rows += [{"contender": key, **sizes, **timing} for key, timing in timings.items()]
        print(f"{name}: {ratio:.2f} times as many updates a second with one extractor for all nets")
    write_timings(rows, "batch", "ms an update", args.out, base=args.policies[0])
    print(f"{args.threads} threads, {machine()}")


if __name__ == "__main__":
    main()
