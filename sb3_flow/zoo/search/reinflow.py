"""Optuna's search space for ReinFlow."""

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import FloatDistribution, IntDistribution

from sb3_flow.zoo.search.base import Fixed, SearchSpace, Space

NOISE_STD_RANGE = (0.1, 0.24)  # the policy's default


class ReinFlowSearch(SearchSpace):
    """What holds an update to the policy of the rollout, the learning rates, and how noisy the flow may be."""

    has_offline_ratio: ClassVar[bool] = False
    decides: ClassVar[Mapping[str, str]] = {**SearchSpace.decides, "highest_noise_std": "noise_std_range"}

    def own_parameters(self, fixed: Fixed) -> Space:
        low, _ = _noise_std_range(fixed.policy_kwargs)
        return {
            "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
            "vf_learning_rate": FloatDistribution(1e-4, 5e-3, log=True),
            "batch_size_pow": IntDistribution(6, 12),
            "n_epochs": IntDistribution(1, 20),
            "clip_range": FloatDistribution(3e-3, 1e-1, log=True),
            "ent_coef": FloatDistribution(1e-4, 1e-1, log=True),
            "highest_noise_std": FloatDistribution(1.2 * low, 4.0 * low),
        }

    def convert_own(self, params: dict[str, Any]) -> dict[str, Any]:
        if "highest_noise_std" in params:
            low, _ = _noise_std_range(params["policy_kwargs"])
            params["policy_kwargs"]["noise_std_range"] = (low, params.pop("highest_noise_std"))
        return params


def _noise_std_range(policy_kwargs: dict[str, Any]) -> tuple[float, float]:
    """The bounds of sigma without a search."""
    low, high = policy_kwargs.get("noise_std_range") or NOISE_STD_RANGE
    return low, high
