"""Optuna's search space for FQL."""

from optuna.distributions import CategoricalDistribution, FloatDistribution

from sb3_flow.zoo.search.base import Fixed, SearchSpace, Space, bc_coef_parameters

ALPHA = FloatDistribution(0.3, 3e4, log=True)  # the papers' are between 3 and 30,000, or below with normalize_q_loss
CANDIDATES = (4, 8, 16, 32)


class FQLSearch(SearchSpace):
    """Alpha and whether Q is normalised; where the YAML chooses the best of n samples, n in place of both."""

    def own_parameters(self, fixed: Fixed) -> Space:
        if not fixed.is_none("best_of_n"):  # there is no one-step policy that alpha would concern
            return {"best_of_n": CategoricalDistribution(CANDIDATES)}
        return {**bc_coef_parameters(fixed, ALPHA), "normalize_q_loss": CategoricalDistribution((False, True))}
