"""The loss of a net that does nothing but flow matching: a behaviour flow, a policy that clones data."""

from typing import NamedTuple

import torch as th

from sb3_flow.common.updates import masked_mean


class MatchingLoss(NamedTuple):
    """Result of `matching_loss`."""

    loss: th.Tensor  # ()

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {"matching_loss": self.loss}


def matching_loss(error: th.Tensor, in_episode: th.Tensor | None = None) -> MatchingLoss:
    """Flow matching (arXiv 2509.25756, Eq. 3): mean square of the velocity's error.

    :param error: (B, D) of `sb3_flow.common.flow.matching_error`
    :param in_episode: (B, D) 0 for actions that were never taken; None: 1 everywhere
    """
    return MatchingLoss(masked_mean(error.square(), in_episode))
