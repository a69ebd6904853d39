"""Makes SACFlow known to rl-zoo3, which has no entry point for plugins."""

import functools
import importlib
from pathlib import Path
from typing import Any

from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

import sb3_flow
import sb3_flow.envs
from sb3_flow.sac_flow import SACFlow
from sb3_flow.zoo.sampler import convert_sac_flow_params, sample_sac_flow_params

ALGO = "sac_flow"
CONFIG = Path(sb3_flow.__file__).parent / "hyperparams" / f"{ALGO}.yml"


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
        _default_to_our_config(exp_manager.ExperimentManager)


@functools.cache
def _default_to_our_config(manager: type[Any]) -> None:
    """Replace the zoo's default, a file in its own package folder, by ours.

    :param manager: rl_zoo3's ExperimentManager; the cache makes sure that it is wrapped once
    """
    zoo_config = Path(importlib.import_module(manager.__module__).__file__ or "").parent / "hyperparams" / CONFIG.name
    init = manager.__init__

    @functools.wraps(init)
    def init_with_our_config(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if self.algo == ALGO and Path(self.config) == zoo_config:
            self.config = str(CONFIG)

    manager.__init__ = init_with_our_config
