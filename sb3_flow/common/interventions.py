"""Steps in which somebody else acted: a person who took over, or what keeps a robot from harm.

Two conventions are known. HIL-SERL's wrappers (arXiv 2410.21845) put `intervene_action` into `info`; LeRobot's and
gym-hil's put `is_intervention` and, with it, `teleop_action`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_flow.common.checks import require

TOLERANCE = 1e-4  # of an action in [-1, 1], which other units have rounded


class Executed(NamedTuple):
    """What was done in E environments, in place of what the policy decided."""

    actions: NDArray[Any]  # (E, ...), in [-1, 1]
    taken_over: NDArray[np.bool_]  # (E,)


def executed(decided: NDArray[Any], infos: Sequence[dict[str, Any]], space: spaces.Box) -> Executed:
    """The actions of a step as they were executed.

    :param decided: (E, ...) the policy's actions, in [-1, 1]
    :param infos: (E,) what the environments say of the step
    :param space: of the actions in the environments' units
    :raises ValueError: for an action that is not in the space, or is not said
    """
    taken_over = np.array([_is_intervention(info) for info in infos], np.bool_)
    if not taken_over.any():
        return Executed(decided, taken_over)
    actions = decided.copy()
    for i in np.flatnonzero(taken_over):
        actions[i] = _scaled(_action(infos[i]), space)
    return Executed(actions, taken_over)


def refuse_interventions(infos: Sequence[dict[str, Any]]) -> None:
    """Stop before an algorithm takes what somebody else did for its own.

    :raises ValueError: if `infos` say so of any environment
    """
    advice = "learning on-policy goes by what the policy itself did; off-policy algorithms learn from both"
    require(not any(map(_is_intervention, infos)), "info['is_intervention']", True, advice)


def _is_intervention(info: dict[str, Any]) -> bool:
    """Whether somebody else acted in the step that an environment says this of."""
    return info.get("intervene_action") is not None or bool(info.get("is_intervention", False))


def _action(info: dict[str, Any]) -> NDArray[Any]:
    theirs = info.get("intervene_action")
    if theirs is None:
        theirs = info.get("teleop_action")
        advice = "what was executed in place of the policy's action has to be in info['teleop_action']"
        require(theirs is not None, "info['is_intervention']", True, advice)
    return np.asarray(theirs, np.float64)


def _scaled(action: NDArray[Any], space: spaces.Box) -> NDArray[Any]:
    """An action in the environment's units, in [-1, 1]."""
    fits = action.size == np.prod(space.shape)
    advice = f"{action.size} numbers, and an action has the shape {space.shape}; leave out what is not the policy's"
    require(fits, "the action of an intervention", action.tolist(), advice)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    scaled = 2 * (action.reshape(space.shape) - low) / (high - low) - 1
    advice = f"it is not between {space.low.tolist()} and {space.high.tolist()}; cut it off there before it is executed"
    require(bool((np.abs(scaled) <= 1 + TOLERANCE).all()), "the action of an intervention", action.tolist(), advice)
    return np.clip(scaled, -1, 1)
