"""On a CUDA device, where one is at hand: `python -m pytest -m cuda`; `benchmarks/on_cuda.py` runs them first."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import (
    EVERY_MODEL,
    LEARNING_STARTS,
    ONE_OF_EACH,
    RandomEnv,
    differences,
    make_variant,
    observations,
    random_state_kept,
    snapshot,
)
from stable_baselines3.common.logger import configure

from sb3_flow.common.compile import CompileMode
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

DEVICE = "cuda"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not th.cuda.is_available(), reason="no CUDA device")]


def trained(name: str, steps: int = 6, device: str = DEVICE, **kwargs: Any) -> OffPolicyFlowAlgorithm:
    """A model that has made so many updates of all its nets; no compiler may have failed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed|No CUDA graph")
        model = make_variant(name, device=device, sac_flow={"policy_delay": 1}, **kwargs)
        return model.learn(LEARNING_STARTS + steps)


def figures(model: OffPolicyFlowAlgorithm) -> dict[str, float]:
    """What the last update said of itself."""
    return {
        key: float(value)
        for key, value in model.logger.name_to_value.items()
        if key.startswith("train/") and not key.endswith("fps")
    }


@pytest.fixture
def draws_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise from the CPU's generator wherever it is needed: the device's own gives other numbers."""

    def drawn(draw: Callable[..., th.Tensor]) -> Callable[..., th.Tensor]:
        return lambda *args, device="cpu", **kwargs: draw(*args, **kwargs).to(device)

    for name in ("randn", "rand", "randint"):
        monkeypatch.setattr(th, name, drawn(getattr(th, name)))
    monkeypatch.setattr(th, "randn_like", lambda x: th.randn(x.shape, device=x.device, dtype=x.dtype))


@pytest.mark.parametrize("amp", [None, "bf16"])
@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_every_model_learns(name: str, critic: str | None, amp: str | None) -> None:
    model = make_variant(name, critic=critic, device=DEVICE, amp=amp, sac_flow={"policy_delay": 1})
    before = snapshot(model)
    model.learn(LEARNING_STARTS + 6)
    after = snapshot(model)
    assert all(th.isfinite(tensor).all() for tensor in after.values())
    assert {tensor.device.type for name, tensor in after.items() if name.startswith("/policy")} == {DEVICE}
    assert differences(before, after)


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_an_update_has_the_numbers_of_the_cpu(
    name: str, critic: str | None, draws_of_the_cpu: None, tmp_path: Path
) -> None:
    cpu = make_variant(name, critic=critic, sac_flow={"policy_delay": 1}).learn(LEARNING_STARTS + 20)
    cpu.save(tmp_path / "model")
    device = type(cpu).load(tmp_path / "model", env=RandomEnv(), device=DEVICE)
    device.replay_buffer = cpu.replay_buffer
    device.set_logger(configure(None, []))
    for model in (cpu, device):
        model.set_random_seed(1)
        model.train(1, 64)
    ours, theirs = figures(cpu), figures(device)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert theirs[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key
    for part, net in cpu._nets.items():
        gradients = [
            th.cat([parameter.grad.flatten().cpu() for parameter in each.parameters() if parameter.grad is not None])
            for each in (net, device._nets[part])
        ]
        assert float((gradients[1] - gradients[0]).norm()) <= 1e-4 * float(gradients[0].norm()) + 1e-6, part


@pytest.mark.parametrize(("name", "mode"), [*((name, True) for name in ONE_OF_EACH), ("flow_g", "max")])
def test_cuda_graphs_give_the_numbers_of_eager_code(name: str, mode: CompileMode) -> None:
    falling = {"learning_rate": lambda progress: 1e-3 * progress}  # a number in a graph would stay what it was
    eager, compiled = snapshot(trained(name, **falling)), snapshot(trained(name, compile=mode, **falling))
    for key, value in eager.items():
        th.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("critic", ["categorical", "xqc", "target"])
def test_every_kind_of_critic_is_compiled(critic: str) -> None:
    model = trained("flow_t", critic=critic, compile=True)
    assert all(th.isfinite(tensor).all() for tensor in snapshot(model).values())


def test_models_in_one_process_do_not_disturb_each_other() -> None:
    alone = trained("flow_g", compile=True)
    with random_state_kept():
        alone.set_random_seed(2)
        alone.train(3, 8)
    expected = snapshot(alone)
    model, other = trained("flow_g", compile=True), trained("fql", compile=True)
    model.set_random_seed(2)
    for _ in range(3):
        state = np.random.get_state(), th.get_rng_state(), th.cuda.get_rng_state()
        other.train(2, 8)
        np.random.set_state(state[0])
        th.set_rng_state(state[1])
        th.cuda.set_rng_state(state[2])
        model.train(1, 8)
    for key, value in snapshot(model).items():
        th.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["flow_t", "qsm"])
def test_an_update_waits_for_the_device_once(name: str, compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(name, compile=compile)
    error = model._guard.error

    def allowed() -> Any:
        th.cuda.set_sync_debug_mode("default")
        return error()

    monkeypatch.setattr(model._guard, "error", allowed)
    model.train(2, 8)  # a size that is compiled, and memory that is pinned
    try:
        th.cuda.set_sync_debug_mode("error")
        model.train(2, 8)
    finally:
        th.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("net", ["actor", "critic"])
@pytest.mark.parametrize("name", ["flow_t", "fql"])
def test_a_bad_update_changes_nothing_and_is_named(name: str, net: str, compile: bool) -> None:
    model = trained(name, compile=compile)
    model.replay_buffer.rewards[:] = 1e38
    if net == "actor":
        with th.no_grad():
            next(iter(model.actor.parameters())).fill_(1e38)
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=r"Training stopped in the (actor|critic) update: `.*` has [1-9]"):
        model.train(5, 8)
    changed = differences(before, snapshot(model))
    # FQL's actor is updated before its critic, and that was good
    earlier = name == "fql" and net == "critic"
    assert not [key for key in changed if not (earlier and key.startswith(("/policy/actor.", "/actor.optimizer")))]


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_a_model_moves_between_cuda_and_the_cpu(name: str, critic: str | None, tmp_path: Path) -> None:
    model = make_variant(name, critic=critic, device=DEVICE).learn(LEARNING_STARTS + 6)
    obs = observations(model)
    expected = model.predict(obs, deterministic=True)[0]
    model.save_replay_buffer(tmp_path / "buffer")
    for device in ("cpu", DEVICE):
        model.save(tmp_path / "model")
        model = type(model).load(tmp_path / "model", env=model.get_env(), device=device)
        model.load_replay_buffer(tmp_path / "buffer")
        np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], expected, rtol=1e-4, atol=1e-4)
        assert model.learn(3, reset_num_timesteps=False).device.type == device
        expected = model.predict(obs, deterministic=True)[0]
