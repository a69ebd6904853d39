"""The building blocks against PyTorch's and sb3_contrib's own layers, value and gradient, in float64."""

from typing import Literal

import pytest
import torch as th
from helpers import gradients, randn, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.torch_layers import BatchRenorm1d
from torch import nn

from sb3_flow.common.batch_renorm import BatchRenorm
from sb3_flow.common.layers import (
    ContextLinear,
    EnsembleLayerNorm,
    EnsembleLinear,
    TimeEmbedding,
    UnitNormBatchNorm,
    UnitNormLinear,
    ensemble_mlp,
    residual_mlp,
)

WARMUP = 100


def drifting_batch(step: int, members: int = 1) -> th.Tensor:
    """Batches whose scale and offset move, so that the corrections of BatchRenorm meet their limits at times."""
    batch = randn(members, 8, 3, seed=step)
    scale = 1 + 0.9 * th.sin(th.tensor(0.1 * step, dtype=th.float64))
    jump = 40.0 if step % 17 == 0 else 0.0
    return batch * scale + jump + th.linspace(-1, 1, 3, dtype=th.float64)


def copy_batch_renorm(ours: BatchRenorm, theirs: BatchRenorm1d, member: int | None = None) -> None:
    """Parameters and running statistics of ours (one member of it) into contrib's."""
    with th.no_grad():
        for name in ("scale", "bias", "ra_mean", "ra_var"):
            value = getattr(ours, name)
            getattr(theirs, name).copy_(value[0] if member is None else value[member, 0])
        theirs.get_buffer("steps").copy_(ours.steps)


@pytest.mark.parametrize("members", [None, 3])
def test_batch_renorm_follows_sb3_contrib_through_its_warm_up_member_by_member(members: int | None) -> None:
    n = members or 1
    ours = BatchRenorm(3, members, momentum=0.05, warmup_steps=WARMUP).double()
    randomize(ours)
    theirs = [BatchRenorm1d(3, momentum=0.05, warmup_steps=WARMUP).double() for _ in range(n)]
    for i, layer in enumerate(theirs):
        copy_batch_renorm(ours, layer, None if members is None else i)

    def check_statistics() -> None:
        for name in ("ra_mean", "ra_var"):
            expected = th.stack([layer.get_buffer(name) for layer in theirs])
            th.testing.assert_close(ours.get_buffer(name).reshape(n, 3), expected)

    corrected = False
    for step in range(2 * WARMUP):
        for training in (True, False):
            ours.train(training)
            x = drifting_batch(step, n).requires_grad_(True)
            y = ours(x if members else x[0])
            grads = gradients(y, [x, ours.scale, ours.bias])
            outputs = []
            for i, layer in enumerate(theirs):
                layer.train(training)
                outputs.append(layer(x[i]))
            expected = th.stack(outputs)
            their_grads = gradients(expected, [x, *(p for layer in theirs for p in (layer.scale, layer.bias))])
            th.testing.assert_close(y.reshape_as(expected), expected)
            th.testing.assert_close(grads[0], their_grads[0])
            th.testing.assert_close(grads[1].reshape(n, 3), th.stack(their_grads[1::2]))
            th.testing.assert_close(grads[2].reshape(n, 3), th.stack(their_grads[2::2]))
            check_statistics()
        if step > WARMUP:
            ours.train(True)
            with th.no_grad():
                normalised = (y.detach().reshape(n, 8, 3) - ours.bias) / ours.scale
            corrected = corrected or bool((normalised.mean(dim=1).abs() > 0.1).any())
    assert int(ours.steps) == 2 * WARMUP
    # Otherwise the comparison after the warm-up would say no more than the one before
    assert corrected


def test_batch_renorm_is_batch_norm_until_the_warm_up_is_over() -> None:
    layer = BatchRenorm(3, warmup_steps=4).double()
    centred = []
    for step in range(8):
        y = layer(drifting_batch(step + 1)[0])
        centred.append(bool(th.allclose(y.mean(dim=0), th.zeros(3, dtype=th.float64), atol=1e-12)))
    # As in sb3_contrib, the batch after `warmup_steps` batches is still normalised by itself
    assert centred == [True] * 5 + [False] * 3


def test_batch_renorm_in_evaluation_changes_nothing_and_treats_rows_alone() -> None:
    layer = BatchRenorm(3, warmup_steps=0).double()
    for step in range(5):
        layer(drifting_batch(step)[0])
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.eval()
    x = drifting_batch(7)[0]
    together = layer(x)
    th.testing.assert_close(th.cat([layer(row[None]) for row in x]), together)
    for name, value in layer.state_dict().items():
        assert th.equal(value, before[name])


def test_batch_renorm_keeps_the_digits_of_features_with_a_large_mean() -> None:
    layer = BatchRenorm(3)
    layer.ra_mean.fill_(1e5)
    layer.train(False)
    x = 1e5 + randn(64, 3)
    layer.ra_var.fill_(4.0)
    exact = (x.float().double() - 1e5) / (4.0 + layer.eps) ** 0.5
    th.testing.assert_close(layer(x.float()).double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, WARMUP])
def test_batch_renorm_of_a_dead_unit_has_finite_gradients_and_leaves_the_other_units_alone(warmup_steps: int) -> None:
    def trained() -> BatchRenorm:
        layer = BatchRenorm(3, warmup_steps=warmup_steps).double()
        for step in range(1, 6):
            layer(drifting_batch(step)[0])
        return layer

    alive = drifting_batch(6)[0]
    # A unit that gives the same number for the whole batch: variance 0, and the square root has no slope there
    dead = alive.clone()
    dead[:, 1] = 0.0
    results = []
    for x in (alive, dead):
        layer = trained()
        x.requires_grad_(True)
        y = layer(x)
        results.append([y, *gradients(y, [x, layer.scale, layer.bias])])
    for with_alive, with_dead in zip(*results, strict=True):
        assert th.isfinite(with_dead).all()
        th.testing.assert_close(with_dead[:, [0, 2]], with_alive[:, [0, 2]])


@pytest.mark.parametrize("steps", [1, WARMUP + 50])
def test_batch_renorm_has_the_finite_difference_gradient(steps: int) -> None:
    x = drifting_batch(3)[0].requires_grad_(True)
    layer = BatchRenorm(3, warmup_steps=WARMUP).double()
    randomize(layer)
    reference = layer.state_dict()

    # The corrections r and d count as constants (arXiv 1702.03275): beyond their limits they are
    far = {**reference, "ra_mean": th.full((1, 3), 1e3), "ra_var": th.full((1, 3), 1e-3), "steps": th.tensor(steps)}

    def forward(x: th.Tensor, scale: th.Tensor, bias: th.Tensor) -> th.Tensor:
        # A fresh layer each time: a forward pass moves the running statistics
        fresh = BatchRenorm(3, warmup_steps=WARMUP).double()
        fresh.load_state_dict(far)
        out: th.Tensor = th.func.functional_call(fresh, {"scale": scale, "bias": bias}, (x,))
        return out

    assert th.autograd.gradcheck(forward, (x, layer.scale, layer.bias))


@settings(deadline=None, max_examples=25)
@given(members=st.integers(1, 4), batch=st.integers(1, 5), width_in=st.integers(1, 5), width_out=st.integers(1, 5))
def test_ensemble_linear_is_separate_linear_layers(members: int, batch: int, width_in: int, width_out: int) -> None:
    ours = EnsembleLinear(members, width_in, width_out).double()
    x = randn(members, batch, width_in).requires_grad_(True)
    expected = th.stack([nn.functional.linear(x[i], ours.weight[i].T, ours.bias[i, 0]) for i in range(members)])
    inputs = [x, ours.weight, ours.bias]
    th.testing.assert_close(ours(x), expected)
    for grad, expected_grad in zip(gradients(ours(x), inputs), gradients(expected, inputs), strict=True):
        th.testing.assert_close(grad, expected_grad)


def test_ensemble_linear_starts_with_the_distribution_of_nn_linear() -> None:
    th.manual_seed(0)
    ours, theirs = EnsembleLinear(2, 100, 500), nn.Linear(100, 500)
    for mine, reference in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        assert mine.abs().max() <= 0.1
        assert mine.abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.01)
        assert mine.std().item() == pytest.approx(reference.std().item(), rel=0.1)
    assert not th.equal(ours.weight[0], ours.weight[1])


def test_ensemble_layer_norm_is_separate_layer_norms() -> None:
    ours = EnsembleLayerNorm(3, 4).double()
    randomize(ours)
    x = randn(3, 5, 4).requires_grad_(True)
    expected = th.stack([nn.functional.layer_norm(x[i], (4,), ours.scale[i, 0], ours.bias[i, 0]) for i in range(3)])
    inputs = [x, ours.scale, ours.bias]
    th.testing.assert_close(ours(x), expected)
    for grad, expected_grad in zip(gradients(ours(x), inputs), gradients(expected, inputs), strict=True):
        th.testing.assert_close(grad, expected_grad)


def member_of(ensemble: nn.Sequential, i: int) -> nn.Sequential:
    """One member of an ensemble, rebuilt from standard layers."""
    layers: list[nn.Module] = []
    for layer in ensemble:
        twin: nn.Module
        if isinstance(layer, EnsembleLinear):
            twin = nn.Linear(layer.weight.shape[1], layer.weight.shape[2]).double()
            twin.load_state_dict({"weight": layer.weight[i].T, "bias": layer.bias[i, 0]})
        elif isinstance(layer, BatchRenorm):
            twin = BatchRenorm1d(layer.scale.shape[-1]).double()
            copy_batch_renorm(layer, twin, i)
        elif isinstance(layer, EnsembleLayerNorm):
            twin = nn.LayerNorm(layer.scale.shape[-1]).double()
            twin.load_state_dict({"weight": layer.scale[i, 0], "bias": layer.bias[i, 0]})
        else:
            twin = nn.ReLU() if isinstance(layer, nn.ReLU) else layer
        layers.append(twin)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("norm", "layout"),
    [
        # CrossQ: normalisation before every linear layer, the last included
        ("batch_renorm", [BatchRenorm1d, nn.Linear, nn.ReLU] * 2 + [BatchRenorm1d, nn.Linear]),
        ("layer", [nn.Linear, nn.GELU, nn.LayerNorm] * 2 + [nn.Linear]),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_ensemble_mlp_is_separate_networks(
    norm: Literal["batch_renorm", "layer"], layout: list[type[nn.Module]], training: bool
) -> None:
    ours = ensemble_mlp(3, 4, [5, 6], norm).double().train(training)
    randomize(ours)
    x = randn(3, 7, 4).requires_grad_(True)
    members = [member_of(ours, i).train(training) for i in range(3)]
    assert [type(layer) for layer in members[0]] == layout

    y, expected = ours(x), th.stack([member(x[i]) for i, member in enumerate(members)])
    assert y.shape == (3, 7, 1)
    th.testing.assert_close(y, expected)
    (grad,), (expected_grad,) = gradients(y, [x]), gradients(expected, [x])
    th.testing.assert_close(grad, expected_grad)

    th.autograd.backward((ours(x) - 1).square().sum())
    for i, member in enumerate(members):
        th.autograd.backward((member(x[i]) - 1).square().sum())
    for mine, *twins in zip(ours, *members, strict=True):
        for name, parameter in mine.named_parameters():
            assert parameter.grad is not None
            twin_name = "weight" if name == "scale" and norm == "layer" else name
            twin_grads = [twin.get_parameter(twin_name).grad for twin in twins]
            for i, twin_grad in enumerate(twin_grads):
                assert twin_grad is not None
                transposed = isinstance(mine, EnsembleLinear) and name == "weight"
                th.testing.assert_close(parameter.grad[i], twin_grad.T if transposed else twin_grad.view(1, -1))


@settings(deadline=None, max_examples=25)
@given(batch=st.integers(1, 4), context=st.integers(1, 4), width_in=st.integers(1, 4), width_out=st.integers(1, 4))
def test_context_linear_is_a_linear_layer_on_the_concatenation(
    batch: int, context: int, width_in: int, width_out: int
) -> None:
    ours = ContextLinear(context, width_in, width_out).double()
    theirs = nn.Linear(context + width_in, width_out).double()
    theirs.load_state_dict(ours.state_dict())
    c, x = randn(batch, context).requires_grad_(True), randn(batch, width_in, seed=1).requires_grad_(True)
    y, expected = ours(ours.context(c), x), theirs(th.cat([c, x], dim=1))
    th.testing.assert_close(y, expected)
    grads = gradients(y, [c, x, ours.weight, ours.bias])
    for grad, expected_grad in zip(grads, gradients(expected, [c, x, theirs.weight, theirs.bias]), strict=True):
        th.testing.assert_close(grad, expected_grad)


def test_time_embedding_tells_the_euler_steps_of_a_rollout_apart() -> None:
    embedding = TimeEmbedding(16).double()
    for steps in (4, 16, 100):
        waves = embedding.frequencies * th.arange(steps, dtype=th.float64)[:, None] / steps
        features = th.cat([waves.sin(), waves.cos()], dim=1)
        distances = th.pdist(features)
        assert distances.min() > 1e-2
    assert embedding(th.zeros(5, 1, dtype=th.float64)).shape == (5, 16)


def test_residual_nets_are_made_of_pytorchs_layers() -> None:
    net = residual_mlp(2, 3, [4, 4], 5).double()
    randomize(net)
    x = randn(2, 6, 3)
    members = []
    for member in range(2):

        def apply(h: th.Tensor, layer: nn.Module, member: int = member) -> th.Tensor:
            if isinstance(layer, UnitNormLinear):
                out = h @ layer.weight[member]
                return out if layer.bias is None else out + layer.bias[member]
            if isinstance(layer, UnitNormBatchNorm):
                std = (h.var(dim=0) + 1e-5).sqrt()
                return (h - h.mean(dim=0)) / std * layer.scale[member, 0] + layer.bias[member, 0]
            return h.relu()

        first, second, *blocks, norm, head = net
        h = apply(apply(x[member], first), second)
        for block in blocks:
            inside = h
            for layer in block:  # type: ignore[attr-defined]
                inside = apply(inside, layer)
            h = h + inside
        h = nn.functional.rms_norm(h, (4,), norm.scale[member, 0], eps=1e-6)  # type: ignore[index]
        members.append(apply(h, head))
    th.testing.assert_close(net(x), th.stack(members))
    assert [layer.weight.shape[1:] for layer in net[2] if isinstance(layer, UnitNormLinear)] == [(4, 16), (16, 4)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("net_arch", [[], [4, 8]], ids=str)
def test_residual_blocks_have_one_width(net_arch: list[int]) -> None:
    with pytest.raises(ValueError, match=r"net_arch=.*the same width for every residual block"):
        residual_mlp(2, 3, net_arch, 5)


def test_batch_renorm_in_training_refuses_a_second_derivative() -> None:
    # Its gradient is written down as a number, not as a function
    x = drifting_batch(3)[0].requires_grad_(True)
    (first,) = th.autograd.grad(BatchRenorm(3).double()(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        first.sum().backward()
