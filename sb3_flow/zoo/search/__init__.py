"""Optuna's search spaces for `rl_zoo3.train -optimize`, one module an algorithm."""

from sb3_flow.zoo.search.base import SearchSpace, Unsearched
from sb3_flow.zoo.search.dime import DIMESearch
from sb3_flow.zoo.search.flow_rl import FlowRLSearch
from sb3_flow.zoo.search.fql import FQLSearch
from sb3_flow.zoo.search.qsm import QSMSearch
from sb3_flow.zoo.search.reinflow import ReinFlowSearch
from sb3_flow.zoo.search.sac_flow import SACFlowSearch

__all__ = [
    "DIMESearch",
    "FQLSearch",
    "FlowRLSearch",
    "QSMSearch",
    "ReinFlowSearch",
    "SACFlowSearch",
    "SearchSpace",
    "Unsearched",
]
