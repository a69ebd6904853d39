"""Q-score matching (arXiv 2312.11752)."""

from sb3_flow.qsm.policies import QSMPolicy
from sb3_flow.qsm.qsm import QSM

__all__ = ["QSM", "QSMPolicy"]
