"""Moved to `sb3_flow.sac_flow.policies`, `sb3_flow.common.policies` and `sb3_flow.common.critics`."""

from sb3_flow._moved import moved

__getattr__ = moved(__name__, "sb3_flow.sac_flow.policies", "sb3_flow.common.policies", "sb3_flow.common.critics")
