"""FQL's networks: MLPs with tanh-approximated GELU, Xavier-uniform weights and zero biases.

Source: seohongpark/fql, utils/networks.py. Shapes: B batch, N critics, D numbers in an action chunk.
"""

from itertools import pairwise

from torch import nn

from sb3_flow.common.activations import TanhGELU
from sb3_flow.common.layers import ContextLinear, EnsembleLayerNorm, EnsembleLinear, xavier
from sb3_flow.common.velocity import ODEVelocity


def critic_mlp(n_members: int, in_features: int, net_arch: list[int]) -> nn.Sequential:
    """N independent MLPs with one output each, GELU and then LayerNorm after every hidden layer.

    :param n_members: N
    :param in_features: width of the input (N, B, in_features)
    :param net_arch: widths of the hidden layers
    """
    layers: list[nn.Module] = []
    for width in net_arch:
        layers += [xavier(EnsembleLinear(n_members, in_features, width)), TanhGELU()]
        layers += [EnsembleLayerNorm(n_members, width, eps=1e-6)]
        in_features = width
    return nn.Sequential(*layers, xavier(EnsembleLinear(n_members, in_features, 1)))


def actor_mlp(in_features: int, net_arch: list[int], out_features: int) -> nn.Sequential:
    """An MLP without a normalisation: (*, in_features) -> (*, out_features)."""
    return nn.Sequential(xavier(nn.Linear(in_features, net_arch[0])), *_after_first(net_arch, out_features))


class BehaviorFlow(ODEVelocity):
    """The velocity v(s, x, t) of the flow that clones the data.

    :param features_dim: width of the state features
    :param chunk_dim: D
    :param net_arch: hidden widths
    """

    def __init__(self, features_dim: int, chunk_dim: int, net_arch: list[int]):
        first = xavier(ContextLinear(features_dim, chunk_dim + 1, net_arch[0]))
        super().__init__(first, nn.Sequential(*_after_first(net_arch, chunk_dim)))


def _after_first(net_arch: list[int], out_features: int) -> list[nn.Module]:
    """What follows the first linear layer."""
    layers: list[nn.Module] = [TanhGELU()]
    for width_in, width_out in pairwise(net_arch):
        layers += [xavier(nn.Linear(width_in, width_out)), TanhGELU()]
    return [*layers, xavier(nn.Linear(net_arch[-1], out_features))]
