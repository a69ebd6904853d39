"""SAC Flow for Stable-Baselines3: K-step flow-matching policies, trained off-policy and end to end."""

from sb3_flow.sac_flow import FlowGPolicy, FlowMLPPolicy, FlowPolicy, FlowTPolicy, SACFlow

__version__ = "0.1.0"

__all__ = ["FlowGPolicy", "FlowMLPPolicy", "FlowPolicy", "FlowTPolicy", "SACFlow", "__version__"]
