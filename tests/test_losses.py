"""The losses by hand, number by number, in float64."""

import math

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_flow.common.categorical import Support
from sb3_flow.common.flow import Path
from sb3_flow.common.temperature import ent_coef_gradient, ent_coef_loss
from sb3_flow.sac_flow.losses import Target, actor_loss, add_matching, categorical_critic_loss, critic_loss, td_target

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**31)
# The first call of a torch function can take longer than hypothesis allows an example
untimed = settings(deadline=None)


def randn(*shape: int, seed: int) -> th.Tensor:
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed)).requires_grad_(True)


def path_of(x: th.Tensor, log_prob: th.Tensor) -> Path:
    return Path(x, log_prob, log_prob - 1, th.tensor(-1.5, dtype=th.float64, requires_grad=True))


@untimed
@given(batch=sizes, seed=seeds, n_step=st.booleans(), data=st.data())
def test_td_target_is_the_reward_plus_the_discounted_soft_value_of_live_states(
    batch: int, seed: int, n_step: bool, data: st.DataObject
) -> None:
    dones = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=batch, max_size=batch))
    rewards, next_q, next_log_prob = (randn(batch, seed=seed + i) for i in range(3))
    gammas = [0.99**m for m in data.draw(st.lists(st.integers(1, 5), min_size=batch, max_size=batch))]
    discounts: th.Tensor | float = th.tensor(gammas, dtype=th.float64) if n_step else 0.9
    target = td_target(
        rewards,
        th.tensor(dones, dtype=th.float64),
        discounts,
        next_q,
        next_log_prob,
        th.tensor(0.2, dtype=th.float64),
    )
    expected = []
    for i in range(batch):
        value = next_q[i].item() - 0.2 * next_log_prob[i].item()
        gamma = gammas[i] if n_step else 0.9
        expected.append(rewards[i].item() + (0.0 if dones[i] else gamma * value))
    assert target.q.tolist() == pytest.approx(expected)
    assert target.next_q.tolist() == next_q.tolist()
    assert target.next_log_prob.tolist() == next_log_prob.tolist()
    assert not any(tensor.requires_grad for tensor in target)


def test_the_categorical_loss_is_the_mean_cross_entropy_of_what_has_a_target_summed_over_critics() -> None:
    logits, probs = randn(2, 3, 5, seed=0), randn(3, 5, seed=1).detach().softmax(-1)
    q, scalar = randn(2, 3, seed=2), randn(3, seed=3).detach()
    target = Target(scalar, scalar, scalar)
    each = -(probs * logits.softmax(-1).log()).sum(-1)
    for valid, rows in ((None, [0, 1, 2]), (th.tensor([1.0, 0.0, 1.0], dtype=th.float64), [0, 2])):
        result = categorical_critic_loss(logits, q, probs, target, Support(5, 0.5), valid)
        th.testing.assert_close(result.loss, each[:, rows].mean(dim=1).sum())
    assert result.q.item() == pytest.approx(q.mean().item())
    assert result.logged["clipped_targets"].item() == pytest.approx(sum(abs(x) > 0.5 for x in scalar.tolist()) / 3)


@untimed
@given(critics=sizes, batch=sizes, seed=seeds)
def test_critic_loss_is_half_the_mean_squared_error_summed_over_critics(critics: int, batch: int, seed: int) -> None:
    q, target = randn(critics, batch, seed=seed), randn(batch, seed=seed + 1).detach()
    made_of = Target(target, target, target)
    result = critic_loss(q, made_of)
    expected = sum((q[n, b].item() - target[b].item()) ** 2 / (2 * batch) for n in range(critics) for b in range(batch))
    assert result.loss.item() == pytest.approx(expected)
    assert result.q.item() == pytest.approx(sum(q.flatten().tolist()) / (critics * batch))
    assert result.target is made_of
    # So a critic's step does not depend on how many critics there are
    (grad,) = th.autograd.grad(result.loss, q)
    th.testing.assert_close(grad, (q.detach() - target) / batch)


@untimed
@given(batch=sizes, dim=sizes, seed=seeds, beta=st.sampled_from([0.0, 1.0, 300.0]))
def test_actor_loss_is_entropy_value_and_proximity(batch: int, dim: int, seed: int, beta: float) -> None:
    x, log_prob, q = randn(batch, dim, seed=seed), randn(batch, seed=seed + 1), randn(batch, seed=seed + 2)
    replayed = th.tanh(randn(batch, dim, seed=seed + 3)).detach()
    result = actor_loss(
        path_of(x, log_prob), q, th.tensor(0.2, dtype=th.float64), actions := th.tanh(x), replayed, beta
    )
    soft_value = sum(0.2 * log_prob[b].item() - q[b].item() for b in range(batch)) / batch
    squares = [(math.tanh(x[b, j].item()) - replayed[b, j].item()) ** 2 for b in range(batch) for j in range(dim)]
    # The mean runs over the numbers of the chunk too: beta means the same for every chunk length
    proximity = sum(squares) / (batch * dim)
    assert result.loss.item() == pytest.approx(soft_value + beta * proximity)
    assert result.bc_loss.item() == pytest.approx(proximity)

    grads = th.autograd.grad(result.loss, [log_prob, q, actions], allow_unused=True)
    th.testing.assert_close(grads[0], th.full_like(log_prob, 0.2 / batch))
    th.testing.assert_close(grads[1], th.full_like(q, -1 / batch))
    assert grads[2] is not None
    th.testing.assert_close(grads[2], beta * 2 * (actions.detach() - replayed) / (batch * dim))


def test_actor_loss_reports_without_gradient() -> None:
    actions = th.tensor([[0.995, -0.995, 0.5], [0.985, 1.0, 0.0]], dtype=th.float64, requires_grad=True)
    log_prob, q = randn(2, seed=0), randn(2, seed=1)
    result = actor_loss(path_of(actions, log_prob), q, th.tensor(0.2), actions, actions.detach(), 1.0)
    assert result.loss.requires_grad
    assert result.matching_loss is None
    assert not any(value.requires_grad for value in result[1:-1])
    assert result.saturated.item() == pytest.approx(3 / 6)
    assert result.log_std.item() == -1.5
    th.testing.assert_close(result.log_prob, log_prob.detach())
    th.testing.assert_close(result.path_log_prob, log_prob.detach() - 1)


def test_the_matching_loss_is_the_mean_squared_error_in_the_episode_and_is_added() -> None:
    actions, error = randn(2, 3, seed=0), randn(2, 3, seed=1)
    actor = actor_loss(
        path_of(actions, randn(2, seed=2)), randn(2, seed=3), th.tensor(0.2), actions, actions.detach(), 0
    )
    mask = th.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    both = add_matching(actor, error, mask)
    expected = error[mask == 1].square().mean()
    th.testing.assert_close(both.loss, actor.loss + expected)
    assert both.matching_loss is not None
    th.testing.assert_close(both.matching_loss, expected.detach())
    assert not both.matching_loss.requires_grad
    assert both.loss.requires_grad
    th.testing.assert_close(add_matching(actor, error).loss, actor.loss + error.square().mean())


@untimed
@given(batch=sizes, seed=seeds, target=st.floats(-20, 20), log_ent_coef=st.floats(-5, 5))
def test_ent_coef_loss_is_minus_log_alpha_times_the_missing_entropy(
    batch: int, seed: int, target: float, log_ent_coef: float
) -> None:
    parameter = th.tensor([log_ent_coef], dtype=th.float64, requires_grad=True)
    log_prob = randn(batch, seed=seed)
    loss = ent_coef_loss(parameter, log_prob, target)
    missing = sum(log_prob.tolist()) / batch + target
    assert loss.item() == pytest.approx(-log_ent_coef * missing, abs=1e-12)
    grads = th.autograd.grad(loss, [parameter, log_prob], allow_unused=True)
    th.testing.assert_close(grads[0], th.tensor([-missing], dtype=th.float64))
    th.testing.assert_close(ent_coef_gradient(log_prob, target), grads[0].squeeze())
    assert grads[1] is None


@pytest.mark.parametrize(("entropy", "rises"), [(-3.0, True), (5.0, False)])
def test_a_step_on_ent_coef_loss_raises_alpha_when_the_path_is_too_certain(entropy: float, rises: bool) -> None:
    parameter = th.zeros(1, dtype=th.float64, requires_grad=True)
    log_prob = th.full((4,), -entropy, dtype=th.float64)
    (grad,) = th.autograd.grad(ent_coef_loss(parameter, log_prob, 1.0), parameter)
    assert bool(-grad > 0) is rises
