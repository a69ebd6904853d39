"""Weights and rates that are a number or a schedule, one for both phases of learning or one for each."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_flow.common.checks import require, require_number

Weight = float | Schedule
BCCoef = Weight | Sequence[Weight]
IN_YAML = "in YAML write 0.001 or !!float 1e-3"


class PhaseSchedules(NamedTuple):
    """One schedule for each phase."""

    offline: FloatSchedule
    online: FloatSchedule


def as_schedule(value: Weight) -> FloatSchedule:
    """SB3's schedule, which refuses NumPy's numbers."""
    return FloatSchedule(value if callable(value) else float(value))


def is_weight(value: Any) -> bool:
    """Whether a value is a number or a schedule."""
    return callable(value) or (isinstance(value, Real) and not isinstance(value, bool))


def checked_schedule(name: str, value: Weight) -> FloatSchedule:
    """The schedule of an argument that is never negative.

    :param name: of the argument
    :param value: a number, or a schedule of the progress remaining, which is tried at five of them
    :raises ValueError: where it is no finite number >= 0
    """
    schedule = as_schedule(value)
    for progress in (1.0, 0.75, 0.5, 0.25, 0.0):
        value_at(name, schedule, progress)
    return schedule


def is_ever_positive(schedule: Schedule) -> bool:
    """Whether a weight is more than 0 at the start, half way or the end."""
    return any(schedule(progress) > 0 for progress in (1.0, 0.5, 0.0))


def value_at(name: str, schedule: Schedule, progress: float) -> float:
    """What a schedule of a weight or a rate says.

    :param name: of the argument that it was
    :param progress: that remains
    :raises ValueError: for what is no finite number >= 0
    """
    value = float(schedule(progress))
    require_number(name, value, 0, math.inf, "a number >= 0, at every progress if it is a schedule")
    return value


def phase_schedules(bc_coef: BCCoef | None) -> PhaseSchedules:
    """The schedules of a weight in the two phases.

    :param bc_coef: a number >= 0, a schedule of the progress remaining, or two of these, offline and online
    :raises ValueError: for anything else, None too: what that means is an algorithm's own
    """
    allowed = f"a number >= 0, a schedule, or two of these, offline and online; {IN_YAML}, two as [30.0, 1.0]"
    weights: list[Any] = [bc_coef, bc_coef]
    if isinstance(bc_coef, Sequence):
        two = not isinstance(bc_coef, str) and len(bc_coef) == 2
        require(two, "bc_coef", bc_coef, allowed)
        weights = list(bc_coef)
    require(all(map(is_weight, weights)), "bc_coef", bc_coef, allowed)
    return PhaseSchedules(*(checked_schedule("bc_coef", weight) for weight in weights))
