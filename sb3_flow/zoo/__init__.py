"""rl-zoo3 integration: `--algo sac_flow`, `--algo fql`, `--algo dime` (docs/rl_zoo3.md)."""

from sb3_flow.zoo.registration import register

__all__ = ["register"]
