"""Weights that are a number or a schedule, one for both phases of learning or one for each."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_flow.common.checks import require

Weight = float | Schedule
BCCoef = Weight | Sequence[Weight]


class PhaseSchedules(NamedTuple):
    """One schedule for each phase."""

    offline: FloatSchedule
    online: FloatSchedule


def as_schedule(value: Weight) -> FloatSchedule:
    """SB3's schedule, which refuses NumPy's numbers."""
    return FloatSchedule(value if callable(value) else float(value))


def phase_schedules(bc_coef: BCCoef | None) -> PhaseSchedules:
    """The schedules of a weight in the two phases.

    :param bc_coef: a number >= 0, a schedule of the progress remaining, or two of these, offline and online
    :raises ValueError: for anything else, None too: what that means is an algorithm's own
    """
    allowed = "a number >= 0, a schedule, or two of these, offline and online; in YAML write 0.001 or !!float 1e-3"
    weights: list[Any] = [bc_coef, bc_coef]
    if isinstance(bc_coef, Sequence):
        two = not isinstance(bc_coef, str) and len(bc_coef) == 2
        require(two, "bc_coef", bc_coef, allowed)
        weights = list(bc_coef)
    schedules = []
    for weight in weights:
        require(callable(weight) or isinstance(weight, Real), "bc_coef", bc_coef, allowed)
        schedule = as_schedule(weight)
        for progress in (1.0, 0.75, 0.5, 0.25, 0.0):
            value = schedule(progress)
            at_any = "a number >= 0, at every progress if it is a schedule"
            require(0 <= value < math.inf, "bc_coef", value, at_any)
        schedules.append(schedule)
    return PhaseSchedules(*schedules)
