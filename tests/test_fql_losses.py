"""FQL's losses by hand, number by number, in float64: first as functions, then with the networks."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from helpers import FQLS, make_variant, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_flow import FQL
from sb3_flow.common.buffers import Batch
from sb3_flow.common.flow import Line
from sb3_flow.common.layers import EnsembleLayerNorm, EnsembleLinear
from sb3_flow.fql.losses import actor_loss, critic_loss, matching_loss

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**31)
# The first call of a torch function can take longer than hypothesis allows an example
untimed = settings(deadline=None, max_examples=50)


def leaf(*shape: int, seed: int) -> th.Tensor:
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed)).requires_grad_(True)


def bits(data: st.DataObject, *shape: int) -> th.Tensor:
    """Zeros and ones."""
    size = math.prod(shape)
    drawn = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size))
    return th.tensor(drawn, dtype=th.float64).view(shape)


@untimed
@given(critics=sizes, batch=sizes, seed=seeds, masked=st.booleans(), chunked=st.booleans(), data=st.data())
def test_critic_loss_is_the_mean_squared_td_error_over_critics_and_rows_and_what_is_not_valid_counts_as_zero(
    critics: int, batch: int, seed: int, masked: bool, chunked: bool, data: st.DataObject
) -> None:
    q, rewards, next_q = leaf(critics, batch, seed=seed), leaf(batch, seed=seed + 1), leaf(batch, seed=seed + 2)
    dones, valid = bits(data, batch), bits(data, batch) if masked else None
    gammas = [0.9**m for m in data.draw(st.lists(st.integers(1, 5), min_size=batch, max_size=batch))]
    discounts: th.Tensor | float = th.tensor(gammas, dtype=th.float64) if chunked else 0.9
    result = critic_loss(q, rewards, dones, discounts, next_q, valid)

    total, targets = 0.0, []
    expected_grad = th.zeros(critics, batch, dtype=th.float64)
    for b in range(batch):
        bootstrapped = 0.0 if dones[b] else (gammas[b] if chunked else 0.9) * next_q[b].item()
        targets.append(rewards[b].item() + bootstrapped)
        for n in range(critics):
            if valid is None or valid[b]:
                error = q[n, b].item() - targets[b]
                total += error**2
                expected_grad[n, b] = 2 * error / (critics * batch)
    assert result.loss.item() == pytest.approx(total / (critics * batch))
    assert result.target_q.tolist() == pytest.approx(targets)
    assert result.next_q.tolist() == next_q.tolist()
    assert result.q.item() == pytest.approx(sum(q.flatten().tolist()) / (critics * batch))
    # The target is a constant
    grads = th.autograd.grad(result.loss, [q, rewards, next_q], allow_unused=True)
    th.testing.assert_close(grads[0], expected_grad)
    assert grads[1:] == (None, None)


@untimed
@given(batch=sizes, dim=sizes, seed=seeds, masked=st.booleans(), data=st.data())
def test_matching_loss_is_the_mean_square_over_rows_and_numbers_and_what_was_never_done_counts_as_zero(
    batch: int, dim: int, seed: int, masked: bool, data: st.DataObject
) -> None:
    error = leaf(batch, dim, seed=seed)
    in_episode = bits(data, batch, dim) if masked else None
    result = matching_loss(error, in_episode)
    total = 0.0
    for b in range(batch):
        for j in range(dim):
            if in_episode is None or in_episode[b, j]:
                total += error[b, j].item() ** 2
    # As in the authors' code, the mean runs over the masked numbers too
    assert result.loss.item() == pytest.approx(total / (batch * dim))
    assert result.matching_loss.item() == result.loss.item()
    assert not result.matching_loss.requires_grad
    assert (result.bc_loss, result.q, result.saturated) == (None, None, None)
    (grad,) = th.autograd.grad(result.loss, error)
    mask = th.ones_like(error) if in_episode is None else in_episode
    th.testing.assert_close(grad, 2 * error.detach() * mask / (batch * dim))


@untimed
@given(batch=sizes, dim=sizes, seed=seeds, alpha=st.sampled_from([0.0, 1.0, 300.0]), normalize=st.booleans())
def test_actor_loss_is_matching_distillation_and_value(
    batch: int, dim: int, seed: int, alpha: float, normalize: bool
) -> None:
    error, actions = leaf(batch, dim, seed=seed), leaf(batch, dim, seed=seed + 1)
    flow_actions, q = leaf(batch, dim, seed=seed + 2), leaf(batch, seed=seed + 3)
    matching = matching_loss(error)
    result = actor_loss(matching, actions, flow_actions, q, alpha, normalize)

    distance, value, size = 0.0, 0.0, 0.0
    for b in range(batch):
        value += q[b].item() / batch
        size += abs(q[b].item()) / batch
        for j in range(dim):
            # The policy's action is not clipped here
            distance += (actions[b, j].item() - flow_actions[b, j].item()) ** 2 / (batch * dim)
    scale = 1 / size if normalize else 1.0
    assert result.loss.item() == pytest.approx(matching.loss.item() + alpha * distance - scale * value)
    assert result.bc_loss is not None
    assert result.bc_loss.item() == pytest.approx(distance)
    assert result.q is not None
    assert result.q.item() == pytest.approx(value)
    assert result.matching_loss.item() == matching.loss.item()
    assert not any(part.requires_grad for part in (result.bc_loss, result.q, result.matching_loss, result.saturated))

    grads = th.autograd.grad(result.loss, [error, actions, q, flow_actions], allow_unused=True)
    th.testing.assert_close(grads[0], 2 * error.detach() / (batch * dim))
    th.testing.assert_close(grads[1], alpha * 2 * (actions - flow_actions).detach() / (batch * dim))
    # The mean size of Q is a constant: it does not undo the pull towards a higher Q
    th.testing.assert_close(grads[2], th.full_like(q, -scale / batch))
    assert grads[3] is None


def test_an_action_close_to_its_bound_or_beyond_it_is_reported_as_saturated() -> None:
    actions = th.tensor([[0.995, -0.995, 0.5], [0.985, -3.0, 0.0]], dtype=th.float64)
    matching = matching_loss(th.zeros(2, 3, dtype=th.float64))
    result = actor_loss(matching, actions, actions, th.ones(2, dtype=th.float64), 1.0)
    assert result.saturated is not None
    assert result.saturated.item() == pytest.approx(3 / 6)


def test_what_best_of_n_has_not_is_neither_logged_nor_checked() -> None:
    matching = matching_loss(th.ones(2, 3))
    assert matching.logged.keys() == {"actor_loss", "matching_loss"}
    assert matching.made_of.keys() == {"matching_loss"}
    both = actor_loss(matching, th.ones(2, 3), th.ones(2, 3), th.ones(2), 1.0)
    assert both.logged.keys() == {"actor_loss", "matching_loss", "bc_loss", "saturated"}
    assert list(both.made_of) == ["matching_loss", "bc_loss", "q"]  # in the order in which they are made


# With the networks, one row and one number at a time

Row = list[float]
ROWS, STEPS, ALPHA = 6, 3, 3.0


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def clip(row: Row) -> Row:
    return [min(1.0, max(-1.0, x)) for x in row]


def mean(numbers: Row) -> float:
    return sum(numbers) / len(numbers)


def dense(x: Row, weight: list[Row], bias: Row) -> Row:
    """One row of `weight` for each output."""
    return [sum(w * number for w, number in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def layer_norm(x: Row, scale: Row, shift: Row) -> Row:
    variance = mean([(number - mean(x)) ** 2 for number in x])
    normal = [(number - mean(x)) / math.sqrt(variance + 1e-6) for number in x]
    return [a * number + b for a, number, b in zip(scale, normal, shift, strict=True)]


def mlp(net: nn.Module, x: Row) -> Row:
    """What a net of the actor makes of its input."""
    *hidden, last = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    for layer in hidden:
        x = [gelu(number) for number in dense(x, layer.weight.tolist(), layer.bias.tolist())]
    return dense(x, last.weight.tolist(), last.bias.tolist())


def q_values(critic: nn.Module, x: Row) -> Row:
    """Of each critic."""
    *hidden, last = [layer for layer in critic.modules() if isinstance(layer, EnsembleLinear)]
    norms = [layer for layer in critic.modules() if isinstance(layer, EnsembleLayerNorm)]
    values = []
    for n in range(len(last.weight)):
        h = x
        for layer, norm in zip(hidden, norms, strict=True):
            h = [gelu(number) for number in dense(h, layer.weight[n].T.tolist(), layer.bias[n, 0].tolist())]
            h = layer_norm(h, norm.scale[n, 0].tolist(), norm.bias[n, 0].tolist())
        values += dense(h, last.weight[n].T.tolist(), last.bias[n, 0].tolist())
    return values


def euler(model: FQL, state: Row, z: Row) -> Row:
    """The end of the behaviour flow that starts at z: clipped there and nowhere before."""
    for i in range(STEPS):
        v = mlp(model.actor.behavior, [*state, *z, i / STEPS])
        z = [x + dx / STEPS for x, dx in zip(z, v, strict=True)]
    return clip(z)


def one_step(model: FQL, state: Row, z: Row) -> Row:
    return mlp(model.actor.one_step, [*state, *z])


class Case(NamedTuple):
    """A model, a batch and all the noise of one update, in float64."""

    model: FQL
    batch: Batch
    next_noise: th.Tensor
    line: Line
    noise: th.Tensor | None


def make_case(name: str, **kwargs: Any) -> Case:
    """Parameters away from where they start, and a batch in which every mask is 0 somewhere."""
    net = {"net_arch": {"pi": [6, 5], "qf": [7, 4]}, "flow_steps": STEPS}
    model = make_variant(name, net=net, **kwargs)
    assert isinstance(model, FQL)
    model.policy.double()
    randomize(model.policy)
    if model.best_of_n is None:
        with th.no_grad():
            model.actor.one_step[-1].weight.mul_(3)  # type: ignore[union-attr, operator]
    dim = model.policy.chunk_dim
    in_episode = (th.arange(ROWS * dim).view(ROWS, dim) % 5 != 4).double() if dim > 2 else None
    batch = Batch(
        leaf(ROWS, 3, seed=1).detach(),
        leaf(ROWS, dim, seed=2).detach().clamp(-1, 1),
        leaf(ROWS, 3, seed=3).detach(),
        leaf(ROWS, seed=4).detach(),
        th.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=th.float64),
        0.9**model.horizon_length,
        th.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0], dtype=th.float64) if dim > 2 else None,
        in_episode,
    )
    n = (4,) if model.best_of_n is not None else ()
    line = Line(leaf(ROWS, dim, seed=6).detach(), th.linspace(0, 0.9, ROWS, dtype=th.float64).view(ROWS, 1))
    noise = None if model.best_of_n is not None else leaf(ROWS, dim, seed=7).detach()
    return Case(model, batch, leaf(*n, ROWS, dim, seed=5).detach(), line, noise)


@pytest.fixture(autouse=True)
def _observations_in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # SB3 casts them to float32
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", lambda obs, *args, **kwargs: obs)
    return


def rows_of(tensor: Any) -> list[Row]:
    rows: list[Row] = tensor.tolist()
    return rows


def expected_next_q(case: Case) -> Row:
    """The target critics' verdict on the next action of every row."""
    model, values = case.model, []
    for b, state in enumerate(rows_of(case.batch.next_observations)):
        if model.best_of_n is None:
            action = clip(one_step(model, state, rows_of(case.next_noise)[b]))
        else:
            candidates = [euler(model, state, rows_of(case.next_noise)[k][b]) for k in range(model.best_of_n)]
            action = max(candidates, key=lambda a: mean(q_values(model.critic, [*state, *a])))
        values.append(mean(q_values(model.critic_target, [*state, *action])))
    return values


@pytest.mark.parametrize("name", FQLS)
def test_the_whole_critic_loss_is_what_the_formulas_give_row_by_row(name: str) -> None:
    case = make_case(name)
    model, batch = case.model, case.batch
    result = model._critic_loss(batch, model._next_actions(batch, case.next_noise))
    next_q = expected_next_q(case)
    total = 0.0
    for b, (state, action) in enumerate(zip(rows_of(batch.observations), rows_of(batch.actions), strict=True)):
        target = batch.rewards[b].item() + 0.9**model.horizon_length * (1 - batch.dones[b].item()) * next_q[b]
        valid = 1.0 if batch.valid is None else batch.valid[b].item()
        total += valid * mean([(q - target) ** 2 for q in q_values(model.critic, [*state, *action])])
    assert result.loss.dtype == th.float64
    assert result.next_q.tolist() == pytest.approx(next_q, rel=1e-10)
    assert result.loss.item() == pytest.approx(total / ROWS, rel=1e-10)
    # Only the critics learn from it, even with actions that have a gradient
    others = list(model.actor.parameters())
    assert th.autograd.grad(result.loss, others, allow_unused=True) == (None,) * len(others)
    assert not any(parameter.requires_grad for parameter in model.critic_target.parameters())


@pytest.mark.parametrize(
    ("name", "normalize"), [("fql", False), ("fql", True), ("qc_fql", False), ("qc_fql", True), ("qc", False)]
)
def test_the_whole_actor_loss_is_what_the_formulas_give_row_by_row(name: str, normalize: bool) -> None:
    case = make_case(name, normalize_q_loss=normalize)
    model, batch, dim = case.model, case.batch, case.model.policy.chunk_dim
    result = model._actor_loss(batch, case.line, case.noise, th.tensor(ALPHA, dtype=th.float64))
    matching, distillation, values, outside = 0.0, 0.0, [], 0
    for b, (state, action) in enumerate(zip(rows_of(batch.observations), rows_of(batch.actions), strict=True)):
        x_0, t = rows_of(case.line.x_0)[b], case.line.t[b].item()
        x_t = [(1 - t) * start + t * end for start, end in zip(x_0, action, strict=True)]
        velocity = mlp(model.actor.behavior, [*state, *x_t, t])
        for j in range(dim):
            counts = 1.0 if batch.in_episode is None else batch.in_episode[b, j].item()
            matching += counts * (velocity[j] - (action[j] - x_0[j])) ** 2 / (ROWS * dim)
        if case.noise is None:
            continue
        z = rows_of(case.noise)[b]
        mu = one_step(model, state, z)
        outside += sum(abs(number) > 1 for number in mu)
        # The student is not clipped, the teacher is, and chunks that leave their episode count
        distance = [(student - teacher) ** 2 for student, teacher in zip(mu, euler(model, state, z), strict=True)]
        distillation += mean(distance) / ROWS
        values.append(mean(q_values(model.critic, [*state, *clip(mu)])))
    loss = matching
    if case.noise is not None:
        assert 0 < outside < ROWS * dim  # or this says nothing of clipping
        assert result.bc_loss is not None
        assert result.bc_loss.item() == pytest.approx(distillation, rel=1e-10)
        loss += ALPHA * distillation - mean(values) / (mean([abs(q) for q in values]) if normalize else 1)
    assert result.matching_loss.item() == pytest.approx(matching, rel=1e-10)
    assert result.loss.item() == pytest.approx(loss, rel=1e-10)
    # The behaviour flow learns from the data alone: neither from Q nor from the policy that imitates it
    behavior = list(model.actor.behavior.parameters())
    alone = model._actor_loss(batch, case.line, None, th.tensor(0.0))
    grads, expected = (th.autograd.grad(each.loss, behavior) for each in (result, alone))
    for one, other in zip(grads, expected, strict=True):
        assert th.equal(one, other)


def test_the_best_sample_is_chosen_by_the_critics_and_not_by_their_targets() -> None:
    case = make_case("qc")
    model, state = case.model, case.batch.next_observations
    chosen = model.actor.action(state, case.next_noise)
    model.actor.judged_by(model.critic_target)  # type: ignore[union-attr]
    wrong = model.actor.action(state, case.next_noise)
    # So the test of the critic's loss can tell them apart
    assert (chosen != wrong).any(dim=1).sum() >= 2


@pytest.mark.parametrize("name", ["fql", "qc_fql"])
def test_q_pulls_at_no_number_of_an_action_that_is_clipped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(name)
    model, dim = case.model, case.model.policy.chunk_dim
    mu = (1.5 * leaf(ROWS, dim, seed=8).detach()).requires_grad_(True)
    monkeypatch.setattr(model.actor, "mu", lambda obs, noise: mu)
    inside = mu.detach().abs() < 1
    assert inside.any()
    assert not inside.all()

    def gradient(alpha: float) -> th.Tensor:
        loss = model._actor_loss(case.batch, case.line, case.noise, th.tensor(alpha, dtype=th.float64)).loss
        (grad,) = th.autograd.grad(loss, mu)
        return grad

    pull = gradient(0.0)
    assert (pull[inside] != 0).all()
    assert (pull[~inside] == 0).all()
    # Distillation goes on pulling there, back into the bounds
    flow_actions = model.actor.flow_actions(model.actor.field(case.batch.observations), case.noise).detach()
    th.testing.assert_close(gradient(ALPHA) - pull, 2 * ALPHA * (mu.detach() - flow_actions) / (ROWS * dim))


def test_numbers_of_a_chunk_are_the_steps_one_after_the_other() -> None:
    model = make_variant("qc_fql")
    obs = np.zeros((1, 3), np.float32)
    with th.no_grad():
        flat = model.actor(th.as_tensor(obs), deterministic=True)[0].numpy()
    _, state = model.predict(obs, deterministic=True)
    assert state is not None
    np.testing.assert_allclose(state[0][0], flat.reshape(3, 2), rtol=1e-6)
