"""FlowRL's losses (arXiv 2506.12811; model/algo.py of the authors' code). Pure: tensors in, named tensors out.

The TD error of Q and Q_beta is `sb3_flow.common.critics.critic_loss`. Shapes: B batch, D numbers in an action chunk.
"""

from typing import NamedTuple

import torch as th

from sb3_flow.common.critics import CriticLoss
from sb3_flow.common.updates import masked_mean, saturated_share

# Bounds of f, the weights without lambda
WEIGHT_RANGE = (0.01, 10.0)


class BehaviorCriticLoss(NamedTuple):
    """The TD error of Q_beta, and what it says of the replayed actions."""

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
    cut_off: th.Tensor  # (), share of f at its bounds
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
            "matching_weight_cut_off": self.cut_off,
            "saturated": self.saturated,
        }


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


def matching_weights(behavior_q: th.Tensor, q: th.Tensor, valid: th.Tensor | None = None) -> th.Tensor:
    """f, how much each replayed action is worth following, (B,), without gradient.

    It is `exp(g - mean g)` within `WEIGHT_RANGE`, with `g = max(0, Q_beta(s, a) - Q(s, pi(s)))`.

    :param behavior_q: (B,) verdict of Q_beta on the replayed actions
    :param q: (B,) verdict of Q on the policy's actions in the same states
    :param valid: (B,) 0 for chunks of which Q_beta knows nothing, which the mean leaves out; None: 1 everywhere
    """
    gain = (behavior_q - q).detach().relu()
    return (gain - masked_mean(gain, valid)).exp().clamp(*WEIGHT_RANGE)


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
    low, high = WEIGHT_RANGE
    cut_off = ((weights <= low) | (weights >= high)).to(weights.dtype).mean()
    return ActorLoss(loss, q.detach(), weights, cut_off, matching_loss, saturated_share(actions))
