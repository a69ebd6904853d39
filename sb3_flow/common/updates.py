"""What surrounds the loss of one update: what it says of itself, modes of the nets, gradients."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch as th
from stable_baselines3.common.policies import BaseModel

from sb3_flow.common.guard import count_bad

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


L = TypeVar("L", bound=Loss)


def share_beyond(x: th.Tensor, bound: float) -> th.Tensor:
    """Share of numbers larger than a bound, whatever their sign, ()."""
    return (x.detach().abs() > bound).to(x.dtype).mean()


def saturated_share(actions: th.Tensor) -> th.Tensor:
    """Share of the actions' numbers close to their bounds, ()."""
    return share_beyond(actions, SATURATED)


def masked_mean(values: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
    """Mean of the values where the mask, which broadcasts to them, is 1; None: of all."""
    if mask is None:
        return values.mean()
    mask = mask.expand_as(values)
    return (values * mask).sum() / mask.sum().clamp_min(1)


class Figures(NamedTuple):
    """What a loss says of itself, in two vectors: on CUDA every number of its own is a kernel of its own."""

    logged: tuple[str, ...]
    means: th.Tensor  # (len(logged),)
    bad: th.Tensor  # (len(made_of) + 1,): how many numbers of each, and of the loss, are not finite


class Stepped(NamedTuple, Generic[L]):
    """What one step leaves to look at."""

    loss: L
    figures: Figures
    bad: th.Tensor  # result of `Guard.look`


class Measured(Generic[L]):
    """A loss function that returns its figures too, from one compiled region.

    :param loss_fn: of a batch and more; returns a `Loss`
    :param encode: what is done to the batch before
    """

    def __init__(self, loss_fn: Callable[..., L], encode: Callable[[Any], Any]):
        self.loss_fn = loss_fn
        self.encode = encode

    def loss(self, batch: Any, *args: Any) -> tuple[L, Figures]:
        """The loss of these arguments, and its figures without a gradient."""
        result = self.loss_fn(self.encode(batch), *args)
        logged = result.logged
        means = [value.detach().mean() for value in logged.values()]
        bad = [count_bad(tensor) for tensor in (*result.made_of.values(), result.loss)]
        return result, Figures(tuple(logged), th.stack(means), th.stack(bad))


@contextmanager
def only_training(net: BaseModel, others: Sequence[BaseModel]) -> Iterator[None]:
    """One net in training mode, with gradients; the others in evaluation mode, without.

    Gradients flow through the others to what goes into them. Parameters that the user froze stay frozen afterwards.
    """
    net.set_training_mode(True)
    for other in others:
        other.set_training_mode(False)
    # Of the optimizers, which have them in a list: to walk through the layers takes longer
    trainable = [p for other in others for p in parameters_of(other.optimizer) if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def compute_gradient(optimizer: th.optim.Optimizer, loss: th.Tensor, max_gradient: float = math.inf) -> th.Tensor:
    """The gradient of the parameters that an optimizer steps.

    :param optimizer: owns the parameters
    :param loss: ()
    :param max_gradient: largest size of one number of it; larger ones are cut off
    :return: (), its norm before anything was cut off
    """
    optimizer.zero_grad()
    if not loss.requires_grad:  # the user froze the whole net
        return th.zeros_like(loss)
    th.autograd.backward(loss)
    parameters = parameters_of(optimizer)
    norm = th.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_gradient < math.inf:
        th.nn.utils.clip_grad_value_(parameters, max_gradient)
    return norm


def parameters_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """What an optimizer steps."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
