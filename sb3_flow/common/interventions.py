"""Steps in which a person acted in the policy's place, as teleoperated environments say in `info`.

Known are `intervene_action`, of HIL-SERL's wrappers (arXiv 2410.21845), and `is_intervention` with `teleop_action`, of
gym-hil (older: `action_intervention`). LeRobot has the second key as a member of an Enum.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_flow.common.checks import require
from sb3_flow.datasets.arrays import scaled

SIGN = "is_intervention"
ACTIONS = ("intervene_action", "teleop_action", "action_intervention")
ROUNDING = 1e-4  # of an action in [-1, 1]
FAR = 3.0  # beyond it an action has other units: HIL-SERL turns frames, which lengthens actions by less


class Executed(NamedTuple):
    """What was done in E environments."""

    actions: NDArray[Any]  # (E, ...), in [-1, 1]
    taken_over: NDArray[np.bool_]  # (E,)


def executed(decided: NDArray[Any], infos: Sequence[dict[Any, Any]], space: spaces.Box) -> Executed:
    """The actions of a step as they were executed.

    :param decided: (E, ...) the policy's actions, in [-1, 1]
    :param infos: (E,) what the environments say of the step
    :param space: of the actions that the model sees, in whose units a person's are
    :raises ValueError: for what cannot have been an action of this space, and if the action is not said
    """
    taken_over = np.array([_is_intervention(info) for info in infos], np.bool_)
    if not taken_over.any():
        return Executed(decided, taken_over)
    actions = decided.copy()
    for i in np.flatnonzero(taken_over):
        actions[i] = _scaled(_action(infos[i]), space)
    return Executed(actions, taken_over)


def refuse_interventions(infos: Sequence[dict[Any, Any]]) -> None:
    """Stop before an algorithm takes what somebody else did for its own.

    :raises ValueError: if `infos` say so of any environment
    """
    advice = "learning on-policy goes by what the policy itself did; off-policy algorithms learn from both"
    require(not any(map(_is_intervention, infos)), f"info[{SIGN!r}]", True, advice)


def _is_intervention(info: dict[Any, Any]) -> bool:
    """Whether somebody else acted in the step that an environment says this of."""
    known = _by_name(info)
    return known.get(ACTIONS[0]) is not None or bool(known.get(SIGN, False))


def _action(info: dict[Any, Any]) -> NDArray[Any]:
    known = _by_name(info)
    theirs = next((known[name] for name in ACTIONS if known.get(name) is not None), None)
    advice = f"the action that was executed has to be there too, as info[{ACTIONS[1]!r}]"
    require(theirs is not None, f"info[{SIGN!r}]", True, advice)
    advice = "it has to be an array of the shape of an action"
    require(not isinstance(theirs, dict), "the action of an intervention", theirs, advice)
    return np.asarray(theirs.detach().cpu() if isinstance(theirs, th.Tensor) else theirs, np.float64)


def _by_name(info: dict[Any, Any]) -> dict[Any, Any]:
    return {getattr(key, "value", key): value for key, value in info.items()}


def _scaled(action: NDArray[Any], space: spaces.Box) -> NDArray[Any]:
    """An action of the space, in [-1, 1]."""
    batched = (1,) * (action.ndim - len(space.shape)) + space.shape
    fits = action.shape in (batched, (int(np.prod(space.shape)),))
    advice = f"its shape is {action.shape}, and that of an action {space.shape}; leave out what is not the policy's"
    require(fits, "the action of an intervention", action.tolist(), advice)
    theirs = scaled(action.reshape(space.shape), space)
    bounds = f"{space.low.tolist()} and {space.high.tolist()}"
    require(bool(np.isfinite(theirs).all()), "the action of an intervention", action.tolist(), "it is not finite")
    advice = f"it is far from what is between {bounds}; say it in the units of the model's action space"
    require(bool((np.abs(theirs) <= FAR).all()), "the action of an intervention", action.tolist(), advice)
    if (np.abs(theirs) > 1 + ROUNDING).any():
        # One text for all of them, which Python prints once
        warnings.warn(
            f"A person's action is not between {bounds}, where all of the policy's are. It is learned from as if it "
            "were cut off there. Cut it off before it is executed, or say it in the units of the model's action space.",
            stacklevel=2,
        )
    return np.clip(theirs, -1, 1)
