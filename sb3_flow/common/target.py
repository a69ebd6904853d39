"""Target nets: Polyak averages of the weights of others."""

import torch as th
from torch import nn

from sb3_flow.common.guard import Statistics, set_where


class Follower:
    """Moves a target net towards the net that it is a copy of.

    :param net: the net that is trained
    :param target: of the same layers; its weights follow, its running statistics are the net's
    """

    def __init__(self, net: nn.Module, target: nn.Module):
        self._weights = list(zip(target.parameters(), net.parameters(), strict=True))
        self._statistics, self._target_statistics = Statistics(net), Statistics(target)

    @th.no_grad()
    def step(self, tau: float, stopped: th.Tensor) -> None:
        """One step.

        :param tau: share of the way, in [0, 1]
        :param stopped: (), whether nothing may change
        """
        # SB3's `polyak_update`, to the last bit, but for the shares 1 and 0 where nothing may change
        keep, move = th.where(stopped, 1.0, 1 - tau), th.where(stopped, 0.0, tau)
        for kept, online in self._weights:
            kept.mul_(keep).addcmul_(online, move)
        set_where(~stopped, self._target_statistics.tensors, self._statistics.tensors)
