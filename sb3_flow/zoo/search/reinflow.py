"""Optuna's search space for ReinFlow."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import FloatDistribution, IntDistribution

from sb3_flow.zoo.search.base import Fixed, SearchSpace, Space, reaching

NOISE_STD_RANGE = (0.1, 0.24)  # the policy's default


class ReinFlowSearch(SearchSpace):
    """What holds an update to the policy of the rollout, the learning rates, and how noisy the flow may be."""

    has_offline_ratio: ClassVar[bool] = False
    decides: ClassVar[Mapping[str, str]] = {**SearchSpace.decides, "highest_noise_std": "noise_std_range"}

    def own_parameters(self, fixed: Fixed) -> Space:
        low, _ = _noise_std_range(fixed.policy_kwargs)
        space: Space = {
            "learning_rate": reaching(1e-5, 1e-3, fixed.number("learning_rate")),
            "vf_learning_rate": reaching(1e-4, 5e-3, fixed.number("vf_learning_rate")),
            "batch_size_pow": _batch_size_pow(fixed.number("batch_size") or 256),
            "n_epochs": IntDistribution(1, 20),
            "clip_range": reaching(3e-3, 1e-1, fixed.number("clip_range")),
            "highest_noise_std": FloatDistribution(1.2 * low, 4.0 * low),
        }
        # Where the YAML has none, data say what to do, and exploration is no aim of its own
        if fixed.number("ent_coef") != 0:
            space["ent_coef"] = reaching(1e-4, 1e-1, fixed.number("ent_coef"))
        return space

    def convert_own(self, params: dict[str, Any]) -> dict[str, Any]:
        if "highest_noise_std" in params:
            low, _ = _noise_std_range(params["policy_kwargs"])
            params["policy_kwargs"]["noise_std_range"] = (low, params.pop("highest_noise_std"))
        return params


def _batch_size_pow(batch_size: float) -> IntDistribution:
    """Powers of 2 for batches: small ones, or some around a large one, which is a good part of a rollout."""
    if batch_size <= 2**12:
        return IntDistribution(6, 12)
    nearest = round(math.log2(batch_size))
    return IntDistribution(nearest - 2, nearest + 2)


def _noise_std_range(policy_kwargs: dict[str, Any]) -> tuple[float, float]:
    """The bounds of sigma without a search."""
    low, high = policy_kwargs.get("noise_std_range") or NOISE_STD_RANGE
    return low, high
