"""Offline-to-online on data that the suites' simulators made: success before, at and after the change of phases.

    python benchmarks/generate_ogbench.py --env cube-single-play-v0 --steps 100000 --out data/cube-single.npz
    python benchmarks/offline_to_online.py cube-single --data data/cube-single.npz --out benchmarks/results/mine

Runs, checkpoints and CSVs are those of `benchmarks/learning.py`: resumable, one thread a run. Nets and budgets are
smaller than the paper's, so that a run takes about an hour of one CPU core.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arguments import add_run_arguments, positive
from contenders import TEN_CRITICS, merged, ours_of
from learning import Run, run_all

from sb3_flow import ReinFlow, SACFlow


@dataclass(frozen=True)
class Study:
    """A task and its budget."""

    task: str
    dataset: str  # without the place of the data
    bc_coef: float | list[float]  # beta of SAC Flow
    alpha: float  # of FQL and QC-FQL, as in SAC Flow's comparison; cube-single, which it has not, has cube-double's
    offline_steps: int
    steps: int
    eval_freq: int = 5_000


LIFT = Study(
    "lift-mh-low_dim-v0",
    "robomimic:lift/mh",
    bc_coef=[10_000.0, 1_000.0],
    alpha=10_000.0,
    offline_steps=20_000,
    steps=50_000,
)
STUDIES = {
    "cube-single": Study(
        "cube-single-play-singletask-task1-v0",
        "ogbench:cube-single-play-singletask-task1-v0",
        bc_coef=300.0,
        alpha=300.0,
        offline_steps=30_000,
        steps=60_000,
    ),
    "cube-double": Study(
        "cube-double-play-singletask-task1-v0",
        "ogbench:cube-double-play-singletask-task1-v0",
        bc_coef=300.0,
        alpha=300.0,
        offline_steps=100_000,  # nobody's method has solved it after 50,000
        steps=150_000,
        eval_freq=10_000,
    ),
    "lift": LIFT,
    # Of the bad operator alone, so that what fine-tuning adds to cloning shows
    "lift-worse": replace(
        LIFT, dataset="robomimic:lift/mh/worse", offline_steps=50_000, steps=550_000, eval_freq=50_000
    ),
}
# What differs from the paper's settings; the name before the "+" is that of `contenders.OURS`
VARIANTS: dict[str, dict[str, Any]] = {
    "flow_t": {},
    "flow_g": {},
    "flow_mlp": {},
    "flow_t+free": {"bc_coef": 0.0},
    "flow_t+beta10": {"bc_coef": 10.0},
    "flow_t+beta30": {"bc_coef": 30.0},
    "flow_t+raw": {"matching_target": "raw"},
    "flow_t+behavior": {"proximity": "behavior"},
    "flow_t+mixed": {"offline_ratio": 0.5},
    "flow_t+ten": {"policy_kwargs": TEN_CRITICS},
    "flow_t+behavior+ten": {"proximity": "behavior", "policy_kwargs": TEN_CRITICS},
    "flow_t+alpha": {"ent_coef": "auto_0.2", "target_entropy": 0.0, "policy_kwargs": {"likelihood": "path"}},
    # Behaviour cloning by flow matching alone, throughout. (A heavy beta would be a regression to the mean action.)
    "cloning": {"bc_coef": 0.0, "offline_steps": 10**9},
    "fql": {},
    "qc_fql": {},
    "qc_fql+ten": {"policy_kwargs": TEN_CRITICS},
    "qc_fql+mixed": {"offline_ratio": 0.5},
    "qc": {"amp": "bf16"},  # its best of 32 costs ten times the others' update, and half of that in float32
    "reinflow": {},
    # V learns from more updates, and from 15,000 steps before the policy does
    "reinflow+critic": {
        "n_steps": 500,
        "batch_size": 200,
        "critic_warmup": 3,
        "vf_learning_rate": 1e-3,
        "gamma": 0.999,
    },
}


def make_run(study: Study, variant: str, seed: int, args: argparse.Namespace) -> Run:
    """One run of `benchmarks/learning.py`."""
    name = variant.partition("+")[0]
    data = {
        "offline_dataset": f"{study.dataset}@{args.data.resolve()}",
        "offline_steps": study.offline_steps,
        "compile": args.compile,
    }
    algorithm = ours_of(variant).algorithm
    if algorithm is ReinFlow:
        own = reinflow(args)
    else:
        own = {"learning_starts": None} | (sac_flow if algorithm is SACFlow else fql)(study, name, args)
    return Run(
        study.task,
        variant,
        seed,
        steps=study.steps,
        eval_freq=study.eval_freq,
        eval_episodes=args.eval_episodes,
        learning_starts=0,
        width=args.width,
        batch_size=256,
        out=args.out,
        overrides=merged(data, own, VARIANTS[variant]),
    )


def sac_flow(study: Study, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """SAC Flow's settings with data: those of its paper, with smaller nets."""
    critics = {"critic": "target", "noise_std": 0.1, "net_arch": {"qf": [args.width] * 3}}
    width = {"d_model": args.d_model} if name in ("flow_t", "cloning") else {}
    settings = {"horizon_length": 5, "bc_coef": study.bc_coef, "ent_coef": 0.0}
    return {**settings, "policy_kwargs": critics | width}


def fql(study: Study, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The settings of FQL and of Q-chunking: their authors', with smaller nets."""
    nets = {"net_arch": {"pi": [args.width] * 3, "qf": [args.width] * 3}}
    return {"bc_coef": None if name == "qc" else study.alpha, "policy_kwargs": nets}


def reinflow(args: argparse.Namespace) -> dict[str, Any]:
    """ReinFlow's settings for Robomimic, with smaller nets, and for fewer steps: its authors' are for millions."""
    nets = {"net_arch": [args.width] * 3, "noise_std_range": (0.08, 0.14)}
    rollouts = {"n_envs": 10, "n_steps": 200, "batch_size": 400, "n_epochs": 10, "critic_warmup": 2}
    returns = {"horizon_length": 5, "gamma": 0.99, "normalize": {"norm_obs": False}}
    policy = {"learning_rate": 1e-4, "ent_coef": 0.0, "target_kl": 0.01, "noise_decay": 1.0, "policy_kwargs": nets}
    return {**rollouts, **returns, **policy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument(
        "--data", type=Path, required=True, help="file or folder that a generator made, or the official"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["flow_t"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=positive, help="timesteps of both phases; the study's if left out")
    parser.add_argument("--eval-episodes", type=int, default=20)
    parser.add_argument("--width", type=int, default=256, help="width of the three layers of critics and of FQL's nets")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--compile", action="store_true")
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/offline"))
    args = parser.parse_args()
    if not args.data.exists():
        parser.error(f"--data {args.data}: there is no such file; benchmarks/generate_*.py make them")
    study = STUDIES[args.study]
    study = replace(study, steps=args.steps or study.steps)
    runs = [make_run(study, variant, seed, args) for seed in args.seeds for variant in args.variants]
    run_all(runs, args.jobs, args.ray)


if __name__ == "__main__":
    main()
