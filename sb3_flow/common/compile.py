"""How methods are compiled, and what differs in code that is."""

import itertools
import re
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import torch as th
from torch._functorch import config as functorch_config

# PyTorch imports it with the first model. If by then Mesa has drawn, or dm_control, which ogbench needs, has been
# imported and asked Mesa for a display, that crashes Python: both bring LLVM, and triton's calls reach Mesa's
with suppress(ImportError):
    import triton  # noqa: F401

P = ParamSpec("P")
R = TypeVar("R")

CompileMode = bool | Literal["max"]
COMPILE_MODES: tuple[CompileMode, ...] = (False, True, "max")
TORN_FILE = re.compile(
    r"(/[^\s:'\"]+\.(?:so|o)): (?:file too short|invalid ELF header|file truncated|file not recognized)"
)
_number = itertools.count()  # of a compiled method


class Compiled(Generic[P, R]):
    """A method that is compiled at its first call, and called as it is if that fails.

    What it computes must be free of random draws and of branches on tensors.

    :param method: a bound method
    :param mode: True, or "max" to try more kernels on CUDA
    :param device: where it runs
    :param verbose: 1 to print how long the compilation takes
    :param name: of the method in what is printed, if it is not its own
    :param graphs: on CUDA the compiled code becomes CUDA graphs: a result is overwritten by the next call. False for
        what is recorded as part of something larger
    """

    def __init__(
        self,
        method: Callable[P, R],
        mode: CompileMode,
        device: th.device,
        verbose: int = 0,
        name: str | None = None,
        graphs: bool = True,
    ):
        self.method = method
        self.name = str(name or getattr(method, "__name__", "function"))
        self.mode = mode
        self.device = device
        self.verbose = verbose
        self.graphs = graphs
        self.failed = False
        self._compiled: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.failed:
            return self.method(*args, **kwargs)
        try:
            if self._compiled is None:
                return self._first_call(*args, **kwargs)
            return self._call(self._compiled, *args, **kwargs)
        # The compiler's failures have no common type; a mistake of ours is raised again by the method itself
        except Exception as error:
            if self.device.type == "cuda" and th.cuda.is_current_stream_capturing():
                raise  # it is the recording that failed
            if self._compiled is None and _removed_torn_files(str(error)):
                return self(*args, **kwargs)
            self.failed = True
            result = self.method(*args, **kwargs)
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"torch.compile failed, training goes on uncompiled, with the same numbers. It said: {reason}",
                stacklevel=2,
            )
            return result

    def _first_call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        name = self.name.strip("_").replace("_", " ")
        if self.verbose > 0:
            print(f"Compiling the {name}: about a minute, or a few seconds if this machine has done it before")
        start = time.perf_counter()
        compiled = th.compile(_with_own_code(self.method), **_options(self.mode, self.device, self.graphs))
        if th.is_grad_enabled():
            compiled = _with_gradients_traced(compiled)
        with _cached_with_own_gradients():
            result = self._call(compiled, *args, **kwargs)
        self._compiled = compiled
        if self.verbose > 0:
            print(f"Compiled the {name} in {time.perf_counter() - start:.0f} s")
        return result

    def _call(self, compiled: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self.device.type == "cuda" and self.graphs:
            th.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return compiled(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}


def _removed_torn_files(message: str) -> bool:
    """Remove what a kill left half written in PyTorch's cache, where it would else stay and fail for ever.

    :param message: of the compiler's failure
    :return: whether something was removed, so that it can be made anew
    """
    torn = [Path(path) for path in TORN_FILE.findall(message) if Path(path).is_file()]
    for path in torn:
        path.unlink(missing_ok=True)  # another process may have been faster
    return bool(torn)


def compiled_for_cpu(x: th.Tensor) -> bool:
    """Whether this is being compiled for a CPU, and not exported."""
    if not th.compiler.is_compiling() or x.device.type != "cpu":
        return False
    is_exporting = getattr(th.compiler, "is_exporting", None)  # PyTorch has it from 2.7 on
    return is_exporting is None or not is_exporting()


def apart(x: th.Tensor) -> th.Tensor:
    """The same tensor, in memory of its own before it is used.

    For a few numbers that are combined with many: PyTorch 2.13 compiled for CPU would else compute them again for each
    of these. A square root and two divisions are ten times the work of normalising a number.
    """
    return x.as_strided(x.shape, x.stride()) if compiled_for_cpu(x) else x


def _with_gradients_traced(compiled: Callable[P, R]) -> Callable[P, R]:
    """Lets PyTorch compile a gradient together with what it is the gradient of.

    Otherwise that is compiled in two parts, between which it does in Python what autograd needs: a sixth of an update
    of small nets. Versions that cannot do so go on with the two parts.
    """
    from torch._dynamo import config  # a second's import, which only what is compiled needs

    if not hasattr(config, "trace_autograd_ops"):
        return compiled
    traced: AbstractContextManager[Any] = config.patch(trace_autograd_ops=True)  # one for all calls: new ones are slow

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with traced:  # whenever: for another batch size it is compiled again
            return compiled(*args, **kwargs)

    return call


def _cached_with_own_gradients() -> AbstractContextManager[Any]:
    """Lets PyTorch's cache take functions whose gradient is written down, as BatchRenorm's is.

    Otherwise the next process traces them again, for half of the time of its start. The key of the cache has the code
    of both directions.
    """
    option = "autograd_cache_allow_custom_autograd_functions"
    if not hasattr(functorch_config, option):
        return nullcontext()
    patched: AbstractContextManager[Any] = functorch_config.patch(option, True)
    return patched


def _options(mode: CompileMode, device: th.device, graphs: bool) -> dict[str, Any]:
    if device.type == "cuda":
        if not graphs:
            return {"mode": "max-autotune-no-cudagraphs" if mode == "max" else "default"}
        # CUDA graphs: at these sizes the launches of the kernels take longer than their work
        return {"mode": "max-autotune" if mode == "max" else "reduce-overhead"}
    from torch._inductor import config, list_options  # a second's import, which only what is compiled needs

    options: dict[str, Any] = {
        # Small nets have many small kernels, which are called from C++ in less time than from Python
        "cpp_wrapper": True,
        # GCC optimises the calls for longer than the kernels, which makes a decision 3 % shorter and no update
        "cpp_wrapper_build_separate": True,
    }
    if getattr(config.cpp, "vec_isa_ok", None) is None:  # the user's TORCHINDUCTOR_VEC_ISA_OK
        # PyTorch compiles all of its vectors to see whether it can, for each kind of instructions that the CPU has
        options["cpp.vec_isa_ok"] = True
    with suppress(ImportError):  # older versions of PyTorch have no such passes
        from sb3_flow.common.inductor import CPUPass  # a second's import, which only what is compiled needs

        options["post_grad_custom_post_pass"] = CPUPass()
    known = set(list_options())  # of this version of PyTorch, which refuses others
    options = {name: value for name, value in options.items() if name in known}
    unguarded = getattr(th.compiler, "skip_guard_on_inbuilt_nn_modules_unsafe", None)
    if unguarded is not None and not th.is_grad_enabled():
        # To look whether a layer has changed is a twentieth of a decision. Acting needs only its weights, which are
        # read anew; where there are gradients a layer may be frozen or unfrozen
        options["guard_filter_fn"] = unguarded
    return {"options": options}


def _with_own_code(method: Callable[P, R]) -> Callable[P, R]:
    """The same method with code of its own, by object and by name.

    Dynamo keeps what it has compiled by code object and gives up after eight variants: without this, that would be
    after a few models in one process. What varied between calls it remembers by name, and compiles for any size what
    had another size in another model.
    """
    assert isinstance(method, MethodType)
    function = method.__func__
    name = function.__name__
    code = function.__code__.replace(co_name=f"{name}_{next(_number)}")
    copy = FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return MethodType(copy, method.__self__)
