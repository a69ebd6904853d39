"""Updates that are recorded and replayed, by a recorder that stands for CUDA graphs: it knows no Python."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from helpers import (
    EVERY_MODEL,
    LEARNING_STARTS,
    ONE_OF_EACH,
    differences,
    make_any,
    make_variant,
    random_state_kept,
    snapshot,
    taking,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sb3_flow.common import algorithm, graphs, guard, off_policy
from sb3_flow.common.graphs import MOST_RECORDINGS, WARM_UP, Recorded, maybe_recorded, takes_found_inf


class Recording(TorchDispatchMode):
    """Notes every operation on tensors, with Python's numbers in it, and runs them again in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[th.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert func.name() != "aten::_local_scalar_dense", "a recording cannot read a number"
        outputs = func(*args, **kwargs)
        mine = {id(x) for x in tree_leaves((args, kwargs))}
        if not func.is_view:
            made = [x for x in tree_leaves(outputs) if isinstance(x, th.Tensor) and id(x) not in mine]
            # Memory that changes later is the caller's: a copy of a list or a dict is what it was
            self.calls.append((func, *tree_map(lambda x: x, (args, kwargs)), made))
        return outputs

    @th.no_grad()
    def run(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            found = func(*args, **kwargs)
            mine = {id(x) for x in tree_leaves((args, kwargs))}
            again = [x for x in tree_leaves(found) if isinstance(x, th.Tensor) and id(x) not in mine]
            for output, value in zip(outputs, again, strict=True):
                output.copy_(value)


def recorder(function: Callable[[], Any]) -> Callable[[], Any]:
    """A graph of a function. Unlike CUDA's it runs when it is recorded, so that the first replay has been."""
    with Recording() as recording:
        result = function()
    runs = itertools.count()

    def run() -> Any:
        if next(runs) > 0:
            recording.run()
        return result

    return run


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded[..., Any]]:
    """Models of this test record their updates."""
    made: list[Recorded[..., Any]] = []
    monkeypatch.setattr(guard, "is_free_to_read", lambda x: False)

    def record(function: Callable[..., Any], optimizer: th.optim.Optimizer, *_: Any) -> Recorded[..., Any]:
        made.append(Recorded(function, optimizer, recorder))
        return made[-1]

    for module in (algorithm, off_policy):
        monkeypatch.setattr(module, "maybe_recorded", record)
    return made


DATA = {"offline_dataset": regular_arrays(trajectories([20, 30])), "offline_steps": 6}
UPDATES = 5
SETTINGS: list[Any] = [pytest.param(*model.values, {}, id=str(model.id)) for model in EVERY_MODEL]
SETTINGS += [pytest.param(name, None, DATA, id=f"{name}-data") for name in taking("offline_dataset", ONE_OF_EACH)]
SETTINGS += [
    pytest.param("flow_t", None, {"sac_flow": {"proximity": "behavior", "bc_coef": 1.0}}, id="flow_t-behavior")
]


@pytest.mark.parametrize(("name", "critic", "kwargs"), SETTINGS)
def test_recorded_updates_have_the_numbers_of_others(
    name: str, critic: str | None, kwargs: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    def falling(progress: float) -> float:
        return 2.0 ** -round(12 - 4 * progress)  # without a rest in float32, which it is in a graph

    def learnt() -> Any:
        often = {"policy_delay": 1, **kwargs.get("sac_flow", {})}
        rates = {key: falling for key in ("learning_rate", "qf_learning_rate") if taking(key, [name])}
        model = make_variant(name, critic=critic, **{**kwargs, "sac_flow": often, **rates})
        return model.learn(LEARNING_STARTS + UPDATES)

    plain = learnt()
    graphs = request.getfixturevalue("recorded")
    model = learnt()
    assert all(graph._recordings and not graph.failed for graph in graphs)
    figures = [
        {key: float(value) for key, value in each.logger.name_to_value.items() if not key.endswith(("fps", "elapsed"))}
        for each in (plain, model)
    ]
    assert figures[0] == figures[1]
    assert not differences(snapshot(plain), snapshot(model))


def test_reinflow_is_recorded_too(recorded: list[Recorded[..., Any]]) -> None:
    model = make_any("reinflow", n_epochs=3).learn(20)
    assert recorded
    assert all(graph._recordings and not graph.failed for graph in recorded)
    assert all(th.isfinite(value).all() for value in snapshot(model).values())


@pytest.mark.parametrize("name", ["flow_t", "fql", "qsm", "flow_rl"])
def test_a_bad_update_stops_a_recorded_one(name: str, recorded: list[Recorded[..., Any]]) -> None:
    model = make_variant(name, sac_flow={"policy_delay": 1}).learn(LEARNING_STARTS + UPDATES)
    model.replay_buffer.rewards[:] = 1e38
    nets = [key for key in snapshot(model) if "actor" not in key]
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=r"Training stopped in the \w+ update: `.*` has [1-9]"):
        model.train(5, 8)
    assert not set(differences(before, snapshot(model))) & set(nets)


def test_a_recording_ends_where_an_optimizer_is_loaded(recorded: list[Recorded[..., Any]]) -> None:
    fixed = {"policy_delay": 1, "ent_coef": 0.1, "learning_rate": 2.0**-10, "qf_learning_rate": 2.0**-10}
    model = make_variant("flow_g", sac_flow=fixed).learn(LEARNING_STARTS + UPDATES)
    parameters = copy.deepcopy(model.get_parameters())
    found = []
    for _ in range(2):
        model.set_parameters(copy.deepcopy(parameters))  # an optimizer takes what it is given
        with random_state_kept():
            model.set_random_seed(3)
            model.train(UPDATES, 8)
        found.append(snapshot(model))
    assert not differences(*found)


def test_a_copy_records_anew(recorded: list[Recorded[..., Any]]) -> None:
    model = make_variant("flow_g", sac_flow={"policy_delay": 1}).learn(LEARNING_STARTS + UPDATES)
    again = copy.deepcopy(model)
    before = snapshot(model)
    again.train(UPDATES, 8)
    assert not differences(before, snapshot(model))
    assert {"/critic.optimizer/state/0/step", "/policy/actor.norm.scale"} <= set(differences(before, snapshot(again)))


def test_another_optimizer_is_the_one_that_steps(recorded: list[Recorded[..., Any]]) -> None:
    model = make_variant("flow_g").learn(LEARNING_STARTS + UPDATES)
    before = [p.detach().clone() for p in model.critic.parameters()]
    model.critic.optimizer = th.optim.Adam(model.critic.parameters(), fused=True)
    model.lr_schedule = model.qf_lr_schedule = lambda progress: 0.0
    model.train(UPDATES, 8)
    assert all(th.equal(p, value) for p, value in zip(model.critic.parameters(), before, strict=True))
    assert [each.optimizer for each in recorded].count(model.critic.optimizer) == 1


def test_frozen_weights_and_other_settings_are_followed(recorded: list[Recorded[..., Any]]) -> None:
    model = make_variant("flow_g").learn(LEARNING_STARTS + UPDATES)
    first, *others = model.critic.parameters()
    first.requires_grad_(False)
    before = first.clone(), others[0].clone()
    model.train(1, 8)
    assert th.equal(first, before[0])
    assert not th.equal(others[0], before[1])
    for group in model.critic.optimizer.param_groups:
        group["weight_decay"] = 1e3
    model.train(UPDATES, 8)
    assert others[0].detach().norm() < 0.5 * before[1].norm()


def counting(optimizer: th.optim.Optimizer, record: Any = recorder) -> tuple[Recorded[..., Any], list[int]]:
    calls: list[int] = []

    def function(x: th.Tensor, factor: float) -> dict[str, th.Tensor]:
        calls.append(len(x))
        return {"product": x * factor}

    return Recorded(function, optimizer, record), calls


def test_a_function_is_recorded_once_for_each_kind_of_arguments() -> None:
    function, calls = counting(th.optim.Adam([th.zeros(1)], fused=True))
    for n, factor in ((2, 3.0), (5, 3.0), (2, 4.0)):
        calls.clear()
        for value in range(6):
            result = function(th.full((n,), float(value)), factor)["product"]
            assert result.tolist() == [value * factor] * n
        assert len(calls) == WARM_UP + 1


def test_what_will_be_recorded_sees_no_views_of_a_batch_before_either() -> None:
    views = []

    def function(x: th.Tensor) -> th.Tensor:
        views.append(x._is_view())
        return x.square()

    recorded = Recorded(function, th.optim.Adam([th.zeros(1)], fused=True), lambda run: run)
    for _ in range(WARM_UP + 1):
        recorded(th.ones(4)[1:])
    assert views == [False] * (WARM_UP + 1)


def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    def refuse(function: Callable[[], Any]) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    function, calls = counting(th.optim.Adam([th.zeros(1)], lr=0.1, fused=True), refuse)
    with pytest.warns(UserWarning, match="No CUDA graph, .*: operation not permitted when stream is capturing$"):
        results = [function(th.ones(1), 2.0)["product"].item() for _ in range(5)]
    assert results == [2.0] * 5
    assert len(calls) == 5
    (group,) = function.optimizer.param_groups
    assert (group["lr"], group["capturable"]) == (0.1, False)


@pytest.mark.parametrize(
    ("mode", "device", "optimizer", "is_recorded"),
    [
        (True, "cuda", th.optim.AdamW([th.zeros(1)], fused=True), True),
        ("max", "cuda", th.optim.Adam([th.zeros(1)], fused=True), True),
        (False, "cuda", th.optim.Adam([th.zeros(1)], fused=True), False),
        (True, "cpu", th.optim.Adam([th.zeros(1)], fused=True), False),
        (True, "cuda", th.optim.Adam([th.zeros(1)], foreach=True), False),
        (True, "cuda", th.optim.SGD([th.zeros(1)]), False),
    ],
)
def test_only_what_skips_bad_steps_by_itself_is_recorded(
    mode: Any, device: str, optimizer: th.optim.Optimizer, is_recorded: bool
) -> None:
    assert isinstance(maybe_recorded(print, optimizer, mode, th.device(device)), Recorded) == is_recorded


def test_an_argument_that_is_assigned_acts_in_recorded_updates_too(request: pytest.FixtureRequest) -> None:
    def learnt() -> Any:
        exact = 2.0**-10  # without a rest in float32, which it is in a graph
        sac_flow = {"policy_delay": 1, "qf_learning_rate": exact}
        data = {**DATA, "offline_steps": 20}
        model: Any = make_variant("flow_t", **data, learning_rate=exact, sac_flow=sac_flow)
        model.learn(10)
        model.matching_target = "raw"
        return model.learn(10, reset_num_timesteps=False)

    plain = learnt()
    graphs = request.getfixturevalue("recorded")
    recorded = learnt()
    assert any(graph._recordings for graph in graphs)
    assert not differences(snapshot(plain), snapshot(recorded))


def test_what_is_called_in_ever_new_ways_is_recorded_no_more() -> None:
    """As minibatches of ever new sizes: each graph has memory of its own."""
    weight = th.ones(3, requires_grad=True)
    optimizer = th.optim.Adam([weight], fused=True)
    calls = []

    def double(x: th.Tensor) -> th.Tensor:
        calls.append(len(x))
        return 2 * x

    recorded = Recorded(double, optimizer, recorder)
    for size in range(1, MOST_RECORDINGS + 4):
        for _ in range(WARM_UP + 2):
            th.testing.assert_close(recorded(th.full((size,), 1.5)), th.full((size,), 3.0))
    assert len(recorded._recordings) == MOST_RECORDINGS
    assert len(recorded._calls) == 0
    assert calls.count(1) == WARM_UP + 1  # then it was replayed
    assert calls.count(MOST_RECORDINGS + 1) == WARM_UP + 2


def test_adam_skips_no_step_by_itself_where_its_kernels_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = th.optim.Adam([th.ones(3, requires_grad=True)], fused=True)
    assert takes_found_inf(optimizer)
    monkeypatch.setattr(graphs, "_device", lambda _: th.device("mps"))
    assert not takes_found_inf(optimizer)
