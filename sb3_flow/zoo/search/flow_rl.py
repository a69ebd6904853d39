"""Optuna's search space for FlowRL."""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sb3_flow.zoo.search.base import Fixed, SearchSpace, Space, bc_coef_parameters

LAMBDA = FloatDistribution(1e-2, 10.0, log=True)  # the authors' is 0.1
EXPECTILES = (0.7, 0.8, 0.9, 0.95)  # the authors' are 0.9, and 0.8 for HumanoidBench


class FlowRLSearch(SearchSpace):
    """Lambda, the expectile of V_beta, and how often the actor is updated."""

    def own_parameters(self, fixed: Fixed) -> Space:
        return {
            "expectile": CategoricalDistribution(EXPECTILES),
            "policy_delay": IntDistribution(1, 4),
            **bc_coef_parameters(fixed, LAMBDA),
        }
