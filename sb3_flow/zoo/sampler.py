"""SAC Flow's search space under the names of 0.1, until 0.3; `sb3_flow.zoo.search` has those of all algorithms."""

import warnings

from sb3_flow.zoo.search.base import FLOW_STEPS, GIVEN
from sb3_flow.zoo.search.sac_flow import SACFlowSearch

__all__ = ["FLOW_STEPS", "GIVEN", "convert_sac_flow_params", "sample_sac_flow_params", "search_space"]

warnings.warn(f"{__name__} has moved: use sb3_flow.zoo.search.SACFlowSearch", category=DeprecationWarning, stacklevel=2)
_SEARCH = SACFlowSearch()
search_space = _SEARCH.space
sample_sac_flow_params = _SEARCH.sample
convert_sac_flow_params = _SEARCH.convert
