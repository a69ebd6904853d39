"""FQL (arXiv 2502.02538), and with action chunks QC-FQL and QC (arXiv 2507.07969)."""

from sb3_flow.fql.fql import FQL
from sb3_flow.fql.policies import FQLPolicy

__all__ = ["FQL", "FQLPolicy"]
