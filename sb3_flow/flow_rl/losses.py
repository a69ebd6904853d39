"""FlowRL's losses (arXiv 2506.12811; model/algo.py of the authors' code). Pure: tensors in, named tensors out.

Shapes: B batch, N critics, D numbers in an action chunk.
"""

from typing import NamedTuple

import torch as th

from sb3_flow.common.updates import masked_mean, saturated_share

# Bounds of f, the weights without lambda
WEIGHT_RANGE = (0.01, 10.0)


class CriticLoss(NamedTuple):
    """Result of `critic_loss`."""

    loss: th.Tensor  # (), summed over critics
    q: th.Tensor  # (), mean Q of the replayed actions
    next_q: th.Tensor  # (B,)
    target_q: th.Tensor  # (B,)

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"next_q": self.next_q, "target_q": self.target_q}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {"critic_loss": self.loss, "q_mean": self.q}


class BehaviorCriticLoss(NamedTuple):
    """The `critic_loss` of Q_beta, and what it says of the replayed actions."""

    td: CriticLoss
    verdict: th.Tensor  # (B,), without gradient

    @property
    def loss(self) -> th.Tensor:
        return self.td.loss

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return self.td.made_of

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {"behavior_critic_loss": self.td.loss, "behavior_q_mean": self.td.q}


class ValueLoss(NamedTuple):
    """Result of `value_loss`."""

    loss: th.Tensor  # ()
    q: th.Tensor  # (B,)

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"q": self.q}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {"behavior_value_loss": self.loss}


class ActorLoss(NamedTuple):
    """Result of `actor_loss`; everything but the loss is detached."""

    loss: th.Tensor  # ()
    q: th.Tensor  # (B,) of the policy's actions
    weights: th.Tensor  # (B,) f, without lambda
    matching_loss: th.Tensor  # (), unweighted
    saturated: th.Tensor  # (), share of the action's numbers close to their bounds

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"q": self.q, "weights": self.weights, "matching_loss": self.matching_loss}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {
            "actor_loss": self.loss,
            "matching_loss": self.matching_loss,
            "matching_weight": self.weights,
            "saturated": self.saturated,
        }


def critic_loss(
    q: th.Tensor,
    rewards: th.Tensor,
    dones: th.Tensor,
    discounts: th.Tensor | float,
    next_q: th.Tensor,
    valid: th.Tensor | None = None,
) -> CriticLoss:
    """Mean squared TD error to `r + gamma^m (1 - done) Q'`, summed over critics.

    :param q: (N, B) Q of the replayed actions
    :param rewards: (B,) (n-step) rewards
    :param dones: (B,) 1 where there is nothing to bootstrap from
    :param discounts: gamma^m, (B,) or a number
    :param next_q: (B,) of s': the target critics' verdict on the policy's action for Q, V_beta for Q_beta
    :param valid: (B,) 0 for what has no target; None: 1 everywhere
    """
    target_q = (rewards + discounts * (1 - dones) * next_q).detach()
    loss = masked_mean((q - target_q).square(), valid) * len(q)
    return CriticLoss(loss, q.detach().mean(), next_q.detach(), target_q)


def value_loss(v: th.Tensor, q: th.Tensor, expectile: float, valid: th.Tensor | None = None) -> ValueLoss:
    """Expectile regression of V_beta to the target of Q_beta: `mean |tau_e - 1(q < v)| (q - v)^2`.

    :param v: (B,)
    :param q: (B,) the target critics' verdict on the replayed actions
    :param expectile: tau_e in (0, 1); 0.5 for the mean, towards 1 for the best action
    :param valid: (B,) 0 for chunks of which Q_beta knows nothing; None: 1 everywhere
    """
    error = q.detach() - v
    below = (error < 0).to(error.dtype)
    weight = expectile + (1 - 2 * expectile) * below
    return ValueLoss(masked_mean(weight * error.square(), valid), q.detach())


def matching_weights(behavior_q: th.Tensor, q: th.Tensor) -> th.Tensor:
    """f, how much each replayed action is worth following, (B,), without gradient.

    It is `exp(g - mean g)` within `WEIGHT_RANGE`, with `g = max(0, Q_beta(s, a) - Q(s, pi(s)))`.

    :param behavior_q: (B,) verdict of Q_beta on the replayed actions
    :param q: (B,) verdict of Q on the policy's actions in the same states
    """
    gain = (behavior_q - q).detach().relu()
    return (gain - gain.mean()).exp().clamp(*WEIGHT_RANGE)


def actor_loss(
    q: th.Tensor,
    actions: th.Tensor,
    error: th.Tensor,
    weights: th.Tensor,
    bc_coef: th.Tensor | float,
    in_episode: th.Tensor | None = None,
) -> ActorLoss:
    """`-Q(s, pi(s)) + lambda f(s, a) ||v(s, x_t, t) - (a - x_0)||^2`.

    :param q: (B,) verdict of Q on the policy's actions
    :param actions: (B, D) these actions
    :param error: (B, D) of `sb3_flow.common.flow.matching_error`
    :param weights: (B,) f, of `matching_weights`
    :param bc_coef: lambda; the square's mean runs over batch and all D
    :param in_episode: (B, D) 0 for replayed actions that were never taken; None: 1 everywhere
    """
    squares = error.square()
    loss = -q.mean() + bc_coef * masked_mean(weights[:, None] * squares, in_episode)
    matching_loss = masked_mean(squares.detach(), in_episode)
    return ActorLoss(loss, q.detach(), weights, matching_loss, saturated_share(actions))
