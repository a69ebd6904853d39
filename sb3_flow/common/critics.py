"""Kinds of critics, and how N of them are judged.

Shapes: B batch, N critics, J numbers of each, D numbers in an action chunk.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_flow.common.categorical import Support, expectation, one_of, target_distribution
from sb3_flow.common.encoding import Encoded, ObservingModel
from sb3_flow.common.layers import Projected, ensemble_mlp, residual_mlp, unit_norm_mlp
from sb3_flow.common.updates import masked_mean


class CriticKind(NamedTuple):
    """What a critic is, whichever algorithm trains it."""

    # (N, features + D, hidden widths) -> (N, B, in) to (N, B, J): J atoms, or 1 without a support
    build: Callable[[int, int, list[int]], nn.Module]
    net_arch: list[int]  # default hidden widths
    has_target: bool  # a Polyak-averaged copy
    verdict: Literal["min", "mean"]  # of N critics, unless there is a pessimism
    joint: bool = False  # s and s' go through the net together; always so without a target
    support: Support | None = None  # of a distribution; None for a number


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


# XQC's, SimbaV2's and FlashSAC's, for rewards divided by `RewardScale`
SUPPORT = Support(n_atoms=101, bound=5.0)
CROSSQ = CriticKind(partial(ensemble_mlp, norm="batch_renorm"), [1024, 1024], False, "min", joint=True)
CRITIC_KINDS = {
    # From scratch: CrossQ's critic (SAC Flow, Table 3: tau 1)
    "crossq": CROSSQ,
    # The same net with a distribution for a number
    "categorical": CROSSQ._replace(
        build=partial(ensemble_mlp, norm="batch_renorm", out_features=SUPPORT.n_atoms), support=SUPPORT
    ),
    # XQC's critic (arXiv 2509.25174)
    "xqc": CriticKind(
        partial(unit_norm_mlp, out_features=SUPPORT.n_atoms), [512, 512, 512, 512], True, "min", True, SUPPORT
    ),
    # FlashSAC's critic
    "flashsac": CriticKind(partial(residual_mlp, out_features=SUPPORT.n_atoms), [256, 256], True, "min", True, SUPPORT),
    # Offline-to-online: Q-chunking's critic
    "target": CriticKind(partial(ensemble_mlp, norm="layer"), [512, 512, 512, 512], True, "mean"),
}


class FlowCritic(ObservingModel):
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
        super().__init__(observation_space, action_space, features_extractor, features_dim, normalize_images)
        self.kind = kind
        self.n_critics = n_critics
        self.pessimism = pessimism
        self.q_networks = kind.build(n_critics, features_dim + chunk_dim, net_arch)

    @property
    def support(self) -> Support | None:
        """Of the distributions, None if the critics say one number."""
        return self.kind.support

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Q of every critic, (N, B).

        :param obs: B observations
        :param actions: (B, D) in [-1, 1]
        """
        return self.q(self.outputs(obs, actions))

    def judge(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Q of every critic in encoded states, (N, B).

        :param features: (B, features_dim)
        :param actions: (B, D) in [-1, 1]
        """
        return self.q(self._outputs(features, actions))

    def outputs(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """What the nets say, (N, B, J): logits of a distribution over atoms, or Q with J = 1.

        :param obs: B observations
        :param actions: (B, D) in [-1, 1]
        """
        return self._outputs(self.extract_features(obs, self.features_extractor), actions)

    def _outputs(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        x = th.cat([features, actions], dim=1)
        outputs: th.Tensor = self.q_networks(x.expand(self.n_critics, *x.shape))
        return outputs.to(actions.dtype)

    def q(self, outputs: th.Tensor) -> th.Tensor:
        """Q of what the nets say, (N, B, J) -> (N, B)."""
        if self.support is None:
            return outputs.squeeze(2)
        return expectation(outputs.softmax(dim=-1), self.support)

    def reduce(self, q: th.Tensor) -> th.Tensor:
        """One verdict of N critics. (N, B) -> (B,)."""
        if self.pessimism is not None:
            return pessimistic(q, self.pessimism)
        return q.mean(dim=0) if self.kind.verdict == "mean" else q.amin(dim=0)

    def target_distribution(self, next_outputs: th.Tensor, target_q: th.Tensor, bootstrap: th.Tensor) -> th.Tensor:
        """Distribution around a scalar target that has the spread of the next state's, (B, J), without gradient.

        Where the verdict is the lowest critic's, it is that one's distribution, else the mixture of all: a pessimism
        is in the target and moves the distribution.

        :param next_outputs: (N, B, J) logits for (s', a')
        :param target_q: (B,) the scalar target, made of the verdict on (s', a')
        :param bootstrap: (B,) gamma^m (1 - done)
        """
        assert self.support is not None
        lowest = self.kind.verdict == "min" and self.pessimism is None
        probs = one_of(next_outputs.detach().softmax(dim=-1), lowest, self.support)
        return target_distribution(probs, target_q.detach(), bootstrap, self.support)

    @th.no_grad()
    def project_weights(self, stopped: th.Tensor) -> None:
        """Put weights that live on a sphere back there; after every step of the optimizer.

        :param stopped: () whether there was no step, so that no bit of them may change
        """
        for module in self.modules():
            if isinstance(module, Projected):
                module.project(stopped)


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


def outputs_and_next(
    critic: FlowCritic,
    target: FlowCritic | None,
    obs: PyTorchObs,
    actions: th.Tensor,
    next_obs: PyTorchObs,
    next_actions: th.Tensor,
) -> tuple[th.Tensor, th.Tensor]:
    """What the nets say of (s, a) and of (s', a'), each (N, B, J).

    :param critic: the critics that are trained
    :param target: their Polyak-averaged copy, None if they have none
    :param obs: s
    :param actions: a, (B, D)
    :param next_obs: s'
    :param next_actions: a', (B, D)
    """
    if not critic.kind.joint:
        assert target is not None
        with th.no_grad():
            next_outputs = target.outputs(next_obs, next_actions)
        return critic.outputs(obs, actions), next_outputs
    # CrossQ: both in one batch, so that the normalisation sees the mixture of the two distributions
    both = _stack(obs, next_obs), th.cat([actions, next_actions])
    outputs, next_outputs = critic.outputs(*both).chunk(2, dim=1)
    if target is not None:
        with th.no_grad():
            _, next_outputs = target.outputs(*both).chunk(2, dim=1)
    return outputs, next_outputs


def _stack(obs: PyTorchObs, next_obs: PyTorchObs) -> PyTorchObs:
    """Two batches of observations as one, key by key if they are Dicts."""
    if isinstance(obs, Encoded):
        assert isinstance(next_obs, Encoded)
        features = th.cat([obs.features, next_obs.features])
        stacked = Encoded(_stack(obs.obs, next_obs.obs), obs.extractor, lambda: features, gradient=True)
        return cast(th.Tensor, stacked)  # it stands for one
    if isinstance(obs, dict):
        assert isinstance(next_obs, dict)
        return {key: th.cat([value, next_obs[key]]) for key, value in obs.items()}
    assert isinstance(next_obs, th.Tensor)
    return th.cat([obs, next_obs])
