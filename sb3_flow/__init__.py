"""Flow and diffusion policies for Stable-Baselines3, SAC Flow and what it is compared with."""

from sb3_flow.dime import DIME, DIMEPolicy
from sb3_flow.flow_rl import FlowRL, FlowRLPolicy
from sb3_flow.fql import FQL, FQLPolicy
from sb3_flow.qsm import QSM, QSMPolicy
from sb3_flow.reinflow import ReinFlow, ReinFlowPolicy
from sb3_flow.sac_flow import FlowGPolicy, FlowMLPPolicy, FlowPolicy, FlowTPolicy, SACFlow

__version__ = "0.2.0"

__all__ = [
    "DIME",
    "FQL",
    "QSM",
    "DIMEPolicy",
    "FQLPolicy",
    "FlowGPolicy",
    "FlowMLPPolicy",
    "FlowPolicy",
    "FlowRL",
    "FlowRLPolicy",
    "FlowTPolicy",
    "QSMPolicy",
    "ReinFlow",
    "ReinFlowPolicy",
    "SACFlow",
    "__version__",
]
