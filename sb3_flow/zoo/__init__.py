"""rl-zoo3 integration: every algorithm as an `--algo` (docs/rl_zoo3.md)."""

from sb3_flow.zoo.registration import register

__all__ = ["register"]
