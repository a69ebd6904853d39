"""CUDA graphs of whole updates: one launch in place of hundreds, which take longer than their work."""

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import torch as th
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sb3_flow.common.compile import CompileMode

P = ParamSpec("P")
R = TypeVar("R")

Recorder = Callable[[Callable[[], R]], Callable[[], R]]
WARM_UP = 2  # calls that compile the code, and make the state of the optimizer
MOST_RECORDINGS = 8  # of a function, each with memory of its own; what is called otherwise is launched by kernels


def maybe_recorded(
    function: Callable[P, R], optimizer: th.optim.Optimizer, mode: CompileMode, device: th.device
) -> Callable[P, R]:
    """The function itself, or `Recorded` where what is compiled runs on CUDA; that has the parameters."""
    if not mode or device.type != "cuda" or not takes_found_inf(optimizer):
        return function
    return Recorded(function, optimizer)


def takes_found_inf(optimizer: th.optim.Optimizer) -> bool:
    """Whether it skips a step by itself, for a flag on the device: PyTorch's fused Adam and AdamW do."""
    known = type(optimizer) in (th.optim.Adam, th.optim.AdamW)  # a subclass may step in its own way
    fused = known and all(group["fused"] for group in optimizer.param_groups)
    return fused and _device(optimizer).type != "mps"  # whose kernels are not told of the flag


class Recorded(Generic[P, R]):
    """A function that becomes a CUDA graph after its first calls, one for each kind of arguments.

    It may change what it owns in place, and must draw nothing, read nothing from the device, and depend on nothing
    else than its arguments and that. What it returns is overwritten by the next call. Learning rates may change.

    :param function: takes and returns tensors, and tuples and dicts of these
    :param optimizer: of what it changes; `takes_found_inf`
    :param record: makes what replays a function without arguments
    """

    def __init__(self, function: Callable[P, R], optimizer: th.optim.Optimizer, record: Recorder[R] | None = None):
        self.function = function
        self.optimizer = optimizer
        self.record = record or partial(cuda_graph, device=_device(optimizer))
        self.failed = False
        self._recordings: dict[Any, _Recording[R]] = {}
        self._calls: Counter[Any] = Counter()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.failed:
            return self._detached(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        key = (spec, *map(_kind, leaves), *_settings(self.optimizer))
        recording = self._recordings.get(key)
        if recording is not None and recording.is_valid:
            return recording.replay(leaves)
        self._recordings.pop(key, None)
        if len(self._recordings) >= MOST_RECORDINGS or self._is_warming_up(key):
            # What is compiled for views, as a batch has them, would be compiled again for a recording's own memory
            args, kwargs = tree_unflatten(_copied(leaves), spec)
            return self._detached(*args, **kwargs)
        try:
            recording = self._recordings[key] = self._recorded(leaves, spec)
        # What cannot be recorded has no common type
        except Exception as error:
            self.failed = True
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"No CUDA graph, training goes on without it, slower: {reason}", stacklevel=2)
            return self._detached(*args, **kwargs)
        return recording.replay(leaves)

    def _is_warming_up(self, key: Any) -> bool:
        self._calls[key] += 1
        if self._calls[key] <= WARM_UP:
            return True
        del self._calls[key]
        return False

    def _detached(self, *args: P.args, **kwargs: P.kwargs) -> R:
        # What autograd keeps of a call belongs to its stream, and recordings have one of their own
        return detached(self.function(*args, **kwargs))

    def _recorded(self, leaves: Sequence[Any], spec: Any) -> "_Recording[R]":
        inputs = _copied(leaves)
        rates = [th.full((), group["lr"], device=_device(self.optimizer)) for group in self.optimizer.param_groups]
        args, kwargs = tree_unflatten(inputs, spec)
        with _rates_read_from(rates, self.optimizer):
            run = self.record(lambda: self._detached(*args, **kwargs))
        return _Recording(run, inputs, rates, self.optimizer)


class _Recording(Generic[R]):
    """One graph, and the memory that it reads.

    :param run: replays it
    :param inputs: the arguments; tensors are this graph's own
    :param rates: the learning rate of each group of the optimizer, ()
    :param optimizer: it steps this
    """

    def __init__(
        self, run: Callable[[], R], inputs: Sequence[Any], rates: list[th.Tensor], optimizer: th.optim.Optimizer
    ):
        self._run = run
        self._inputs = [x for x in inputs if isinstance(x, th.Tensor)]
        self._rates = rates
        self._optimizer = optimizer
        self._known_rates = [group["lr"] for group in optimizer.param_groups]
        self._memory = _memory(optimizer)

    @property
    def is_valid(self) -> bool:
        """Whether weights and moments are still where they were: after loading, and in a copy, they are not."""
        now = _memory(self._optimizer)
        return len(now) == len(self._memory) and all(
            pointer == known and state is same
            for (pointer, state), (known, same) in zip(now, self._memory, strict=True)
        )

    def replay(self, leaves: Sequence[Any]) -> R:
        """Run it on other arguments."""
        if self._inputs:
            th._foreach_copy_(self._inputs, [leaf for leaf in leaves if isinstance(leaf, th.Tensor)])
        for index, group in enumerate(self._optimizer.param_groups):
            if group["lr"] != self._known_rates[index]:
                self._rates[index].fill_(group["lr"])
                self._known_rates[index] = group["lr"]
        return self._run()


def detached(tree: R) -> R:
    """The same tensors, and tuples and dicts of these, without a gradient."""
    result: R = tree_map(lambda x: x.detach() if isinstance(x, th.Tensor) else x, tree)
    return result


def cuda_graph(function: Callable[[], R], device: th.device) -> Callable[[], R]:
    """A CUDA graph of a function.

    :param device: where it computes, which need not be the current one
    :return: runs it; the result is always in the same memory
    """
    gc.collect()  # what autograd keeps of earlier calls
    graph = th.cuda.CUDAGraph()
    before, own = th.cuda.current_stream(device), th.cuda.Stream(device)  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings(), th.cuda.device(device):
            warnings.filterwarnings("error", "The CUDA Graph is empty")  # it would change nothing, silently
            # Only this thread is watched for what would disturb a recording: another may use the device as it likes
            with th.cuda.graph(graph, stream=own, capture_error_mode="thread_local"):
                result = function()
    except BaseException:
        th.cuda.set_stream(before)  # PyTorch stays on that of a recording that failed
        raise

    def run() -> R:
        graph.replay()
        return result

    return run


@contextmanager
def _rates_read_from(rates: Sequence[th.Tensor], optimizer: th.optim.Optimizer) -> Iterator[None]:
    """A step in here reads learning rates from the device: a number would stay what it was when it was recorded."""
    before = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"], group["capturable"] = rate, True
    try:
        yield
    finally:
        for group, (rate, capturable) in zip(optimizer.param_groups, before, strict=True):
            group["lr"], group["capturable"] = rate, capturable


def _copied(leaves: Sequence[Any]) -> list[Any]:
    return [leaf.clone() if isinstance(leaf, th.Tensor) else leaf for leaf in leaves]


def _kind(leaf: Any) -> Any:
    """What a graph is recorded for: a shape, or a value."""
    return (leaf.shape, leaf.dtype) if isinstance(leaf, th.Tensor) else leaf


def _settings(optimizer: th.optim.Optimizer) -> list[Any]:
    """What a step of an optimizer depends on that is no tensor, but for the learning rate."""
    groups = optimizer.param_groups
    frozen = [tuple(p.requires_grad for p in group["params"]) for group in groups]
    return frozen + [value for group in groups for key, value in group.items() if key not in ("params", "lr")]


def _memory(optimizer: th.optim.Optimizer) -> list[tuple[int, Any]]:
    """Where its weights are, and the state of each."""
    return [(p.data_ptr(), optimizer.state.get(p)) for group in optimizer.param_groups for p in group["params"]]


def _device(optimizer: th.optim.Optimizer) -> th.device:
    device: th.device = optimizer.param_groups[0]["params"][0].device
    return device
