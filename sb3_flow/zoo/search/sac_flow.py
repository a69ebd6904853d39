"""Optuna's search space for SACFlow."""

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sb3_flow import SACFlow
from sb3_flow.common.critics import CRITIC_KINDS
from sb3_flow.common.flow import constant_entropy
from sb3_flow.sac_flow.policies import LOG_STD_RANGES, FlowTPolicy
from sb3_flow.zoo.search.base import (
    FLOW_STEPS,
    Fixed,
    SearchSpace,
    Space,
    bc_coef_parameters,
    convert_temperature,
    reaching,
)

FLOW_T = tuple(name for name, policy in SACFlow.policy_aliases.items() if issubclass(policy, FlowTPolicy))
WIDTHS = (32, 64, 128)  # of Flow-T
BETA = FloatDistribution(1.0, 1e5, log=True)
ALPHA = FloatDistribution(1e-2, 1.0, log=True)
SCALED_ALPHA = FloatDistribution(1e-3, 1e-1, log=True)  # of rewards that a categorical critic has scaled


class SACFlowSearch(SearchSpace):
    """Beta with offline data, what decides the noise, and the size of Flow-T."""

    in_policy_kwargs: ClassVar[tuple[str, ...]] = ("noise_std", "d_model", "n_layers")
    decides: ClassVar[Mapping[str, str]] = {
        **SearchSpace.decides,
        "initial_ent_coef": "ent_coef",
        "highest_log_std": "log_std_range",
        "n_actions": "target_entropy",
    }

    def own_parameters(self, fixed: Fixed) -> Space:
        space: Space = {
            "qf_learning_rate": reaching(1e-4, 3e-3, fixed.number("qf_learning_rate")),
            "policy_delay": IntDistribution(1, 4),
            **_entropy_parameters(fixed),
        }
        if fixed.text("policy", FLOW_T[0]) in FLOW_T:
            n_heads = fixed.policy_kwargs.get("n_heads", 1)
            widths = [width for width in WIDTHS if n_heads and width % n_heads == 0]
            if widths:  # else the YAML's d_model stays
                space["d_model"] = CategoricalDistribution(widths)
            space["n_layers"] = IntDistribution(1, 3)
        if fixed.is_offline:
            space |= bc_coef_parameters(fixed, BETA)
        return space

    def convert_own(self, params: dict[str, Any]) -> dict[str, Any]:
        if "highest_log_std" in params:
            lowest, _ = _log_std_range(params["policy_kwargs"])
            params["policy_kwargs"]["log_std_range"] = (lowest, params.pop("highest_log_std"))
        return convert_temperature(params)


def _entropy_parameters(fixed: Fixed) -> Space:
    """Alpha where it is learned; sigma itself where it is fixed, and its upper bound and the target entropy where it is
    learned.
    """
    space: Space = {}
    alpha_is_learned = fixed.is_none("ent_coef") or fixed.text("ent_coef", "").startswith("auto")
    sigma_is_learned = fixed.policy_kwargs.get("noise_std") is None
    if alpha_is_learned:
        kind = CRITIC_KINDS.get(fixed.policy_kwargs.get("critic", ""))
        space["initial_ent_coef"] = SCALED_ALPHA if kind is not None and kind.support is not None else ALPHA
    if not sigma_is_learned:
        return {**space, "noise_std": FloatDistribution(0.03, 0.5, log=True)}
    low, high = _log_std_range(fixed.policy_kwargs)
    lowest_bound = max(high - 1.0, (low + high) / 2)
    space["highest_log_std"] = FloatDistribution(lowest_bound, high)
    # With a fixed sigma, or for the whole path, "auto" alone knows what is in reach
    if alpha_is_learned and fixed.policy_kwargs.get("likelihood", "action") == "action":
        space["n_actions"] = CategoricalDistribution([fixed.n_actions])
        # Nats per number in a chunk; above what the lowest bound of sigma allows alpha would grow without bound
        rollout = fixed.policy_kwargs.get("rollout", "sde")
        highest = min(-0.25, constant_entropy(1, max(FLOW_STEPS), lowest_bound, rollout, "action"))
        space["target_entropy"] = FloatDistribution(highest - 1.25, highest)
    return space


def _log_std_range(policy_kwargs: dict[str, Any]) -> tuple[float, float]:
    """The bounds of the learned log sigma without a search."""
    low, high = policy_kwargs.get("log_std_range") or LOG_STD_RANGES[policy_kwargs.get("rollout", "sde")]
    return low, high
