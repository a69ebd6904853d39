"""What the guard against numbers that are not finite costs: updates with it and without, interleaved.

    python benchmarks/guard.py                               # the size that fits a CPU, compiled
    python benchmarks/guard.py --contenders flow_t --batch 512 --width 1024

Without means no finite check of batches, losses and gradients, no norm of these, no flag, nothing that an error would
be made of, and no copy of the statistics: what a library does that trusts its numbers. A cycle is that of
`benchmarks/train_step.py`.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch as th
from arguments import positive
from contenders import TIMED, add_arguments, apply_arguments
from records import machine
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from timing import compared, write_timings
from train_step import cycles, make_filled

from sb3_flow.common.compile import Compiled
from sb3_flow.common.guard import Guard, Statistics

CONTENDERS = [name + label for name in TIMED for label in ("", "+compiled")]
DEFAULT = ["flow_t+compiled", "flow_g+compiled", "fql+compiled"]
GUARDED, UNGUARDED = "guarded", "unguarded"
COPIES = 4


def no_count(x: th.Tensor) -> th.Tensor:
    return th.zeros((), device=x.device)


def no_norm(tensors: Sequence[th.Tensor]) -> th.Tensor:
    return th.zeros((), device=tensors[0].device)


@contextmanager
def without_guard() -> Iterator[None]:
    """Updates look at nothing in here."""
    with ExitStack() as stack:
        for module in ("updates", "temperature"):
            stack.enter_context(patch(f"sb3_flow.common.{module}.count_bad", no_count))
        stack.enter_context(patch("sb3_flow.common.experience.check_finite", lambda *_, **__: None))
        stack.enter_context(patch.object(Statistics, "moving", []))
        stack.enter_context(patch("sb3_flow.common.updates.set_where", lambda *_: None))
        stack.enter_context(patch("sb3_flow.common.updates.norm_of", no_norm))
        stack.enter_context(patch.object(Guard, "look", lambda *_: None))
        stack.enter_context(patch.object(Guard, "remember", lambda *_: None))
        stack.enter_context(patch.object(Guard, "step", lambda _, optimizer: optimizer.step()))
        yield


def both(model: OffPolicyAlgorithm, batch: int, n: int) -> dict[str, Callable[[], None]]:
    """Functions that run n cycles of a model with the guard and without.

    Two models, or two copies of compiled code, take times that differ by as much as the guard costs. So there is one
    model, and of both kinds of code there are `COPIES`, which take turns.
    """
    compiled = {name: value for name, value in vars(model).items() if isinstance(value, Compiled)}
    run = cycles(model, batch, n)

    def in_turns() -> Callable[[], None]:
        codes = cycle([{name: copy(value) for name, value in compiled.items()} for _ in range(COPIES)])

        def run_one() -> None:
            vars(model).update(next(codes))
            run()

        return run_one

    return {GUARDED: in_turns(), UNGUARDED: without_guard()(in_turns())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=41, warmup=3, contenders=CONTENDERS)
    parser.set_defaults(contenders=DEFAULT, batch=256, width=256)
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--cycles", type=positive, default=5, help="in one measurement")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/guard.csv"))
    args = parser.parse_args()
    size = apply_arguments(args)
    rows: list[dict[str, Any]] = []
    for name in args.contenders:
        run = both(make_filled(name, size, args), size.batch, args.cycles)
        for each in [*run.values()] * COPIES:
            each()  # compiles
        timings = compared(run, UNGUARDED, args.rounds, args.warmup, scale=1000 / args.cycles)
        rows += [
            {"contender": key, "algorithm": name, "threads": th.get_num_threads(), **t} for key, t in timings.items()
        ]
    print(machine())
    write_timings(rows, "algorithm", "ms/cycle", args.out, base=UNGUARDED)


if __name__ == "__main__":
    main()
