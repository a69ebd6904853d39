"""BatchRenorm (arXiv 1702.03275), as CrossQ has it."""

from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable

from sb3_flow.common.compile import apart

# Limits on the correction; the values of CrossQ
R_MAX = 3.0
D_MAX = 5.0


class BatchRenorm(nn.Module):
    """BatchRenorm over the second-to-last dimension: sb3_contrib's, without branches on tensors.

    During warm-up it is BatchNorm; afterwards batches are normalised towards the running statistics. In evaluation
    mode only the running statistics are used. Input: (B, features), or (N, B, features) with `n_members`.

    :param features: number of features
    :param n_members: N, independent members that share a batch dimension; None for a single one
    :param momentum: share of the new batch in the running statistics, in (0, 1]
    :param eps: added to the variance
    :param warmup_steps: training batches before the running statistics are used for training
    """

    ra_mean: th.Tensor
    ra_var: th.Tensor
    steps: th.Tensor

    def __init__(
        self,
        features: int,
        n_members: int | None = None,
        momentum: float = 0.01,
        eps: float = 0.001,
        warmup_steps: int = 100_000,
    ):
        super().__init__()
        shape = (1, features) if n_members is None else (n_members, 1, features)
        self.register_buffer("ra_mean", th.zeros(shape))
        self.register_buffer("ra_var", th.ones(shape))
        self.register_buffer("steps", th.tensor(0))
        self.scale = nn.Parameter(th.ones(shape))
        self.bias = nn.Parameter(th.zeros(shape))
        self.momentum = momentum
        self.eps = eps
        self.warmup_steps = warmup_steps

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = x.to(self.ra_mean.dtype)  # from bf16 under autocast
        if not self.training:
            slope = apart(self.scale * (self.ra_var + self.eps).rsqrt())
            # Centred first: products of a large mean with the slope would cancel digits
            return th.addcmul(self.bias, x - self.ra_mean, slope)
        running = Running(self.ra_mean, self.ra_var, self.steps > self.warmup_steps, self.eps)
        y, mean, var = _Normalize.apply(x, self.scale, self.bias, running)  # type: ignore[no-untyped-call]
        with th.no_grad():
            self.ra_mean.lerp_(mean, self.momentum)
            self.ra_var.lerp_(var, self.momentum)
            self.steps += 1
        out: th.Tensor = y
        return out

    def extra_repr(self) -> str:
        return f"{tuple(self.scale.shape)}, momentum={self.momentum}, warmup_steps={self.warmup_steps}"


class Running(NamedTuple):
    """What a batch is normalised towards."""

    mean: th.Tensor  # (..., 1, features)
    var: th.Tensor  # (..., 1, features)
    warm: th.Tensor  # () whether it is at all
    eps: float

    def correction(self, mean: th.Tensor, var: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """r and d of the paper, 1 and 0 during warm-up: constants, which have no gradient."""
        std = (self.var + self.eps).sqrt()
        r = ((var + self.eps).sqrt() / std).clamp(1 / R_MAX, R_MAX)
        d = ((mean - self.mean) / std).clamp(-D_MAX, D_MAX)
        return th.where(self.warm, r, 1.0), th.where(self.warm, d, 0.0)


class _Normalize(th.autograd.Function):
    """A batch normalised by itself and corrected, with its mean and variance.

    y = (c + d/r s) w + bias, with c the batch minus its mean, s its standard deviation and the slope
    w = scale / sqrt(s^2 / r^2 + eps). Its gradient is written down because that of autograd goes over the
    batch more often.
    """

    @staticmethod
    def forward(
        ctx: Any, x: th.Tensor, scale: th.Tensor, bias: th.Tensor, running: Running
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        mean = x.mean(dim=-2, keepdim=True)
        centred = x - mean
        # Not th.var_mean: on CPU it is many times slower than these over this dimension
        var = centred.square().sum(dim=-2, keepdim=True) / (x.shape[-2] - 1)
        r, d = running.correction(mean, var)
        inverse_std = (var / r.square() + running.eps).rsqrt()
        # A dead unit has var = 0, where the slope of the square root is infinite
        std = var.clamp_min(th.finfo(var.dtype).tiny).sqrt()
        shift = d / r * std
        slope = apart(scale * inverse_std)
        ctx.save_for_backward(centred, scale, slope, inverse_std, std, r, d)
        ctx.mark_non_differentiable(mean, var)
        return th.addcmul(apart(bias + shift * slope), centred, slope), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: th.Tensor, *_: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, None]:
        centred, scale, slope, inverse_std, std, r, d = ctx.saved_tensors  # type: ignore[attr-defined]
        batch_size = centred.shape[-2]
        bias_gradient = gradient.sum(dim=-2, keepdim=True)
        slope_gradient = (gradient * centred).sum(dim=-2, keepdim=True) + d / r * std * bias_gradient
        var_gradient = 0.5 * (
            bias_gradient * slope * d / (r * std) - slope_gradient * scale * inverse_std**3 / r.square()
        )
        along = apart(2 * var_gradient / (batch_size - 1))
        # The mean's share: what is left of the batch's sum, as its centred values have none
        mean_gradient = apart(slope * bias_gradient / batch_size)
        x_gradient = gradient * slope + (centred * along - mean_gradient)
        return x_gradient, slope_gradient * inverse_std, bias_gradient, None
