"""ReinFlow's losses: PPO's on paths of the flow (arXiv 2505.22094).

Pure: tensors in, named tensors out. Shapes: B batch, D numbers in an action chunk.
"""

from typing import NamedTuple

import torch as th

from sb3_flow.reinflow.chain import Score


class PolicyLoss(NamedTuple):
    """Result of `policy_loss`; everything but the loss is detached."""

    loss: th.Tensor  # ()
    policy_gradient_loss: th.Tensor  # ()
    entropy: th.Tensor  # (), per number of a path
    ratio: th.Tensor  # (B,)
    approx_kl: th.Tensor  # (), from the policy of the rollout to this one
    clip_fraction: th.Tensor  # (), share of the ratios outside of the clip range
    std: th.Tensor  # (), mean sigma

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"entropy": self.entropy, "ratio": self.ratio, "policy_gradient_loss": self.policy_gradient_loss}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {
            "policy_gradient_loss": self.policy_gradient_loss,
            "entropy_loss": -self.entropy,
            "approx_kl": self.approx_kl,
            "clip_fraction": self.clip_fraction,
            "std": self.std,
        }


class ValueLoss(NamedTuple):
    """Result of `value_loss`."""

    loss: th.Tensor  # ()

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {"value_loss": self.loss}


def policy_loss(
    score: Score, old_log_prob: th.Tensor, advantages: th.Tensor, clip_range: th.Tensor, ent_coef: float
) -> PolicyLoss:
    """PPO's clipped surrogate, whose ratio is that of the densities of whole paths, less the weighted entropy.

    :param score: of the paths, under the parameters that are trained
    :param old_log_prob: (B,) that of the score under the parameters of the rollout
    :param advantages: (B,), normalised here
    :param clip_range: () by how much the ratio may leave 1 in the direction of the advantage
    :param ent_coef: weight of the entropy
    """
    if len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    log_ratio = score.log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    gradient_loss = -th.minimum(advantages * ratio, advantages * clipped).mean()
    entropy = score.entropy.mean()
    outside = ((ratio - 1).abs() > clip_range).to(ratio.dtype)
    return PolicyLoss(
        gradient_loss - ent_coef * entropy,
        gradient_loss.detach(),
        entropy.detach(),
        ratio.detach(),
        (ratio - 1 - log_ratio).mean().detach(),
        outside.mean(),
        score.std,
    )


def value_loss(values: th.Tensor, returns: th.Tensor) -> ValueLoss:
    """Mean squared error.

    :param values: (B,)
    :param returns: (B,)
    """
    return ValueLoss((values - returns).square().mean())
