"""What surrounds the loss of one update: modes, gradients, the guard against numbers that are not finite, the log."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch as th
from stable_baselines3.common.policies import BaseModel

from sb3_flow.common.checks import NonFiniteError, check_finite

SATURATED = 0.99  # an action this close to its bound counts as saturated


class Loss(Protocol):
    """What a loss function returns, by name."""

    @property
    def loss(self) -> th.Tensor:
        """What is minimised, ()."""

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        """The tensors that went into it in the order they were made: the first that is not finite is named."""

    @property
    def logged(self) -> dict[str, th.Tensor]:
        """What the log shows of it; of tensors the mean."""


def saturated_share(actions: th.Tensor) -> th.Tensor:
    """Share of the actions' numbers close to their bounds, ()."""
    return (actions.detach().abs() > SATURATED).to(actions.dtype).mean()


def masked_mean(values: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
    """Mean of the values where the mask, which broadcasts to them, is 1; None: of all."""
    if mask is None:
        return values.mean()
    mask = mask.expand_as(values)
    return (values * mask).sum() / mask.sum().clamp_min(1)


class Log:
    """Collects tensors during the updates and turns them into floats once, at the end."""

    def __init__(self) -> None:
        self.values: dict[str, list[th.Tensor]] = defaultdict(list)

    def add(self, **values: th.Tensor) -> None:
        for key, value in values.items():
            self.values[key].append(value.detach().mean())

    def means(self) -> list[tuple[str, float]]:
        return [(key, th.stack(values).mean().item()) for key, values in self.values.items()]


@contextmanager
def only_training(net: BaseModel, others: Sequence[BaseModel]) -> Iterator[None]:
    """One net in training mode, with gradients; the others in evaluation mode, without.

    Gradients flow through the others to what goes into them. Parameters that the user froze stay frozen afterwards.
    """
    net.set_training_mode(True)
    for other in others:
        other.set_training_mode(False)
    trainable = [parameter for other in others for parameter in other.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def statistics_restored(net: th.nn.Module) -> Iterator[None]:
    """Put the running statistics back if the update stops at a number that is not finite."""
    kept = [buffer.clone() for buffer in net.buffers()]
    try:
        yield
    except NonFiniteError:
        for buffer, value in zip(net.buffers(), kept, strict=True):
            buffer.copy_(value)
        raise


def compute_gradient(optimizer: th.optim.Optimizer, loss: th.Tensor, name: str, max_gradient: float = math.inf) -> None:
    """The gradient of the parameters that an optimizer steps, which must be finite.

    :param optimizer: owns the parameters
    :param loss: ()
    :param name: of what is updated
    :param max_gradient: largest size of one number of it; larger ones are cut off
    :raises NonFiniteError: if the gradient is not finite
    """
    optimizer.zero_grad()
    th.autograd.backward(loss)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in parameters if p.grad is not None]
    check_finite(f"{name} update", **{f"{name}_gradient_norm": th.nn.utils.get_total_norm(grads)})
    if max_gradient < math.inf:
        th.nn.utils.clip_grad_value_(parameters, max_gradient)
