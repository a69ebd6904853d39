"""Flow and diffusion policies for Stable-Baselines3, trained off-policy: SAC Flow, FQL, Q-chunking and DIME."""

from sb3_flow.dime import DIME, DIMEPolicy
from sb3_flow.fql import FQL, FQLPolicy
from sb3_flow.sac_flow import FlowGPolicy, FlowMLPPolicy, FlowPolicy, FlowTPolicy, SACFlow

__version__ = "0.2.0.dev0"

__all__ = [
    "DIME",
    "FQL",
    "DIMEPolicy",
    "FQLPolicy",
    "FlowGPolicy",
    "FlowMLPPolicy",
    "FlowPolicy",
    "FlowTPolicy",
    "SACFlow",
    "__version__",
]
