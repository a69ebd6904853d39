"""Learning curves: any algorithm on any task for N seeds, side by side, resumable.

    python benchmarks/learning.py --tasks HalfCheetah-v4 Hopper-v4 --algos flow_t crossq --out benchmarks/results/mine

Every run is one process with one thread. It appends an evaluation to `<out>/<task>/<algo>/<seed>.csv` every
`--eval-freq` steps and keeps the last checkpoint in `runs/`: the model, and until it is done the replay buffer, whose
size is printed. A stopped command that is given again goes on from the last evaluation, in a new episode and with
freshly seeded generators; with other settings it is refused. `--ray auto` trains on the Ray cluster that this machine
belongs to, whose machines must share this folder. Beside each CSV stands a JSON with the settings and the commit.
`benchmarks/report.py` turns the CSVs into the table and the figure.
"""

import argparse
import csv
import io
import queue
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import torch as th
from arguments import add_run_arguments, check_tasks, json_object, positive
from contenders import OURS, THEIRS, algorithm_of, merged, ours_of
from evaluate import EVAL_ENVS, episodes
from executors import Executor, LocalPool, ProgressQueue, RayCluster
from on_policy import STATISTICS, evaluated_in, make_env, ppo_settings
from records import append_record, append_rows, read_records, refuse_other_settings, what_counts
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from spread import action_spread
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_flow.common.files import replacing, write_pickle
from sb3_flow.envs import register

NEVER = 10**9  # episodes
MODEL, BUFFER = "model.zip", "buffer.pkl"  # of a checkpoint
FIELDS = [
    "step",
    "deterministic_return",
    "stochastic_return",
    "episode_return_std",
    "ent_coef",
    "seconds",
    "success_rate",  # of the deterministic policy, where the environment tells
    "stochastic_success_rate",  # what the papers of this field report
    "action_spread",
]


@dataclass(frozen=True)
class Run:
    """One training run: what, where, how long."""

    task: str
    algo: str
    seed: int
    steps: int
    eval_freq: int
    eval_episodes: int
    learning_starts: int
    width: int
    batch_size: int
    out: Path
    overrides: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.task} {self.algo} seed {self.seed}"

    @property
    def csv(self) -> Path:
        return self.out / self.task / self.algo / f"{self.seed}.csv"

    @property
    def record(self) -> Path:
        """Settings, commit and machine, a line for every start."""
        return self.csv.with_suffix(".jsonl")

    @property
    def checkpoint(self) -> Path:
        # A ".." would lead out of runs/
        out = self.out.resolve() if ".." in self.out.parts else self.out
        return Path("runs") / out.relative_to(out.anchor) / self.task / self.algo / str(self.seed)

    @property
    def can_go_on(self) -> bool:
        _, old = beside(self.checkpoint)
        if old.exists() and not self.checkpoint.exists():  # killed between two moves
            old.rename(self.checkpoint)
        # A checkpoint whose CSV was deleted would leave the new one without its first rows
        return self.csv.exists() and (self.checkpoint / MODEL).exists()

    def write_settings(self) -> None:
        append_record(self.record, {**asdict(self), "out": str(self.out)})

    def done_steps(self) -> int:
        if not self.csv.exists():
            return 0
        with open(self.csv) as f:
            return max((int(row["step"]) for row in csv.DictReader(f)), default=0)

    @property
    def is_done(self) -> bool:
        # What is done has no buffer left: a kill between the last row and the last checkpoint leaves the one before
        return self.done_steps() >= self.steps and not (self.checkpoint / BUFFER).exists()


def settings_of(run: Run) -> dict[str, Any]:
    """Arguments of a contender, and of its environments.

    Critic widths, batch size and warm-up are the same for all that learn off-policy; the rest are each one's defaults.
    """
    common: dict[str, Any] = {"seed": run.seed, "device": "cpu"}
    if run.algo == "ppo":
        return common | ppo_settings(run.task, run.width)
    off_policy = {"learning_starts": run.learning_starts, "buffer_size": run.steps, "batch_size": run.batch_size}
    width = [run.width, run.width]
    if run.algo in THEIRS:
        return common | off_policy | {"policy_kwargs": {"net_arch": {"pi": [256, 256], "qf": width}}}
    ours = ours_of(run.algo)
    if ours.is_off_policy:
        common = merged(common, off_policy, {"policy_kwargs": {"net_arch": {"qf": width}}})
    return merged(common, ours.arguments, run.overrides)


def make_model(run: Run) -> BaseAlgorithm:
    """A contender."""
    settings = settings_of(run)
    env = make_env(run.task, run.seed, settings)
    if run.algo in THEIRS:
        return THEIRS[run.algo]("MlpPolicy", env, **settings)
    model: BaseAlgorithm = ours_of(run.algo).algorithm(ours_of(run.algo).policy, env, **settings)
    return model


def load_model(run: Run) -> BaseAlgorithm:
    """The model of the checkpoint; its data are where this command says they are."""
    moved = run.algo not in THEIRS and "offline_dataset" in run.overrides
    data = {"offline_dataset": run.overrides["offline_dataset"]} if moved else {}
    settings = settings_of(run)
    env = make_env(run.task, run.seed, settings, run.checkpoint / STATISTICS)
    model = algorithm_of(run.algo).load(run.checkpoint / MODEL, env=env, device=settings["device"], **data)
    if isinstance(model, OffPolicyAlgorithm):
        model.load_replay_buffer(run.checkpoint / BUFFER)
    return model


def save_model(run: Run, model: BaseAlgorithm) -> None:
    """Replace the checkpoint by a move of its folder, so that a kill leaves the old one or the new one."""
    fresh, old = beside(run.checkpoint)
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    fresh.mkdir(parents=True)
    with replacing(fresh / MODEL) as file:
        model.save(cast(io.BufferedIOBase, file))
    if isinstance(model, OffPolicyAlgorithm):
        write_pickle(fresh / BUFFER, model.replay_buffer)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        write_pickle(fresh / STATISTICS, normalize)
    if run.checkpoint.exists():
        run.checkpoint.rename(old)
    else:
        size = sum(path.stat().st_size for path in fresh.iterdir())
        print(
            f"{run.name}: its checkpoint takes {size / 1e6:.0f} MB, twice that while it is replaced, until it is done"
        )
    fresh.rename(run.checkpoint)
    shutil.rmtree(old, ignore_errors=True)


def beside(checkpoint: Path) -> tuple[Path, Path]:
    """Where the next checkpoint is written, and where the last one is while it is replaced."""
    return checkpoint.with_suffix(".new"), checkpoint.with_suffix(".old")


def drop_buffer(run: Run) -> None:
    """Free the disk of a run that is done; its model stays, for `film.py`."""
    (run.checkpoint / BUFFER).unlink(missing_ok=True)


def train(run: Run, progress: ProgressQueue) -> None:
    """Train one run from where it stopped, appending one CSV row an evaluation."""
    th.set_num_threads(1)
    register()
    run.csv.parent.mkdir(parents=True, exist_ok=True)
    run.write_settings()
    model = load_model(run) if run.can_go_on else make_model(run)
    plain_env = make_vec_env(run.task, n_envs=min(run.eval_episodes, EVAL_ENVS), seed=10_000 + run.seed)
    eval_env = evaluated_in(model, plain_env)
    # The row of an evaluation is written before its checkpoint: of two rows for one step, the last counts. Rollouts of
    # on-policy algorithms may end behind the step, and behind those of further evaluations
    done = min(model.num_timesteps - model.num_timesteps % run.eval_freq, run.done_steps())
    started = time.perf_counter()

    class Report(BaseCallback):
        last_return = float("nan")

        def _on_step(self) -> bool:
            if self.num_timesteps % 500 == 0:
                progress.put((run.name, self.num_timesteps, self.last_return))
            return True

    report = Report()
    for step in range(done + run.eval_freq, run.steps + 1, run.eval_freq):
        if model.num_timesteps < step:
            left = step - model.num_timesteps
            with schedules_over(model, run.steps):
                model.learn(left, callback=report, reset_num_timesteps=False, log_interval=NEVER)
        deterministic = episodes(model, eval_env, run.eval_episodes, deterministic=True)
        stochastic = episodes(model, eval_env, run.eval_episodes, deterministic=False)
        report.last_return = float(deterministic.returns.mean())
        log_ent_coef = getattr(model, "log_ent_coef", None)
        row = {
            "step": step,
            "deterministic_return": round(report.last_return, 2),
            "stochastic_return": round(float(stochastic.returns.mean()), 2),
            "episode_return_std": round(float(deterministic.returns.std()), 2),
            "ent_coef": "" if log_ent_coef is None else round(log_ent_coef.exp().item(), 5),
            "seconds": round(time.perf_counter() - started, 1),
            "success_rate": rounded(deterministic.success_rate),
            "stochastic_success_rate": rounded(stochastic.success_rate),
            "action_spread": round(action_spread(model), 4),
        }
        append_rows(run.csv, FIELDS, [row])
        save_model(run, model)
    drop_buffer(run)


@contextmanager
def schedules_over(model: BaseAlgorithm, steps: int) -> Iterator[None]:
    """Within it schedules are those of so many timesteps, however many a `learn` has."""
    follow = model._update_current_progress_remaining
    # In the instance, and gone before the model is saved
    vars(model)["_update_current_progress_remaining"] = lambda done, _: follow(done, steps)
    try:
        yield
    finally:
        del vars(model)["_update_current_progress_remaining"]


def rounded(rate: float | None) -> float | str:
    """As it stands in a CSV."""
    return "" if rate is None else round(rate, 3)


def check_can_go_on(run: Run) -> None:
    """Refuse a run that would make one CSV of two.

    :raises SystemExit: if it was begun with other settings, or has no checkpoint to go on from
    """
    if run.csv.exists() and run.record.exists():
        before = read_records(run.record)[-1]
        refuse_other_settings(run.name, run.record, what_counts(before), what_counts(asdict(run)))
    # One row alone is replaced: a kill came before the first checkpoint
    if run.done_steps() > run.eval_freq and not run.is_done and not run.can_go_on:
        raise SystemExit(
            f"{run.name}: {run.csv} has {run.done_steps()} of {run.steps} steps, but {run.checkpoint} has no "
            "checkpoint to go on from: delete the CSV, or give another --out"
        )


def run_all(runs: list[Run], jobs: int, ray: str | None = None) -> None:
    """Train everything that is not finished, with one bar a run.

    :param runs: the runs; what an earlier command has finished is left as it is
    :param jobs: processes at a time
    :param ray: address of a Ray cluster that trains them instead, see `executors.RayCluster`
    :raises SystemExit: if a run was begun with other settings, or has no checkpoint to go on from, before any is
        trained; or if one failed, after all others are done
    """
    for run in runs:
        check_can_go_on(run)
    # An exception ends the children, a signal would leave them running
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    executor: Executor = LocalPool(jobs) if ray is None else RayCluster(ray, jobs)
    waiting = [run for run in runs if not run.is_done]
    running: dict[str, Any] = {}
    failures: dict[str, str] = {}
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[ret]}")]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), refresh_per_second=1) as display:
        bars = {
            run.name: display.add_task(run.name, total=run.steps, completed=run.done_steps(), ret="") for run in runs
        }
        while waiting or running:
            while waiting and len(running) < executor.slots:
                run = waiting.pop(0)
                running[run.name] = executor.start(train, run)
            try:
                name, step, last_return = executor.progress.get(timeout=1.0)
                display.update(bars[name], completed=step, ret=f"return {last_return:.0f}")
            except queue.Empty:
                pass
            outcomes = {name: executor.outcome(handle) for name, handle in running.items()}
            for name, outcome in outcomes.items():
                if outcome is not None:
                    del running[name]
                if outcome:
                    failures[name] = outcome
                    display.console.print(f"[red]{name} failed: {outcome}[/red]")
    if failures:
        raise SystemExit(f"{len(failures)} of {len(runs)} runs failed: {', '.join(failures)}")


def algorithm(text: str) -> str:
    """An argument of the command line: the name of a contender; one of ours may have a label."""
    known = [*OURS, *THEIRS]
    if text not in known and text.partition("+")[0] not in OURS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no algorithm: choose from {', '.join(known)}, or {known[0]}+LABEL"
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["HalfCheetah-v4", "Walker2d-v4", "Hopper-v4"])
    parser.add_argument(
        "--algos",
        nargs="+",
        type=algorithm,
        default=["flow_t", "crossq"],
        help=f"{' '.join([*OURS, *THEIRS])}; `flow_t+NAME` labels a variant",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=positive, default=100_000)
    parser.add_argument("--eval-freq", type=positive, default=5_000)
    parser.add_argument("--eval-episodes", type=positive, default=10)
    parser.add_argument("--learning-starts", type=int, default=5_000)
    parser.add_argument("--width", type=int, default=256, help="width of the two critic layers, the same for all")
    parser.add_argument("--batch-size", type=int, default=256)
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning"))
    parser.add_argument("--overrides", type=json_object, default={}, help="JSON: extra arguments of ours, for tuning")
    args = parser.parse_args()
    register()
    if args.steps % args.eval_freq:
        parser.error(f"--steps {args.steps}: it must be a multiple of --eval-freq {args.eval_freq}, to end with one")
    # The worker imports the module of a "module:task"
    check_tasks(parser, [task for task in args.tasks if ":" not in task], sorted(gym.registry))

    runs = [
        Run(
            task,
            algo,
            seed,
            args.steps,
            args.eval_freq,
            args.eval_episodes,
            args.learning_starts,
            args.width,
            args.batch_size,
            args.out,
            args.overrides,
        )
        for seed in args.seeds
        for task in args.tasks
        for algo in args.algos
    ]
    run_all(runs, args.jobs, args.ray)


if __name__ == "__main__":
    main()
