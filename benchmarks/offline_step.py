"""The update from data alone, all of ours in one process, interleaved: milliseconds and ratios to Flow-T.

    python benchmarks/offline_step.py                       # the papers' size, cube-double's dimensions
    python benchmarks/offline_step.py --width 256 --layers 3 --d-model 64 --compile

One update is one of the critics and one of the actor, sampling included. The order changes at random in every round,
the first rounds warm up, and the figures are medians with the quartiles.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch as th
from arguments import positive
from contenders import OURS, TEN_CRITICS, merged, ours_of
from datasets import WIDTHS, random_steps
from records import machine
from shapes import Shapes
from stable_baselines3.common.logger import configure
from timing import interleaved, write_timings

from sb3_flow import SACFlow
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

ROWS = 20_000
VARIANTS: dict[str, dict[str, Any]] = {
    "flow_t+behavior": {"proximity": "behavior"},
    "flow_t+ten": {"policy_kwargs": TEN_CRITICS},
}
CONTENDERS = ("flow_t", *VARIANTS, "flow_g", "flow_mlp", "fql", "qc_fql", "qc")


def make_model(name: str, args: argparse.Namespace) -> OffPolicyFlowAlgorithm:
    """A contender that learns from random steps, with the settings of its paper."""
    ours, widths = ours_of(name), [args.width] * args.layers
    nets: dict[str, Any] = {"net_arch": {"pi": widths, "qf": widths}}
    own: dict[str, Any] = {}
    if ours.algorithm is SACFlow:
        critics = {"critic": "target", "noise_std": 0.1, "net_arch": {"qf": widths}}
        nets = critics | ({"d_model": args.d_model} if ours is OURS["flow_t"] else {})
        own = {"horizon_length": 5, "bc_coef": 300.0, "ent_coef": 0.0}
    model: OffPolicyFlowAlgorithm = ours.algorithm(
        ours.policy,
        Shapes(WIDTHS["observations"], WIDTHS["actions"]),
        batch_size=args.batch,
        buffer_size=100,
        offline_dataset=random_steps(ROWS),
        offline_steps=10**9,
        compile=args.compile,
        device=args.device,
        seed=0,
        **merged(ours.arguments, own, {"policy_kwargs": nets}, VARIANTS.get(name, {})),
    )
    model.set_logger(configure(None, []))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--width", type=positive, default=512)
    parser.add_argument("--layers", type=positive, default=4)
    parser.add_argument("--d-model", type=positive, default=128)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--updates", type=positive, default=5, help="in one measurement")
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--warmup", type=positive, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/offline_step.csv"))
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    runs: dict[str, Callable[[], None]] = {}
    for name in args.contenders:
        model = make_model(name, args)
        model.train(1, args.batch)  # compiles
        runs[name] = partial(model.train, args.updates, args.batch)
    timings = interleaved(runs, args.rounds, args.warmup, scale=1000 / args.updates)
    sizes = {key: getattr(args, key) for key in ("batch", "width", "layers", "d_model", "compile", "threads")}
    rows: list[dict[str, Any]] = [{"contender": name, **sizes, **timing} for name, timing in timings.items()]
    write_timings(rows, "batch", "ms an update", args.out, base="flow_t")
    print(f"{args.threads} threads, {machine()}")


if __name__ == "__main__":
    main()
