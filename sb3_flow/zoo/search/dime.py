"""Optuna's search space for DIME."""

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sb3_flow.zoo.search.base import Fixed, SearchSpace, Space, convert_temperature, reaching

DIFFUSION_STEPS = (4, 8, 16, 24)


class DIMESearch(SearchSpace):
    """What decides the temperature, and the critics' learning rate and head start."""

    steps: ClassVar[tuple[str, tuple[int, ...]]] = ("diffusion_steps", DIFFUSION_STEPS)
    decides: ClassVar[Mapping[str, str]] = {
        **SearchSpace.decides,
        "initial_ent_coef": "ent_coef",
        "n_actions": "target_entropy",
    }

    def own_parameters(self, fixed: Fixed) -> Space:
        space: Space = {
            "qf_learning_rate": reaching(1e-4, 3e-3, fixed.number("qf_learning_rate")),
            "policy_delay": IntDistribution(1, 4),
        }
        if fixed.text("ent_coef", "auto").startswith("auto"):
            space["initial_ent_coef"] = FloatDistribution(1e-3, 1e-1, log=True)
            space["n_actions"] = CategoricalDistribution([fixed.n_actions])
            # Nats per number in a chunk
            space["target_entropy"] = FloatDistribution(-8.0, -1.0)
        return space

    def convert_own(self, params: dict[str, Any]) -> dict[str, Any]:
        return convert_temperature(params)
