"""FQL's losses (arXiv 2502.02538; agents/fql.py), for chunks those of QC (arXiv 2507.07969; agents/acfql.py).

Pure: tensors in, named tensors out. Shapes: B batch, N critics, D numbers in an action chunk.
"""

from typing import NamedTuple

import torch as th

from sb3_flow.common.critics import CriticLoss
from sb3_flow.common.updates import saturated_share


class ActorLoss(NamedTuple):
    """Result of `matching_loss` and `actor_loss`; everything but the loss is detached."""

    loss: th.Tensor  # ()
    matching_loss: th.Tensor  # (), of the behaviour flow
    # Of the one-step policy, which best-of-n has not
    bc_loss: th.Tensor | None = None  # (), distillation, unweighted
    q: th.Tensor | None = None  # (), mean Q of its actions
    saturated: th.Tensor | None = None  # (), share of the action's numbers close to their bounds

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        named = {"matching_loss": self.matching_loss, "bc_loss": self.bc_loss, "q": self.q}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        named = {"actor_loss": self.loss, "saturated": self.saturated}
        more = {"bc_loss": self.bc_loss, "matching_loss": self.matching_loss}
        return {name: value for name, value in (named | more).items() if value is not None}


def critic_loss(
    q: th.Tensor,
    rewards: th.Tensor,
    dones: th.Tensor,
    discounts: th.Tensor | float,
    next_q: th.Tensor,
    valid: th.Tensor | None = None,
) -> CriticLoss:
    """Mean squared TD error to `r + gamma^m (1 - done) Q'`, over critics and batch.

    :param q: (N, B) Q of the replayed actions
    :param rewards: (B,) (n-step) rewards
    :param dones: (B,) 1 where there is nothing to bootstrap from
    :param discounts: gamma^m, (B,) or a number
    :param next_q: (B,) target critics' verdict on (s', a')
    :param valid: (B,) 0 for what has no target; it counts as an error of 0. None: 1 everywhere
    """
    target_q = (rewards + discounts * (1 - dones) * next_q).detach()
    return CriticLoss(_masked((q - target_q).square(), valid), q.detach().mean(), next_q.detach(), target_q)


def matching_loss(error: th.Tensor, in_episode: th.Tensor | None = None) -> ActorLoss:
    """The behaviour flow's loss: `||v(s, x_t, t) - (a - x_0)||^2`, mean over batch and dimensions.

    :param error: (B, D) of `sb3_flow.common.flow.matching_error`
    :param in_episode: (B, D) 0 for actions that were never taken, which count as an error of 0; None: 1 everywhere
    """
    loss = _masked(error.square(), in_episode)
    return ActorLoss(loss, loss.detach())


def actor_loss(
    matching: ActorLoss,
    actions: th.Tensor,
    flow_actions: th.Tensor,
    q: th.Tensor,
    bc_coef: th.Tensor | float,
    normalize_q_loss: bool = False,
) -> ActorLoss:
    """`L_matching + alpha ||mu(s, z) - F(s, z)||^2 - Q(s, clip mu(s, z))`.

    :param matching: result of `matching_loss`
    :param actions: (B, D) of the one-step policy mu, not clipped
    :param flow_actions: (B, D) of the behaviour flow F from the same noise, clipped, without gradient
    :param q: (B,) the critics' verdict on the clipped actions of mu
    :param bc_coef: alpha; the mean runs over batch and all D
    :param normalize_q_loss: divide the last term by the batch's mean |Q|
    """
    bc_loss = (actions - flow_actions.detach()).square().mean()
    q_loss = -q.mean()
    if normalize_q_loss:
        q_loss = q_loss / q.detach().abs().mean()
    loss = matching.loss + bc_coef * bc_loss + q_loss
    return ActorLoss(loss, matching.matching_loss, bc_loss.detach(), q.detach().mean(), saturated_share(actions))


def _masked(errors: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
    """Mean over all, masked ones counting as 0: as in the authors' code, not divided by the number that count."""
    return (errors if mask is None else errors * mask).mean()
