"""Optuna's search space for QSM."""

from typing import ClassVar

from optuna.distributions import CategoricalDistribution, FloatDistribution

from sb3_flow.zoo.search.base import Fixed, SearchSpace, Space, bc_coef_parameters

DIFFUSION_STEPS = (3, 5, 10, 20)
# The papers' are 1 to 120, depending on the scale of Q; a normalised gradient takes that away
Q_COEF = FloatDistribution(0.3, 300.0, log=True)
NORMALIZED_Q_COEF = FloatDistribution(0.3, 30.0, log=True)
ALPHA = FloatDistribution(0.3, 100.0, log=True)  # qam's are 1 to 30


class QSMSearch(SearchSpace):
    """M_q, on the scale that `normalize_gradient` gives it, and with offline data alpha."""

    steps: ClassVar[tuple[str, tuple[int, ...]]] = ("diffusion_steps", DIFFUSION_STEPS)

    def own_parameters(self, fixed: Fixed) -> Space:
        if fixed.is_none("normalize_gradient"):
            normalized = not fixed.is_offline and fixed.is_none("q_coef")
        else:
            normalized = fixed.text("normalize_gradient", "") == "True"
        space: Space = {
            "q_coef": NORMALIZED_Q_COEF if normalized else Q_COEF,
            # Its default hangs on whether a q_coef is given, as it is here
            "normalize_gradient": CategoricalDistribution([normalized]),
        }
        return space | bc_coef_parameters(fixed, ALPHA) if fixed.is_offline else space
