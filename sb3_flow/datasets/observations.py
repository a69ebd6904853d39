"""Observations of steps: one array, or of a Dict space one for each key."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_flow.common.checks import require
from sb3_flow.datasets.arrays import Array, as_array, check_shape, float_array
from sb3_flow.datasets.errors import DataError

OBSERVATIONS = ("observations", "next_observations")  # arrays, or of a Dict space dicts of arrays

T = TypeVar("T")
R = TypeVar("R")

Observations = Array | dict[str, Array]
Keys = str | Sequence[str] | Mapping[str, str | Sequence[str]]  # what an observation is made of, of a Dict space by key
Shapes = tuple[int, ...] | dict[str, tuple[int, ...]]
Dtypes = np.dtype[Any] | dict[str, np.dtype[Any]]


def parts(observations: T | dict[str, T]) -> dict[str, T]:
    """What there is of each key; one array alone has the key ""."""
    return observations if isinstance(observations, dict) else {"": observations}


def whole(by_key: dict[str, T]) -> T | dict[str, T]:
    """What `parts` were made of."""
    return by_key.get("", by_key)


def leaves(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The spaces of a Dict by key; another one alone has the key ""."""
    return dict(space.items()) if isinstance(space, spaces.Dict) else {"": space}


def each(function: Callable[[T], R], observations: T | dict[str, T]) -> R | dict[str, R]:
    """A function of each array, in the form that the observations have."""
    if isinstance(observations, dict):
        return {key: function(part) for key, part in observations.items()}
    return function(observations)


def listed(observation_keys: Keys) -> list[str] | dict[str, list[str]]:
    """Lists of names, of one name as well.

    :raises ValueError: if there are none
    """
    given = dict(observation_keys) if isinstance(observation_keys, Mapping) else observation_keys
    names = each(lambda name: [name] if isinstance(name, str) else list(name), given)
    wanted = list(parts(names).values())
    named = len(wanted) > 0 and all(len(part) > 0 and all(part) for part in wanted)
    require(named, "observation_keys", observation_keys, "name one at least")
    return names


def has_channels_last(space: spaces.Space[Any]) -> TypeGuard["spaces.Box[Any]"]:
    """Whether SB3's policies see the images of a space transposed, channels first."""
    return isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space)


def as_seen(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """A space with its images channels first, as SB3 shows them to policies."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, as_seen(leaf)) for key, leaf in space.items()])
    return VecTransposeImage.transpose_space(space) if has_channels_last(space) else space


def length(observations: Observations) -> int:
    """Number of rows."""
    return len(next(iter(parts(observations).values())))


def shapes(observations: Observations) -> Shapes:
    """Of the observations of one row."""
    return each(lambda array: tuple(array.shape[1:]), observations)


def dtypes(observations: Observations) -> Dtypes:
    """Of the arrays."""
    return each(lambda array: array.dtype, observations)


def taken(observations: Observations, rows: NDArray[np.integer[Any]]) -> Observations:
    """Some rows, as a copy."""
    return each(lambda array: array[rows], observations)


def concatenated(several: Sequence[Observations]) -> Observations:
    """Rows below each other, of observations of one form."""
    first = several[0]
    if isinstance(first, dict):
        return {key: np.concatenate([parts(one)[key] for one in several]) for key in first}
    return np.concatenate([parts(one)[""] for one in several])


def read_only(array: Array) -> Array:
    """A view: the user's own array stays as writeable as it was."""
    view = array.view()
    view.flags.writeable = False
    return view


def full_name(name: str, key: str) -> str:
    """What an array is called in errors, and in files."""
    return f"{name}/{key}" if key else name


def named(source: str | Path, names: Collection[str], name: str) -> dict[str, str]:
    """Which arrays of a flat file are the observations, by key: `name` itself, or all of `name/<key>`; maybe none.

    :raises DataError: if there are both
    """
    inside = f"{name}/"
    found = {full.removeprefix(inside): full for full in names if full.startswith(inside) and full != inside}
    if name not in names:
        return found
    if found:
        raise DataError(source, name, f"it is there beside {', '.join(found.values())}; leave out what is not observed")
    return {"": name}


def gathered(source: str | Path, arrays: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """Some arrays, as dicts where the observations stand under `observations/<key>`; no others are read.

    :param arrays: by name, as `numpy.load` gives them
    :param wanted: names; what is not there is left out
    :raises DataError: if there are `observations` beside those
    """
    found = {name: named(source, arrays.keys(), name) for name in OBSERVATIONS}
    dicts = {name: keys for name, keys in found.items() if keys and "" not in keys}
    whole = {name: arrays[name] for name in wanted if name in arrays}
    return whole | {name: {key: arrays[full] for key, full in keys.items()} for name, keys in dicts.items()}


def checked_observations(source: str | Path, name: str, values: Any) -> Observations:
    """Observations as finite float32, or as uint8, without a copy where they are that already.

    :param name: of the array, or the dict of arrays
    :param values: (N, ...), or a dict of such
    :raises DataError: naming source, array and row
    """
    if not isinstance(values, Mapping):
        return _checked(source, name, values)
    if not values:
        raise DataError(source, name, "it is a dict without arrays")
    # In one order, whatever they come from: in another one code would be compiled again
    arrays = {str(key): _checked(source, f"{name}/{key}", values[key]) for key in sorted(values, key=str)}
    for key, array in arrays.items():
        check_shape(source, f"{name}/{key}", array, (length(arrays), *array.shape[1:]))
    return arrays


def check_alike(source: str | Path, name: str, after: Observations, before: Observations) -> None:
    """Refuse next observations that are not of the observations' form.

    :param name: of the next observations
    :raises DataError: naming what differs
    """
    ours, theirs = parts(after), parts(before)
    if ours.keys() != theirs.keys():
        listed = [", ".join(filter(None, keys)) or "a single array" for keys in (ours, theirs)]
        raise DataError(source, name, f"it has {listed[0]}, the observations {listed[1]}")
    for key, array in ours.items():
        check_shape(source, full_name(name, key), array, theirs[key].shape)
        if array.dtype != theirs[key].dtype:
            raise DataError(source, full_name(name, key), "its dtype differs from the observations'")


def _checked(source: str | Path, name: str, values: Any) -> Array:
    if isinstance(values, Mapping):
        raise DataError(source, name, "it is a dict in a dict; Dict spaces are flat here, and so are their data")
    array = as_array(source, name, values)
    array = np.ascontiguousarray(array) if array.dtype == np.uint8 else float_array(source, name, array)
    if array.ndim < 2 or array.size == 0:
        raise DataError(source, name, f"it has shape {array.shape}, not (steps, ...) with at least one step")
    return array
