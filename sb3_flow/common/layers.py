"""Building blocks that are not in PyTorch: batched ensembles, a linear layer applied in two halves."""

import math
from typing import Literal, TypeVar

import torch as th
from torch import nn
from torch.nn.functional import layer_norm, linear

from sb3_flow.common.activations import ReLU
from sb3_flow.common.batch_renorm import BatchRenorm
from sb3_flow.common.checks import require

ALWAYS = th.iinfo(th.int64).max  # in its warm-up BatchRenorm is BatchNorm


class EnsembleLinear(nn.Module):
    """N independent linear layers as one batched product, each initialised as `nn.Linear` is.

    :param n_members: N
    :param in_features: width of the input (N, B, in_features)
    :param out_features: width of the output (N, B, out_features)
    """

    def __init__(self, n_members: int, in_features: int, out_features: int):
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(th.empty(n_members, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(th.empty(n_members, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.baddbmm(self.bias, x, self.weight)

    def extra_repr(self) -> str:
        return "n_members={}, in_features={}, out_features={}".format(*self.weight.shape)


class Projected(nn.Module):
    """A layer whose weights live on a sphere: a step of the optimizer leaves it, and `project` goes back."""

    @property
    def on_sphere(self) -> list[nn.Parameter]:
        """The weights that do."""
        raise NotImplementedError

    def way_back(self) -> th.Tensor:
        """What these weights are multiplied with to be there again."""
        raise NotImplementedError

    def project(self, stopped: th.Tensor) -> None:
        """Put the weights back, in place.

        :param stopped: () whether to leave every bit of them as it is
        """
        factor = th.where(stopped, 1.0, self.way_back())
        for weight in self.on_sphere:
            weight.mul_(factor)


class UnitNormLinear(Projected):
    """N independent linear layers whose weights of every output have unit norm: after each step they are projected.

    :param n_members: N
    :param in_features: width of the input (N, B, in_features)
    :param out_features: width of the output (N, B, out_features)
    :param bias: whether there is one, which starts at 0 and is not projected
    """

    def __init__(self, n_members: int, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(th.randn(n_members, in_features, out_features))
        self.bias = nn.Parameter(th.zeros(n_members, 1, out_features)) if bias else None
        with th.no_grad():
            self.project(th.tensor(False))

    @property
    def on_sphere(self) -> list[nn.Parameter]:
        return [self.weight]

    def way_back(self) -> th.Tensor:
        norm: th.Tensor = self.weight.norm(dim=1, keepdim=True)
        return norm.reciprocal()

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.bmm(x, self.weight) if self.bias is None else th.baddbmm(self.bias, x, self.weight)

    def extra_repr(self) -> str:
        return "n_members={}, in_features={}, out_features={}".format(*self.weight.shape)


class UnitNormBatchNorm(BatchRenorm, Projected):
    """BatchNorm of N members whose scale and bias together have the norm of a scale of 1, sqrt(features).

    :param features: number of features
    :param n_members: N
    """

    def __init__(self, features: int, n_members: int):
        super().__init__(features, n_members, eps=1e-5, warmup_steps=ALWAYS)

    @property
    def on_sphere(self) -> list[nn.Parameter]:
        return [self.scale, self.bias]

    def way_back(self) -> th.Tensor:
        return ((self.scale.square() + self.bias.square()).mean(dim=-1, keepdim=True) + 1e-8).rsqrt()


class UnitNormRMSNorm(Projected):
    """Division by the root of the mean square, with a scale that keeps the norm sqrt(features) for each member.

    :param features: width of the input (N, B, features)
    :param n_members: N
    """

    def __init__(self, features: int, n_members: int):
        super().__init__()
        self.scale = nn.Parameter(th.ones(n_members, 1, features))

    @property
    def on_sphere(self) -> list[nn.Parameter]:
        return [self.scale]

    def way_back(self) -> th.Tensor:
        return (self.scale.square().mean(dim=-1, keepdim=True) + 1e-8).rsqrt()

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = x.to(self.scale.dtype)  # from bf16 under autocast
        return x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * self.scale


class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        out = x
        for layer in self:
            out = layer(out)
        return x + out


Linear = TypeVar("Linear", bound=nn.Linear | EnsembleLinear)


def xavier(layer: Linear) -> Linear:
    """The layer with Xavier-uniform weights and zero biases, each member of an ensemble as a layer of its own.

    :param layer: is changed
    """
    bound = math.sqrt(6 / sum(layer.weight.shape[-2:]))
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


class EnsembleLayerNorm(nn.Module):
    """LayerNorm over the last dimension with one affine map per member.

    :param n_members: N
    :param features: width of the input (N, B, features)
    :param eps: added to the variance
    """

    def __init__(self, n_members: int, features: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(th.ones(n_members, 1, features))
        self.bias = nn.Parameter(th.zeros(n_members, 1, features))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.addcmul(self.bias, layer_norm(x, x.shape[-1:], eps=self.eps), self.scale)


def ensemble_mlp(
    n_members: int, in_features: int, net_arch: list[int], norm: Literal["batch_renorm", "layer"], out_features: int = 1
) -> nn.Sequential:
    """N independent MLPs: (N, B, in_features) -> (N, B, out_features).

    :param n_members: N
    :param in_features: width of the input
    :param net_arch: widths of the hidden layers
    :param norm: "batch_renorm": BatchRenorm before every linear layer, ReLU (CrossQ);
        "layer": GELU, then LayerNorm, after every hidden layer
    :param out_features: outputs of each
    """
    layers: list[nn.Module] = []
    for width in net_arch:
        if norm == "batch_renorm":
            layers += [BatchRenorm(in_features, n_members), EnsembleLinear(n_members, in_features, width), ReLU()]
        else:
            layers += [EnsembleLinear(n_members, in_features, width), nn.GELU(), EnsembleLayerNorm(n_members, width)]
        in_features = width
    if norm == "batch_renorm":
        layers.append(BatchRenorm(in_features, n_members))
    layers.append(EnsembleLinear(n_members, in_features, out_features))
    return nn.Sequential(*layers)


def unit_norm_mlp(n_members: int, in_features: int, net_arch: list[int], out_features: int) -> nn.Sequential:
    """XQC's net, N of it: BatchNorm of the input and before every ReLU, weights of unit norm, a bias in the head alone.

    Source: danielpalenicek/xqc, xqc/networks/mlp.py.

    :param n_members: N
    :param in_features: width of the input (N, B, in_features)
    :param net_arch: widths of the hidden layers
    :param out_features: width of the output (N, B, out_features)
    """

    def batch_norm(features: int) -> BatchRenorm:
        return BatchRenorm(features, n_members, warmup_steps=ALWAYS)

    layers: list[nn.Module] = [batch_norm(in_features)]
    for width in net_arch:
        layers += [UnitNormLinear(n_members, in_features, width, bias=False), batch_norm(width), ReLU()]
        in_features = width
    return nn.Sequential(*layers, UnitNormLinear(n_members, in_features, out_features, bias=True))


def residual_mlp(n_members: int, in_features: int, net_arch: list[int], out_features: int) -> nn.Sequential:
    """FlashSAC's net, N of it: residual blocks that are four times as wide inside, all weights of constant norm.

    Source: Holiday-Robot/FlashSAC, flash_rl/agents/flashSAC/layer.py and network.py.

    :param n_members: N
    :param in_features: width of the input (N, B, in_features)
    :param net_arch: the width, once for each block
    :param out_features: width of the output (N, B, out_features)
    :raises ValueError: for no block, or for different widths
    """
    require(len(set(net_arch)) == 1, "net_arch", net_arch, "the same width for every residual block, at least one")
    width = net_arch[0]

    def layer(inside: int, outside: int) -> list[nn.Module]:
        linear = UnitNormLinear(n_members, inside, outside, bias=False)
        return [linear, UnitNormBatchNorm(outside, n_members), ReLU()]

    return nn.Sequential(
        UnitNormBatchNorm(in_features, n_members),
        UnitNormLinear(n_members, in_features, width, bias=False),
        *(Residual(*layer(width, 4 * width), *layer(4 * width, width)) for _ in net_arch),
        UnitNormRMSNorm(width, n_members),
        UnitNormLinear(n_members, width, out_features, bias=True),
    )


class ContextLinear(nn.Linear):
    """A linear layer on [context, x] whose context half is computed once and reused for every x.

    :param context_features: width of the context
    :param in_features: width of x
    :param out_features: width of the output
    """

    def __init__(self, context_features: int, in_features: int, out_features: int):
        super().__init__(context_features + in_features, out_features)
        self.context_features = context_features

    def context(self, context: th.Tensor) -> th.Tensor:
        """The context's share of the output, bias included."""
        return linear(context, self.weight[:, : self.context_features], self.bias)

    def forward(self, context_share: th.Tensor, x: th.Tensor) -> th.Tensor:  # type: ignore[override]
        return context_share + linear(x, self.weight[:, self.context_features :])


class TimeEmbedding(nn.Module):
    """Sines and cosines of the flow time through a small MLP: (*, 1) -> (*, dim).

    :param dim: width of the embedding, even
    """

    frequencies: th.Tensor

    def __init__(self, dim: int):
        super().__init__()
        # Angular frequencies for t in [0, 1]: from one slow wave to a wave in every Euler step at K = 16
        self.register_buffer("frequencies", th.logspace(0, 2, dim // 2), persistent=False)
        self.net = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, t: th.Tensor) -> th.Tensor:
        phase = t * self.frequencies
        out: th.Tensor = self.net(th.cat([phase.sin(), phase.cos()], dim=-1))
        return out
