"""The counterpart of each figure of the paper by one command.

    python benchmarks/reproduce.py from_scratch --scale cpu

The figures: from_scratch (learning curves), offline_to_online (success over both phases), gradient_norms (along the
rollout), k_ablation (Euler steps), velocity_ablation (plain MLP, Flow-G, Flow-T). The scales: smoke shows in a minute
that all works and says nothing about learning, cpu takes hours to days of two cores, paper has the paper's settings.
Tables, figures, command, commit and machine are left in `<out>/<figure>_<scale>`, and all of `<out>` in
`<out>/index.html`. A stopped command that is given again goes on.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import gradient_norms
import gymnasium as gym
import yaml
from arguments import add_run_arguments, check_tasks, json_object
from contenders import OURS, THEIRS, VELOCITY_NETS, merged
from figures import plot_by_variant
from learning import Run, run_all
from offline_to_online import STUDIES, make_run
from page import RECORD, write_page
from records import commit, machine
from report import report

from sb3_flow import SACFlow
from sb3_flow.common.files import write_text
from sb3_flow.zoo.registration import ALGORITHMS, config_of

MUJOCO = ("Hopper-v4", "Walker2d-v4", "HalfCheetah-v4", "Ant-v4", "Humanoid-v4", "HumanoidStandup-v4")
FROM_SCRATCH = ("flow_t", "flow_g", "dime", "flow_rl", "qsm", "crossq", "sac", "ppo")
OGBENCH = ("scene-play", "cube-double-play", "cube-triple-play", "cube-quadruple-play-100m")
ROBOMIMIC = ("lift-mh-low_dim-v0", "can-mh-low_dim-v0", "square-mh-low_dim-v0")
# Keys of the YAML that are the runner's
RUNNER = ("n_timesteps", "policy", "batch_size")


@dataclass(frozen=True)
class Scale:
    """Budget of the runs from scratch.

    :param tasks: of the learning curves; the ablations take `ablated`
    :param ablated: tasks of the ablations and of the gradient norms
    :param flow_steps: K of the ablation, whose many runs have `short_steps`, as those of the gradient norms
    :param seeds: of every figure
    :param offline_tasks: of the curves from data to the environment
    :param overrides: arguments of SACFlow from scratch that are not the defaults; the others have theirs
    """

    tasks: tuple[str, ...]
    algos: tuple[str, ...]
    ablated: tuple[str, ...]
    flow_steps: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    short_steps: int
    eval_freq: int
    eval_episodes: int
    learning_starts: int
    width: int
    batch_size: int
    offline_tasks: tuple[str, ...]
    offline_algos: tuple[str, ...] = ("flow_t", "flow_g", "fql", "qc_fql", "qc", "reinflow")
    overrides: dict[str, Any] = field(default_factory=dict)


SCALES = {
    "smoke": Scale(
        tasks=("Hopper-v4",),
        algos=("flow_t", "crossq", "ppo"),
        ablated=("Hopper-v4",),
        flow_steps=(1, 4),
        seeds=(1,),
        steps=200,
        short_steps=200,
        eval_freq=100,
        eval_episodes=1,
        learning_starts=100,
        width=32,
        batch_size=32,
        offline_tasks=("cube-single",),
        offline_algos=("flow_t", "qc_fql"),
    ),
    "cpu": Scale(
        tasks=("HalfCheetah-v4", "Walker2d-v4", "Hopper-v4"),
        algos=FROM_SCRATCH,
        ablated=("HalfCheetah-v4",),
        flow_steps=(1, 4, 7, 10),
        seeds=(1, 2, 3),
        steps=100_000,
        short_steps=30_000,
        eval_freq=5_000,
        eval_episodes=10,
        learning_starts=5_000,
        width=256,
        batch_size=256,
        offline_tasks=("cube-single",),
    ),
    # SAC Flow, Table 3, Eq. 15 and its bounds of log sigma; the ablations add K = 1
    "paper": Scale(
        tasks=MUJOCO,
        algos=FROM_SCRATCH,
        ablated=("HalfCheetah-v4",),
        flow_steps=(1, 4, 7, 10),
        seeds=tuple(range(1, 11)),
        steps=1_000_000,
        short_steps=1_000_000,
        eval_freq=10_000,
        eval_episodes=10,
        learning_starts=50_000,
        width=1024,
        batch_size=512,
        offline_tasks=(*(f"{name}-singletask-task{i}-v0" for name in OGBENCH for i in range(1, 6)), *ROBOMIMIC),
        overrides={"target_entropy": 0.0, "policy_kwargs": {"likelihood": "path", "log_std_range": [-5, 2]}},
    ),
}


def run_from_scratch(
    scale: Scale,
    args: argparse.Namespace,
    out: Path,
    variants: dict[str, dict[str, Any]],
    tasks: tuple[str, ...],
    steps: int,
) -> None:
    """Train some algorithms on some tasks.

    :param variants: names of `benchmarks/learning.py`, and what each adds to SACFlow's arguments
    :param tasks: where the command names none
    :param steps: of each run
    """
    runs = [
        Run(
            task,
            algo,
            seed,
            steps=steps,
            eval_freq=scale.eval_freq,
            eval_episodes=scale.eval_episodes,
            learning_starts=scale.learning_starts,
            width=scale.width,
            batch_size=scale.batch_size,
            out=out,
            overrides=merged(
                running(args) if algo not in THEIRS else {},
                merged(scale.overrides, overrides, args.overrides) if is_sac_flow(algo) else {},
            ),
        )
        for seed in args.seeds or scale.seeds
        for task in args.tasks or tasks
        for algo, overrides in variants.items()
    ]
    run_all(runs, args.jobs, args.ray)


def running(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ours that say how a run is computed, and not what."""
    compiled: dict[str, Any] = {"compile": True} if args.compile else {}
    return compiled if args.device == "cpu" else {**compiled, "device": args.device}


def is_sac_flow(algo: str) -> bool:
    """Whether a name of `benchmarks/learning.py` is SACFlow's."""
    ours = OURS.get(algo.partition("+")[0])
    return ours is not None and ours.algorithm is SACFlow


def from_scratch(scale: Scale, args: argparse.Namespace, out: Path) -> None:
    """Learning curves of our policies and of the baselines."""
    variants: dict[str, dict[str, Any]] = {algo: {} for algo in scale.algos}
    run_from_scratch(scale, args, out, variants, scale.tasks, scale.steps)
    report(out, out / "from_scratch.png")


def k_ablation(scale: Scale, args: argparse.Namespace, out: Path) -> None:
    """Flow-T with several numbers of Euler steps."""
    variants = {f"flow_t+K{k}": {"policy_kwargs": {"flow_steps": k}} for k in scale.flow_steps}
    run_from_scratch(scale, args, out, variants, scale.ablated, scale.short_steps)
    curves = report(out, out / "k_ablation.png")
    plot_by_variant(curves, out / "k_ablation_final.png", "evaluation return", "Euler steps")


def velocity_ablation(scale: Scale, args: argparse.Namespace, out: Path) -> None:
    """The three velocity nets."""
    variants: dict[str, dict[str, Any]] = {algo: {} for algo in reversed(VELOCITY_NETS)}
    run_from_scratch(scale, args, out, variants, scale.ablated, scale.steps)
    report(out, out / "velocity_ablation.png")


def norms_along_the_rollout(scale: Scale, args: argparse.Namespace, out: Path) -> None:
    """Gradient norms at every step of the rollout, for every net."""
    for task in args.tasks or scale.ablated:
        budget = gradient_norms.Budget(
            task,
            scale.short_steps,
            scale.eval_freq // 10,
            scale.learning_starts,
            scale.width,
            scale.batch_size,
            merged(running(args), scale.overrides, args.overrides),
        )
        seeds = args.seeds or scale.seeds[:1]
        wanted = [
            (net, k, seed) for seed in seeds for k in scale.flow_steps if k > 1 for net in gradient_norms.POLICIES
        ]
        rows = gradient_norms.measure_all(budget, wanted, out / "gradient_norms.csv", args.jobs)
        gradient_norms.print_table(rows)
        gradient_norms.plot(rows, out / f"gradient_norms_{task}.png")


def offline_to_online(scale: Scale, args: argparse.Namespace, out: Path) -> None:
    """Success of ours, first learning from data, then in the environment."""
    make = paper_offline_run if args.scale == "paper" else small_offline_run
    runs = [
        make(task, algo, seed, args, out)
        for seed in args.seeds or scale.seeds
        for task in args.tasks or scale.offline_tasks
        for algo in scale.offline_algos
        if algo != "reinflow" or task in (*ROBOMIMIC, "lift")  # as in the paper's comparison
    ]
    overrides = merged(running(args), args.overrides)
    run_all([replace(run, overrides=merged(run.overrides, overrides)) for run in runs], args.jobs, args.ray)
    report(out, out / "offline_to_online.png", metric="success")


def paper_offline_run(task: str, algo: str, seed: int, args: argparse.Namespace, out: Path) -> Run:
    """A run with the YAML's settings, which are the paper's, and the published data."""
    name = next(name for name, known in ALGORITHMS.items() if known.algorithm is OURS[algo].algorithm)
    settings = rows_of(name)[task]
    overrides = {key: value for key, value in settings.items() if key not in RUNNER}
    overrides |= OURS[algo].arguments
    if not OURS[algo].is_off_policy:  # its batches are of decisions, and its own affair
        overrides["batch_size"] = settings["batch_size"]
    if algo in ("qc_fql", "qc"):
        overrides["bc_coef"] = qc_fql_alpha(task) if algo == "qc_fql" else None
        overrides["start_training"] = 5_000  # as in Q-chunking's code, which has no row of its own in the YAML
    # The runner would set the width of two critic layers
    critics = {"policy_kwargs": {"net_arch": {"qf": [512] * 4}}} if OURS[algo].is_off_policy else {}
    return Run(
        task,
        algo,
        seed,
        steps=int(settings["n_timesteps"]),
        eval_freq=50_000,
        eval_episodes=50,
        learning_starts=0,
        width=512,
        batch_size=settings["batch_size"],
        out=out,
        overrides=merged(overrides, critics),
    )


@cache
def rows_of(name: str) -> dict[str, dict[str, Any]]:
    """What an algorithm's YAML says, by task; there are hundreds of runs, and a read takes a while."""
    rows: dict[str, dict[str, Any]] = yaml.safe_load(config_of(name).read_text())
    return rows


def qc_fql_alpha(task: str) -> float:
    """Alpha of QC-FQL in SAC Flow's comparison: on each task the number that is SAC Flow's beta with data."""
    beta = rows_of("sac_flow")[task]["bc_coef"]
    return float(beta[0] if isinstance(beta, list) else beta)


def small_offline_run(task: str, algo: str, seed: int, args: argparse.Namespace, out: Path) -> Run:
    """A run of `benchmarks/offline_to_online.py`, on data that are generated here if they are not there yet."""
    smoke = args.scale == "smoke"
    study = STUDIES[task]
    data = out / f"{task}.npz"
    if not data.exists():
        size = ("--steps", "1000", "--episode-steps", "100") if smoke else ("--steps", "100000")
        script = Path(__file__).parent / "generate_ogbench.py"
        command = [sys.executable, str(script), "--env", f"{task}-play-v0", *size, "--out", str(data)]
        subprocess.run([*command, "--jobs", str(1 if smoke else args.jobs)], check=True)
    if smoke:
        study = replace(study, offline_steps=50, steps=100, eval_freq=50)
    options = argparse.Namespace(
        data=data,
        compile=False,
        width=32 if smoke else 256,
        d_model=16 if smoke else 64,
        eval_episodes=1 if smoke else 20,
        out=out,
    )
    return make_run(study, algo, seed, options)


FIGURES: dict[str, Callable[[Scale, argparse.Namespace, Path], None]] = {
    "from_scratch": from_scratch,
    "offline_to_online": offline_to_online,
    "gradient_norms": norms_along_the_rollout,
    "k_ablation": k_ablation,
    "velocity_ablation": velocity_ablation,
}


def known_tasks(figure: str, scale: str) -> list[str]:
    """What `--tasks` may name."""
    if figure != "offline_to_online":
        return sorted(gym.registry)
    if scale == "paper":
        return [name for name, settings in rows_of("sac_flow").items() if "offline_dataset" in settings]
    return [name for name, study in STUDIES.items() if study.dataset.startswith("ogbench")]


def make_record() -> str:
    """Command, commit and machine."""
    return f"{shlex.join(['python', *sys.argv])}\ncommit {commit() or 'unknown'}, {machine()}\n"


def write_record(folder: Path, record: str) -> None:
    """Put a record beside the results, below those of earlier commands."""
    path = folder / RECORD
    earlier = path.read_text() if path.exists() else ""
    if record not in earlier:
        write_text(path, earlier + record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--tasks", nargs="+", help="instead of the scale's")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the scale's")
    parser.add_argument(
        "--overrides",
        type=json_object,
        default={},
        help="JSON: arguments of SACFlow; in offline_to_online of all of ours",
    )
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--device", default="cpu", help="of ours; evaluations and environments are the CPU's")
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reproduce"))
    args = parser.parse_args()
    check_tasks(parser, args.tasks or (), known_tasks(args.figure, args.scale))
    if args.ray and args.figure == "gradient_norms":
        parser.error("--ray: the gradient norms are measured on this machine, leave it out")
    folder = args.out / f"{args.figure}_{args.scale}"
    folder.mkdir(parents=True, exist_ok=True)
    record = make_record()  # the commit may be another one when the runs are done
    FIGURES[args.figure](SCALES[args.scale], args, folder)
    write_record(folder, record)
    write_page([args.out], args.out / "index.html")
    print(args.out / "index.html")


if __name__ == "__main__":
    main()
