"""The papers' offline-to-online environments under their names; importing registers them (docs/environments.md)."""

from sb3_flow.envs.registration import register

__all__ = ["register"]
