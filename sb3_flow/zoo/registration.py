"""Makes SACFlow known to rl-zoo3, which has no entry point for plugins."""

import functools
import importlib
from pathlib import Path
from typing import Any

from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

import sb3_flow
import sb3_flow.envs
from sb3_flow import SACFlow
from sb3_flow.zoo.sampler import convert_sac_flow_params, sample_sac_flow_params

ALGO = "sac_flow"
PACKAGE = Path(sb3_flow.__file__).parent
# In a checkout the folder stands beside the package, a wheel has it inside
HYPERPARAMS = next(path for path in (PACKAGE / "hyperparams", PACKAGE.parent / "hyperparams") if path.is_dir())
CONFIG = HYPERPARAMS / f"{ALGO}.yml"


def register() -> None:
    """Add SACFlow, its Optuna search space, its hyperparameters and the environments that `sb3_flow.envs` registers.

    Calling it again changes nothing.
    """
    sb3_flow.envs.register()
    # In place: rl_zoo3's scripts hold references to these dicts
    ALGOS[ALGO] = SACFlow
    HYPERPARAMS_SAMPLER[ALGO] = sample_sac_flow_params
    HYPERPARAMS_CONVERTER[ALGO] = convert_sac_flow_params

    # Not at the top: importing it imports `custom_envs`, and so this function
    exp_manager = importlib.import_module("rl_zoo3.exp_manager")
    # Missing while exp_manager itself is being imported and gets here through `custom_envs`. `rl_zoo3.record_video`
    # does that and reads no hyperparameters; scripts that do call `register` (docs/rl_zoo3.md)
    if hasattr(exp_manager, "ExperimentManager"):
        _make_our_managers(exp_manager.ExperimentManager)


@functools.cache
def _make_our_managers(plain: type[Any]) -> None:
    """Let `ExperimentManager(...)` make a `FlowExperimentManager` for our algorithm, and itself for all others.

    :param plain: rl_zoo3's ExperimentManager, to which its scripts hold references; the cache makes sure that it is
        changed once
    """
    flow: type[Any] = importlib.import_module("sb3_flow.zoo.manager").FlowExperimentManager

    def new(cls: type[Any], args: Any = None, algo: str = "", *_: Any, **__: Any) -> Any:
        return object.__new__(flow if cls is plain and algo == ALGO else cls)

    plain.__new__ = new  # type: ignore[assignment]
