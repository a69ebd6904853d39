"""Checks that fail early, and say what was wrong, what is allowed and how to get there."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces


class NonFiniteError(FloatingPointError, ValueError):
    """A NaN or an infinity reached a loss; a ValueError too, on which rl-zoo3 prunes a trial and goes on."""


def extra(name: str) -> str:
    """How to install an extra of this package, for an error that lacks it."""
    return f"pip install -c constraints.txt '.[{name}]', in the clone"


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Refuse an argument.

    :param condition: whether the value is allowed
    :param name: the argument as the user wrote it
    :param value: its value
    :param allowed: what is allowed, or what to do instead
    :raises ValueError: if the condition does not hold
    """
    if not condition:
        raise ValueError(f"{name}={value!r} is not allowed: {allowed}")


def require_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse a value that is not one of a few."""
    require(value in choices, name, value, f"choose one of {', '.join(map(repr, choices))}")


def is_integer(value: Any, lowest: int = 1) -> bool:
    """Whether a value is a whole number >= lowest."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= lowest


def require_integer(name: str, value: Any, lowest: int = 1) -> None:
    """Refuse what is not a whole number >= lowest."""
    require(is_integer(value, lowest), name, value, f"an integer >= {lowest}")


def require_whole(name: str, value: Any, lowest: int = 1) -> None:
    """Refuse what is not a whole number >= lowest; 1e6 is fine, as in SB3's `learn`."""
    require(_is_whole(value, lowest), name, value, f"a whole number >= {lowest}")


def as_integer(name: str, value: Any, lowest: int = 1) -> int:
    """A whole number >= lowest as Python's: files of settings say 1e5, and NumPy has types of its own.

    :raises ValueError: for anything else
    """
    require(_is_whole(value, lowest), name, value, f"an integer >= {lowest}")
    return int(value)


def _is_whole(value: Any, lowest: int) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and float(value).is_integer() and value >= lowest


def require_number(name: str, value: Any, lowest: float, highest: float, allowed: str) -> None:
    """Refuse what is not a finite number in [lowest, highest].

    :param allowed: what is allowed, in words
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    require(number and lowest <= value <= highest, name, value, allowed)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Refuse spaces that no flow policy can act in or encode.

    :raises ValueError: for anything but bounded continuous actions and the observations SB3 can preprocess
    """
    require(
        isinstance(action_space, spaces.Box),
        "action_space",
        action_space,
        "a flow generates continuous actions; the environment needs a gymnasium.spaces.Box",
    )
    assert isinstance(action_space, spaces.Box)
    require(
        action_space.dtype in (np.float32, np.float64),
        "action_space",
        action_space,
        "the replay buffer would round its numbers; declare it with dtype float32 and convert in the environment",
    )
    with np.errstate(over="ignore", invalid="ignore"):
        finite = bool(np.isfinite(action_space.high - action_space.low).all())
    require(
        finite,
        "action_space",
        action_space,
        "its bounds must be finite, and so must high - low, for a policy's actions are spread over them. Leave out "
        "gymnasium.wrappers.ClipAction, which needs not be; else declare bounds: gymnasium.wrappers.TransformAction("
        "env, lambda action: action, gymnasium.spaces.Box(low, high))",
    )
    require(
        action_space.low.size > 0 and bool((action_space.low < action_space.high).all()),
        "action_space",
        action_space,
        "low must be below high for every number of an action, and there must be one; leave out what is constant",
    )
    encodable = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    leaves = list(observation_space.values()) if isinstance(observation_space, spaces.Dict) else [observation_space]
    require(
        len(leaves) > 0 and all(isinstance(leaf, encodable) for leaf in leaves),
        "observation_space",
        observation_space,
        "it must be Box, Discrete, MultiDiscrete, MultiBinary, or a flat Dict of these; "
        "flatten it with gymnasium.wrappers.FlattenObservation",
    )
    for leaf in leaves:
        is_scalar = isinstance(leaf, spaces.Box) and leaf.shape == ()
        is_table = isinstance(leaf, spaces.MultiDiscrete) and leaf.nvec.ndim != 1
        require(
            not is_scalar and not is_table,
            "observation_space",
            observation_space,
            "a Box needs at least one dimension and MultiDiscrete exactly one; reshape the observations with "
            "gymnasium.wrappers.ReshapeObservation or TransformObservation",
        )
        is_empty = isinstance(leaf, spaces.Box) and 0 in leaf.shape
        require(not is_empty, "observation_space", observation_space, "it has no numbers; leave out what is empty")
        # SB3's encoding counts from 0, whatever the space says
        begins = leaf.start if isinstance(leaf, (spaces.Discrete, spaces.MultiDiscrete)) else 0
        require(
            not np.any(begins),
            "observation_space",
            observation_space,
            "its numbers must begin at 0; subtract `start` with gymnasium.wrappers.TransformObservation",
        )


def non_finite(where: str, name: str, bad: int, size: int) -> NonFiniteError:
    """The error that stops training.

    :param where: what was being computed
    :param name: of the tensor that is to blame
    :param bad: how many of its numbers are NaN or infinite
    :param size: how many it has
    """
    return NonFiniteError(
        f"Training stopped in the {where}: `{name}` has {bad} NaN or infinite of {size} values. "
        "No network took the bad step. If it came from the environment, find the step "
        "with SB3's VecCheckNan wrapper; if not, lower the learning rate or the scale of "
        "the rewards."
    )


def check_finite(where: str, **tensors: th.Tensor | dict[str, th.Tensor]) -> None:
    """Stop training at the first tensor that holds a NaN or an infinity.

    :param where: what was being computed
    :param tensors: tensors on the CPU in the order they were made, by name
    :raises NonFiniteError: naming that tensor
    """
    for name, tensor in tensors.items():
        for key, leaf in tensor.items() if isinstance(tensor, dict) else [("", tensor)]:
            if not leaf.is_floating_point():  # images
                continue
            # A sum is finite only if every element is, and is one kernel; an overflowing sum is looked at again
            if not math.isfinite(leaf.sum().item()) and not th.isfinite(leaf).all():
                bad = int((~th.isfinite(leaf)).sum())
                raise non_finite(where, f"{name}[{key!r}]" if key else name, bad, leaf.numel())
