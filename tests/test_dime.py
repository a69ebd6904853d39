"""DIME: its losses by hand, its actor, how often it updates, and that it learns."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import LEARNING_STARTS, RandomEnv, differences, make_variant, observations, randn, randomize, snapshot
from torch.nn.functional import gelu, softplus
from torch.testing import assert_close

from sb3_flow import DIME
from sb3_flow.common.categorical import Support, target_distribution
from sb3_flow.common.critics import SUPPORT
from sb3_flow.common.ou import PathCost
from sb3_flow.dime import losses
from sb3_flow.dime.networks import ControlNet


def test_the_critic_s_loss_is_the_cross_entropy_less_a_bit_of_entropy() -> None:
    logits, target = randn(2, 4, 101).requires_grad_(True), randn(4, 101, seed=1).softmax(-1)
    q, target_q, next_q, next_cost = randn(2, 4, seed=2), *randn(3, 4, seed=3).unbind()
    valid = th.tensor([1.0, 0.0, 1.0, 1.0], dtype=th.float64)
    probs = logits.softmax(-1)
    each = -(target * probs.log()).sum(-1) + 0.005 * (probs * probs.log()).sum(-1)
    for mask, rows in ((None, [0, 1, 2, 3]), (valid, [0, 2, 3])):
        result = losses.critic_loss(logits, q, target, target_q, next_q, next_cost, Support(101, 0.5), mask)
        assert_close(result.loss, each[:, rows].mean(1).sum())
    assert_close(result.q, q.mean())
    assert result.clipped.item() == sum(abs(x) > 0.5 for x in target_q.tolist()) / 4
    assert list(result.made_of) == ["next_cost", "next_q", "target_q"]


def test_the_target_is_the_reward_and_the_discounted_soft_value() -> None:
    rewards, next_q, next_cost = randn(3, 5).unbind()
    bootstrap = th.tensor([0.99, 0.0, 0.9, 0.99, 0.0], dtype=th.float64)
    target = losses.td_target(rewards, bootstrap, next_q, next_cost, th.tensor(0.3, dtype=th.float64))
    assert_close(target, rewards + bootstrap * (next_q - 0.3 * next_cost))


def test_the_actor_s_loss_is_the_weighted_cost_less_q() -> None:
    cost, q, actions = PathCost(*randn(2, 6).unbind()), randn(6, seed=1), randn(6, 2, seed=2)
    alpha = th.tensor(0.2, dtype=th.float64)
    result = losses.actor_loss(cost, q, alpha, actions)
    assert_close(result.loss, (0.2 * (cost.running + cost.prior) - q).mean())
    assert_close(result.running_cost, cost.running)


def test_the_control_is_an_mlp_on_point_state_and_time() -> None:
    net = ControlNet(features_dim=4, chunk_dim=3, steps=5, net_arch=[8, 6, 7]).double()
    randomize(net)
    features, x = randn(10, 4), randn(10, 3, seed=1)
    frequencies = th.linspace(0.1, 100, 8).double()
    first = th.cat([net.x_weight, net.state_weight, net.time_weight], dim=1)
    for i in range(5):
        phase = i * frequencies + net.phase
        time = net.time_net(th.cat([phase.sin(), phase.cos()], dim=1)).expand(10, 8)
        hidden = th.cat([x, features, time], dim=1) @ first.T + net.bias
        for layer in (net.rest[1], net.rest[3], net.rest[5]):
            hidden = layer(gelu(hidden, approximate="tanh"))
        assert_close(net(net.encode(features), i, x), hidden)


def test_the_control_begins_at_almost_nothing_and_is_bounded() -> None:
    net = ControlNet(features_dim=4, chunk_dim=3, steps=5, net_arch=[32, 32])
    out = net(net.encode(th.randn(50, 4)), 2, th.randn(50, 3))
    assert out.abs().max() < 1e-5
    with th.no_grad():
        net.rest[-1].bias.fill_(1e6)
    assert_close(net(net.encode(th.randn(5, 4)), 2, th.randn(5, 3)), th.full((5, 3), 1e4))


def test_layers_begin_as_flax_begins_them() -> None:
    weight = ControlNet(features_dim=4, chunk_dim=3, steps=5, net_arch=[512, 512]).rest[1].weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(512), rel=0.02)
    assert weight.abs().max().item() < 2 / math.sqrt(512) / 0.8796


def test_the_step_sizes_are_learned_and_those_of_the_schedule_at_first() -> None:
    actor = make_variant("dime", net={"diffusion_steps": 16}).actor
    obs = th.zeros(1, 3)
    step_sizes = actor.process(obs).step_sizes
    assert_close(step_sizes, (0.1 * actor.schedule)[:, None].expand(16, 2))
    with th.no_grad():
        actor.dt.fill_(0.5)
        actor.friction.copy_(th.tensor([0.3, -1.0]))
    expected = softplus(th.tensor(0.5)) * actor.schedule[:, None] / softplus(th.tensor([0.3, -1.0]))
    assert_close(actor.process(obs).step_sizes, expected)


def test_actor_and_target_take_the_cost_of_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_variant("dime", ent_coef=0.5).learn(20)
    batch = model._sample(8)
    noise, alpha = model.actor.sample_noise(8), th.tensor(0.5)
    model.policy.set_training_mode(False)
    with th.no_grad():
        actions, cost = model.actor.action_and_cost(batch.observations, noise)
        q = model.critic(batch.observations, actions).mean(dim=0)
        assert_close(model._actor_loss(batch, noise, alpha).loss, (0.5 * cost.total - q).mean())
        loss = model._critic_loss(batch, noise, alpha)
        next_actions, next_cost = model.actor.action_and_cost(batch.next_observations, noise)
        next_outputs = model.critic.outputs(batch.next_observations, next_actions)
        next_q = model.critic.q(next_outputs).mean(dim=0)
        bootstrap = 0.99 * (1 - batch.dones)
        target_q = batch.rewards + bootstrap * (next_q - 0.5 * next_cost.total)
        assert_close(loss.target_q, target_q)
        target = target_distribution(next_outputs.softmax(-1).mean(0), target_q, bootstrap, SUPPORT)
        log_p = model.critic.outputs(batch.observations, batch.actions).log_softmax(-1)
        expected = -(target * log_p).sum(-1) + 0.005 * (log_p.exp() * log_p).sum(-1)
        assert_close(loss.loss, expected.mean(1).sum())


def test_two_updates_a_step_and_every_third_one_of_the_actor_too() -> None:
    model = DIME("MlpPolicy", RandomEnv(), learning_starts=10, buffer_size=100, batch_size=8, seed=0, device="cpu")
    assert (model.gradient_steps, model.policy_delay, model.policy.diffusion_steps) == (2, 3, 16)
    assert model.log_ent_coef is not None
    assert model.log_ent_coef.exp().item() == pytest.approx(0.003)
    assert (model.target_entropy, model.critic_target) == (-8.0, None)
    assert [group["betas"] for group in model.actor.optimizer.param_groups] == [(0.5, 0.999)]
    model.learn(LEARNING_STARTS + 2)
    assert model._n_updates == 4
    for update in range(5, 11):
        before = snapshot(model)
        model.train(1, batch_size=8)
        changed = differences(before, snapshot(model))
        assert any(name.startswith("/policy/critic.") for name in changed)
        assert any(name.startswith("/policy/actor.") for name in changed) == (update % 3 == 0)
        assert ("log_ent_coef" in changed) == (update % 3 == 0)


def test_alpha_rises_while_paths_cost_more_than_the_target_and_falls_below() -> None:
    for target_entropy, rises in ((20.0, True), (-200.0, False)):
        model = make_variant("dime", target_entropy=target_entropy).learn(20)
        assert model.log_ent_coef is not None
        assert (model.log_ent_coef.exp().item() > 0.003) == rises


def test_the_temperature_sees_the_running_cost_alone() -> None:
    model = make_variant("dime", target_entropy=-7.0).learn(20)
    values = model.logger.name_to_value
    model.train(1, batch_size=8)
    log_alpha = math.log(values["train/ent_coef"])
    assert values["train/ent_coef_loss"] == pytest.approx(-log_alpha * (values["train/running_cost"] - 7.0), rel=1e-4)
    assert abs(values["train/running_cost"] - values["train/path_cost"]) > 0.1


def test_every_number_of_the_actor_s_gradient_is_cut_off_at_1() -> None:
    model = make_variant("dime", policy_delay=1, ent_coef=1e6).learn(20)
    gradients = [parameter.grad for parameter in model.actor.parameters()]
    sizes = th.cat([gradient.abs().flatten() for gradient in gradients if gradient is not None])
    assert sizes.max() == 1.0
    assert (sizes < 1).any()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("ent_coef", None, "default"),
        ("ent_coef", "auto_0", "'auto'"),
        ("policy_delay", None, "default"),
        ("policy_delay", 0, ">= 1"),
        ("qf_learning_rate", None, "default"),
        ("qf_learning_rate", "1e-3", "a number or a schedule"),
        ("target_entropy", "low", "'auto'"),
    ],
)
def test_arguments_are_checked(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value!r} .*{allowed}"):
        make_variant("dime", **{name: value})


@pytest.mark.parametrize("steps", [0, 2.5, "16"])
def test_the_number_of_steps_is_checked(steps: Any) -> None:
    with pytest.raises(ValueError, match=r"diffusion_steps=.* an integer >= 1"):
        make_variant("dime", net={"diffusion_steps": steps})


def test_the_number_of_steps_is_saved(tmp_path: Path) -> None:
    model = make_variant("dime", net={"diffusion_steps": 5})
    model.save(tmp_path / "model")
    loaded = DIME.load(tmp_path / "model", device="cpu")
    assert loaded.actor.diffusion_steps == loaded.policy.diffusion_steps == 5
    obs = observations(model)
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))


@pytest.mark.slow
def test_it_learns_which_actions_are_rewarded() -> None:
    class Bandit(RandomEnv):
        """One step an episode, the best action is (0.5, -0.5)."""

        def step(self, action: Any) -> Any:
            obs, *_ = super().step(action)
            return obs, -float(np.square(action - [0.5, -0.5]).sum()), True, False, {}

    net = {"diffusion_steps": 4, "net_arch": {"pi": [32, 32], "qf": [64, 64]}}
    model = make_variant(
        "dime", Bandit(), net=net, learning_starts=200, batch_size=64, learning_rate=3e-3, qf_learning_rate=3e-3
    )
    model.learn(500)
    actions, _ = model.predict(observations(model, 100))
    assert np.abs(actions.mean(axis=0) - [0.5, -0.5]).max() < 0.2
