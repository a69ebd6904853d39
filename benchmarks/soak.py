"""Learns for an hour with eight environments, saves and evaluates every minute, and watches memory, files and threads.

    python benchmarks/soak.py --minutes 60 --out soak.csv --figure soak.png

Every row of the CSV has the minute, the timesteps, resident memory in MB, open files and threads. Linux only.
"""

import argparse
import csv
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch as th
from arguments import positive
from matplotlib.figure import Figure
from records import append_rows
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flow import SACFlow
from sb3_flow.common.checkpoints import CheckpointCallback

FIELDS = ["minute", "steps", "resident_mb", "open_files", "threads"]
NET = {"flow_steps": 2, "net_arch": {"qf": [32, 32]}, "d_model": 16, "n_layers": 1, "n_heads": 2}
BUFFER = 20_000  # full within minutes: after that nothing may grow


def usage() -> dict[str, Any]:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


class EveryMinute(BaseCallback):
    """Saves, evaluates and writes a row every so many seconds; stops after some rows.

    :param rows: how many
    :param out: the CSV
    :param save: what saves
    :param seconds: between two rows
    """

    def __init__(self, rows: int, out: Path, save: CheckpointCallback, seconds: float = 60.0):
        super().__init__()
        self.rows, self.out, self.save, self.seconds = rows, out, save, seconds
        self.row = 0
        self.started = time.monotonic()
        self.eval_env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2), training=False)

    def _init_callback(self) -> None:
        self.save.init_callback(self.model)

    def _on_step(self) -> bool:
        if time.monotonic() - self.started < self.row * self.seconds:
            return True
        self.save.on_step()
        self.save.num_timesteps = self.num_timesteps
        evaluate_policy(self.model, self.eval_env, n_eval_episodes=2)
        append_rows(self.out, FIELDS, [{"minute": self.row, "steps": self.num_timesteps, **usage()}])
        self.row += 1
        return self.row <= self.rows


def soak(rows: int, out: Path, seconds: float = 60.0) -> None:
    """Learn for `rows` times `seconds`."""
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=8))
    model = SACFlow(
        "FlowTPolicy", env, learning_starts=100, batch_size=64, buffer_size=BUFFER, device="cpu", policy_kwargs=NET
    )
    with tempfile.TemporaryDirectory() as folder:
        save = CheckpointCallback(1, folder, keep=2)
        model.learn(10**9, callback=EveryMinute(rows, out, save, seconds))


def draw(csv_file: Path, out: Path) -> None:
    """Memory and what was learned, minute by minute.

    :param csv_file: that a soak wrote
    :param out: the figure
    """
    with open(csv_file, newline="") as file:
        rows = list(csv.DictReader(file))
    minutes = [int(row["minute"]) for row in rows]
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    memory = figure.subplots()
    resident = [float(row["resident_mb"]) for row in rows]
    memory.plot(minutes, resident, color="#0b6e99")
    memory.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, 1.2 * max(resident)), xlim=(0, max(minutes)))
    memory.yaxis.label.set_color("#0b6e99")
    steps = memory.twinx()
    steps.plot(minutes, [int(row["steps"]) / 1000 for row in rows], color="#8d8d8d", lw=1)
    steps.set(ylabel="thousand timesteps", ylim=(0, None))
    steps.yaxis.label.set_color("#8d8d8d")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=positive, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.csv"))
    parser.add_argument("--figure", type=Path, help="of the CSV, when done")
    args = parser.parse_args()
    th.set_num_threads(1)
    soak(args.minutes, args.out)
    if args.figure is not None:
        draw(args.out, args.figure)


if __name__ == "__main__":
    main()
