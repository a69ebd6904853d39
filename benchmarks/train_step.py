"""The train step, all contenders in one process, interleaved: milliseconds a cycle and ratios to contrib's CrossQ.

    python benchmarks/train_step.py                                  # the paper's size, Hopper's dimensions
    python benchmarks/train_step.py --batch 256 --width 256          # the size that fits a CPU
    python benchmarks/train_step.py --sweep flow_steps 1 2 4 8 16 --contenders flow_t flow_g flow_mlp
    python benchmarks/train_step.py --reference ../SAC-FLOW           # and the authors' code, see reference.py

A cycle is three critic updates and one update of actor and temperature, sampling included; of FQL, Q-chunking and QSM,
which have no delay, three updates of both, and of FlowRL's actor one and two in turn. The order changes at random
in every round, the first rounds warm up, and the figures are medians with the quartiles. `--check` first compares the
compiled losses, their gradients and the parameters after a hundred updates with the eager ones, in float32 and float64.
"""

import argparse
import dataclasses
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch as th
from arguments import positive, swept_values
from contenders import (
    TIMED,
    VELOCITY_NETS,
    Size,
    add_arguments,
    apply_arguments,
    fill,
    make_model,
    sizes_of,
    updates_a_step,
)
from records import machine
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from timing import interleaved, write_timings

from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

UPDATES = 3  # of the critics in a cycle
ROWS = 20_000  # in the replay buffer
REFERENCE = "reference_"


class Learner(Protocol):
    """What is timed."""

    device: th.device

    def train(self, gradient_steps: int, batch_size: int) -> None: ...


def make_filled(name: str, size: Size, args: argparse.Namespace, n_envs: int = 1) -> OffPolicyAlgorithm:
    """A contender whose buffer holds random steps.

    :param n_envs: in which `learn` makes as many updates for each step as in one
    """
    updates = {"gradient_steps": n_envs * updates_a_step(name), "buffer_size": ROWS}
    model = make_model(name, make_vec_env(args.env, n_envs), size, args.device, **updates)
    fill(model.replay_buffer)
    return model


def make_learner(name: str, size: Size, args: argparse.Namespace, n_envs: int = 1) -> Learner:
    """A contender, or a policy of the reference."""
    if name.startswith(REFERENCE):
        reference = importlib.import_module("reference")  # it needs JAX
        made: Learner = reference.Reference(name.removeprefix(REFERENCE), args.reference, args.env, size, ROWS)
        return made
    return make_filled(name, size, args, n_envs)


def cycles(model: Learner, batch: int, n: int) -> Callable[[], None]:
    """A function that runs n cycles and waits for them."""

    def run() -> None:
        for _ in range(n):
            model.train(gradient_steps=UPDATES, batch_size=batch)
        if model.device.type == "cuda":
            th.cuda.synchronize()

    return run


def measure(sizes: list[Size], swept: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each contender at each size, all of them interleaved.

    :raises SystemExit: for a contender that has a number of its own for what is swept
    """
    references = [REFERENCE + policy for policy in VELOCITY_NETS if policy in args.contenders] if args.reference else []
    runs, columns = {}, {}
    for size in sizes:
        for name in [*args.contenders, *references]:
            model = make_learner(name, size, args)
            columns[name, size] = sizes_of(model, size)
            if columns[name, size][swept] != getattr(size, swept):
                raise SystemExit(f"--sweep {swept}: {name} has {columns[name, size][swept]}, whatever is swept")
            start = time.perf_counter()
            cycles(model, size.batch, 1)()
            print(f"{name}: first cycle {time.perf_counter() - start:.1f} s", flush=True)
            runs[name, size] = cycles(model, size.batch, args.cycles)
    settings = {"threads": th.get_num_threads(), "env": args.env}
    timings = interleaved(runs, args.rounds, args.warmup, scale=1000 / args.cycles)
    return [
        {"contender": name, **settings, **columns[name, size], **timing} for (name, size), timing in timings.items()
    ]


def relative_difference(ours: th.Tensor, theirs: th.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))


class Numbers(NamedTuple):
    """What training comes to."""

    losses: th.Tensor  # of the critics and the actor after one cycle
    gradients: th.Tensor  # then
    parameters: th.Tensor  # after 100 updates


def numbers(name: str, size: Size, args: argparse.Namespace, off: float = 0.0) -> Numbers:
    """Train a policy of ours on the random steps.

    :param off: standard deviation of the relative change that is made to its parameters before
    """
    model = make_filled(name, size, args)
    assert isinstance(model, OffPolicyFlowAlgorithm)
    parameters = [*model.actor.parameters(), *model.critic.parameters()]
    model.set_random_seed(1)
    with th.no_grad():
        for parameter in parameters:
            parameter.mul_(1 + off * th.randn_like(parameter))
    model.set_random_seed(1)
    model.train(UPDATES, size.batch)  # the last gradients stay in the parameters
    losses = th.tensor([float(model.logger.name_to_value[f"train/{key}"]) for key in ("critic_loss", "actor_loss")])
    gradients = th.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    model.train(100 - UPDATES, size.batch)
    return Numbers(losses, gradients, th.cat([p.detach().flatten() for p in parameters]))


def check(policy: str, size: Size, args: argparse.Namespace) -> None:
    """Relative difference to eager of compiled code, and of eager code that starts from rounded parameters.

    Training amplifies rounding: the second is what float32 allows, and float64 shows that the formulas are the same.
    """
    for dtype, off in ((th.float32, 1e-7), (th.float64, 1e-16)):
        th.set_default_dtype(dtype)
        eager = numbers(policy, size, args)
        others = {f"{policy}{suffix}": numbers(policy + suffix, size, args) for suffix in ("+compiled", "+max")}
        others[f"{policy}, parameters off by {off:g}"] = numbers(policy, size, args, off)
        for name, other in others.items():
            differences = [relative_difference(x, y) for x, y in zip(other, eager, strict=True)]
            text = ", ".join(f"{key} {value:.1e}" for key, value in zip(Numbers._fields, differences, strict=True))
            print(f"{dtype}, {name}: {text}", flush=True)
    th.set_default_dtype(th.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=15, warmup=3)
    parser.add_argument("--env", default="Hopper-v4", help="whose dimensions are taken")
    parser.add_argument("--sweep", nargs="+", metavar=("NAME", "VALUE"), help="batch, width, flow_steps or horizon")
    parser.add_argument("--cycles", type=positive, default=5, help="in one measurement")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--reference", type=Path, help="a checkout of the authors' code, timed for each eager policy")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/train_step.csv"))
    args = parser.parse_args()
    size = apply_arguments(args)
    swept, values = swept_values(parser, args.sweep or ["batch", str(size.batch)], dataclasses.asdict(size))
    if args.reference is not None and not (args.reference / "from_scratch_code").is_dir():
        parser.error(f"--reference {args.reference}: no checkout of the authors' code, which has from_scratch_code")
    if args.check:
        for policy in TIMED:
            check(policy, size, args)
    rows = measure([dataclasses.replace(size, **{swept: value}) for value in values], swept, args)
    write_timings(rows, swept, "ms a cycle", args.out)
    print(f"{th.get_num_threads()} threads, {machine()}")


if __name__ == "__main__":
    main()
