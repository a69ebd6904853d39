"""One critic update of SACFlow against sb3_contrib's CrossQ, from the same weights on the same batch, in float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch as th
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_flow import SACFlow
from sb3_flow.common.activations import ReLU
from sb3_flow.common.batch_renorm import BatchRenorm
from sb3_flow.common.flow import Path
from sb3_flow.common.layers import EnsembleLinear

# Large enough for no unit to be dead on the whole batch: there sb3_contrib's BatchRenorm has a gradient of NaN
BATCH, OBS_DIM, ACTION_DIM = 128, 3, 1


def randn(*shape: int, seed: int) -> th.Tensor:
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


def replayed(discounts: th.Tensor | None) -> ReplayBufferSamples:
    return ReplayBufferSamples(
        observations=randn(BATCH, OBS_DIM, seed=0),
        actions=th.tanh(randn(BATCH, ACTION_DIM, seed=1)),
        next_observations=randn(BATCH, OBS_DIM, seed=2) + 1,
        dones=(th.arange(BATCH) % 5 == 0).double()[:, None],
        rewards=randn(BATCH, 1, seed=3),
        discounts=discounts,
    )


def pairs(crossq: CrossQ, flow: SACFlow) -> Iterator[tuple[th.Tensor, th.Tensor, int, bool]]:
    """Every parameter and running statistic: CrossQ's, ours, the critic, and whether ours is laid out transposed."""
    twins: dict[type[nn.Module], tuple[type[nn.Module], list[str]]] = {
        BatchRenorm: (BatchRenorm1d, ["scale", "bias", "ra_mean", "ra_var"]),
        EnsembleLinear: (nn.Linear, ["weight", "bias"]),
        ReLU: (nn.ReLU, []),
    }
    for i, q_network in enumerate(crossq.critic.q_networks):
        assert isinstance(q_network, nn.Sequential)
        for ours, theirs in zip(flow.critic.q_networks, q_network, strict=True):
            twin, names = twins[type(ours)]
            assert type(theirs) is twin
            for name in names:
                yield getattr(theirs, name), getattr(ours, name), i, name == "weight"


def member(stacked: th.Tensor, i: int, transposed: bool) -> th.Tensor:
    """What belongs to one critic, in the layout of nn.Linear."""
    return stacked[i].T if transposed else stacked[i, 0]


@pytest.fixture
def models() -> tuple[CrossQ, SACFlow]:
    """Both algorithms with critics of the same values, these and the running statistics off their initial ones."""
    args: dict[str, Any] = {"ent_coef": 0.2, "gamma": 0.9, "buffer_size": 10, "seed": 0, "device": "cpu"}
    crossq = CrossQ("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": {"pi": [4], "qf": [12, 8]}}, **args)
    flow = SACFlow("FlowMLPPolicy", "Pendulum-v1", policy_kwargs={"net_arch": {"pi": [4], "qf": [12, 8]}}, **args)
    for model in (crossq, flow):
        model.critic.double()
        model.set_logger(configure(None, []))
    with th.no_grad():
        for seed, (reference, *_) in enumerate(pairs(crossq, flow)):
            # Positive factors: variances are among them
            reference.mul_(randn(*reference.shape, seed=seed).mul(0.2).exp()).add_(0.1)
        for reference, mine, i, transposed in pairs(crossq, flow):
            member(mine, i, transposed).copy_(reference)
    return crossq, flow


def update_once(model: OffPolicyAlgorithm, monkeypatch: pytest.MonkeyPatch, batch: ReplayBufferSamples) -> float:
    """One critic update on the batch, both actors stating the same next actions. Returns the logged loss."""
    next_actions, next_log_prob = th.tanh(randn(BATCH, ACTION_DIM, seed=4)), randn(BATCH, seed=5)

    def path(obs: th.Tensor, noise: th.Tensor) -> Path:
        assert obs is batch.next_observations
        return Path(th.atanh(next_actions), next_log_prob, next_log_prob, th.tensor(0.0))

    def action_log_prob(obs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        assert obs is batch.next_observations
        return next_actions, next_log_prob

    name, patched = ("path", path) if isinstance(model, SACFlow) else ("action_log_prob", action_log_prob)
    monkeypatch.setattr(model.policy.actor, name, patched)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: batch)
    model.train(gradient_steps=1, batch_size=BATCH)
    assert model._n_updates == 1
    return float(model.logger.name_to_value["train/critic_loss"])


@pytest.mark.parametrize("warmed_up", [False, True])
@pytest.mark.parametrize("n_step", [False, True])
def test_critic_update_is_that_of_crossq(
    models: tuple[CrossQ, SACFlow], monkeypatch: pytest.MonkeyPatch, warmed_up: bool, n_step: bool
) -> None:
    crossq, flow = models
    for model in models:
        for module in model.critic.modules():
            if isinstance(module, BatchRenorm1d | BatchRenorm):
                module.get_buffer("steps").fill_(200_000 if warmed_up else 0)
    before = [reference.clone() for reference, *_ in pairs(crossq, flow)]
    batch = replayed(0.9 ** (1 + th.arange(BATCH)[:, None] % 3).double() if n_step else None)

    loss, expected_loss = (update_once(model, monkeypatch, batch) for model in (flow, crossq))

    assert loss == pytest.approx(expected_loss, rel=1e-9)
    for (reference, mine, i, transposed), old in zip(pairs(crossq, flow), before, strict=True):
        th.testing.assert_close(member(mine, i, transposed), reference)
        assert not th.allclose(reference, old, rtol=1e-6, atol=0)
        if mine.grad is not None:
            assert reference.grad is not None
            th.testing.assert_close(member(mine.grad, i, transposed), reference.grad)
    n_params = sum(p.numel() for p in flow.critic.parameters())
    assert n_params == sum(p.numel() for p in crossq.critic.parameters())
    assert all(p.grad is not None for p in flow.critic.parameters())


def test_crossq_defaults_of_the_critic_are_those_of_sb3_contrib() -> None:
    crossq = CrossQ("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    flow = SACFlow("FlowTPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    (group,), (expected,) = flow.critic.optimizer.param_groups, crossq.critic.optimizer.param_groups
    assert group["betas"] == expected["betas"]
    assert group["eps"] == expected["eps"]
    assert flow.qf_lr_schedule(1) == crossq.lr_schedule(1)
    assert flow.policy_delay == crossq.policy_delay
    assert flow.critic_target is None
    for reference, mine, i, transposed in pairs(crossq, flow):
        assert member(mine, i, transposed).shape == reference.shape
