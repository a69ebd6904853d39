"""The pass over compiled graphs."""

import shutil
from collections.abc import Callable

import pytest
import torch as th
from torch._inductor.utils import run_and_get_code
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_flow.common.compile import Compiled
from sb3_flow.common.inductor import CPUPass

aten = th.ops.aten


def linear(bias: th.Tensor, a: th.Tensor, b: th.Tensor) -> th.Tensor:
    return th.addmm(bias, a, b).relu()


def linears(bias: th.Tensor, a: th.Tensor, b: th.Tensor) -> th.Tensor:
    """A layer of several nets at once."""
    return th.baddbmm(bias.expand(2, 1, 4), a.expand(2, 5, 3), b.expand(2, 3, 4))


def traced(function: Callable[..., th.Tensor], *args: th.Tensor) -> GraphModule:
    return make_fx(function, tracing_mode="fake")(*args)


def arguments(dtype: th.dtype = th.float32) -> tuple[th.Tensor, ...]:
    return th.randn(4, dtype=dtype), th.randn(5, 3, dtype=dtype), th.randn(3, 4, dtype=dtype)


@pytest.mark.parametrize("function", [linear, linears])
def test_a_bias_is_added_after_the_product(function: Callable[..., th.Tensor]) -> None:
    args = arguments()
    module = traced(function, *args)
    CPUPass()(module.graph)
    module.recompile()
    targets = [node.target for node in module.graph.nodes]
    assert aten.addmm.default not in targets
    assert aten.baddbmm.default not in targets
    assert aten.add.Tensor in targets
    th.testing.assert_close(module(*args), function(*args))
    assert all("val" in node.meta for node in module.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (linear, th.bfloat16),  # the product would be rounded before the bias is added
        (lambda bias, a, b: th.addmm(bias, a, b, beta=2), th.float32),
    ],
)
def test_what_would_be_another_number_is_left(function: Callable[..., th.Tensor], dtype: th.dtype) -> None:
    module = traced(function, *arguments(dtype))
    before = str(module.graph)
    CPUPass()(module.graph)
    assert str(module.graph) == before


def sums(x: th.Tensor) -> tuple[th.Tensor, ...]:
    return x.sum(0), x.sum(1), x.sum(-2), x.sum(0, keepdim=True), x.sum((0, 1)), x.sum(()), x[0, 0].sum(0)


@pytest.mark.parametrize(("dtype", "number"), [(th.bfloat16, 4), (th.float16, 4), (th.float32, 7)])
def test_the_same_numbers_of_half_precision_are_summed_once(dtype: th.dtype, number: int) -> None:
    x = th.randn(5, 3, dtype=dtype)
    module = make_fx(sums, tracing_mode="fake")(x)
    CPUPass()(module.graph)
    module.graph.lint()
    module.recompile()
    assert sum(node.target is aten.sum.dim_IntList for node in module.graph.nodes) == number
    th.testing.assert_close(module(x), sums(x))


class Sums:
    def both(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Two sums that are found to be one late, as in the gradient of layers whose outputs are added."""
        rounded = x.bfloat16()
        return rounded.sum(0), (rounded + th.zeros_like(rounded)).sum(0, keepdim=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("error:torch.compile failed")
def test_two_equal_sums_in_bfloat16_are_compiled() -> None:
    x = th.randint(-4, 4, (64, 64)).float()  # compiled code need not round on its way, and of these there is no need
    with th.no_grad():
        th.testing.assert_close(Compiled(Sums().both, True, x.device)(x), Sums().both(x))


class Layer(th.nn.Linear):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return super().forward(x).relu()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_code_has_no_product_with_a_bias() -> None:
    layer, x = Layer(3, 4), th.randn(5, 3)
    with th.no_grad():
        result, codes = run_and_get_code(Compiled(layer.forward, True, x.device), x)
        th.testing.assert_close(result, layer(x))
    code = "".join(codes)
    assert "cpu_mm_out(" in code
    assert "addmm_out(" not in code
