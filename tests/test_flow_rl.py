"""What FlowRL has and no other algorithm: the midpoint rule, Q_beta and V_beta, and matching by weight."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import LEARNING_STARTS, RandomEnv, differences, make_variant, observations, randn, randomize, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_flow import FlowRL
from sb3_flow.common.flow import Velocity, integrate
from sb3_flow.common.layers import EnsembleLinear
from sb3_flow.flow_rl.losses import actor_loss, matching_weights, value_loss
from sb3_flow.flow_rl.networks import PolicyVelocity, midpoint, value_mlp
from sb3_flow.flow_rl.policies import FlowRLPolicy

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**30)
untimed = settings(deadline=None, max_examples=50)


def make_flow_rl(**kwargs: Any) -> FlowRL:
    model = make_variant("flow_rl", **kwargs)
    assert isinstance(model, FlowRL)
    return model


# The midpoint rule


def swing(x: th.Tensor, t: th.Tensor) -> Velocity:
    """dx/dt = x cos(t), whose solution is x_0 exp(sin t)."""
    return Velocity(x * th.cos(t), th.zeros(()))


def test_the_midpoint_rule_is_of_second_order() -> None:
    x_0 = randn(4, 2)
    exact = x_0 * math.exp(math.sin(1))
    errors = [(midpoint(swing, x_0, steps) - exact).abs().max().item() for steps in (32, 64, 128, 256)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.06)
    euler = [(integrate(swing, x_0, steps) - exact).abs().max().item() for steps in (32, 64)]
    assert euler[0] / euler[1] == pytest.approx(2, rel=0.1)


def test_one_midpoint_step_asks_twice_and_is_exact_where_the_velocity_is_linear_in_time() -> None:
    asked = []

    def velocity(x: th.Tensor, t: th.Tensor) -> Velocity:
        asked.append((x.clone(), t.item()))
        return Velocity((1 + 4 * t).expand_as(x), th.zeros(()))

    x_0 = randn(3, 2)
    th.testing.assert_close(midpoint(velocity, x_0, 1), x_0 + 3)
    (first, t_0), (second, t_half) = asked
    assert (t_0, t_half) == (0.0, 0.5)
    th.testing.assert_close(first, x_0)
    th.testing.assert_close(second, x_0 + 0.5)  # half a step with the first velocity


# Losses


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9, 0.99])
def test_v_beta_s_optimum_is_the_expectile(expectile: float) -> None:
    # Of the uniform distribution on [0, 1] it is known: tau (1 - e)^2 = (1 - tau) e^2
    q = (th.arange(100_000, dtype=th.float64) + 0.5) / 100_000
    known = math.sqrt(expectile) / (math.sqrt(expectile) + math.sqrt(1 - expectile))

    def slope(v: float) -> float:
        value = th.tensor(v, dtype=th.float64, requires_grad=True)
        return float(th.autograd.grad(value_loss(value.expand_as(q), q, expectile).loss, value)[0])

    assert abs(slope(known)) < 1e-9
    assert slope(known - 0.01) < -1e-5
    assert slope(known + 0.01) > 1e-5
    brute_force = min(np.linspace(0, 1, 101), key=lambda v: value_loss(th.full_like(q, v), q, expectile).loss.item())
    assert brute_force == pytest.approx(known, abs=0.0051)


def test_chunks_that_q_beta_knows_nothing_of_do_not_move_v_beta() -> None:
    v = randn(4).requires_grad_(True)
    valid = th.tensor([1.0, 0.0, 1.0, 0.0], dtype=th.float64)
    loss = value_loss(v, randn(4, seed=1), 0.9, valid).loss
    th.testing.assert_close(loss, value_loss(v[::2], randn(4, seed=1)[::2], 0.9).loss)
    assert th.autograd.grad(loss, v)[0][1::2].tolist() == [0, 0]


@untimed
@given(batch=sizes, seed=seeds, scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_weights_are_the_exponential_of_how_much_better_the_replayed_action_is(
    batch: int, seed: int, scale: float
) -> None:
    behavior_q, q = scale * randn(batch, seed=seed), (scale * randn(batch, seed=seed + 1)).requires_grad_(True)
    gains = [max(0.0, b.item() - p.item()) for b, p in zip(behavior_q, q, strict=True)]
    expected = [min(10.0, max(0.01, math.exp(gain - sum(gains) / batch))) for gain in gains]
    weights = matching_weights(behavior_q, q)
    assert weights.tolist() == pytest.approx(expected)
    assert not weights.requires_grad


@untimed
@given(batch=sizes, dim=sizes, seed=seeds, masked=st.booleans())
def test_actor_loss_is_value_and_matching_by_weight(batch: int, dim: int, seed: int, masked: bool) -> None:
    q, weights = randn(batch, seed=seed).requires_grad_(True), randn(batch, seed=seed + 1).exp()
    error = randn(batch, dim, seed=seed + 2).requires_grad_(True)
    mask = (th.arange(batch * dim).view(batch, dim) % 3 != 2).double() if masked else th.ones(batch, dim).double()
    result = actor_loss(q, th.zeros(batch, dim), error, weights, 0.3, mask if masked else None)
    cells = [(b, j) for b in range(batch) for j in range(dim) if mask[b, j]]
    weighted = sum(weights[b].item() * error[b, j].item() ** 2 for b, j in cells) / len(cells)
    assert result.loss.item() == pytest.approx(0.3 * weighted - q.mean().item())
    assert result.matching_loss.item() == pytest.approx(sum(error[b, j].item() ** 2 for b, j in cells) / len(cells))
    grads = th.autograd.grad(result.loss, [q, error])
    th.testing.assert_close(grads[0], th.full_like(q, -1 / batch))
    th.testing.assert_close(grads[1], 0.3 * 2 * weights[:, None] * error.detach() * mask / len(cells))


def test_chunks_that_q_beta_knows_nothing_of_do_not_move_the_weights() -> None:
    gains, valid = th.tensor([1.0, 100.0, 2.0]), th.tensor([1.0, 0.0, 1.0])
    weights = matching_weights(gains, th.zeros(3), valid)
    th.testing.assert_close(weights[::2], matching_weights(gains[::2], th.zeros(2)))


@pytest.mark.parametrize(("scale", "lowest", "highest"), [(1.0, 0.0, 0.05), (100.0, 0.9, 1.0)])
def test_the_log_says_how_many_weights_are_cut_off(scale: float, lowest: float, highest: float) -> None:
    weights = matching_weights(scale * randn(400), th.zeros(400))
    cut_off = actor_loss(th.zeros(400), th.zeros(400, 1), th.zeros(400, 1), weights, 0.1).cut_off
    assert cut_off == ((weights <= 0.01) | (weights >= 10.0)).double().mean()
    assert lowest <= cut_off <= highest


def test_an_action_as_good_as_the_policy_s_own_is_followed_less_than_a_better_one() -> None:
    better = matching_weights(th.tensor([0.0, 2.0]), th.zeros(2))
    th.testing.assert_close(better, th.tensor([math.exp(-1.0), math.exp(1.0)]))
    # How much worse it is does not count
    th.testing.assert_close(matching_weights(th.tensor([-9.0, 2.0]), th.zeros(2)), better)


# Networks


def test_the_critics_hidden_layers_stand_between_an_embedding_and_a_projection() -> None:
    net = value_mlp(2, 3, [5, 4]).double()
    randomize(net)
    linears = [layer for layer in net if isinstance(layer, EnsembleLinear)]
    assert [tuple(layer.weight.shape[1:]) for layer in linears] == [(3, 5), (5, 5), (5, 4), (4, 4), (4, 1)]
    x = randn(2, 6, 3)
    expected = []
    for n in range(2):
        h = x[n]
        for i, layer in enumerate(linears[:-1]):
            norm = net[list(net).index(layer) + 1]
            h = h @ layer.weight[n] + layer.bias[n]
            h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            h = h * norm.scale[n] + norm.bias[n]  # type: ignore[operator, index]
            h = 0.5 * h * (1 + th.erf(h / math.sqrt(2))) if i in (1, 2) else h
        expected.append(h @ linears[-1].weight[n] + linears[-1].bias[n])
    th.testing.assert_close(net(x), th.stack(expected))


def test_the_velocity_is_an_mlp_of_state_point_and_time() -> None:
    net = PolicyVelocity(3, 2, [5, 4]).double()
    randomize(net)
    s, x, t = randn(6, 3), randn(6, 2, seed=1), randn(6, 1, seed=2)
    _, norm_1, _, linear_2, norm_2, _, last = (net.first, *net.rest)
    h = th.nn.functional.elu(norm_1(th.cat([s, x, t], dim=1) @ net.first.weight.T + net.first.bias))
    expected = last(th.nn.functional.elu(norm_2(linear_2(h))))
    th.testing.assert_close(net(net.encode(s), x, t).v, expected)


def test_all_critics_start_as_one_and_the_nets_are_the_authors() -> None:
    policy = FlowRLPolicy(RandomEnv().observation_space, RandomEnv().action_space, lambda _: 3e-4)
    assert policy.flow_steps == 1
    assert policy.critic_target is not None
    for critic in (policy.critic_target, policy.behavior_critic, policy.behavior_critic_target):
        for one, other in zip(policy.critic.parameters(), critic.parameters(), strict=True):
            assert th.equal(one, other)
            assert one is not other
    for net, layers in ((policy.critic, 5), (policy.behavior_value, 5), (policy.actor, 3)):
        linears = [layer for layer in net.modules() if isinstance(layer, th.nn.Linear | EnsembleLinear)]
        assert len(linears) == layers
        assert all(512 in layer.weight.shape[-2:] for layer in linears)
        assert all((layer.bias == 0).all() for layer in linears)


# What acts


def test_noise_is_clamped_and_the_deterministic_path_starts_at_zero() -> None:
    actor = make_flow_rl().actor
    for noise in (actor.sample_noise(1000), actor.sample_line(1000).x_0):
        assert noise.abs().max() == 1
        assert 0.1 < (noise.abs() == 1).float().mean() < 0.5  # 32 % of a standard normal lie outside
    assert not actor.fixed_noise(5).any()


def test_the_action_is_the_squashed_end_of_the_path() -> None:
    model = make_flow_rl().learn(15)
    obs = th.as_tensor(observations(model))
    with th.no_grad():
        x, field = th.zeros(5, 2), model.actor.field(obs)
        for i in range(2):  # flow_steps of the tiny model
            middle = x + field(x, th.full((1, 1), i / 2)).v / 4
            x = x + field(middle, th.full((1, 1), i / 2 + 1 / 4)).v / 2
    np.testing.assert_allclose(model.predict(obs.numpy(), deterministic=True)[0], th.tanh(x), atol=1e-6)


# One update


def test_actor_and_targets_wait_for_policy_delay() -> None:
    model = make_flow_rl(policy_delay=3, tau=0.25, learning_rate=0.01).learn(LEARNING_STARTS)
    waiting = ("/policy/actor.", "/policy/critic_target.", "/policy/behavior_critic_target.")
    for update in range(1, 7):
        before = snapshot(model)
        model.train(1, batch_size=8)
        changed = differences(before, snapshot(model))
        for name in waiting:
            assert any(each.startswith(name) for each in changed) == (update % 3 == 0)
        for name in ("critic", "behavior_critic", "behavior_value"):
            assert any(each.startswith(f"/policy/{name}.") for each in changed)
        if update % 3 == 0:
            for critic in ("critic", "behavior_critic"):
                for key in (key for key in before if key.startswith(f"/policy/{critic}.")):
                    target = key.replace(critic, f"{critic}_target")
                    online = model.policy.state_dict()[key.removeprefix("/policy/")]
                    expected = 0.75 * before[target] + 0.25 * online
                    th.testing.assert_close(model.policy.state_dict()[target.removeprefix("/policy/")], expected)


def test_each_value_learns_from_the_other_that_the_paper_names(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_flow_rl(learning_rate=0.01).learn(20)
    batch = model._sample(8)
    s, a, next_s = batch.observations, batch.actions, batch.next_observations
    noise = model.actor.sample_noise(8)
    with th.no_grad():
        next_q = model.critic_target(next_s, model.actor.action(next_s, noise)).amin(0)
        next_v = model.behavior_value(next_s)
        best_q = model.policy.behavior_critic_target(s, a).amin(0)
    th.testing.assert_close(model._critic_loss(batch, noise).next_q, next_q)
    behavior = model._behavior_critic_loss(batch)
    th.testing.assert_close(behavior.td.next_q, next_v)
    th.testing.assert_close(behavior.verdict, model.behavior_critic(s, a).amin(0).detach())
    th.testing.assert_close(model._behavior_value_loss(batch).q, best_q)
    # The weights take Q_beta from before its step
    seen: list[Any] = []
    original = model._actor_loss_fn
    monkeypatch.setattr(model, "_actor_loss_fn", lambda *args: (seen.append(args), original(*args))[1])
    old = [parameter.clone() for parameter in model.behavior_critic.parameters()]
    model.train(1, batch_size=8)
    with th.no_grad():
        for parameter, value in zip(model.behavior_critic.parameters(), old, strict=True):
            parameter.copy_(value)
        (_, _, batch, _, _, behavior_q, _) = seen[0]
        th.testing.assert_close(behavior_q, model.behavior_critic(batch.observations, batch.actions).amin(0))


# Arguments


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("expectile", 0.0, "above 0 and below 1"),
        ("expectile", 1.0, "above 0 and below 1"),
        ("expectile", "0.9", "above 0 and below 1"),
        ("policy_delay", 0, "an integer >= 1"),
        ("policy_delay", 1.5, "an integer >= 1"),
    ],
)
def test_its_own_arguments_are_checked(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value!r} .*{allowed}"):
        make_flow_rl(**{name: value})
    model = make_flow_rl()
    setattr(model, name, value)
    with pytest.raises(ValueError, match=name):
        model._check_arguments()  # what `load` calls


@pytest.mark.parametrize(("name", "value"), [("flow_steps", 0), ("n_critics", 0), ("net_arch", {"pi": []})])
def test_policy_arguments_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.* is not allowed"):
        make_flow_rl(net={name: value})
