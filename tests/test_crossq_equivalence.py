"""One critic update of SACFlow against sb3_contrib's CrossQ, from the same weights on the same batch, in float64."""

from typing import Any

import pytest
import torch as th
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_flow import SACFlow
from sb3_flow.flow import Path
from sb3_flow.layers import BatchRenorm, EnsembleLinear

BATCH, OBS_DIM, ACTION_DIM, N_CRITICS = 16, 3, 1, 2
ARGS: dict[str, Any] = {"env": "Pendulum-v1", "ent_coef": 0.2, "gamma": 0.9, "buffer_size": 10, "seed": 0, "device": "cpu"}


def randn(*shape: int, seed: int) -> th.Tensor:
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


def batch(discounts: th.Tensor | None) -> ReplayBufferSamples:
    return ReplayBufferSamples(
        observations=randn(BATCH, OBS_DIM, seed=0),
        actions=th.tanh(randn(BATCH, ACTION_DIM, seed=1)),
        next_observations=randn(BATCH, OBS_DIM, seed=2) + 1,
        dones=(th.arange(BATCH) % 5 == 0).double()[:, None],
        rewards=randn(BATCH, 1, seed=3),
        discounts=discounts,
    )


def pairs(crossq: CrossQ, flow: SACFlow) -> list[tuple[str, th.Tensor, th.Tensor]]:
    """Every parameter and buffer of both critics: name, CrossQ's stacked over its critics, and ours in that shape."""
    found = []
    for index, (ours, *theirs) in enumerate(zip(flow.critic.q_networks, *crossq.critic.q_networks, strict=True)):
        if isinstance(ours, BatchRenorm):
            assert all(isinstance(layer, BatchRenorm1d) for layer in theirs)
            names = ["scale", "bias", "ra_mean", "ra_var"]
        elif isinstance(ours, EnsembleLinear):
            assert all(isinstance(layer, nn.Linear) for layer in theirs)
            names = ["weight", "bias"]
        else:
            assert all(type(layer) is type(ours) for layer in theirs)
            names = []
        for name in names:
            for i, layer in enumerate(theirs):
                mine, reference = getattr(ours, name), getattr(layer, name)
                found.append((f"{index}.{name}[{i}]", reference, (mine, i, name == "weight")))
    return [(name, reference, view) for name, reference, view in found]  # type: ignore[misc]


def member(stacked: th.Tensor, view: Any) -> th.Tensor:
    """The slice of one of our stacked tensors that belongs to one critic, laid out as nn.Linear does."""
    _, i, transposed = view
    return stacked[i].T if transposed else stacked[i, 0]
