"""Milliseconds that `learn` takes for an environment step with its updates, all contenders in one process, interleaved.

    python benchmarks/end_to_end.py --batch 256 --width 256
    python benchmarks/end_to_end.py --sweep n_envs 1 2 4 8 --contenders flow_t+compiled

Everything that a run does counts: acting, the environment, the buffer, the updates, of which DIME makes two a step.
On-policy contenders make one rollout in each measurement, and ten passes over it. The order changes at random in every
round, the first rounds warm up, and the figures are medians with the quartiles.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch as th
from arguments import positive, swept_values
from contenders import (
    CONTENDERS,
    ON_POLICY,
    Size,
    add_arguments,
    apply_arguments,
    make_model,
    make_on_policy,
    sizes_of,
    updates_a_step,
)
from records import machine
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from timing import interleaved, write_timings

WARM_UP = 600  # steps, of which the first are random
NEVER = 10**9  # episodes


def learn(model: BaseAlgorithm, steps: int) -> None:
    model.learn(steps, reset_num_timesteps=False, log_interval=NEVER)


def measure(size: Size, n_envs: list[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each contender with each number of environments, all interleaved: milliseconds a step of one."""
    runs: dict[tuple[str, int], Callable[[], None]] = {}
    columns: dict[tuple[str, int], dict[str, Any]] = {}
    model: BaseAlgorithm
    for n in n_envs:
        for name in args.contenders:
            env = make_vec_env(args.env, n_envs=n, seed=0)
            if name in ON_POLICY:
                model = make_on_policy(name, env, size, args.steps // n, args.device)
            else:
                # As many for each step, whatever the number of environments
                updates = {"gradient_steps": n * updates_a_step(name), "learning_starts": WARM_UP // 2}
                model = make_model(name, env, size, args.device, **updates)
            columns[name, n] = sizes_of(model, size)
            learn(model, WARM_UP)
            runs[name, n] = partial(learn, model, args.steps)
    settings = {"env": args.env, "threads": th.get_num_threads()}
    timings = interleaved(runs, args.rounds, args.warmup, scale=1000 / args.steps)
    return [
        {"contender": name, "n_envs": n, **settings, **columns[name, n], **timing}
        for (name, n), timing in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9, warmup=2, contenders=[*CONTENDERS, *ON_POLICY])
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--sweep", nargs="+", metavar=("n_envs", "N"), default=["n_envs", "1"])
    parser.add_argument("--steps", type=positive, default=200, help="in one measurement")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/end_to_end.csv"))
    args = parser.parse_args()
    swept, values = swept_values(parser, args.sweep, ["n_envs"])
    uneven = [n for n in values if args.steps % n]
    if uneven and not set(args.contenders).isdisjoint(ON_POLICY):
        parser.error(f"--steps {args.steps} is no multiple of {uneven[0]} environments: a rollout has as many in each")
    rows = measure(apply_arguments(args), values, args)
    write_timings(rows, swept, "ms an environment step", args.out)
    print(f"{th.get_num_threads()} threads, {machine()}")


if __name__ == "__main__":
    main()
