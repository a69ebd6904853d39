"""How gradients travel through the rollout: ||dL/dx_i|| at every step i, during training (SAC Flow's central claim).

    python benchmarks/gradient_norms.py --env Hopper-v4 --steps 20000 --out benchmarks/results/mine/norms.csv

For each velocity net and K one run is trained as a user would; every `--every` steps the actor's loss is
differentiated on a fresh batch with respect to each point x_0 ... x_K of its paths, and the root mean square over the
batch of the norms is written down. Nothing is changed in the training itself. Runs that are in the CSV are skipped; a
JSON beside it has their budget, and another one is refused.
"""

import argparse
import csv
import multiprocessing as mp
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from arguments import check_tasks, json_object, positive
from contenders import merged
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from records import append_record, append_rows, machine, read_records, refuse_other_settings
from stable_baselines3.common.callbacks import BaseCallback

from sb3_flow import SACFlow
from sb3_flow.sac_flow import losses

POLICIES = {"MLP": "FlowMLPPolicy", "Flow-G": "FlowGPolicy", "Flow-T": "FlowTPolicy"}
COLORS = {"MLP": "#9467bd", "Flow-G": "#2a9d5c", "Flow-T": "#0b6e99"}
FIELDS = ["env", "net", "K", "seed", "step", "i", "norm"]


def step_gradient_norms(model: SACFlow, batch_size: int) -> list[float]:
    """Root mean square over a batch of ||dL/dx_i||, L the actor's loss of one transition, for i = 0 ... K."""
    batch = model._sample(batch_size)
    actor, critic = model.actor, model.critic
    model.policy.set_training_mode(False)
    points: list[th.Tensor] = []

    def keep(net: th.nn.Module, args: tuple[Any, th.Tensor, th.Tensor]) -> None:
        args[1].retain_grad()
        points.append(args[1])

    handle = actor.velocity.register_forward_pre_hook(keep)
    path = actor.path(batch.observations, actor.sample_noise(batch_size).requires_grad_(True))
    handle.remove()
    path.x.retain_grad()
    q = critic.reduce(critic(batch.observations, th.tanh(path.x)))
    loss = losses.actor_loss(path, q, model.temperature.value, th.tanh(path.x), batch.actions, bc_coef=0.0).loss
    th.autograd.backward(loss * batch_size)  # the loss is a mean: undo it, so that norms are those of one transition
    norms = []
    for x in [*points, path.x]:
        assert x.grad is not None
        norms.append(x.grad.square().sum(dim=1).mean().sqrt().item())
    for optimizer in (actor.optimizer, critic.optimizer):
        optimizer.zero_grad()
    return norms


class Record(BaseCallback):
    """Measures between updates; the random state is put back, so that training is what it is without."""

    def __init__(self, every: int):
        super().__init__()
        self.every = every
        self.rows: list[tuple[int, int, float]] = []

    def _on_step(self) -> bool:
        assert isinstance(self.model, SACFlow)
        if self.num_timesteps > self.model.learning_starts and self.num_timesteps % self.every == 0:
            numpy_state = np.random.get_state()
            with th.random.fork_rng():
                norms = step_gradient_norms(self.model, 1024)
            np.random.set_state(numpy_state)
            self.rows += [(self.num_timesteps, i, norm) for i, norm in enumerate(norms)]
        return True


@dataclass(frozen=True)
class Budget:
    """What is the same for all nets and all K."""

    env: str
    steps: int = 20_000
    every: int = 500  # steps between measurements
    learning_starts: int = 2_000
    width: int = 256  # of the two critic layers
    batch_size: int = 256
    overrides: dict[str, Any] = field(default_factory=dict)  # arguments of SACFlow


def measure(budget: Budget, net: str, flow_steps: int, seed: int) -> list[dict[str, object]]:
    """Train one run and return its rows."""
    th.set_num_threads(1)
    arguments: dict[str, Any] = {
        "seed": seed,
        "learning_starts": budget.learning_starts,
        "batch_size": budget.batch_size,
        "buffer_size": budget.steps,
        "policy_kwargs": {"flow_steps": flow_steps, "net_arch": {"qf": [budget.width] * 2}},
        "device": "cpu",
    }
    model = SACFlow(POLICIES[net], budget.env, **merged(arguments, budget.overrides))
    record = Record(budget.every)
    model.learn(budget.steps, callback=record)
    return [dict(zip(FIELDS, (budget.env, net, flow_steps, seed, *row), strict=True)) for row in record.rows]


def measure_all(budget: Budget, runs: list[tuple[str, int, int]], out: Path, jobs: int) -> list[dict[str, str]]:
    """Add the runs that the CSV does not have yet, and return its rows of this environment.

    :param budget: of each run
    :param runs: net, K and seed of each
    :param out: the CSV
    :param jobs: processes
    :raises SystemExit: if the CSV has rows of this environment with another budget
    """
    done = [row for row in csv.DictReader(out.open()) if row["env"] == budget.env] if out.exists() else []
    have = {(row["net"], int(row["K"]), int(row["seed"])) for row in done}
    record = out.with_suffix(".jsonl")
    if have and record.exists():
        budgets = {line["env"]: line for line in read_records(record)}
        refuse_other_settings(budget.env, record, budgets.get(budget.env, {}), asdict(budget))
    out.parent.mkdir(parents=True, exist_ok=True)
    with mp.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        pending = [pool.apply_async(measure, (budget, *run)) for run in runs if run not in have]
        for i, result in enumerate(pending):
            rows = result.get()
            if i == 0 and not have:  # not earlier: a budget that failed binds nobody
                append_record(record, asdict(budget))
            append_rows(out, FIELDS, rows)
            print(f"{rows[0]['net']} K={rows[0]['K']} done", flush=True)
    return [row for row in csv.DictReader(out.open()) if row["env"] == budget.env]


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """One panel a K: the norm at each step, median and range over the measurements of the second half of training."""
    all_steps = sorted({int(row["K"]) for row in rows})
    figure = Figure(figsize=(4.2 * len(all_steps), 3.6), layout="constrained")
    for axes, flow_steps in zip(np.atleast_1d(figure.subplots(1, len(all_steps), sharey=True)), all_steps, strict=True):
        for net in POLICIES:
            chosen = [row for row in rows if int(row["K"]) == flow_steps and row["net"] == net]
            if not chosen:
                continue
            half = max(int(row["step"]) for row in chosen) / 2
            late = [row for row in chosen if int(row["step"]) >= half]
            norms = np.array(
                [
                    np.percentile([float(r["norm"]) for r in late if int(r["i"]) == i], [50, 5, 95])
                    for i in range(flow_steps + 1)
                ]
            )
            axes.plot(norms[:, 0], marker="o", ms=3, color=COLORS[net], label=net)
            axes.fill_between(range(flow_steps + 1), norms[:, 1], norms[:, 2], color=COLORS[net], alpha=0.18, lw=0)
        axes.set(title=f"K = {flow_steps}", xlabel="rollout step i", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("gradient norm at x_i (median, 5-95 %)")
    figure.axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def print_table(rows: list[dict[str, str]]) -> None:
    """Largest over smallest norm along the path, and the coefficient of variation over i; medians over training."""
    print(f"{'net':8}{'K':>4}{'max/min over i':>16}{'std/mean over i':>18}")
    for net in POLICIES:
        for flow_steps in sorted({int(row["K"]) for row in rows}):
            by_step: dict[str, list[float]] = {}
            for row in rows:
                if row["net"] == net and int(row["K"]) == flow_steps:
                    by_step.setdefault(row["seed"] + "/" + row["step"], []).append(float(row["norm"]))
            if by_step:
                paths = np.array(list(by_step.values()))
                ratio = np.median(paths.max(axis=1) / paths.min(axis=1))
                variation = np.median(paths.std(axis=1) / paths.mean(axis=1))
                print(f"{net:8}{flow_steps:>4}{ratio:>16.2f}{variation:>18.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v4")
    parser.add_argument("--nets", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--flow-steps", nargs="+", type=int, default=[4, 7, 10])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=positive, default=20_000)
    parser.add_argument("--every", type=positive, default=500)
    parser.add_argument("--overrides", type=json_object, default={}, help="JSON: extra SACFlow arguments")
    parser.add_argument("--jobs", type=positive, default=2, help="processes at a time")
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--figure", type=Path, help="beside the CSV if it is not named")
    args = parser.parse_args()
    check_tasks(parser, [args.env], sorted(gym.registry), "--env")
    budget = Budget(args.env, args.steps, args.every, overrides=args.overrides)
    if args.steps <= budget.learning_starts or args.every > args.steps:
        parser.error(f"--steps {args.steps}: more than {budget.learning_starts} random ones, and at least --every")

    wanted = [(net, k, args.seed) for k in args.flow_steps for net in args.nets]
    rows_read = measure_all(budget, wanted, args.out, args.jobs)
    print_table(rows_read)
    figure = args.figure or args.out.with_suffix(".png")
    plot(rows_read, figure)
    print(f"{figure}\n{machine()}")


if __name__ == "__main__":
    main()
