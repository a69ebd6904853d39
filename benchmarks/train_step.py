"""The train step, all contenders in one process, interleaved: milliseconds a cycle and ratios to contrib's CrossQ.

    python benchmarks/train_step.py                                  # the paper's size, Hopper's dimensions
    python benchmarks/train_step.py --batch 256 --width 256          # the size that fits a CPU
    python benchmarks/train_step.py --sweep flow_steps 1 2 4 8 16 --contenders flow_t flow_g flow_mlp

A cycle is three critic updates and one update of actor and temperature, sampling included. The order changes at random
in every round, the first rounds warm up, and the figures are medians with the quartiles. `--check` compares the
compiled loss, its gradients and a hundred updates with the eager ones first.
"""

import argparse
import csv
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure
from report import machine
from sb3_contrib import CrossQ
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_flow import SACFlow

UPDATES = 3  # of the critics in a cycle
ROWS = 20_000  # in the replay buffer
POLICIES = {"flow_t": "FlowTPolicy", "flow_g": "FlowGPolicy", "flow_mlp": "FlowMLPPolicy"}
SUFFIXES: dict[str, dict[str, Any]] = {"": {}, "+compiled": {"compile": True}, "+max": {"compile": "max"}}
CONTENDERS = ["crossq", "sac", *(policy + suffix for policy in POLICIES for suffix in SUFFIXES)]
FIELDS = ["contender", "threads", "obs", "actions", "batch", "width", "flow_steps", "horizon", "median_ms", "q1", "q3"]


class Shapes(gym.Env[Any, Any]):
    """An environment of which only the spaces are used."""

    def __init__(self, obs: int, actions: int):
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (actions,), np.float32)


def make_model(name: str, args: argparse.Namespace) -> OffPolicyAlgorithm:
    """A model whose buffer holds random steps."""
    common: dict[str, Any] = {
        "env": Shapes(args.obs, args.actions),
        "batch_size": args.batch,
        "buffer_size": ROWS,
        "seed": 0,
        "device": args.device,
    }
    width = [args.width, args.width]
    if name == "crossq":
        model: OffPolicyAlgorithm = CrossQ(
            "MlpPolicy", policy_kwargs={"net_arch": {"pi": [256, 256], "qf": width}}, **common
        )
    elif name == "sac":
        model = SAC("MlpPolicy", policy_kwargs={"net_arch": {"pi": [256, 256], "qf": width}}, **common)
    else:
        policy, plus, suffix = name.partition("+")
        kwargs = {"net_arch": {"qf": width}, "flow_steps": args.flow_steps}
        model = SACFlow(
            POLICIES[policy], policy_kwargs=kwargs, horizon_length=args.horizon, **SUFFIXES[plus + suffix], **common
        )
    model.set_logger(configure(None, []))
    fill(model, args)
    return model


def fill(model: OffPolicyAlgorithm, args: argparse.Namespace) -> None:
    """Random steps, and an episode's end every 1000."""
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    assert buffer is not None
    for name, size in (("observations", args.obs), ("next_observations", args.obs)):
        getattr(buffer, name)[:] = rng.normal(size=(ROWS, 1, size))
    buffer.actions[:] = rng.uniform(-1, 1, (ROWS, 1, args.actions))
    buffer.rewards[:] = rng.normal(size=(ROWS, 1))
    buffer.dones[999::1000] = 1
    buffer.full = True


def cycle(model: OffPolicyAlgorithm, args: argparse.Namespace) -> Callable[[], None]:
    def run() -> None:
        model.train(gradient_steps=UPDATES, batch_size=args.batch)
        if args.device == "cuda":
            th.cuda.synchronize()

    return run


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a contender."""
    cycles = {name: cycle(make_model(name, args), args) for name in args.contenders}
    for name, run in cycles.items():
        start = time.perf_counter()
        run()
        print(f"{name}: first cycle {time.perf_counter() - start:.1f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in cycles}
    order = list(cycles)
    for round_ in range(args.warmup + args.rounds):
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            for _ in range(args.cycles):
                cycles[name]()
            if round_ >= args.warmup:
                times[name].append(1000 * (time.perf_counter() - start) / args.cycles)
    rows = []
    for name, values in times.items():
        q1, median, q3 = statistics.quantiles(values, n=4)
        settings = (
            name,
            th.get_num_threads(),
            args.obs,
            args.actions,
            args.batch,
            args.width,
            args.flow_steps,
            args.horizon,
        )
        rows.append(dict(zip(FIELDS, (*settings, round(median, 2), round(q1, 2), round(q3, 2)), strict=True)))
    return rows


def relative_difference(ours: th.Tensor, theirs: th.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))


def check(policy: str, args: argparse.Namespace) -> None:
    """Largest relative difference between compiled and eager: losses, gradients, parameters after 100 updates."""
    models = {name: make_model(name, args) for name in (policy, f"{policy}+compiled")}
    eager, compiled = (models[name] for name in models)
    assert isinstance(eager, SACFlow)
    assert isinstance(compiled, SACFlow)
    compiled.policy.load_state_dict(eager.policy.state_dict())
    results = {}
    for name, model in (("eager", eager), ("compiled", compiled)):
        model.set_random_seed(1)
        model.train(UPDATES, args.batch)  # the gradients stay in the parameters
        grads = [p.grad.clone() for net in (model.actor, model.critic) for p in net.parameters() if p.grad is not None]
        losses = th.tensor([model.logger.name_to_value[f"train/{key}"] for key in ("critic_loss", "actor_loss")])
        model.train(100 - UPDATES, args.batch)
        results[name] = (
            losses,
            th.cat([g.flatten() for g in grads]),
            th.cat([p.flatten() for p in model.policy.parameters()]),
        )
    differences = [
        relative_difference(a.detach(), b.detach()) for a, b in zip(results["compiled"], results["eager"], strict=True)
    ]
    names = ("losses", "gradients", "parameters after 100 updates")
    text = ", ".join(f"{name} {value:.1e}" for name, value in zip(names, differences, strict=True))
    print(f"{policy} compiled against eager, relative: {text}")


def plot(rows: list[dict[str, Any]], swept: str, path: Path) -> None:
    """Time against the swept argument, one line a contender."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["contender"] for row in rows):
        chosen = [row for row in rows if row["contender"] == name]
        x = [row[swept] for row in chosen]
        axes.plot(x, [row["median_ms"] for row in chosen], marker="o", label=name)
        axes.fill_between(x, [row["q1"] for row in chosen], [row["q3"] for row in chosen], alpha=0.2, lw=0)
    axes.set(xlabel=swept, ylabel="ms a cycle", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [
        "crossq",
        "sac",
        "flow_t",
        "flow_t+compiled",
        "flow_g",
        "flow_g+compiled",
        "flow_mlp",
        "flow_mlp+compiled",
    ]
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=default)
    parser.add_argument("--obs", type=int, default=11)
    parser.add_argument("--actions", type=int, default=3)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024, help="of the two critic layers")
    parser.add_argument("--flow-steps", type=int, default=4)
    parser.add_argument("--horizon", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cycles", type=int, default=5, help="in one measurement")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument(
        "--sweep", nargs="+", metavar=("NAME", "VALUE"), help="flow_steps, batch, width or horizon, and its values"
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_step.csv"))
    args = parser.parse_args()
    if args.threads is not None:
        th.set_num_threads(args.threads)
    if args.check:
        for policy in POLICIES:
            check(policy, args)
    name, *values = args.sweep or ["flow_steps", args.flow_steps]
    if name not in ("flow_steps", "batch", "width", "horizon"):
        parser.error(f"--sweep {name}: choose flow_steps, batch, width or horizon")
    rows = []
    for value in values:
        setattr(args, name, int(value))
        rows += measure(args)
    reference = {row[name]: row["median_ms"] for row in rows if row["contender"] == "crossq"}
    for row in rows:
        ratio = row["median_ms"] / reference[row[name]] if row[name] in reference else float("nan")
        spread = f"({row['q1']:.1f} - {row['q3']:.1f})"
        print(f"{row['contender']:20} {name}={row[name]:<6} {row['median_ms']:8.1f} ms  {spread:18} x {ratio:.2f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    if args.sweep:
        plot(rows, name, args.out.with_suffix(".png"))
    print(f"{args.out}; {th.get_num_threads()} threads, {machine()}")


if __name__ == "__main__":
    main()
