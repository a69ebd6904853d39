"""SAC Flow's search space under the names of version 0.1; `sb3_flow.zoo.search` has those of all algorithms."""

from sb3_flow.zoo.search.base import FLOW_STEPS, GIVEN
from sb3_flow.zoo.search.sac_flow import SACFlowSearch

__all__ = ["FLOW_STEPS", "GIVEN", "convert_sac_flow_params", "sample_sac_flow_params", "search_space"]

_SEARCH = SACFlowSearch()
search_space = _SEARCH.space
sample_sac_flow_params = _SEARCH.sample
convert_sac_flow_params = _SEARCH.convert
