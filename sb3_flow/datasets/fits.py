"""Whether data are of the environment that is learned in."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_flow.datasets.arrays import Array
from sb3_flow.datasets.dataset import Dataset, OfflineDataset
from sb3_flow.datasets.errors import DataError
from sb3_flow.datasets.observations import as_seen, full_name, leaves, parts

NORMALIZED = (
    "images have to be uint8 there as well. VecNormalize changes images, too: leave them out, by norm_obs_keys, or "
    "norm_obs=False without a Dict"
)
BEYOND = 5  # widths of a space; environments leave their own bounds by less, and other units lead further


def check_fits(
    dataset: Dataset, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], env: str = "environment"
) -> None:
    """Refuse data of another environment, and images that are not as SB3 shows the environment's, channels first.

    :param dataset: the data
    :param observation_space: of the environment
    :param action_space: of the environment
    :param env: what to call it
    :raises DataError: naming both shapes
    """
    check_seen(dataset, as_seen(observation_space), action_space, env)


def check_seen(
    dataset: Dataset, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], env: str = "environment"
) -> None:
    """Refuse data that are not what a model sees.

    :param dataset: the data
    :param observation_space: of the model, whose images SB3 may have transposed
    :param action_space: of the model
    :param env: what to call it
    :raises DataError: naming both shapes
    """
    _check_observations(dataset, observation_space, env)
    flat = (dataset.action_dim,)
    fits = isinstance(action_space, spaces.Box) and (
        action_space.shape == dataset.action_shape or (dataset.action_shape == flat == (action_space.low.size,))
    )
    if not fits:
        alike = isinstance(action_space, spaces.Box) and action_space.low.size == dataset.action_dim
        remedy = f"reshape them to (N, *{action_space.shape})" if alike else "is it the data of another environment?"
        shape_or_size = f"has shape {dataset.action_shape}" if alike else f"has {dataset.action_dim} numbers"
        problem = f"one {shape_or_size}, but the {env} takes {action_space}; {remedy}"
        raise DataError(dataset.source, "actions", problem)
    assert isinstance(action_space, spaces.Box)
    if dataset.at(0).scaled_by is None:
        _warn_of_raw_actions(dataset.at(0), action_space)
    else:
        _check_bounds(dataset.at(0), action_space, env)


def _check_observations(dataset: Dataset, space: spaces.Space[Any], env: str) -> None:
    shapes, dtypes = parts(dataset.observation_shape), parts(dataset.observation_dtype)
    shown = leaves(space)
    if shapes.keys() != shown.keys():
        if "" in shapes:
            remedy = "give a dict of arrays, with its keys"
            if not any(map(is_image_space, shown.values())):  # of which it would make vectors, too
                remedy += "; or gymnasium.wrappers.FlattenObservation makes vectors of its observations"
            remedy += "; Minari's and LeRobot's are kept by load_dataset(..., env.observation_space)"
            problem = f"one has shape {dataset.observation_shape}, but the {env} shows {space}; {remedy}"
        else:
            problem = f"they are a dict of {', '.join(shapes)}, but the {env} shows {space}"
        raise DataError(dataset.source, "observations", problem)
    for key, leaf in shown.items():
        _check_part(dataset.source, full_name("observations", key), shapes[key], dtypes[key], leaf, env)
        _warn_of_other_units(
            dataset.source, full_name("observations", key), parts(dataset.at(0).observations)[key], leaf
        )


def _check_part(
    source: str | Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], space: spaces.Space[Any], env: str
) -> None:
    of_numbers = isinstance(space, (spaces.Box, spaces.MultiBinary))
    if not of_numbers or space.shape != shape:
        remedy = "is it the data of another environment?"
        if not of_numbers:
            remedy = "data are numbers of a Box; a wrapper makes one of it"
        elif dtype == np.uint8 and space.dtype != np.uint8 and len(shape) == len(space.shape or ()) == 3:
            remedy = NORMALIZED
        elif space.shape == (*shape[-1:], *shape[:-1]):
            remedy = "SB3 shows images channel first: transpose them too, observations.transpose(0, 3, 1, 2)"
        raise DataError(source, name, f"one has shape {shape}, but the {env} shows {space}; {remedy}")
    as_bytes = dtype == np.uint8 and isinstance(space, spaces.Box)
    # SB3 scales images on the way into the policy, by the environment's space
    if (as_bytes and space.dtype != np.uint8) or (not as_bytes and is_image_space(space)):
        remedy = f"; {NORMALIZED}" if as_bytes and len(shape) == 3 else ""
        raise DataError(source, name, f"they are {dtype}, but the {env} shows {space}{remedy}")


def _warn_of_other_units(source: str | Path, name: str, array: Array, space: spaces.Space[Any]) -> None:
    """Point out numbers far outside of the bounds of their space, degrees for radians."""
    if not isinstance(space, spaces.Box) or array.dtype == np.uint8:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        width = space.high.astype(np.float64) - space.low  # infinite or NaN where there are no bounds
        margin = np.where(width == 0, np.inf, BEYOND * width)
        outside = (array.min(axis=0) < space.low - margin) | (array.max(axis=0) > space.high + margin)
    if outside.any():
        at = int(outside.argmax())
        numbers, low, high = array.reshape(len(array), -1)[:, at], space.low.flat[at], space.high.flat[at]
        warnings.warn(
            f"{source}: {name} reach from {numbers.min():g} to {numbers.max():g} in their number {at}, but the "
            f"environment shows {low:g} to {high:g}: are they in other units?",
            stacklevel=3,
        )


def _check_bounds(data: OfflineDataset, action_space: spaces.Box, env: str) -> None:
    """Refuse actions whose -1 and 1 are others than the environment's."""
    theirs = data.scaled_by
    assert theirs is not None
    pairs = [(theirs.low, action_space.low), (theirs.high, action_space.high)]
    if all(np.allclose(one.ravel(), other.ravel()) for one, other in pairs):
        return
    problem = (
        f"in them -1 and 1 are the bounds of {theirs}, but the {env} takes {action_space}, where the same numbers are "
        "other actions; give it the bounds that the data have, with gymnasium.wrappers.RescaleAction"
    )
    raise DataError(data.source, "actions", problem)


def _warn_of_raw_actions(data: OfflineDataset, action_space: spaces.Box) -> None:
    """Point out actions that look as if nobody had scaled them, where that can be seen: the space is a narrow one."""
    low, high = action_space.low.flatten(), action_space.high.flatten()
    narrow = (low > -1) & (high < 1)
    actions = data.actions[:, narrow]
    if actions.size > 0 and (actions.min(axis=0) >= low[narrow]).all() and (actions.max(axis=0) <= high[narrow]).all():
        warnings.warn(
            f"{data.source}: all actions lie within the bounds of {action_space}, as if they were in the environment's "
            "units. Data are in [-1, 1]; if these are not, scale them: 2 * (actions - low) / (high - low) - 1. "
            "LeRobot's are scaled by load_dataset(..., action_space=env.action_space).",
            stacklevel=2,
        )
