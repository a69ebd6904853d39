"""SAC Flow (arXiv 2509.25756)."""

from sb3_flow.sac_flow.policies import FlowGPolicy, FlowMLPPolicy, FlowPolicy, FlowTPolicy
from sb3_flow.sac_flow.sac_flow import SACFlow

__all__ = ["FlowGPolicy", "FlowMLPPolicy", "FlowPolicy", "FlowTPolicy", "SACFlow"]
