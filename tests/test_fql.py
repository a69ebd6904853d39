"""What FQL has and no other algorithm: a behaviour flow, a one-step policy or the best of n samples, one joint loss."""

import math
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import (
    FQLS,
    LEARNING_STARTS,
    RandomEnv,
    differences,
    make_variant,
    observations,
    snapshot,
)
from numpy.typing import NDArray
from torch import nn

from sb3_flow import FQL
from sb3_flow.common.layers import EnsembleLayerNorm, EnsembleLinear
from sb3_flow.fql.networks import actor_mlp, critic_mlp
from sb3_flow.fql.policies import BestOfNActor, FQLPolicy, OneStepActor

ONE_STEP = ["fql", "qc_fql"]


def make_fql(name: str, *args: Any, **kwargs: Any) -> FQL:
    model = make_variant(name, *args, **kwargs)
    assert isinstance(model, FQL)
    return model


def best_of(n: int, *args: Any, **kwargs: Any) -> FQL:
    """Single actions, each the best of n samples."""
    return make_fql("qc", *args, horizon_length=1, best_of_n=n, **kwargs)


def indifferent(model: FQL) -> FQL:
    """Q = 0 everywhere, and where no reward is given it stays so."""
    for net in (model.critic, model.critic_target):
        for parameter in net.parameters():
            parameter.data.zero_()
    return model


# The behaviour flow and what is made of it


def two_modes() -> dict[str, NDArray[Any]]:
    """One state, in which the data have the actions 0.7 and -0.7; the second number is always 0.3."""
    n = 400
    action = np.where(np.arange(n) % 2 == 0, 0.7, -0.7)
    return {
        "observations": np.zeros((n, 3), np.float32),
        "next_observations": np.zeros((n, 3), np.float32),
        "actions": np.stack([action, np.full(n, 0.3)], axis=1),
        "rewards": np.zeros(n),
        "masks": np.zeros(n),
        "terminals": np.ones(n, bool),
    }


@pytest.mark.slow
@pytest.mark.parametrize("best_of_n", [None, 4])
def test_both_modes_of_the_data_are_kept(best_of_n: int | None) -> None:
    model = make_fql(
        "fql",
        best_of_n=best_of_n,
        net={"net_arch": [32, 32], "flow_steps": 5},
        offline_dataset=two_modes(),
        learning_starts=None,
        batch_size=128,
        learning_rate=lambda remaining: 1e-2 * remaining,
        bc_coef=30.0 if best_of_n is None else None,
    )
    indifferent(model).learn_offline(400)
    state = np.zeros((1000, 3), np.float32)
    with th.no_grad():
        noise = th.randn(1000, model.policy.chunk_dim)
        flow = model.actor.flow_actions(model.actor.field(th.as_tensor(state)), noise)[:, :2].numpy()
    policy, _ = model.predict(state)
    for actions in (flow, policy):
        for mode in ([0.7, 0.3], [-0.7, 0.3]):
            # A policy that is held to the data's mean would have no action there
            near = (np.abs(actions - mode) < 0.25).all(axis=1)
            assert near.mean() > 0.25
    if best_of_n is None:
        with th.no_grad():
            one_step = model.actor.action(th.as_tensor(state), noise).numpy()  # type: ignore[arg-type]
        # The one-step policy goes where the flow goes from the same noise, to which the modes are as far apart as 1.4
        assert np.abs(one_step - flow).mean() < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("best_of_n", [None, 16])
def test_the_policy_is_better_than_its_data(best_of_n: int | None) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (1000, 2))
    distance = np.abs(actions - 0.4).mean(axis=1)
    data = {
        "observations": rng.uniform(-1, 1, (1000, 3)).astype(np.float32),
        "next_observations": np.zeros((1000, 3), np.float32),
        "actions": actions,
        "rewards": -distance,
        "masks": np.zeros(1000),
        "terminals": np.ones(1000, bool),
    }
    model = make_fql(
        "fql",
        best_of_n=best_of_n,
        net={"net_arch": [32, 32]},
        offline_dataset=data,
        learning_starts=None,
        batch_size=64,
        learning_rate=3e-3,
        bc_coef=0.1 if best_of_n is None else None,
    )
    model.learn_offline(300)
    chosen, _ = model.predict(data["observations"])
    assert np.abs(chosen - 0.4).mean() < 0.5 * distance.mean()


def test_normalizing_q_makes_its_scale_matter_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_fql("fql", normalize_q_loss=True).learn(20)
    batch, line, noise = model._sample(8), model.actor.sample_line(8), model.actor.sample_noise(8)
    forward, grads = model.critic.forward, []
    for scale in (1.0, 1000.0):
        monkeypatch.setattr(model.critic, "forward", lambda *args, scale=scale: scale * forward(*args))
        loss = model._actor_loss(batch, line, noise, th.tensor(1.0)).loss
        grads.append(th.autograd.grad(loss, list(model.actor.parameters())))
    for one, other in zip(*grads, strict=True):
        th.testing.assert_close(one, other)


# Best of n


def test_the_sample_with_the_highest_mean_q_is_the_action_in_every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model = best_of(5)

    def judge(features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """The state decides what is good; where the critics disagree it is their mean that counts."""
        liked = -(actions - 0.5 * features[:, :2]).square().sum(dim=1)
        doubt = 3 * th.sin(20 * actions[:, 0])
        return th.stack([liked + doubt, liked - doubt])

    monkeypatch.setattr(model.critic, "judge", judge)
    obs, noise = th.as_tensor(observations(model, 30)), th.randn(5, 30, 2)
    with th.no_grad():
        chosen = model.actor.action(obs, noise)
        samples = model.actor.flow_actions(model.actor.field(obs), noise)
    picked = set()
    for b in range(30):
        q = [judge(obs[b : b + 1], samples[k, b : b + 1]).mean().item() for k in range(5)]
        best = max(range(5), key=q.__getitem__)
        th.testing.assert_close(chosen[b], samples[best, b], rtol=0, atol=0)
        picked.add(best)
    assert len(picked) > 2


def test_the_best_of_one_sample_is_that_sample() -> None:
    model = best_of(1)
    obs, noise = th.as_tensor(observations(model)), th.randn(1, 5, 2)
    with th.no_grad():
        th.testing.assert_close(
            model.actor.action(obs, noise), model.actor.flow_actions(model.actor.field(obs), noise[0])
        )


def test_with_best_of_n_there_is_no_one_step_policy() -> None:
    model = make_fql("qc").learn(15)
    assert isinstance(model.actor, BestOfNActor)
    names = list(model.policy.state_dict())
    assert not any("one_step" in name for name in names)
    assert {"train/bc_loss", "train/saturated"}.isdisjoint(model.logger.name_to_value)
    # It acts by the critics, and does not own them
    assert not any(name.startswith("actor.") and "q_networks" in name for name in names)
    actors = {id(parameter) for parameter in model.actor.parameters()}
    assert actors.isdisjoint(id(parameter) for parameter in model.critic.parameters())


def test_an_actor_without_critics_says_what_it_lacks(tmp_path: Path) -> None:
    best_of(4).actor.save(tmp_path / "actor")
    actor = BestOfNActor.load(tmp_path / "actor", device="cpu")
    with pytest.raises(ValueError, match="no critics to choose by"):
        actor.predict(np.zeros(3, np.float32))


@pytest.mark.parametrize("copied", ["deepcopy", "saved"])
def test_a_copy_acts_by_its_own_critics(copied: str, tmp_path: Path) -> None:
    model = best_of(4).learn(15)
    if copied == "deepcopy":
        policy: Any = deepcopy(model.policy)
    else:
        model.policy.save(tmp_path / "policy")
        policy = FQLPolicy.load(tmp_path / "policy", device="cpu")
    obs = observations(model, 40)
    before = policy.predict(obs, deterministic=True)[0]
    np.testing.assert_array_equal(before, model.predict(obs, deterministic=True)[0])
    with th.no_grad():
        for parameter in policy.critic.parameters():
            parameter.neg_()
    assert not np.array_equal(policy.predict(obs, deterministic=True)[0], before)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], before)


# What acts


@pytest.mark.parametrize("name", FQLS)
def test_the_deterministic_policy_draws_nothing_and_repeats_itself(name: str) -> None:
    model = make_fql(name).learn(15)
    obs = observations(model)
    states = random.getstate(), str(np.random.get_state()), th.get_rng_state()
    first, _ = model.predict(obs, deterministic=True)
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]
    assert th.equal(th.get_rng_state(), states[2])
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], first)
    # Neither does it hang on which other states there are
    alone = [model.predict(row, deterministic=True)[0] for row in obs]
    np.testing.assert_allclose(np.stack(alone), first, atol=1e-5)
    assert not np.array_equal(model.predict(obs)[0], model.predict(obs)[0])


@pytest.mark.parametrize("name", FQLS)
def test_two_models_with_the_same_weights_are_the_same_deterministic_policy(name: str) -> None:
    model, other = make_fql(name), make_fql(name, seed=1)
    other.set_parameters(model.get_parameters())
    obs = observations(model)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], other.predict(obs, deterministic=True)[0])


def test_the_deterministic_one_step_policy_is_that_of_no_noise() -> None:
    model = make_fql("fql").learn(15)
    obs = th.as_tensor(observations(model))
    with th.no_grad():
        expected = model.actor.one_step(th.cat([obs, th.zeros(5, 2)], dim=1)).clamp(-1, 1)  # type: ignore[union-attr]
    np.testing.assert_allclose(model.predict(obs.numpy(), deterministic=True)[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", FQLS)
def test_actions_stay_in_their_bounds_however_far_the_nets_go(name: str) -> None:
    model = make_fql(name)
    with th.no_grad():
        for parameter in model.actor.parameters():
            parameter.mul_(20)
    obs = 10 * observations(model, 50)
    actions, _ = model.predict(obs)
    assert np.abs(actions).max() == 1
    assert np.abs(model.predict(obs, deterministic=True)[0]).max() <= 1


# One update


@pytest.mark.parametrize("name", FQLS)
def test_both_gradients_are_those_of_the_nets_before_either_has_moved(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before = (make_fql(name, learning_rate=0.1).learn(LEARNING_STARTS) for _ in range(2))
    calls: dict[str, Any] = {}
    for method in ("_next_actions", "_critic_loss", "_actor_loss"):
        original = getattr(model, f"{method}_fn")
        monkeypatch.setattr(
            model,
            f"{method}_fn",
            lambda *args, original=original, method=method: (calls.update({method: args}), original(*args))[1],
        )
    model.train(1, batch_size=8)
    batch, next_noise = calls["_next_actions"]
    losses = {
        "critic": before._critic_loss(batch, before._next_actions(batch, next_noise)).loss,
        "actor": before._actor_loss(*calls["_actor_loss"][2:]).loss,  # after the parameters and the largest gradient
    }
    for net, loss in losses.items():
        expected = th.autograd.grad(loss, list(getattr(before, net).parameters()))
        assert any(grad.abs().max() > 0 for grad in expected)
        for parameter, grad in zip(getattr(model, net).parameters(), expected, strict=True):
            th.testing.assert_close(parameter.grad, grad)
    moved = differences(snapshot(before), snapshot(model))
    assert all(any(each.startswith(f"/policy/{net}.") for each in moved) for net in (*losses, "critic_target"))


def test_the_targets_follow_the_critics_that_have_moved() -> None:
    model = make_fql("fql", tau=0.25, learning_rate=0.1).learn(LEARNING_STARTS)
    old = [parameter.clone() for parameter in model.critic_target.parameters()]
    model.train(1, batch_size=8)
    for was, target, online in zip(old, model.critic_target.parameters(), model.critic.parameters(), strict=True):
        th.testing.assert_close(target, 0.75 * was + 0.25 * online)


# How the nets start


def layers_of(module: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, kind)]


@pytest.mark.parametrize("name", FQLS)
def test_weights_are_xavier_uniform_and_biases_zero(name: str) -> None:
    model = make_fql(name, net={"net_arch": [64, 48]})
    chunk_dim = model.policy.chunk_dim
    nets = 1 if name == "qc" else 2
    linears = layers_of(model.actor, nn.Linear)
    assert len(linears) == 3 * nets
    # The state and the noisy action are one input, of which the layer's fan counts all
    assert linears[0].weight.shape == (64, 3 + chunk_dim + 1)
    ensembles = layers_of(model.critic, EnsembleLinear)
    assert [tuple(layer.weight.shape) for layer in ensembles] == [(2, 3 + chunk_dim, 64), (2, 64, 48), (2, 48, 1)]
    for layer in [*linears, *ensembles]:
        assert (layer.bias == 0).all()
        # An ensemble's members are as wide as a layer of their own
        for weight in layer.weight if isinstance(layer, EnsembleLinear) else [layer.weight]:
            bound = math.sqrt(6 / sum(weight.shape))
            assert 0.85 * bound < weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)
    for layer in ensembles:
        assert not th.equal(layer.weight[0], layer.weight[1])
    for norm in layers_of(model.critic, EnsembleLayerNorm):
        assert (norm.scale == 1).all()
        assert (norm.bias == 0).all()
    for target, online in zip(model.critic_target.parameters(), model.critic.parameters(), strict=True):
        assert th.equal(target, online)


def test_without_net_arch_every_net_is_the_papers() -> None:
    policy = FQLPolicy(RandomEnv().observation_space, RandomEnv().action_space, lambda _: 3e-4)
    assert policy.flow_steps == 10
    assert isinstance(policy.actor, OneStepActor)
    for net in (policy.actor.behavior, policy.actor.one_step):
        assert [layer.out_features for layer in layers_of(net, nn.Linear)] == [512] * 4 + [2]
    assert [layer.weight.shape[2] for layer in layers_of(policy.critic, EnsembleLinear)] == [512] * 4 + [1]
    assert len(layers_of(policy.critic, EnsembleLayerNorm)) == 4
    assert policy.critic.n_critics == 2
    for net in (policy.actor, policy.critic):
        assert net.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_hidden_layers_are_tanh_gelus_and_only_the_critics_are_normalised() -> None:
    th.manual_seed(0)
    x = 3 * th.randn(2, 7, 3)
    critic = critic_mlp(2, 3, [5])
    first, _, norm, last = critic
    hidden = th.nn.functional.gelu(x @ first.weight + first.bias, approximate="tanh")
    normal = th.nn.functional.layer_norm(hidden, (5,), eps=1e-6) * norm.scale + norm.bias
    th.testing.assert_close(critic(x), normal @ last.weight + last.bias)
    actor = actor_mlp(3, [5], 2)
    hidden = th.nn.functional.gelu(actor[0](x), approximate="tanh")
    th.testing.assert_close(actor(x), actor[2](hidden))


def test_a_critic_without_hidden_layers_is_linear() -> None:
    model = make_fql("fql", net={"net_arch": {"qf": [], "pi": [8]}}).learn(15)
    assert len(layers_of(model.critic, EnsembleLinear)) == 1
    assert model._n_updates == 5


# Arguments
