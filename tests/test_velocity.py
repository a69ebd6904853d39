"""The velocity nets against PyTorch's own attention and decoder, and by hand, in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import gradients, randn, randomize
from torch import nn
from torch.nn.functional import gelu, linear, relu

from sb3_flow.common.flow import LIKELIHOODS, ROLLOUT_KINDS, Likelihood, RolloutKind, Velocity, rollout
from sb3_flow.common.velocity import (
    DecoderBlock,
    DecoderVelocity,
    GatedVelocity,
    LogStdHead,
    MLPVelocity,
    SelfOnlyAttention,
    StateAttention,
    VelocityNet,
)
from sb3_flow.sac_flow.policies import FlowGPolicy, FlowMLPPolicy, FlowPolicy, FlowTPolicy

FEATURES, DIM, D_MODEL = 3, 2, 4
LOG_STD_RANGE = (-2.0, 0.0)

NETS: dict[str, Callable[[float | None], VelocityNet]] = {
    "mlp": lambda noise_std: MLPVelocity(FEATURES, DIM, LOG_STD_RANGE, noise_std, [5, 4]),
    "gated": lambda noise_std: GatedVelocity(FEATURES, DIM, LOG_STD_RANGE, noise_std, [5, 4]),
    "decoder": lambda noise_std: DecoderVelocity(FEATURES, DIM, LOG_STD_RANGE, noise_std, D_MODEL, 2, 2, 1),
    "decoder on 3 tokens": lambda noise_std: DecoderVelocity(FEATURES, DIM, LOG_STD_RANGE, noise_std, D_MODEL, 2, 2, 3),
}
every_net = pytest.mark.parametrize("name", NETS)
every_sigma = pytest.mark.parametrize("noise_std", [None, 0.3], ids=["learned sigma", "fixed sigma"])


def make_net(name: str, noise_std: float | None = None) -> VelocityNet:
    th.manual_seed(0)
    net = NETS[name](noise_std).double()
    randomize(net)
    return net


class Rollout(nn.Module):
    """The rollout as an actor runs it, on given features."""

    def __init__(self, net: VelocityNet, kind: RolloutKind, likelihood: Likelihood = "path"):
        super().__init__()
        self.net = net
        self.kind = kind
        self.likelihood: Likelihood = likelihood

    def forward(self, features: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, ...]:
        context = self.net.encode(features)
        return tuple(rollout(lambda x, t: self.net(context, x, t), noise, self.kind, self.likelihood))


@every_net
@every_sigma
@pytest.mark.parametrize("kind", ROLLOUT_KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradients_through_the_rollout_are_the_finite_differences(
    name: str, noise_std: float | None, kind: RolloutKind, likelihood: Likelihood
) -> None:
    module = Rollout(make_net(name, noise_std), kind, likelihood)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def end(features: th.Tensor, noise: th.Tensor, *parameters: th.Tensor) -> tuple[th.Tensor, ...]:
        ends: tuple[th.Tensor, ...] = th.func.functional_call(
            module, dict(zip(names, parameters, strict=True)), (features, noise)
        )
        # A fixed sigma has no gradient, which gradcheck takes for a mistake
        return ends if noise_std is None else ends[:2]

    features, noise = randn(2, FEATURES, seed=1), randn(3, 2, DIM, seed=2)
    inputs = [features.requires_grad_(True), noise.requires_grad_(True), *parameters]
    assert th.autograd.gradcheck(end, inputs, fast_mode=True)


@every_net
@every_sigma
def test_every_parameter_is_trained_by_the_rollout(name: str, noise_std: float | None) -> None:
    module = Rollout(make_net(name, noise_std), "sde")
    x, log_prob, *_ = module(randn(5, FEATURES, seed=1), randn(5, 5, DIM, seed=2))
    (x.square().sum() + log_prob.sum()).backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@every_net
def test_rows_of_a_batch_do_not_see_each_other(name: str) -> None:
    module = Rollout(make_net(name), "sde")
    features, noise = randn(4, FEATURES, seed=1), randn(4, 4, DIM, seed=2)
    x, log_prob, *_ = module(features, noise)
    for i in range(4):
        alone = module(features[i : i + 1], noise[:, i : i + 1])
        th.testing.assert_close(alone[0][0], x[i])
        th.testing.assert_close(alone[1][0], log_prob[i])


@every_net
def test_time_is_the_same_for_all_rows_or_one_a_row(name: str) -> None:
    net = make_net(name)
    context, x = net.encode(randn(3, FEATURES)), randn(3, DIM, seed=1)
    times = [0.0, 0.25, 0.7]
    together = net(context, x, th.tensor(times, dtype=th.float64)[:, None])
    for i, time in enumerate(times):
        alone = net(context, x, th.tensor([[time]], dtype=th.float64))
        th.testing.assert_close(together.v[i], alone.v[i])
        th.testing.assert_close(together.log_std[i], alone.log_std[i])
    assert not th.allclose(together.v, net(context, x, th.zeros(1, 1, dtype=th.float64)).v)


@every_net
def test_encoding_once_a_rollout_equals_encoding_at_every_step(name: str) -> None:
    net = make_net(name)
    features, noise = randn(3, FEATURES, seed=1).requires_grad_(True), randn(5, 3, DIM, seed=2)
    context = net.encode(features)
    once = rollout(lambda x, t: net(context, x, t), noise, "sde")
    every_step = rollout(lambda x, t: net(net.encode(features), x, t), noise, "sde")
    for kept, recomputed in zip(once, every_step, strict=True):
        th.testing.assert_close(kept, recomputed)
    inputs = [features, *net.parameters()]
    for kept, recomputed in zip(gradients(once.x, inputs), gradients(every_step.x, inputs), strict=True):
        th.testing.assert_close(kept, recomputed)


@pytest.mark.parametrize(
    ("policy_class", "kwargs"),
    [
        (FlowMLPPolicy, {}),
        (FlowGPolicy, {}),
        (FlowTPolicy, {"d_model": 4, "n_heads": 2}),
        (FlowTPolicy, {"d_model": 4, "n_heads": 2, "state_tokens": 3}),
    ],
)
def test_actor_encodes_the_state_once_a_rollout(
    policy_class: type[FlowPolicy], kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = spaces.Box(-1, 1, (3,), np.float32)
    policy = policy_class(space, space, lambda _: 1e-3, flow_steps=7, net_arch=[4], **kwargs)
    velocity = policy.actor.velocity
    calls = {"encode": 0, "forward": 0}

    def count(method: str) -> None:
        original = getattr(velocity, method)

        def counted(*args: Any) -> Any:
            calls[method] += 1
            return original(*args)

        monkeypatch.setattr(velocity, method, counted)

    count("encode")
    count("forward")
    policy.actor.action_log_prob(th.zeros(2, 3))
    assert calls == {"encode": 1, "forward": 7}


@pytest.mark.parametrize("state_tokens", [1, 3])
def test_cross_attention_of_each_block_reads_the_state_once_a_rollout(state_tokens: int) -> None:
    net = DecoderVelocity(FEATURES, DIM, LOG_STD_RANGE, None, D_MODEL, 2, 2, state_tokens).double()
    calls: list[str] = []
    for index, block in enumerate(net.blocks):
        assert isinstance(block, DecoderBlock)
        attention = block.cross_attention
        reads_state = attention if isinstance(attention, SelfOnlyAttention) else attention.key_value
        reads_state.register_forward_hook(lambda *_, index=index: calls.append(f"state {index}"))
        block.self_norm.register_forward_hook(lambda *_, index=index: calls.append(f"step {index}"))
    Rollout(net, "sde")(randn(2, FEATURES), randn(6, 2, DIM))
    assert calls == ["state 0", "state 1"] + 5 * ["step 0", "step 1"]


def test_gated_velocity_is_equation_6() -> None:
    net = make_net("gated")
    assert isinstance(net, GatedVelocity)
    features, x = randn(6, FEATURES, seed=1), 3 * randn(6, DIM, seed=2)
    t = th.linspace(0, 0.9, 6, dtype=th.float64)[:, None]
    phase = t * net.time.frequencies
    inputs = th.cat([features, x, net.time.net(th.cat([phase.sin(), phase.cos()], dim=1))], dim=1)

    def mlp(first: nn.Linear, hidden: nn.Module, head: nn.Linear) -> th.Tensor:
        out: th.Tensor = head(hidden(linear(inputs, first.weight, first.bias)))
        return out

    # Large enough for the bound to matter
    nn.init.constant_(net.candidate_head.bias, 60.0)
    gate = mlp(net.gate_first, net.gate_hidden, net.gate_head)
    candidate = 50 * th.tanh(mlp(net.candidate_first, net.candidate_hidden, net.candidate_head) / 50)
    th.testing.assert_close(net(net.encode(features), x, t).v, th.sigmoid(gate) * (candidate - x))


def test_gate_starts_at_sigmoid_5_everywhere() -> None:
    net = GatedVelocity(FEATURES, DIM, LOG_STD_RANGE, None, [5]).double()
    context, t = net.encode(randn(4, FEATURES)), th.tensor([[0.5]], dtype=th.float64)
    nn.init.zeros_(net.candidate_head.weight)
    nn.init.zeros_(net.candidate_head.bias)
    # Without a candidate, v = -z x
    x = randn(4, DIM, seed=3)
    z = -net(context, x, t).v / x
    th.testing.assert_close(z, th.full_like(z, 5).sigmoid())


def test_gated_velocity_is_bounded_whatever_the_candidate() -> None:
    net = make_net("gated")
    assert isinstance(net, GatedVelocity)
    nn.init.constant_(net.candidate_head.bias, 1e9)
    v = net(net.encode(randn(4, FEATURES)), th.zeros(4, DIM, dtype=th.float64), th.zeros(1, 1, dtype=th.float64)).v
    assert (v <= 50).all()


def test_gated_log_std_depends_on_the_state_alone() -> None:
    net = make_net("gated")
    context = net.encode(randn(4, FEATURES))
    one = net(context, randn(4, DIM, seed=1), th.tensor([[0.0]], dtype=th.float64)).log_std
    other = net(context, randn(4, DIM, seed=2), th.tensor([[0.7]], dtype=th.float64)).log_std
    assert th.equal(one, other)
    assert not th.allclose(one[0], one[1])


def test_mlp_velocity_is_a_network_on_the_concatenation() -> None:
    net = make_net("mlp")
    assert isinstance(net, MLPVelocity)
    features, x, t = randn(4, FEATURES), randn(4, DIM, seed=1), randn(4, 1, seed=2)
    hidden = relu(linear(th.cat([features, x, t], dim=1), net.first.weight, net.first.bias))
    second = net.hidden[1]
    assert isinstance(second, nn.Linear)
    hidden = relu(second(hidden))
    velocity = net(net.encode(features), x, t)
    th.testing.assert_close(velocity.v, net.velocity_head(hidden))
    th.testing.assert_close(velocity.log_std, net.log_std_head(hidden))


@pytest.mark.parametrize(("low", "high"), [(-5.0, 0.0), (-5.0, 2.0)])
def test_learned_log_std_stays_in_its_range_and_reaches_its_ends(low: float, high: float) -> None:
    head = LogStdHead(1, 1, (low, high), None).double()
    nn.init.ones_(head.head.weight)
    nn.init.zeros_(head.head.bias)
    log_std = head(th.tensor([[-1e3], [0.0], [1e3]], dtype=th.float64)).flatten()
    th.testing.assert_close(log_std, th.tensor([low, (low + high) / 2, high], dtype=th.float64))


def test_fixed_sigma_is_itself_whatever_the_range_and_the_input() -> None:
    head = LogStdHead(3, 2, (-5.0, -4.0), 0.1)
    assert not list(head.parameters())
    th.testing.assert_close(head(randn(4, 3)).exp(), th.full((1, 1), 0.1, dtype=th.float64))


def multihead_of_one_token(ours: SelfOnlyAttention, n_heads: int) -> nn.MultiheadAttention:
    """PyTorch's attention with our value and output weights, its query and key weights left random."""
    theirs = nn.MultiheadAttention(D_MODEL, n_heads, batch_first=True).double()
    with th.no_grad():
        theirs.in_proj_weight[2 * D_MODEL :].copy_(ours.value.weight)
        theirs.in_proj_bias[: 2 * D_MODEL].copy_(randn(2 * D_MODEL, seed=7))
        theirs.in_proj_bias[2 * D_MODEL :].copy_(ours.value.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    return theirs


def multihead_of_tokens(ours: StateAttention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(D_MODEL, ours.n_heads, batch_first=True).double()
    with th.no_grad():
        theirs.in_proj_weight.copy_(th.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(th.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    return theirs


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_attention_over_one_token_is_multihead_attention_without_queries_and_keys(n_heads: int) -> None:
    ours = SelfOnlyAttention(D_MODEL).double()
    randomize(ours)
    theirs = multihead_of_one_token(ours, n_heads)
    token = randn(5, D_MODEL, seed=1).requires_grad_(True)
    # As cross-attention, so that the query is something else: it does not matter what
    queries = randn(5, 1, D_MODEL, seed=2).requires_grad_(True)
    y, expected = ours(token), theirs(queries, token[:, None], token[:, None])[0].squeeze(1)
    th.testing.assert_close(y, expected)

    mine = gradients(y, [token, ours.value.weight, ours.value.bias, ours.out.weight, ours.out.bias])
    token_grad, query_grad, weight, bias, out_weight, out_bias = gradients(
        expected,
        [token, queries, theirs.in_proj_weight, theirs.in_proj_bias, theirs.out_proj.weight, theirs.out_proj.bias],
    )
    d = 2 * D_MODEL
    for grad, expected_grad in zip(mine, [token_grad, weight[d:], bias[d:], out_weight, out_bias], strict=True):
        th.testing.assert_close(grad, expected_grad)
    for unused in (query_grad, weight[:d], bias[:d]):
        assert unused.abs().max() == 0


def test_attention_over_one_token_is_one_linear_map() -> None:
    attention = SelfOnlyAttention(D_MODEL).double()
    randomize(attention)
    token = randn(5, D_MODEL, seed=1).requires_grad_(True)
    folded, expected = linear(token, *attention.as_linear_map()), attention(token)
    th.testing.assert_close(folded, expected)
    inputs = [token, *attention.parameters()]
    for grad, expected_grad in zip(gradients(folded, inputs), gradients(expected, inputs), strict=True):
        th.testing.assert_close(grad, expected_grad)


def test_self_attention_under_the_diagonal_mask_is_token_by_token() -> None:
    steps = 6
    ours = SelfOnlyAttention(D_MODEL).double()
    randomize(ours)
    theirs = multihead_of_one_token(ours, 2)
    tokens = randn(3, steps, D_MODEL, seed=1).requires_grad_(True)
    others_masked = ~th.eye(steps, dtype=th.bool)
    sequence = theirs(tokens, tokens, tokens, attn_mask=others_masked)[0]
    one_by_one = th.stack([ours(tokens[:, i]) for i in range(steps)], dim=1)
    th.testing.assert_close(one_by_one, sequence)
    (grad,), (weight_grad, expected_grad) = (
        gradients(one_by_one, [tokens]),
        gradients(sequence, [theirs.in_proj_weight, tokens]),
    )
    th.testing.assert_close(grad, expected_grad)
    th.testing.assert_close(weight_grad[: 2 * D_MODEL], th.zeros_like(weight_grad[: 2 * D_MODEL]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("n_heads", [1, 2, 4])
@pytest.mark.parametrize("state_tokens", [2, 5])
def test_attention_to_the_state_is_multihead_attention(n_heads: int, state_tokens: int) -> None:
    ours = StateAttention(D_MODEL, n_heads).double()
    randomize(ours)
    theirs = multihead_of_tokens(ours)
    token = randn(3, D_MODEL, seed=1).requires_grad_(True)
    state = randn(3, state_tokens, D_MODEL, seed=2).requires_grad_(True)
    y, expected = ours(token, ours.encode(state)), theirs(token[:, None], state, state)[0].squeeze(1)
    th.testing.assert_close(y, expected)

    inputs = [token, state, ours.query.weight, ours.key_value.weight, ours.query.bias, ours.key_value.bias]
    grads = gradients(y, [*inputs, *ours.out.parameters()])
    weight, bias, *rest = gradients(
        expected, [theirs.in_proj_weight, theirs.in_proj_bias, token, state, *theirs.out_proj.parameters()]
    )
    th.testing.assert_close(th.cat(grads[2:4]), weight)
    th.testing.assert_close(th.cat(grads[4:6]), bias)
    for grad, expected_grad in zip([*grads[:2], *grads[6:]], rest, strict=True):
        th.testing.assert_close(grad, expected_grad)
    assert weight[:D_MODEL].abs().max() > 0


@pytest.mark.parametrize("state_tokens", [1, 3])
def test_decoder_block_is_pytorchs_decoder_layer_under_the_diagonal_mask(state_tokens: int) -> None:
    steps, n_heads = 5, 2
    ours = DecoderBlock(D_MODEL, n_heads, state_tokens).double()
    randomize(ours)
    theirs = nn.TransformerDecoderLayer(
        D_MODEL, n_heads, 4 * D_MODEL, dropout=0.0, activation=gelu, batch_first=True, norm_first=True
    ).double()
    theirs.self_attn = multihead_of_one_token(ours.self_attention, n_heads)
    theirs.norm1 = ours.self_norm
    if isinstance(ours.cross_attention, SelfOnlyAttention):
        theirs.multihead_attn = multihead_of_one_token(ours.cross_attention, n_heads)
    else:
        theirs.multihead_attn = multihead_of_tokens(ours.cross_attention)
        theirs.norm2 = ours.cross_norm
    theirs.norm3, theirs.linear1, _, theirs.linear2 = ours.feed_forward  # type: ignore[assignment]

    points = randn(3, steps, D_MODEL, seed=1).requires_grad_(True)  # the whole path as one sequence
    state = randn(3, state_tokens, D_MODEL, seed=2).requires_grad_(True)
    context = ours.encode(state)
    one_by_one = th.stack([ours(points[:, i], context) for i in range(steps)], dim=1)
    # The state is normalised as well: in PyTorch's decoder that is left to the encoder's last norm
    sequence = theirs(points, ours.state_norm(state), tgt_mask=~th.eye(steps, dtype=th.bool))
    th.testing.assert_close(one_by_one, sequence)
    expected = gradients(sequence, [points, state])
    for grad, expected_grad in zip(gradients(one_by_one, [points, state]), expected, strict=True):
        th.testing.assert_close(grad, expected_grad)


def test_decoder_is_its_tokens_its_blocks_a_norm_and_two_heads() -> None:
    net = make_net("decoder")
    assert isinstance(net, DecoderVelocity)
    features, x, t = randn(4, FEATURES), randn(4, DIM, seed=1), th.tensor([[0.25]], dtype=th.float64)
    h = net.action_encoder(x) + net.time(t)
    state = net.obs_encoder(features)[:, None]
    for block in net.blocks:
        assert isinstance(block, DecoderBlock)
        h = block(h, block.encode(state))
    h = net.norm(h)
    velocity: Velocity = net(net.encode(features), x, t)
    th.testing.assert_close(velocity.v, net.velocity_head(h))
    th.testing.assert_close(velocity.log_std, net.log_std_head(h))


@pytest.mark.parametrize(("kind", "highest"), [("sde", math.sqrt(2)), ("noise", math.exp(2))])
@pytest.mark.parametrize("policy", [FlowTPolicy, FlowGPolicy, FlowMLPPolicy])
def test_sigma_is_bounded_by_what_the_rollout_stands(
    policy: type[FlowPolicy], kind: RolloutKind, highest: float
) -> None:
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    velocity = policy(box, box, lambda _: 1e-3, rollout=kind).actor.velocity
    for bias, sigma in ((100.0, highest), (-100.0, math.exp(-5))):
        head = velocity.log_std_head
        assert isinstance(head, LogStdHead)
        nn.init.constant_(head.head.bias, bias)
        context = velocity.encode(th.zeros(1, 2))
        log_std = velocity(context, th.zeros(1, 2), th.zeros(1, 1)).log_std
        assert log_std.exp().tolist()[0] == pytest.approx([sigma, sigma], rel=1e-5)
