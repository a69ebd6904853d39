"""The temperature alpha of maximum-entropy algorithms: fixed, or learned towards a target entropy."""

import math

import torch as th

from sb3_flow.common.checks import require
from sb3_flow.common.guard import Guard, count_bad
from sb3_flow.common.updates import set_gradient


class Temperature:
    """Alpha, its optimizer if it is learned, and one step of it.

    :param ent_coef: "auto" or "auto_0.2" to learn it from that start, or a float >= 0
    :param learning_rate: of its Adam
    :param beta1: of its Adam
    :param device: where it lives
    :raises ValueError: for another ent_coef
    """

    def __init__(self, ent_coef: str | float, learning_rate: float, beta1: float, device: th.device):
        self.log_ent_coef: th.Tensor | None = None
        self.optimizer: th.optim.Optimizer | None = None
        self.ent_coef_tensor: th.Tensor | None = None
        if isinstance(ent_coef, str):
            initial = th.full((1,), initial_ent_coef(ent_coef), device=device)
            self.log_ent_coef = initial.log().requires_grad_(True)
            self.optimizer = th.optim.Adam([self.log_ent_coef], lr=learning_rate, betas=(beta1, 0.999), fused=True)
        else:
            self.ent_coef_tensor = th.tensor(float(ent_coef), device=device)

    @property
    def value(self) -> th.Tensor:
        """Alpha of now, without a gradient."""
        if self.log_ent_coef is not None:
            return self.log_ent_coef.detach().exp()
        assert self.ent_coef_tensor is not None
        return self.ent_coef_tensor

    @th.no_grad()
    def step(self, log_prob: th.Tensor, target_entropy: th.Tensor, guard: Guard) -> tuple[th.Tensor, th.Tensor]:
        """One step of a learned alpha towards the target entropy, if the guard has seen nothing bad.

        :param log_prob: (B,) log-density of the actions
        :param target_entropy: (), in nats
        :param guard: looks at loss and gradient
        :return: the loss, (); (2,), how many numbers of loss and gradient are not finite
        """
        assert self.log_ent_coef is not None
        assert self.optimizer is not None
        loss = ent_coef_loss(self.log_ent_coef, log_prob, target_entropy)
        gradient = ent_coef_gradient(log_prob, target_entropy)
        bad = th.stack([count_bad(loss), count_bad(gradient)])
        guard.look(bad)
        set_gradient([self.log_ent_coef], [gradient.view(1) if self.log_ent_coef.requires_grad else None])
        guard.step(self.optimizer)
        return loss, bad


def ent_coef_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: th.Tensor | float) -> th.Tensor:
    """Temperature loss `-log alpha (log pi + H)` (SAC Flow, Eq. 24, in SB3's log form).

    :param log_ent_coef: (1,) log alpha
    :param log_prob: (B,)
    :param target_entropy: H in nats, of what `log_prob` is the density of
    """
    return -(log_ent_coef * (log_prob + target_entropy).detach()).mean()


def ent_coef_gradient(log_prob: th.Tensor, target_entropy: th.Tensor | float) -> th.Tensor:
    """Derivative of `ent_coef_loss` by log alpha, (): autograd says the same with more launches on CUDA.

    :param log_prob: (B,)
    :param target_entropy: H
    """
    return -(log_prob + target_entropy).mean()


def initial_ent_coef(ent_coef: str) -> float:
    """Start of a learned alpha: 1 for "auto", x for "auto_x".

    :raises ValueError: for any other text
    """
    allowed = "a number >= 0, 'auto', or 'auto_<initial value>' with a value > 0"
    head, separator, tail = ent_coef.partition("_")
    try:
        initial = float(tail) if separator else 1.0
    except ValueError:
        initial = float("nan")
    require(head == "auto" and 0 < initial < math.inf, "ent_coef", ent_coef, allowed)
    return initial
