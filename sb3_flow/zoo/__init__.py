"""rl-zoo3 integration: every algorithm as an `--algo` (docs/rl_zoo3.md)."""

from sb3_flow.zoo.registration import register, register_algorithm

__all__ = ["register", "register_algorithm"]
