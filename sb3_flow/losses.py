"""SAC Flow's losses (arXiv 2509.25756, Eq. 3, 10-12, 24). Pure: tensors in, named tensors out.

Shapes: B batch, N critics, D action dimension.
"""

from typing import NamedTuple

import torch as th

from sb3_flow.flow import Path

# An action this close to its bound counts as saturated
SATURATED = 0.99


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


class ActorLoss(NamedTuple):
    """Result of `actor_loss`; everything but the loss is detached."""

    loss: th.Tensor  # ()
    log_prob: th.Tensor  # (B,)
    path_log_prob: th.Tensor  # (B,)
    bc_loss: th.Tensor  # (), unweighted
    log_std: th.Tensor  # (), mean over the path
    saturated: th.Tensor  # (), share of the action's numbers close to their bounds
    matching_loss: th.Tensor | None = None  # (), part of the loss while learning offline


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
    return CriticLoss(0.5 * _mean((q - target.q).square(), valid) * len(q), q.detach().mean(), target)


def actor_loss(
    path: Path,
    q: th.Tensor,
    ent_coef: th.Tensor,
    actions: th.Tensor,
    replay_actions: th.Tensor,
    bc_coef: th.Tensor | float,
    in_episode: th.Tensor | None = None,
) -> ActorLoss:
    """`alpha log pi - Q + beta mean((a - a_replay)^2)` (Eq. 11; Eq. 12 with beta > 0).

    :param path: the sampled paths
    :param q: (B,) Q of their actions, already reduced over critics
    :param ent_coef: () alpha
    :param actions: (B, D) their actions, in [-1, 1]
    :param replay_actions: (B, D) the actions that were taken in the same states
    :param bc_coef: beta; the mean runs over batch and all D
    :param in_episode: (B, D) 0 for replayed actions that were never taken; None: 1 everywhere
    """
    bc_loss = _mean((actions - replay_actions).square(), in_episode)
    loss = (ent_coef * path.log_prob - q).mean() + bc_coef * bc_loss
    saturated = (actions.detach().abs() > SATURATED).to(q.dtype).mean()
    return ActorLoss(
        loss, path.log_prob.detach(), path.path_log_prob.detach(), bc_loss.detach(), path.log_std.detach(), saturated
    )


def add_matching(actor: ActorLoss, error: th.Tensor, in_episode: th.Tensor | None = None) -> ActorLoss:
    """The actor's loss of the offline phase: Eq. 12 plus the flow-matching loss (Eq. 3).

    :param actor: result of `actor_loss`
    :param error: (B, D) of `sb3_flow.flow.matching_error`
    :param in_episode: (B, D) 0 for actions that were never taken; None: 1 everywhere
    """
    matching_loss = _mean(error.square(), in_episode)
    return actor._replace(loss=actor.loss + matching_loss, matching_loss=matching_loss.detach())


def _mean(values: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
    """Mean of the values where the mask, which broadcasts to them, is 1."""
    if mask is None:
        return values.mean()
    mask = mask.expand_as(values)
    return (values * mask).sum() / mask.sum().clamp_min(1)


def ent_coef_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float) -> th.Tensor:
    """Temperature loss `-log alpha (log pi + H)` (Eq. 24, in SB3's log form).

    :param log_ent_coef: (1,) log alpha
    :param log_prob: (B,)
    :param target_entropy: H in nats, of what `log_prob` is the density of
    """
    return -(log_ent_coef * (log_prob + target_entropy).detach()).mean()
