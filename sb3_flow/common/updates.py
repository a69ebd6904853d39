"""What surrounds the loss of one update: what it says of itself, and its gradient."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch as th

from sb3_flow.common.checks import require
from sb3_flow.common.compile import compiled_for_cpu
from sb3_flow.common.graphs import detached
from sb3_flow.common.guard import Guard, Statistics, count_bad, set_where

Gradient = Sequence[th.Tensor | None]  # one for each parameter; None where the loss does not depend on it

SATURATED = 0.99  # an action this close to its bound counts as saturated


class Loss(Protocol):
    """What a loss function returns: a NamedTuple. What is left of it after the step has no gradient."""

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
    bad: th.Tensor  # (len(made_of) + 2,): how many numbers of each, of the loss and of the norm are not finite


class Descent(NamedTuple, Generic[L]):
    """Where a loss leads, and what it says of itself; all without a gradient of their own."""

    loss: L
    figures: Figures
    gradient: Gradient


class Differentiated(Generic[L]):
    """A loss function with its gradient and its figures, under the guard, which is one region to compile.

    :param loss_fn: of a batch and more; returns a `Loss`
    :param encode: what is done to the batch before
    :param autocast: what the loss is computed in, the gradient not
    :param guard: looks at every update
    :param statistics: which the loss function may change; after a bad update they are what they were before
    """

    def __init__(
        self,
        loss_fn: Callable[..., L],
        encode: Callable[[Any], Any],
        autocast: Callable[[], AbstractContextManager[Any]],
        guard: Guard,
        statistics: Statistics,
    ):
        self.loss_fn = loss_fn
        self.encode = encode
        self.autocast = autocast
        self.guard = guard
        self.statistics = statistics
        self._is_checked = False  # what it returns

    def descend(self, parameters: Sequence[th.Tensor], max_gradient: float, batch: Any, *args: Any) -> Descent[L]:
        """The loss of these arguments, and its gradient.

        :param parameters: what it is differentiated by; of what else is trained it has no gradient
        :param max_gradient: largest size of one number of the gradient; larger ones are cut off
        """
        before = [tensor.clone() for tensor in self.statistics.moving]
        with self.autocast():
            result = self.loss_fn(self.encode(batch), *args)
        if not th.compiler.is_compiling() and not self._is_checked:
            _check_loss(result, self.loss_fn)
            self._is_checked = True
        gradient, norm = differentiate(result.loss, parameters, max_gradient)
        logged = result.logged
        means = [value.detach().mean() for value in logged.values()]
        figures = th.stack(means) if means else result.loss.new_zeros(0)
        bad = th.stack([count_bad(tensor) for tensor in (*result.made_of.values(), result.loss, norm)])
        self.guard.look(bad)
        set_where(self.guard.stopped, self.statistics.moving, before)
        return Descent(detached(result), Figures(tuple(logged), figures, bad), gradient)


def _check_loss(result: Any, loss_fn: Callable[..., Any]) -> None:
    is_loss = isinstance(result, tuple) and all(hasattr(result, name) for name in ("loss", "made_of", "logged"))
    parts = (result.loss, *result.made_of.values(), *result.logged.values()) if is_loss else (None,)
    advice = "a NamedTuple with the tensor `loss`, and `made_of` and `logged`, dicts of tensors by their names"
    are_tensors = all(isinstance(part, th.Tensor) for part in parts)
    require(are_tensors, f"what {getattr(loss_fn, '__name__', 'the loss')} returns", result, advice)


def differentiate(
    loss: th.Tensor, parameters: Sequence[th.Tensor], max_gradient: float = math.inf
) -> tuple[Gradient, th.Tensor]:
    """The gradient of a loss by parameters, and its norm.

    :param loss: ()
    :param parameters: those that the user froze get none
    :param max_gradient: largest size of one number of the gradient; larger ones are cut off
    :return: the gradient; (), its norm before anything was cut off
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not (trainable and loss.requires_grad):
        return [None] * len(parameters), th.zeros_like(loss)
    parts = th.autograd.grad(loss, trainable, allow_unused=True)
    used = [part for part in parts if part is not None]
    norm = norm_of(used) if used else th.zeros_like(loss)
    if max_gradient < math.inf:
        parts = tuple(None if part is None else part.clamp(-max_gradient, max_gradient) for part in parts)
    rest = iter(parts)
    return [next(rest) if parameter.requires_grad else None for parameter in parameters], norm


def norm_of(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """The norm of all numbers of some tensors, at least one, ()."""
    if compiled_for_cpu(tensors[0]):  # where the one kernel for many tensors is called from Python
        return th.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt()
    return th.nn.utils.get_total_norm(tensors)


def set_gradient(parameters: Iterable[th.Tensor], gradient: Gradient) -> None:
    """Give an optimizer's parameters the gradient that it is to step along."""
    for parameter, part in zip(parameters, gradient, strict=True):
        if part is not None and part.stride() != parameter.stride():
            # Autograd's order of the numbers may be another one, and PyTorch's fused optimizers do not look at it
            part = th.empty_like(parameter).copy_(part)
        parameter.grad = part


def parameters_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """What an optimizer steps."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
