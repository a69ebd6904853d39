"""An update leaves the device alone: one flag is read from it a call of `train`, and no tensor is anywhere else.

The meta device has shapes and no numbers: whatever would read one fails, as whatever mixes devices.
"""

import importlib
from typing import Any

import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from helpers import EVERY_MODEL, LEARNING_STARTS, VARIANTS, make_variant
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.logger import KVWriter, Logger
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from sb3_flow.common import guard
from sb3_flow.common.buffers import Batch
from sb3_flow.common.experience import Experience
from sb3_flow.common.guard import Guard
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.common.transfer import ALIGNMENT, on_device, pack, unpack

META = th.device("meta")
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::unique")
COPIES = ("aten::_to_copy", "aten::copy_")


class Watch(TorchDispatchMode):
    """Counts reads of numbers and copies to the device, and refuses operations on tensors of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().partition(".")[0]
        self.reads += name in READS
        devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, th.Tensor) and x.dim() > 0}
        if name in COPIES:
            self.copies += len(devices) > 1
        else:
            assert len(devices) <= 1, f"{func.name()} on {devices}"
        return out


def model_on_meta(monkeypatch: pytest.MonkeyPatch, name: str, **kwargs: Any) -> OffPolicyFlowAlgorithm:
    """A model whose nets are on the meta device, and whose buffer holds some steps."""
    optimizers = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
    model = make_variant(name, device="meta", **kwargs)
    for net in model._nets.values():  # a move to this device makes new parameters
        net.optimizer = model.policy._make_optimizer(net, lambda progress: 1e-3)
    filled = make_variant(name, **{key: value for key, value in kwargs.items() if key == "horizon_length"})
    model.replay_buffer = filled.learn(LEARNING_STARTS + 1).replay_buffer
    model.set_logger(filled.logger)
    return model


def refuse_slow_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing make a tensor of numbers on the device: that waits for it, which the meta device does not show."""
    for name in ("tensor", "as_tensor"):
        make = getattr(th, name)

        def on_the_cpu(*args: Any, make: Any = make, device: Any = "cpu", **kwargs: Any) -> th.Tensor:
            assert th.device(device).type == "cpu"
            made: th.Tensor = make(*args, **kwargs)
            return made

        monkeypatch.setattr(th, name, on_the_cpu)


def count_flags(model: OffPolicyFlowAlgorithm, monkeypatch: pytest.MonkeyPatch) -> list[Guard]:
    """Let the guard read nothing, which the meta device has no answer to, and note each time that it would have."""
    flags: list[Guard] = []
    monkeypatch.setattr(model._guard, "error", lambda: flags.append(model._guard))
    return flags


DATA = {"offline_dataset": regular_arrays(trajectories([20, 30])), "offline_steps": 10}
SETTINGS: list[Any] = [pytest.param(*model.values, {}, id=str(model.id)) for model in EVERY_MODEL]
SETTINGS += [pytest.param(name, None, DATA, id=f"{name}-data") for name in VARIANTS]
SETTINGS += [
    pytest.param("flow_t", "target", DATA | {"horizon_length": 3}, id="flow_t-chunks-data"),
    pytest.param("flow_t", "crossq", {"sac_flow": {"proximity": "behavior", "bc_coef": 1.0}}, id="flow_t-behavior"),
    pytest.param("qsm", None, {"horizon_length": 3}, id="qsm-chunks"),
    pytest.param("flow_t", "xqc", {"net": {"share_features_extractor": True}}, id="flow_t-shared"),
]


@pytest.mark.parametrize(("name", "critic", "kwargs"), SETTINGS)
def test_an_update_reads_one_flag_and_copies_one_batch(
    name: str, critic: str | None, kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    often = {"policy_delay": 1, **kwargs.get("sac_flow", {})}
    model = model_on_meta(monkeypatch, name, critic=critic, **{**kwargs, "sac_flow": often})
    flags = count_flags(model, monkeypatch)
    refuse_slow_copies(monkeypatch)
    with Watch() as watch:
        model.train(2, 8)
    assert len(flags) == 1
    assert watch.copies == 2
    assert {"actor_loss", "critic_loss"} <= {key.rpartition("/")[2] for key in model.logger.name_to_value}


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_in_bfloat16_reads_one_flag(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the CPU, for the meta device has no autocast
    model = make_variant(name, amp="bf16", sac_flow={"policy_delay": 1}).learn(LEARNING_STARTS + 1)
    draw = Experience.sample

    def unwatched(*args: Any) -> Any:
        with _disable_current_modes():  # the batch is checked before it goes to the device
            return draw(*args)

    monkeypatch.setattr(Experience, "sample", unwatched)
    monkeypatch.setattr(guard, "is_free_to_read", lambda x: False)
    with Watch() as watch:
        model.train(2, 8)
    assert watch.reads == 1


def test_the_outputs_of_a_logger_get_floats() -> None:
    model = make_variant("flow_t", sac_flow={"policy_delay": 1}).learn(LEARNING_STARTS + 1)
    seen: list[dict[str, Any]] = []
    model.set_logger(Logger(None, [Keeper(seen)]))
    model.train(2, 8)
    loss = model.logger.name_to_value["train/actor_loss"]
    model.logger.dump()
    assert all(type(value) in (float, int) for value in seen[0].values())
    # Before that it is a number as well
    assert loss == seen[0]["train/actor_loss"]
    assert loss - 1 < loss < 2 * abs(loss) + 1
    assert f"{loss:.3f}" == f"{float(loss):.3f}"


class Keeper(KVWriter):
    """An output that keeps what it is given."""

    def __init__(self, seen: list[dict[str, Any]]):
        self.seen = seen

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.seen.append(dict(key_values))


# Layouts of a batch on its way

shapes = st.lists(st.integers(0, 5), max_size=3)
dtypes = st.sampled_from([th.float32, th.float64, th.uint8, th.int64, th.bool, th.int8])


@given(st.lists(st.tuples(shapes, dtypes), max_size=6))
def test_packed_tensors_are_the_same_on_the_other_side(parts: list[tuple[list[int], th.dtype]]) -> None:
    tensors = [th.randint(0, 2, shape).to(dtype) for shape, dtype in parts]
    packed = pack(tensors, pinned=False)
    for ours, theirs in zip(unpack(packed.clone(), tensors), tensors, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.equal(theirs)
        assert ours.storage_offset() * ours.element_size() % ALIGNMENT == 0


def test_a_batch_keeps_its_form_and_its_numbers() -> None:
    observations = {"image": th.randint(0, 255, (4, 3, 2, 2), dtype=th.uint8), "vector": th.randn(4, 3)}
    batch = Batch(observations, th.randn(4, 2), observations, th.randn(4), th.zeros(4), 0.99)
    moved = on_device(batch, META)
    assert moved.discounts == 0.99
    assert moved.valid is None
    assert isinstance(moved.observations, dict)
    assert moved.observations["image"].dtype == th.uint8
    assert {x.device for x in tree_leaves(moved) if isinstance(x, th.Tensor)} == {META}
    assert on_device(batch, th.device("cpu")) is batch
