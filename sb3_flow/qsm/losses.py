"""QSM's losses (arXiv 2312.11752; jaxrl5/agents/score_matching/score_matching_learner.py), and the term that clones.

Pure: tensors in, named tensors out. The TD error is `sb3_flow.common.critics.critic_loss`. Shapes: B batch, D numbers
in an action chunk.
"""

from typing import NamedTuple

import torch as th

from sb3_flow.common.updates import masked_mean


class ActorLoss(NamedTuple):
    """Result of `actor_loss`; everything but the loss is detached."""

    loss: th.Tensor  # ()
    gradient_size: th.Tensor  # (), mean |dQ/da|
    score_loss: th.Tensor  # (), distance to Q's gradient
    bc_loss: th.Tensor  # (), distance to the noise, unweighted

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"gradient_size": self.gradient_size, "score_loss": self.score_loss, "bc_loss": self.bc_loss}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {
            "actor_loss": self.loss,
            "bc_loss": self.bc_loss,
            "gradient_size": self.gradient_size,
            "score_loss": self.score_loss,
        }


def target_epsilon(gradient: th.Tensor, q_coef: float, normalize_gradient: bool = False) -> th.Tensor:
    """The noise that would be predicted if the score were Q's gradient, `-M_q dQ/da`, (B, D), without gradient.

    :param gradient: (B, D) of Q by the noised action, at it
    :param q_coef: M_q
    :param normalize_gradient: divide by the gradient's mean size over batch and dimensions
    """
    gradient = gradient.detach()
    if normalize_gradient:
        gradient = gradient / gradient.abs().mean().clamp_min(th.finfo(gradient.dtype).tiny)
    return -q_coef * gradient


def actor_loss(
    epsilon: th.Tensor,
    gradient: th.Tensor,
    noise: th.Tensor,
    q_coef: float,
    bc_coef: th.Tensor | float,
    normalize_gradient: bool = False,
    in_episode: th.Tensor | None = None,
) -> ActorLoss:
    """`||epsilon(s, a_t, t) + M_q dQ(s, a_t)/da||^2 + alpha ||epsilon(s, a_t, t) - noise||^2`.

    :param epsilon: (B, D) predicted in the noised replayed actions a_t
    :param gradient: (B, D) of Q in these
    :param noise: (B, D) that is in them
    :param q_coef: M_q
    :param bc_coef: alpha, the weight of DDPM's own loss; both means run over batch and all D
    :param normalize_gradient: see `target_epsilon`
    :param in_episode: (B, D) 0 for replayed actions that were never taken; None: 1 everywhere
    """
    score_loss = (epsilon - target_epsilon(gradient, q_coef, normalize_gradient)).square().mean()
    bc_loss = masked_mean((epsilon - noise).square(), in_episode)
    loss = score_loss + bc_coef * bc_loss
    return ActorLoss(loss, gradient.detach().abs().mean(), score_loss.detach(), bc_loss.detach())
