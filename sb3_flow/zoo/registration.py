"""Makes our algorithms known to rl-zoo3, which has no entry point for plugins."""

import functools
import importlib
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

import sb3_flow
import sb3_flow.envs
from sb3_flow import DIME, FQL, QSM, FlowRL, ReinFlow, SACFlow
from sb3_flow.common.algorithm import FlowAlgorithm
from sb3_flow.common.checks import require
from sb3_flow.zoo.search import (
    DIMESearch,
    FlowRLSearch,
    FQLSearch,
    QSMSearch,
    ReinFlowSearch,
    SACFlowSearch,
    SearchSpace,
    Unsearched,
)

PACKAGE = Path(sb3_flow.__file__).parent
# In a checkout the folder stands beside the package, a wheel has it inside
HYPERPARAMS = next(path for path in (PACKAGE / "hyperparams", PACKAGE.parent / "hyperparams") if path.is_dir())


class Algorithm(NamedTuple):
    """What the zoo knows of an algorithm."""

    algorithm: type[FlowAlgorithm]
    search: SearchSpace
    config: Path | None = None  # its YAML; None for ours, in `HYPERPARAMS`


# What follows `--algo`
ALGORITHMS = {
    "dime": Algorithm(DIME, DIMESearch()),
    "flow_rl": Algorithm(FlowRL, FlowRLSearch()),
    "fql": Algorithm(FQL, FQLSearch()),
    "qsm": Algorithm(QSM, QSMSearch()),
    "reinflow": Algorithm(ReinFlow, ReinFlowSearch()),
    "sac_flow": Algorithm(SACFlow, SACFlowSearch()),
}


def config_of(algo: str) -> Path:
    """The YAML with an algorithm's hyperparameters.

    :param algo: one of `ALGORITHMS`
    """
    return ALGORITHMS[algo].config or HYPERPARAMS / f"{algo}.yml"


CONFIG = config_of("sac_flow")


def register() -> None:
    """Add our algorithms, their search spaces and hyperparameters, and the environments of `sb3_flow.envs`.

    Calling it again changes nothing.
    """
    sb3_flow.envs.register()
    # In place: rl_zoo3's scripts hold references to these dicts
    for algo, (algorithm, search, _) in ALGORITHMS.items():
        ALGOS[algo] = algorithm
        HYPERPARAMS_SAMPLER[algo] = search.sample
        HYPERPARAMS_CONVERTER[algo] = search.convert

    # Not at the top: importing it imports `custom_envs`, and so this function
    exp_manager = importlib.import_module("rl_zoo3.exp_manager")
    # Missing while exp_manager itself is being imported and gets here through `custom_envs`. `rl_zoo3.record_video`
    # does that and reads no hyperparameters; scripts that do call `register` (docs/rl_zoo3.md)
    if hasattr(exp_manager, "ExperimentManager"):
        _make_our_managers(exp_manager.ExperimentManager)


def register_algorithm(
    name: str,
    algorithm: type[FlowAlgorithm],
    config: str | PathLike[str],
    search: SearchSpace | None = None,
) -> None:
    """Make an algorithm of your own known to rl-zoo3, and all of ours with it: a line of your `custom_envs.py`.

    :param name: what follows `--algo`
    :param algorithm: the class
    :param config: its YAML, with a row for each task or one named "default"
    :param search: what `-optimize` searches; None for an algorithm that is not searched
    :raises ValueError: for a class of another kind, a name that rl-zoo3 or this package has, and a file that there is
        not
    """
    known = isinstance(algorithm, type) and issubclass(algorithm, FlowAlgorithm)
    require(known, "algorithm", algorithm, "a subclass of sb3_flow.common.off_policy.OffPolicyFlowAlgorithm")
    kind = search is None or isinstance(search, SearchSpace)
    require(kind, "search", search, "an instance of a subclass of sb3_flow.zoo.search.SearchSpace, or None")
    register()  # a `custom_envs.py` of one's own is imported in place of ours
    again = name in ALGORITHMS and ALGORITHMS[name].config is not None
    require(name not in ALGOS or again, "name", name, f"rl-zoo3 has {ALGOS.get(name)} under it; choose another one")
    path = Path(config).absolute()
    require(path.is_file(), "config", str(config), "there is no such file; write one with a row named 'default'")
    ALGORITHMS[name] = Algorithm(algorithm, search or Unsearched(), path)
    register()


@functools.cache
def _make_our_managers(plain: type[Any]) -> None:
    """Let `ExperimentManager(...)` make a `FlowExperimentManager` for our algorithms, and itself for all others.

    :param plain: rl_zoo3's ExperimentManager, to which its scripts hold references; the cache makes sure that it is
        changed once
    """
    flow: type[Any] = importlib.import_module("sb3_flow.zoo.manager").FlowExperimentManager

    def new(cls: type[Any], args: Any = None, algo: str = "", *_: Any, **__: Any) -> Any:
        return object.__new__(flow if cls is plain and algo in ALGORITHMS else cls)

    plain.__new__ = new  # type: ignore[assignment]
