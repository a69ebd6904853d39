"""ReinFlow (arXiv 2505.22094): flow policies that are cloned from data, fine-tuned on-policy."""

from sb3_flow.reinflow.policies import ReinFlowPolicy
from sb3_flow.reinflow.reinflow import ReinFlow

__all__ = ["ReinFlow", "ReinFlowPolicy"]
