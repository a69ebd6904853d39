"""PyTorch's activations, written so that they are fast when compiled for CPU.

Values and gradients are the same for finite inputs. Compiled for CPU, PyTorch 2.13 spends more time on a tanh than on
the layer before it: those that have one are made of exponentials here. Not compiled, on CUDA and in an export they are
PyTorch's own.
"""

import math

import torch as th
from torch import nn

from sb3_flow.common.compile import compiled_for_cpu


class ReLU(nn.ReLU):
    """max(x, 0).

    Its gradient needs to know where x > 0. PyTorch compiled for CPU keeps that as booleans and stores them one by one,
    some 20 times slower than floats: here it is a float, 0 or 1, that is made of x again.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        if compiled_for_cpu(x):
            return x * (x.detach() * (1 / th.finfo(x.dtype).tiny)).clamp(0, 1)
        return super().forward(x)


class TanhGELU(nn.GELU):
    """GELU's approximation x (1 + tanh(u)) / 2, which is x sigmoid(2u)."""

    def __init__(self) -> None:
        super().__init__("tanh")

    def forward(self, x: th.Tensor) -> th.Tensor:
        if compiled_for_cpu(x):
            return x * th.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))
        return super().forward(x)


class Mish(nn.Mish):
    """x tanh(log(1 + e^x)), which is x w / (w + 2) with w = e^x (e^x + 2)."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        if compiled_for_cpu(x):
            exp = x.clamp(max=20).exp()  # from there on the quotient is 1
            w = exp * (exp + 2)
            return x * (w / (w + 2))
        return super().forward(x)
