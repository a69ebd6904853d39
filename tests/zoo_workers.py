"""A worker of the zoo, without its command line."""

import argparse
from pathlib import Path
from typing import Any

from sb3_flow.zoo import register

STUDY = "study"


def make_manager(
    storage: str | None,
    folder: Path,
    n_trials: int = 1,
    timesteps: int = 100,
    options: dict[str, Any] | None = None,
    algo: str = "sac_flow",
    **hyperparams: Any,
) -> Any:
    """A worker of the zoo that has read the algorithm's YAML.

    :param options: changes to ExperimentManager's arguments
    """
    from rl_zoo3.exp_manager import ExperimentManager

    register()
    manager = ExperimentManager(
        argparse.Namespace(),
        algo,
        log_folder=str(folder),
        n_timesteps=timesteps,
        hyperparams=hyperparams,
        optimize_hyperparameters=True,
        **{
            "env_id": "Pendulum-v1",
            "storage": storage,
            "study_name": STUDY,
            "n_trials": n_trials,
            "no_optim_plots": True,
            "seed": 0,
            "verbose": 0,
            **(options or {}),
        },
    )
    manager.setup_experiment()
    return manager
