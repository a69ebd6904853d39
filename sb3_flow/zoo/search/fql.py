"""Optuna's search space for FQL."""

from optuna.distributions import CategoricalDistribution, FloatDistribution

from sb3_flow.zoo.search.base import Fixed, SearchSpace, Space, bc_coef_parameters

# The papers' alphas are between 3 and 30,000; those that the authors advise with a normalised Q between 0.03 and 10
ALPHA = FloatDistribution(0.3, 3e4, log=True)
NORMALIZED_ALPHA = FloatDistribution(0.01, 30.0, log=True)
CANDIDATES = (4, 8, 16, 32)


class FQLSearch(SearchSpace):
    """Alpha, on the scale that `normalize_q_loss` gives it; where the YAML chooses the best of n samples, n instead."""

    def own_parameters(self, fixed: Fixed) -> Space:
        if not fixed.is_none("best_of_n"):  # there is no one-step policy that alpha would concern
            return {"best_of_n": CategoricalDistribution(CANDIDATES)}
        normalized = fixed.text("normalize_q_loss", "False") == "True"
        return bc_coef_parameters(fixed, NORMALIZED_ALPHA if normalized else ALPHA)
