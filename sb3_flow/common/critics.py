"""Kinds of critics, and how N of them are judged. Shapes: B batch, N critics, D numbers in an action chunk."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_flow.common.layers import ensemble_mlp
from sb3_flow.common.updates import masked_mean


class CriticKind(NamedTuple):
    """What a critic is, whichever algorithm trains it."""

    build: Callable[[int, int, list[int]], nn.Module]  # (N, features + D, hidden widths) -> (N, B, in) to (N, B, 1)
    net_arch: list[int]  # default hidden widths
    has_target: bool  # a Polyak-averaged copy; without one, s and s' go through the net together
    verdict: Literal["min", "mean"]  # of N critics, unless there is a pessimism


class CriticLoss(NamedTuple):
    """Mean squared TD error, and what it was made of."""

    loss: th.Tensor  # ()
    q: th.Tensor  # (), mean Q of the replayed actions
    next_q: th.Tensor  # (B,)
    target_q: th.Tensor  # (B,)

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"next_q": self.next_q, "target_q": self.target_q}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {"critic_loss": self.loss, "q_mean": self.q}


CRITIC_KINDS = {
    # From scratch: CrossQ's critic (SAC Flow, Table 3: tau 1)
    "crossq": CriticKind(partial(ensemble_mlp, norm="batch_renorm"), [1024, 1024], False, "min"),
    # Offline-to-online: Q-chunking's critic
    "target": CriticKind(partial(ensemble_mlp, norm="layer"), [512, 512, 512, 512], True, "mean"),
}


class FlowCritic(BaseModel):
    """N action-value networks, batched into one.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param chunk_dim: D, numbers in an action chunk
    :param kind: one of `CRITIC_KINDS`, or an algorithm's own
    :param net_arch: hidden widths
    :param n_critics: N
    :param pessimism: rho >= 0, the verdict is mean - rho std; None for the kind's verdict
    :param normalize_images: divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        chunk_dim: int,
        kind: CriticKind,
        net_arch: list[int],
        n_critics: int,
        pessimism: float | None = None,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.features_extractor: BaseFeaturesExtractor = features_extractor
        self.kind = kind
        self.n_critics = n_critics
        self.pessimism = pessimism
        self.q_networks = kind.build(n_critics, features_dim + chunk_dim, net_arch)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Q of every critic, (N, B).

        :param obs: B observations
        :param actions: (B, D) in [-1, 1]
        """
        return self.judge(self.extract_features(obs, self.features_extractor), actions)

    def judge(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Q of every critic in encoded states, (N, B).

        :param features: (B, features_dim)
        :param actions: (B, D) in [-1, 1]
        """
        x = th.cat([features, actions], dim=1)
        q: th.Tensor = self.q_networks(x.expand(self.n_critics, *x.shape)).squeeze(2)
        return q.to(actions.dtype)

    def reduce(self, q: th.Tensor) -> th.Tensor:
        """One verdict of N critics. (N, B) -> (B,)."""
        if self.pessimism is not None:
            return pessimistic(q, self.pessimism)
        return q.mean(dim=0) if self.kind.verdict == "mean" else q.amin(dim=0)


def pessimistic(q: th.Tensor, rho: float) -> th.Tensor:
    """`mean - rho std` over critics, (N, B) -> (B,). With rho = 1 the lower one of two.

    :param q: (N, B)
    :param rho: weight of the population's standard deviation
    """
    # Where all agree the slope of the square root is infinite
    std = q.var(dim=0, correction=0).clamp_min(th.finfo(q.dtype).tiny).sqrt()
    return q.mean(dim=0) - rho * std


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
    :param next_q: (B,) value of s'
    :param valid: (B,) 0 for what has no target; None: 1 everywhere
    """
    target_q = (rewards + discounts * (1 - dones) * next_q).detach()
    loss = masked_mean((q - target_q).square(), valid) * len(q)
    return CriticLoss(loss, q.detach().mean(), next_q.detach(), target_q)


def q_and_next_q(
    critic: FlowCritic,
    target: FlowCritic | None,
    obs: PyTorchObs,
    actions: th.Tensor,
    next_obs: PyTorchObs,
    next_actions: th.Tensor,
) -> tuple[th.Tensor, th.Tensor]:
    """Q of (s, a) and of (s', a'), each (N, B).

    :param critic: the critics that are trained
    :param target: their Polyak-averaged copy, None if they have none
    :param obs: s
    :param actions: a, (B, D)
    :param next_obs: s'
    :param next_actions: a', (B, D)
    """
    if target is not None:
        with th.no_grad():
            next_q = target(next_obs, next_actions)
        return critic(obs, actions), next_q
    # CrossQ: both in one batch, so that the normalisation sees the mixture of the two distributions
    q, next_q = critic(_stack(obs, next_obs), th.cat([actions, next_actions])).chunk(2, dim=1)
    return q, next_q


def _stack(obs: PyTorchObs, next_obs: PyTorchObs) -> PyTorchObs:
    """Two batches of observations as one, key by key if they are Dicts."""
    if isinstance(obs, dict):
        assert isinstance(next_obs, dict)
        return {key: th.cat([value, next_obs[key]]) for key, value in obs.items()}
    assert isinstance(next_obs, th.Tensor)
    return th.cat([obs, next_obs])
