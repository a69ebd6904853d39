"""DIME's losses (arXiv 2502.02316; diffusion/dime.py of the authors' code). Pure: tensors in, named tensors out.

The temperature's is in `sb3_flow.common.temperature`: others have it too. Shapes: B batch, N critics, J atoms.
"""

from typing import NamedTuple

import torch as th
from torch.nn.functional import log_softmax

from sb3_flow.common.categorical import Support, cross_entropy
from sb3_flow.common.ou import PathCost
from sb3_flow.common.updates import masked_mean, saturated_share, share_beyond

NEG_ENTROPY_COEF = 0.005  # of the critics' distributions: keeps them from collapsing


class CriticLoss(NamedTuple):
    """Result of `critic_loss`."""

    loss: th.Tensor  # (), summed over critics
    q: th.Tensor  # (), mean Q of the replayed actions
    next_cost: th.Tensor  # (B,)
    next_q: th.Tensor  # (B,)
    target_q: th.Tensor  # (B,)
    clipped: th.Tensor  # (), share of targets beyond the support

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"next_cost": self.next_cost, "next_q": self.next_q, "target_q": self.target_q}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {"critic_loss": self.loss, "q_mean": self.q, "clipped_targets": self.clipped}


class ActorLoss(NamedTuple):
    """Result of `actor_loss`; everything but the loss is detached."""

    loss: th.Tensor  # ()
    running_cost: th.Tensor  # (B,)
    cost: th.Tensor  # (B,)
    saturated: th.Tensor  # (), share of the action's numbers close to their bounds

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"cost": self.cost}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {
            "actor_loss": self.loss,
            "running_cost": self.running_cost,
            "path_cost": self.cost,
            "saturated": self.saturated,
        }


def td_target(
    rewards: th.Tensor, bootstrap: th.Tensor, next_q: th.Tensor, next_cost: th.Tensor, ent_coef: th.Tensor
) -> th.Tensor:
    """`r + gamma^m (1 - done) (Q' - alpha c')`, (B,), without gradient: the path's cost is what log pi is in SAC.

    :param rewards: (B,) (n-step) rewards
    :param bootstrap: (B,) gamma^m (1 - done)
    :param next_q: (B,) critics' verdict on (s', a')
    :param next_cost: (B,) total cost of the path to a'
    :param ent_coef: () alpha
    """
    return (rewards + bootstrap * (next_q - ent_coef * next_cost)).detach()


def critic_loss(
    logits: th.Tensor,
    q: th.Tensor,
    target_probs: th.Tensor,
    target_q: th.Tensor,
    next_q: th.Tensor,
    next_cost: th.Tensor,
    support: Support,
    valid: th.Tensor | None = None,
) -> CriticLoss:
    """`-sum_j m_j log p_j + 0.005 sum_j p_j log p_j`, summed over critics.

    :param logits: (N, B, J), p = softmax
    :param q: (N, B) their means
    :param target_probs: (B, J) m, without gradient
    :param target_q: (B,) result of `td_target`, the mean of m within the support
    :param next_q: (B,) what it was made of
    :param next_cost: (B,) and this
    :param support: of the distributions
    :param valid: (B,) 0 for what has no target; None: 1 everywhere
    """
    log_probs = log_softmax(logits, dim=-1)
    neg_entropy = (log_probs.exp() * log_probs).sum(dim=-1)  # (N, B)
    loss = cross_entropy(logits, target_probs) + NEG_ENTROPY_COEF * neg_entropy
    return CriticLoss(
        masked_mean(loss, valid) * len(loss),
        q.detach().mean(),
        next_cost.detach(),
        next_q.detach(),
        target_q.detach(),
        share_beyond(target_q, support.bound),
    )


def actor_loss(cost: PathCost, q: th.Tensor, ent_coef: th.Tensor, actions: th.Tensor) -> ActorLoss:
    """`mean(alpha c - Q)`, with c the total cost of the path.

    :param cost: of the sampled paths
    :param q: (B,) Q of their actions, already reduced over critics
    :param ent_coef: () alpha
    :param actions: (B, D) their actions, in [-1, 1]
    """
    loss = (ent_coef * cost.total - q).mean()
    return ActorLoss(loss, cost.running.detach(), cost.total.detach(), saturated_share(actions))
