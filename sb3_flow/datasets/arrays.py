"""Checks of single arrays, block by block: no check needs memory of the size of what it checks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_flow.datasets.errors import DataError

Array = NDArray[Any]

BOUNDS = ("action_low", "action_high")  # of the space that the actions were scaled from, where somebody says so
STEP_REWARD = -1.0  # of demonstrations, which say only where the task is solved
CLIP_TOLERANCE = 1e-3  # actions further outside [-1, 1] are another scale, not rounding
SCALE = "scale them by the bounds of the action space: 2 * (actions - low) / (high - low) - 1"
BLOCK_BYTES = 1 << 20  # stays in the processor's cache between two passes


def check_dtype(source: str | Path, key: str, dtype: np.dtype[Any]) -> None:
    """Refuse everything but numbers.

    :raises DataError: for objects, which only unpickling could read, and for text, dates and records
    """
    if dtype.hasobject:
        problem = "it holds pickled objects; unpickling runs code from the file, so it is refused"
        by_key = f"; of a dict give each array, as {key}/<its key>" if key.endswith("observations") else ""
        raise DataError(source, key, f"{problem}{by_key}")
    if dtype.kind not in "biuf":
        raise DataError(source, key, f"it has dtype {dtype}, not numbers")


def check_shape(source: str | Path, key: str, array: Array, shape: tuple[int | None, ...]) -> None:
    """Refuse another shape.

    :param shape: what is allowed; None stands for any length
    :raises DataError: naming both shapes
    """
    if len(array.shape) != len(shape) or any(b is not None and a != b for a, b in zip(array.shape, shape, strict=True)):
        lengths = ["any" if n is None else str(n) for n in shape]
        allowed = f"({lengths[0]},)" if len(lengths) == 1 else f"({', '.join(lengths)})"
        raise DataError(source, key, f"it has shape {array.shape}, not {allowed}")


def blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Consecutive rows of about BLOCK_BYTES, with the number of the first."""
    rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def check_finite(source: str | Path, key: str, array: Array) -> None:
    """Refuse NaN and infinities.

    :raises DataError: naming the first row with one
    """
    if array.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        for start, block in blocks(array):
            # A sum is finite only if every element is, and needs no array; an overflowing sum is looked at again
            if not np.isfinite(block.sum()):
                bad = ~np.isfinite(block).reshape(len(block), -1).all(axis=1)
                if bad.any():
                    raise DataError(source, key, "it is NaN or infinite", start + int(bad.argmax()))


def as_array(source: str | Path, key: str, values: Any) -> Array:
    """An array of whatever NumPy makes one of, without a copy of arrays.

    :raises DataError: for rows of different lengths
    """
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(source, key, "its rows have different lengths") from error


def float_array(source: str | Path, key: str, values: Any) -> NDArray[np.float32]:
    """Finite float32 numbers in C order, without a copy where they are that already.

    :raises DataError: for other things than numbers, NaN, infinities, and numbers beyond float32
    """
    array = as_array(source, key, values)
    check_dtype(source, key, array.dtype)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    check_finite(source, key, array)
    return array


def flag_array(source: str | Path, key: str, values: Any, rows: int) -> NDArray[np.bool_]:
    """One boolean a row, from any dtype.

    :param rows: how many
    :raises DataError: for other values than 0 and 1
    """
    array = as_array(source, key, values)
    check_dtype(source, key, array.dtype)
    check_shape(source, key, array, (rows,))
    flags: NDArray[np.bool_] = array == 1
    bad = ~(flags | (array == 0))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(source, key, f"it is {array[row]}, not 0 or 1", row)
    return flags


def bounded_actions(
    source: str | Path, key: str, values: Any, limit: float = 1.0, remedy: str = SCALE
) -> NDArray[np.float32]:
    """Finite float32 actions within the limit; copied only if some lie outside it.

    :param limit: at most 1; actions are clipped to +-limit
    :param remedy: for actions that lie outside
    :raises DataError: for actions more than CLIP_TOLERANCE outside [-1, 1]
    """
    actions = float_array(source, key, values)
    clip = False
    for start, block in blocks(actions):
        largest = max(-float(block.min(initial=0.0)), float(block.max(initial=0.0)))
        if largest > 1 + CLIP_TOLERANCE:
            outside = (np.abs(block) > 1 + CLIP_TOLERANCE).reshape(len(block), -1).any(axis=1)
            row = int(outside.argmax())
            raise DataError(
                source,
                key,
                "actions must be in [-1, 1], the range that policies act in, but one is "
                f"{np.abs(block[row]).max():g}; {remedy}",
                start + row,
            )
        clip |= largest > limit
    return np.clip(actions, np.float32(-limit), np.float32(limit)) if clip else actions


def jumps(after: Array, observations: Array) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Whether rows begin elsewhere than the step before led, block by block, with the number of the first step."""
    for start, block in blocks(after[:-1]):
        following = observations[start + 1 : start + 1 + len(block)]
        yield start, (block != following).reshape(len(block), -1).any(axis=1)


def scaled(raw: Array, bounds: "spaces.Box[Any]") -> NDArray[np.float64]:
    """Actions in the units of a `scalable` space, whose bounds become -1 and 1, as SB3 does."""
    low, high = bounds.low.astype(np.float64), bounds.high.astype(np.float64)
    return np.asarray(2 * (raw - low) / (high - low) - 1)


def action_bounds(source: str | Path, bounds: Mapping[str, Any], shape: tuple[int, ...]) -> "spaces.Box[Any] | None":
    """The space by whose bounds actions were scaled to [-1, 1], if the data say so.

    :param bounds: those of `BOUNDS` that there are
    :param shape: of an action
    :raises DataError: for one without the other, and for what are no bounds
    """
    if not bounds:
        return None
    for key in BOUNDS:
        if key not in bounds:
            raise DataError(source, key, f"it is missing, but there is {', '.join(bounds)}; give both, or neither")
    low, high = (np.asarray(bounds[key]) for key in BOUNDS)
    for key, array in zip(BOUNDS, (low, high), strict=True):
        check_dtype(source, key, array.dtype)
        check_shape(source, key, array, shape)
        check_finite(source, key, array[None])
    return scalable(source, spaces.Box(low.astype(np.float32), high.astype(np.float32)))


def scalable(source: str | Path, space: spaces.Space[Any]) -> "spaces.Box[Any]":
    """An action space by whose bounds actions can be scaled.

    :raises DataError: for another one
    """
    if not isinstance(space, spaces.Box):
        raise DataError(source, "action_space", f"it is {space}, but a flow generates numbers")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        width = high - low
    if not (np.isfinite(width).all() and (width > 0).all()):
        problem = (
            f"it is {space}, by whose bounds actions cannot be scaled to [-1, 1]: they must be finite, and low below "
            "high. Give it the bounds that policies act in, or scale them yourself"
        )
        raise DataError(source, "action_space", problem)
    return space


def scaled_actions(
    source: str | Path, key: str, raw: NDArray[np.float32], bounds: "spaces.Box[Any]", whose: str, remedy: str
) -> NDArray[np.float32]:
    """Actions in [-1, 1] of those in the units of their space.

    :param raw: (N, ...) of the space's shape
    :param bounds: a `scalable` space, whose bounds become -1 and 1
    :param whose: space it is
    :param remedy: for actions that lie outside
    :raises DataError: for those
    """
    outside = f"it was recorded outside of {whose}, {bounds}, whose bounds become -1 and 1: {remedy}"
    return bounded_actions(source, key, scaled(raw, bounds), remedy=outside)
