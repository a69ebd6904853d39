"""SAC Flow's losses (arXiv 2509.25756, Eq. 3, 10-12). Pure: tensors in, named tensors out.

Eq. 24, the temperature's, is in `sb3_flow.common.temperature`: others have it too.

Shapes: B batch, N critics, D action dimension.
"""

from typing import NamedTuple

import torch as th

from sb3_flow.common.categorical import Support, cross_entropy
from sb3_flow.common.flow import Path
from sb3_flow.common.updates import masked_mean, saturated_share, share_beyond


class Target(NamedTuple):
    """Result of `td_target`, without gradient: the target, and what it was made of."""

    q: th.Tensor  # (B,)
    next_q: th.Tensor  # (B,)
    next_log_prob: th.Tensor  # (B,)


class CriticLoss(NamedTuple):
    """Result of `critic_loss`."""

    loss: th.Tensor  # (), summed over critics
    q: th.Tensor  # (), mean Q of the replayed actions
    target: Target
    clipped: th.Tensor | None = None  # (), share of targets beyond the support of categorical critics

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"next_log_prob": self.target.next_log_prob, "next_q": self.target.next_q, "target_q": self.target.q}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        logged = {"critic_loss": self.loss, "q_mean": self.q}
        return logged if self.clipped is None else {**logged, "clipped_targets": self.clipped}


class ActorLoss(NamedTuple):
    """Result of `actor_loss`; everything but the loss is detached."""

    loss: th.Tensor  # ()
    log_prob: th.Tensor  # (B,)
    path_log_prob: th.Tensor  # (B,)
    bc_loss: th.Tensor  # (), unweighted
    log_std: th.Tensor  # (), mean over the path
    saturated: th.Tensor  # (), share of the action's numbers close to their bounds
    matching_loss: th.Tensor | None = None  # (), part of the loss while learning offline

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"log_prob": self.log_prob}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        logged = {
            "actor_loss": self.loss,
            "bc_loss": self.bc_loss,
            "entropy": -self.log_prob,
            "path_entropy": -self.path_log_prob,
            "log_std": self.log_std,
            "saturated": self.saturated,
        }
        return logged if self.matching_loss is None else {**logged, "matching_loss": self.matching_loss}


def td_target(
    rewards: th.Tensor,
    dones: th.Tensor,
    discounts: th.Tensor | float,
    next_q: th.Tensor,
    next_log_prob: th.Tensor,
    ent_coef: th.Tensor,
) -> Target:
    """Soft TD target `r + gamma^m (1 - done) (Q' - alpha log pi')` (Eq. 10), without gradient.

    :param rewards: (B,) (n-step) rewards
    :param dones: (B,) 1 where the episode terminated
    :param discounts: gamma^m, (B,) or a number
    :param next_q: (B,) critics' verdict on (s', a'), already reduced over critics
    :param next_log_prob: (B,) log-density of a', or of the path that led to it
    :param ent_coef: () alpha
    """
    q = rewards + discounts * (1 - dones) * (next_q - ent_coef * next_log_prob)
    return Target(q.detach(), next_q.detach(), next_log_prob.detach())


def critic_loss(q: th.Tensor, target: Target, valid: th.Tensor | None = None) -> CriticLoss:
    """Half the mean squared TD error, summed over critics (Eq. 10).

    :param q: (N, B)
    :param target: result of `td_target`
    :param valid: (B,) 0 for what has no target; None: 1 everywhere
    """
    return CriticLoss(0.5 * masked_mean((q - target.q).square(), valid) * len(q), q.detach().mean(), target)


def categorical_critic_loss(
    logits: th.Tensor,
    q: th.Tensor,
    target_probs: th.Tensor,
    target: Target,
    support: Support,
    valid: th.Tensor | None = None,
) -> CriticLoss:
    """Cross-entropy to the target distribution, summed over critics: what a categorical critic has for Eq. 10.

    :param logits: (N, B, J)
    :param q: (N, B) their means
    :param target_probs: (B, J), without gradient
    :param target: result of `td_target`, the mean of the target distribution as long as that is within the support
    :param support: of the distributions
    :param valid: (B,) 0 for what has no target; None: 1 everywhere
    """
    loss = masked_mean(cross_entropy(logits, target_probs), valid) * len(logits)
    return CriticLoss(loss, q.detach().mean(), target, share_beyond(target.q, support.bound))


def actor_loss(
    path: Path,
    q: th.Tensor,
    ent_coef: th.Tensor,
    actions: th.Tensor,
    near: th.Tensor,
    bc_coef: th.Tensor | float,
    in_episode: th.Tensor | None = None,
) -> ActorLoss:
    """`alpha log pi - Q + beta mean((a - a_near)^2)` (Eq. 11; Eq. 12 with beta > 0 and the replayed actions).

    :param path: the sampled paths
    :param q: (B,) Q of their actions, already reduced over critics
    :param ent_coef: () alpha
    :param actions: (B, D) their actions, in [-1, 1]
    :param near: (B, D) what they are held to in the same states: the replayed actions, or those of the behaviour flow
    :param bc_coef: beta; the mean runs over batch and all D
    :param in_episode: (B, D) 0 for replayed actions that were never taken; None: 1 everywhere
    """
    bc_loss = masked_mean((actions - near).square(), in_episode)
    loss = (ent_coef * path.log_prob - q).mean() + bc_coef * bc_loss
    return ActorLoss(
        loss,
        path.log_prob.detach(),
        path.path_log_prob.detach(),
        bc_loss.detach(),
        path.log_std.detach(),
        saturated_share(actions),
    )


def add_matching(actor: ActorLoss, error: th.Tensor, in_episode: th.Tensor | None = None) -> ActorLoss:
    """The actor's loss of the offline phase: Eq. 12 plus the flow-matching loss (Eq. 3).

    :param actor: result of `actor_loss`
    :param error: (B, D) of `sb3_flow.common.flow.matching_error`
    :param in_episode: (B, D) 0 for actions that were never taken; None: 1 everywhere
    """
    matching_loss = masked_mean(error.square(), in_episode)
    return actor._replace(loss=actor.loss + matching_loss, matching_loss=matching_loss.detach())
