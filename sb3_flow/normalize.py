"""Moved to `sb3_flow.common.normalize`."""

from sb3_flow._moved import moved

__getattr__ = moved(__name__, "sb3_flow.common.normalize")
