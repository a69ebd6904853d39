"""FlowRL (arXiv 2506.12811)."""

from sb3_flow.flow_rl.flow_rl import FlowRL
from sb3_flow.flow_rl.policies import FlowRLPolicy

__all__ = ["FlowRL", "FlowRLPolicy"]
