"""The velocity nets v_theta(s, A_t, t): plain MLP, Flow-G and Flow-T (SAC Flow, arXiv 2509.25756, Section 4).

They share one protocol: `encode` turns features of the state into a context, once per rollout; the call takes that
context, the point x and the time t. Shapes: B batch, D action dimension.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from sb3_flow.common.activations import ReLU
from sb3_flow.common.flow import Velocity, bound_log_std
from sb3_flow.common.layers import ContextLinear, TimeEmbedding

# What `encode` returns is the net's own affair; it is handed back to the same net unchanged
Context = Any


class LogStdHead(nn.Module):
    """Log-std of the rollout's noise: a bounded linear head, or a constant that ignores its input.

    :param in_features: width of the hidden state
    :param action_dim: D
    :param log_std_range: lowest and highest log-std
    :param noise_std: fixed sigma > 0, or None for a learned one
    """

    def __init__(self, in_features: int, action_dim: int, log_std_range: tuple[float, float], noise_std: float | None):
        super().__init__()
        self.log_std_range = log_std_range
        self.noise_std = noise_std
        if noise_std is None:
            self.head = nn.Linear(in_features, action_dim)

    def forward(self, hidden: th.Tensor) -> th.Tensor:
        # Under autocast the hidden state may be in bf16; the density is not
        if self.noise_std is not None:
            return hidden.new_full((1, 1), math.log(self.noise_std), dtype=th.promote_types(hidden.dtype, th.float32))
        raw = self.head(hidden).to(self.head.weight.dtype)
        return bound_log_std(raw, *self.log_std_range)


class VelocityNet(nn.Module):
    """What every velocity net is: a field over (x, t), and an encoder of the state.

    A net of your own needs `forward` alone; `encode` saves what would else be computed at each of the K steps.
    """

    def encode(self, features: th.Tensor) -> Context:
        """Everything that depends on the state alone; the features as they are, unless a net has more to do.

        :param features: (B, features_dim)
        """
        return features

    def forward(self, context: Context, x: th.Tensor, t: th.Tensor) -> Velocity:
        """Velocity and log-std at a point.

        :param context: result of `encode`
        :param x: (B, D)
        :param t: (B, 1) or (1, 1), in [0, 1]
        """
        raise NotImplementedError


class ODEVelocity(VelocityNet):
    """The velocity of a flow without noise of its own: layers on [s, x, time].

    :param first: on s and [x, time]; the state's share is computed once
    :param rest: what follows, up to D numbers
    :param time: of t, (*, 1) -> (*, any width); None for t itself
    """

    def __init__(self, first: ContextLinear, rest: nn.Module, time: nn.Module | None = None):
        super().__init__()
        self.time = nn.Identity() if time is None else time
        self.first = first
        self.rest = rest

    def encode(self, features: th.Tensor) -> Context:
        return self.first.context(features)

    def forward(self, context: Context, x: th.Tensor, t: th.Tensor) -> Velocity:
        time = self.time(t)
        x_t = th.cat([x, time.expand(*x.shape[:-1], time.shape[-1])], dim=-1)
        v = self.rest(self.first(context, x_t))
        return Velocity(v.to(x.dtype), x.new_full((1, 1), -math.inf))


@th.no_grad()
def check_velocity(net: VelocityNet, features_dim: int, action_dim: int, maker: str) -> None:
    """Refuse what is no velocity net, by calling it once with each shape of the time.

    :param net: what a policy made
    :param features_dim: width of the state features
    :param action_dim: D
    :param maker: the method that made it, as the error names it
    :raises ValueError: naming the shapes that it is called with
    """
    see = "docs/own_velocity_net.md has an example"
    if not isinstance(net, VelocityNet):
        raise ValueError(f"{maker} returned a {type(net).__name__}; it must be a VelocityNet: {see}")
    rows, like = 3, next(net.parameters(), th.zeros(()))
    net.eval()  # no statistics are changed, nothing is drawn
    for time_rows in (1, rows):
        shapes = f"features ({rows}, {features_dim}), x ({rows}, {action_dim}) and t ({time_rows}, 1)"
        try:
            context = net.encode(like.new_zeros(rows, features_dim))
            v, log_std = net(context, like.new_zeros(rows, action_dim), like.new_zeros(time_rows, 1))
            log_std.expand(rows, action_dim)
        # Whatever is wrong inside of a net of the user's
        except Exception as error:
            problem = (
                f"fails for {shapes} ({type(error).__name__}: {error}); it must return Velocity(v, log_std), both for x"
            )
            raise ValueError(f"{maker}: {type(net).__name__} {problem}. {see}") from error
        if v.shape != (rows, action_dim):
            problem = f"returned a velocity of shape {tuple(v.shape)}, which must be that of x, for {shapes}"
            raise ValueError(f"{maker}: {type(net).__name__} {problem}: {see}")
    net.train()


class MLPVelocity(VelocityNet):
    """The naive baseline: an MLP on [s, x, t].

    :param features_dim: width of the state features
    :param action_dim: D
    :param log_std_range: lowest and highest log-std
    :param noise_std: fixed sigma, or None for a learned one
    :param net_arch: hidden widths
    """

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        log_std_range: tuple[float, float],
        noise_std: float | None,
        net_arch: list[int],
    ):
        super().__init__()
        self.first = ContextLinear(features_dim, action_dim + 1, net_arch[0])
        self.hidden = _hidden_layers(net_arch, ReLU)
        self.velocity_head = nn.Linear(net_arch[-1], action_dim)
        self.log_std_head = LogStdHead(net_arch[-1], action_dim, log_std_range, noise_std)

    def encode(self, features: th.Tensor) -> Context:
        return self.first.context(features)

    def forward(self, context: Context, x: th.Tensor, t: th.Tensor) -> Velocity:
        hidden = self.hidden(self.first(context, th.cat([x, t.expand(x.shape[0], 1)], dim=1)))
        return Velocity(self.velocity_head(hidden), self.log_std_head(hidden))


class GatedVelocity(VelocityNet):
    """Flow-G: `v = z * (candidate - x)`, z a sigmoid gate (Eq. 6), as in a GRU.

    :param features_dim: width of the state features
    :param action_dim: D
    :param log_std_range: lowest and highest log-std
    :param noise_std: fixed sigma, or None for a learned one
    :param net_arch: hidden widths of the gate, the candidate and the log-std's trunk
    """

    TIME_DIM = 16
    # Near identity for the actions a tanh can tell apart, bounded far outside
    CANDIDATE_BOUND = 50.0
    # An open gate at the start: x moves to the candidate at full speed, as without one
    GATE_BIAS = 5.0

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        log_std_range: tuple[float, float],
        noise_std: float | None,
        net_arch: list[int],
    ):
        super().__init__()
        self.time = TimeEmbedding(self.TIME_DIM)
        self.gate_first = ContextLinear(features_dim, action_dim + self.TIME_DIM, net_arch[0])
        self.gate_hidden = _hidden_layers(net_arch, nn.SiLU)
        self.gate_head = nn.Linear(net_arch[-1], action_dim)
        self.candidate_first = ContextLinear(features_dim, action_dim + self.TIME_DIM, net_arch[0])
        self.candidate_hidden = _hidden_layers(net_arch, nn.SiLU)
        self.candidate_head = nn.Linear(net_arch[-1], action_dim)
        self.log_std_trunk: nn.Module = nn.Identity()  # a fixed sigma needs none
        if noise_std is None:
            self.log_std_trunk = nn.Sequential(nn.Linear(features_dim, net_arch[0]), _hidden_layers(net_arch, nn.SiLU))
        self.log_std_head = LogStdHead(net_arch[-1], action_dim, log_std_range, noise_std)
        nn.init.zeros_(self.gate_head.weight)
        nn.init.constant_(self.gate_head.bias, self.GATE_BIAS)

    def encode(self, features: th.Tensor) -> Context:
        log_std = self.log_std_head(self.log_std_trunk(features))
        return self.gate_first.context(features), self.candidate_first.context(features), log_std

    def forward(self, context: Context, x: th.Tensor, t: th.Tensor) -> Velocity:
        gate_context, candidate_context, log_std = context
        x_t = th.cat([x, self.time(t).expand(x.shape[0], self.TIME_DIM)], dim=1)
        z = th.sigmoid(self.gate_head(self.gate_hidden(self.gate_first(gate_context, x_t))))
        candidate = self.candidate_head(self.candidate_hidden(self.candidate_first(candidate_context, x_t)))
        candidate = self.CANDIDATE_BOUND * th.tanh(candidate / self.CANDIDATE_BOUND)
        return Velocity(z * (candidate - x), log_std)


class DecoderVelocity(VelocityNet):
    """Flow-T: a pre-norm Transformer decoder over one action-time token and the state's tokens (Eq. 8).

    The paper's diagonal mask lets a token attend to itself only, so that self-attention is linear; so is
    cross-attention to a single state token, and its term of each block is computed once per rollout.

    :param features_dim: width of the state features
    :param action_dim: D
    :param log_std_range: lowest and highest log-std
    :param noise_std: fixed sigma, or None for a learned one
    :param d_model: token width
    :param n_layers: decoder blocks
    :param n_heads: heads of the cross-attention; they matter from two state tokens on
    :param state_tokens: learned tokens that the state is split into
    """

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        log_std_range: tuple[float, float],
        noise_std: float | None,
        d_model: int,
        n_layers: int,
        n_heads: int,
        state_tokens: int,
    ):
        super().__init__()
        self.token_shape = (state_tokens, d_model)
        self.obs_encoder = nn.Sequential(
            nn.Linear(features_dim, 2 * d_model), nn.SiLU(), nn.Linear(2 * d_model, state_tokens * d_model)
        )
        self.action_encoder = nn.Linear(action_dim, d_model)
        self.time = TimeEmbedding(d_model)
        self.blocks = nn.ModuleList([DecoderBlock(d_model, n_heads, state_tokens) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.velocity_head = nn.Linear(d_model, action_dim)
        self.log_std_head = LogStdHead(d_model, action_dim, log_std_range, noise_std)

    def encode(self, features: th.Tensor) -> Context:
        tokens = self.obs_encoder(features).unflatten(1, self.token_shape)  # (B, n, d)
        return [cast(DecoderBlock, block).encode(tokens) for block in self.blocks]

    def forward(self, context: Context, x: th.Tensor, t: th.Tensor) -> Velocity:
        h = (self.action_encoder(x) + self.time(t)).to(x.dtype)  # (B, d)
        for block, block_context in zip(self.blocks, context, strict=True):
            h = block(h, block_context)
        h = self.norm(h)
        return Velocity(self.velocity_head(h), self.log_std_head(h))


class BlockContext(NamedTuple):
    """What a block needs once per rollout."""

    self_attention: tuple[th.Tensor, th.Tensor]  # (d, d), (d,): the linear map that it is
    state: Context  # the finished cross-attention term (B, d), or keys and values


class DecoderBlock(nn.Module):
    """Pre-norm self-attention under the diagonal mask, cross-attention to the state, feed-forward.

    :param d_model: token width
    :param n_heads: heads of the cross-attention
    :param state_tokens: number of state tokens
    """

    def __init__(self, d_model: int, n_heads: int, state_tokens: int):
        super().__init__()
        self.self_norm = nn.LayerNorm(d_model)
        self.self_attention = SelfOnlyAttention(d_model)
        self.state_norm = nn.LayerNorm(d_model)
        self.cross_attention: SelfOnlyAttention | StateAttention
        if state_tokens == 1:
            self.cross_attention = SelfOnlyAttention(d_model)
        else:
            self.cross_norm = nn.LayerNorm(d_model)
            self.cross_attention = StateAttention(d_model, n_heads)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(d_model), nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
        )

    def encode(self, tokens: th.Tensor) -> BlockContext:
        """Everything that is the same at every step of a rollout.

        :param tokens: (B, n, d)
        """
        tokens = self.state_norm(tokens)
        if isinstance(self.cross_attention, SelfOnlyAttention):
            state: Context = self.cross_attention(tokens.squeeze(1))  # (B, d)
        else:
            state = self.cross_attention.encode(tokens)
        return BlockContext(self.self_attention.as_linear_map(), state)

    def forward(self, h: th.Tensor, context: BlockContext) -> th.Tensor:
        h = h + linear(self.self_norm(h), *context.self_attention)
        if isinstance(self.cross_attention, SelfOnlyAttention):
            h = h + context.state
        else:
            h = h + self.cross_attention(self.cross_norm(h), context.state)
        out: th.Tensor = h + self.feed_forward(h)
        return out


class SelfOnlyAttention(nn.Module):
    """Attention over one token: the softmax of one score is 1, so that it is `out(value(token))`, without q and k.

    :param d_model: token width
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, token: th.Tensor) -> th.Tensor:
        out: th.Tensor = self.out(self.value(token))
        return out

    def as_linear_map(self) -> tuple[th.Tensor, th.Tensor]:
        """Weight (d, d) and bias (d,) of the same map as one layer: one product a step instead of two."""
        return self.out.weight @ self.value.weight, self.out(self.value.bias)


class StateAttention(nn.Module):
    """Multi-head attention of one query token to the state's tokens, keys and values computed once per rollout.

    :param d_model: token width
    :param n_heads: heads; must divide d_model
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def encode(self, tokens: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Keys and values of the state's tokens, each (B, heads, n, d / heads).

        :param tokens: (B, n, d)
        """
        key_value = self.key_value(tokens).unflatten(2, (2, self.n_heads, -1))  # (B, n, 2, heads, d / heads)
        key, value = key_value.permute(2, 0, 3, 1, 4)
        return key, value

    def forward(self, token: th.Tensor, context: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        query = self.query(token).unflatten(1, (self.n_heads, 1, -1))  # (B, heads, 1, d / heads)
        mixed = scaled_dot_product_attention(query, *context).flatten(1)  # (B, d)
        out: th.Tensor = self.out(mixed)
        return out


def _hidden_layers(net_arch: list[int], activation: type[nn.Module]) -> nn.Sequential:
    """The activation of the first layer, then the rest of the hidden layers."""
    layers: list[nn.Module] = [activation()]
    for width_in, width_out in pairwise(net_arch):
        layers += [nn.Linear(width_in, width_out), activation()]
    return nn.Sequential(*layers)


class Flow(NamedTuple):
    """The nets of a flow of actions, as one policy hands them to another."""

    features_extractor: BaseFeaturesExtractor
    norm: nn.Module  # of the features
    velocity: VelocityNet
    squash: bool  # actions are tanh of where its paths end; else they are that, clipped
    sde: bool  # its steps have the drift correction of a learned sigma (SAC Flow, Eq. 13)
