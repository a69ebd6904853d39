"""DIME: maximum-entropy reinforcement learning with a diffusion policy (arXiv 2502.02316)."""

from sb3_flow.dime.dime import DIME
from sb3_flow.dime.policies import DIMEPolicy

__all__ = ["DIME", "DIMEPolicy"]
