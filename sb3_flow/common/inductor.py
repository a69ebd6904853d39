"""A pass of ours over the graphs that torch.compile makes; common/compile.py alone knows of it."""

from typing import Any

import torch as th
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

aten = th.ops.aten
HALF = (th.bfloat16, th.float16)
PRODUCTS: dict[Any, Any] = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}


class CPUPass(CustomGraphPass):
    """Adds biases after products of matrices, not in them, and sums the same numbers of half precision once.

    On CPU the library's product with a bias copies it into every row of the result first, which is then read again.
    A sum of its own is computed in the loop of what follows, an activation or a normalisation.

    Of two sums of the same bfloat16 numbers PyTorch 2.13 makes one loop, which declares a variable twice: no C++.
    """

    def __call__(self, graph: Graph) -> None:
        for node in list(graph.nodes):
            is_float32 = getattr(node.meta.get("val"), "dtype", None) == th.float32
            if node.target in PRODUCTS and not node.kwargs and is_float32:
                _unfuse(graph, node)
        _merge_sums(graph)

    def uuid(self) -> bytes:
        """Identifies this code in PyTorch's cache of what it has compiled."""
        return get_hash_for_files((__file__,))


def _merge_sums(graph: Graph) -> None:
    known: dict[Any, Node] = {}
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.target is not aten.sum.dim_IntList or getattr(value, "dtype", None) not in HALF:
            continue
        x, dims, *_ = node.args
        rank = max(x.meta["val"].dim(), 1)
        key = x, tuple(sorted(dim % rank for dim in dims or range(rank))), value.dtype
        first = known.setdefault(key, node)
        if first is not node:
            with graph.inserting_before(node):
                same = graph.call_function(aten.reshape.default, (first, list(value.shape)))
            same.meta = dict(node.meta)
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _unfuse(graph: Graph, node: Node) -> None:
    bias, a, b = node.args
    with graph.inserting_before(node):
        product = graph.call_function(PRODUCTS[node.target], (a, b))
        total = graph.call_function(aten.add.Tensor, (product, bias))
    product.meta, total.meta = dict(node.meta), dict(node.meta)
    node.replace_all_uses_with(total)
    graph.erase_node(node)
