"""compile=: the same numbers, one compilation where one is enough, and eager code when there is no compiler."""

import math
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from helpers import (
    EVERY_MODEL,
    LEARNING_STARTS,
    ONE_OF_EACH,
    RandomEnv,
    Value,
    differences,
    gradients,
    make_any,
    make_model,
    make_variant,
    observations,
    random_state_kept,
    snapshot,
    warned,
)
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config

from sb3_flow import SACFlow
from sb3_flow.common.activations import Mish, ReLU, TanhGELU
from sb3_flow.common.batch_renorm import BatchRenorm
from sb3_flow.common.compile import Compiled, CompileMode, apart
from sb3_flow.common.guard import Guard, Statistics
from sb3_flow.common.log import Log
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.common.updates import Differentiated

CPU = th.device("cpu")


class Counter:
    """A backend that counts the graphs it is given and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0
        self.for_any_size = 0  # of these

    def __call__(self, module: th.fx.GraphModule, inputs: list[Any], **_: Any) -> Callable[..., Any]:
        self.graphs += 1
        self.for_any_size += any(isinstance(x, th.SymInt) for x in inputs)
        return module.forward


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """torch.compile with its tracing, its guards and no code generation, which takes a minute a model."""
    counter = Counter()
    monkeypatch.setattr("sb3_flow.common.compile.th.compile", partial(th.compile, backend=counter, fullgraph=True))
    # The activations that are written anew differ in their last bits; they have a test of their own
    monkeypatch.setattr("sb3_flow.common.activations.compiled_for_cpu", lambda x: False)
    return counter


def no_compiler(*args: Any, **kwargs: Any) -> Callable[..., Any]:
    def compiled(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler\nin a long message")

    return compiled


class Doubler:
    def twice(self, x: th.Tensor, y: float = 2.0) -> th.Tensor:
        return th.tanh(x) * y


@pytest.mark.slow
def test_relu_is_the_same_compiled() -> None:
    backend = Counter()
    x = th.tensor([-1e30, -2.0, -0.0, 0.0, 1e-30, 3.0, 1e30], requires_grad=True)
    relu = ReLU()
    compiled = th.compile(relu.forward, backend=backend, fullgraph=True)
    assert relu(x).equal(compiled(x))
    assert gradients(relu(x), [x])[0].equal(gradients(compiled(x), [x])[0])
    assert backend.graphs == 1


@pytest.mark.parametrize(("activation", "original"), [(TanhGELU(), th.nn.GELU("tanh")), (Mish(), th.nn.Mish())])
def test_an_activation_without_tanh_is_the_same_compiled(activation: th.nn.Module, original: th.nn.Module) -> None:
    backend = Counter()
    x = th.cat([th.linspace(-40, 40, 2001), th.tensor([-1e9, 0.0, 1e9])]).double().requires_grad_(True)
    compiled = th.compile(activation.forward, backend=backend, fullgraph=True)
    assert activation(x).equal(original(x))
    th.testing.assert_close(compiled(x), original(x), rtol=1e-12, atol=1e-14)
    th.testing.assert_close(*(gradients(f(x), [x])[0] for f in (compiled, original)), rtol=1e-11, atol=1e-13)
    assert backend.graphs == 1


def test_apart_changes_nothing(backend: Counter) -> None:
    def scaled(x: th.Tensor) -> th.Tensor:
        return x * apart(x.detach().exp().mean(dim=0, keepdim=True))

    x = th.linspace(-1, 1, 6).view(2, 3).requires_grad_(True)
    compiled = th.compile(scaled, backend=backend, fullgraph=True)
    assert scaled(x).equal(compiled(x))
    assert gradients(scaled(x), [x])[0].equal(gradients(compiled(x), [x])[0])
    assert apart(x) is x


def graphs_of(name: str) -> int:
    """Acting, and each of the losses; FQL's next action is apart."""
    return {"fql": 4, "qc_fql": 4, "qc": 4, "flow_rl": 5}.get(name, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_a_compiled_model_learns_the_same(name: str, critic: str | None, backend: Counter) -> None:
    def trained(compile: bool) -> OffPolicyFlowAlgorithm:
        model = make_variant(name, critic=critic, compile=compile, sac_flow={"policy_delay": 1})
        return model.learn(LEARNING_STARTS + 5)

    eager, compiled = snapshot(trained(False)), snapshot(trained(True))
    assert backend.graphs == graphs_of(name)
    assert differences(eager, compiled) == []


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["crossq", "target", "xqc"])
def test_a_bad_compiled_update_leaves_weights_and_running_statistics(critic: str, backend: Counter) -> None:
    model = make_variant("flow_t", critic=critic, compile=True).learn(LEARNING_STARTS + 1)
    with th.no_grad():
        next(iter(model.critic.parameters())).fill_(3e38)
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match="Training stopped in the critic update"):
        model.train(2, 8)
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_hooks_on_parameters_are_refused_where_nothing_would_call_them(name: str) -> None:
    model: Any = make_any(name, compile=True)
    next(iter(model.critic.parameters())).register_hook(lambda gradient: gradient * 0)
    with pytest.raises(ValueError, match=r"hook, which compiled code does not call; .* compile=False"):
        model._step("critic", model.critic, Log(), model._critic_loss_fn)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_code_sees_a_bad_update_and_restores_running_statistics() -> None:
    layer, guard = BatchRenorm(2), Guard(CPU)

    def square(x: th.Tensor) -> Value:
        return Value(layer(x).square().sum())

    differentiated = Differentiated(square, lambda x: x, nullcontext, guard, Statistics(layer))
    descend = Compiled(differentiated.descend, True, CPU)
    parameters, good = list(layer.parameters()), th.arange(6.0).reshape(3, 2)
    assert not guard.stopped
    descend(parameters, math.inf, good)
    before = [buffer.clone() for buffer in layer.buffers()]
    assert before[-1] == 1  # batch
    bad = descend(parameters, math.inf, good / 0).figures.bad
    assert bad.tolist() == [1, 1]  # of the loss, of the norm
    assert guard.stopped
    assert [buffer.equal(old) for buffer, old in zip(layer.buffers(), before, strict=True)] == [True] * 3
    descend(parameters, math.inf, good)  # once stopped it stays so
    assert [buffer.equal(old) for buffer, old in zip(layer.buffers(), before, strict=True)] == [True] * 3
    assert not descend.failed


@pytest.mark.slow
def test_a_compiled_reinflow_learns_the_same(backend: Counter) -> None:
    def trained(compile: bool) -> dict[str, th.Tensor]:
        arrays = regular_arrays(trajectories([20]))
        model = make_any("reinflow", compile=compile, offline_dataset=arrays, offline_steps=3, batch_size=10)
        return snapshot(model.learn(3 + 20))

    eager, compiled = trained(False), trained(True)
    assert backend.graphs == 4  # a path, cloning, and a loss of both nets
    assert differences(eager, compiled) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_gradient_of_its_own_is_cached() -> None:
    if not hasattr(functorch_config, "autograd_cache_allow_custom_autograd_functions"):
        pytest.skip("this PyTorch caches no such function")
    layer = BatchRenorm(2)
    counters.clear()
    Compiled(layer.forward, True, CPU)(th.randn(3, 2)).sum().backward()
    counts = counters["aot_autograd"]
    assert counts["total"] == counts["autograd_cache_hit"] + counts["autograd_cache_saved"] == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_losses_are_cached_for_the_next_process() -> None:
    if not hasattr(th._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this PyTorch compiles a loss in two parts")
    counters.clear()
    make_model("FlowMLPPolicy", net={"flow_steps": 1}, compile=True).learn(LEARNING_STARTS + 1)  # no actor yet
    counts = counters["aot_autograd"]
    assert counts["autograd_cache_bypass"] == 0
    assert counts["total"] == counts["autograd_cache_hit"] + counts["autograd_cache_saved"] == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("mode", [True, "max"])
def test_code_generation_works(mode: CompileMode) -> None:
    x = th.linspace(-1, 1, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert th.allclose(Compiled(Doubler().twice, mode, CPU)(x), th.tanh(x) * 2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_compiler_is_given_calls_and_kernels_apart_and_no_trial_of_all_vectors(tmp_path: Path) -> None:
    code = "import torch as th; from sb3_flow.common.compile import Compiled; "
    code += "Compiled(th.nn.Tanh().forward, True, th.device('cpu'))(th.ones(99))"
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-W", "error:torch.compile failed", "-c", code], env=env, check=True)
    assert len([*tmp_path.rglob("*.main.cpp")]) == len([*tmp_path.rglob("*.optimized.cpp")]) == 1
    assert not [path for path in tmp_path.rglob("*.cpp") if "__avx_chk_kernel" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
def test_another_batch_size_or_weight_needs_no_new_graph_every_time(name: str, backend: Counter) -> None:
    weight = {} if name == "qc" else {"bc_coef": lambda progress: 1 + progress}
    model = make_variant(name, compile=True, net={"flow_steps": 1}, sac_flow={"policy_delay": 1}, **weight)
    model.learn(LEARNING_STARTS + 5)
    graphs = graphs_of(name)
    assert backend.graphs == graphs
    for batch_size in (16, 24, 32, 40):
        model.train(1, batch_size)
        model.predict(observations(model, batch_size))
    assert backend.graphs == 2 * graphs  # the second size makes a graph for any size


def test_sizes_of_another_model_are_not_taken_for_ones_that_vary(backend: Counter) -> None:
    for n in (3, 4, 5):
        Compiled(Doubler().twice, True, CPU)(th.ones(n))
    assert (backend.graphs, backend.for_any_size) == (3, 0)
    one = Compiled(Doubler().twice, True, CPU)
    for n in (3, 4, 5):
        one(th.ones(n))
    assert (backend.graphs, backend.for_any_size) == (5, 1)


@pytest.mark.slow
def test_many_models_in_one_process_are_all_compiled(backend: Counter) -> None:
    # After so many variants of one code object Dynamo gives up, by default after eight
    with th._dynamo.config.patch(recompile_limit=1):
        for i in range(3):
            make_model("FlowMLPPolicy", net={"flow_steps": 1}, compile=True).learn(LEARNING_STARTS + 1)
            assert backend.graphs == 2 * (i + 1)  # one action and one critic update each


@pytest.mark.slow
def test_a_loss_that_a_subclass_extends_is_compiled(backend: Counter) -> None:
    class Extended(SACFlow):
        def _critic_loss(self, *args: Any) -> Any:
            return super()._critic_loss(*args)

    model = make_model(algorithm=Extended, compile=True).learn(LEARNING_STARTS + 1)
    assert isinstance(model._critic_loss_fn, Compiled)
    assert not model._critic_loss_fn.failed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fql", "qsm"])
def test_a_version_that_cannot_compile_gradients_makes_two_parts_of_a_loss(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter()
    monkeypatch.setattr("sb3_flow.common.compile.th.compile", partial(th.compile, backend=counter))
    monkeypatch.setattr("sb3_flow.common.activations.compiled_for_cpu", lambda x: False)
    monkeypatch.setattr("sb3_flow.common.compile._with_gradients_traced", lambda compiled: compiled)
    eager, compiled = (
        snapshot(make_variant(name, compile=mode, sac_flow={"policy_delay": 1}).learn(LEARNING_STARTS + 4))
        for mode in (False, True)
    )
    assert counter.graphs > graphs_of(name)
    assert differences(eager, compiled) == []


def test_training_goes_on_with_the_same_numbers_where_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = snapshot(make_model().learn(LEARNING_STARTS + 8))
    monkeypatch.setattr("sb3_flow.common.compile.th.compile", no_compiler)
    with pytest.warns(UserWarning, match=r"torch.compile failed.*It said: no compiler$") as caught:
        model = make_model(compile=True).learn(LEARNING_STARTS + 8)
    assert len(caught) == 3  # once each for acting and the two losses, not at every call
    assert differences(eager, snapshot(model)) == []


@pytest.mark.parametrize("said", ["{}: file too short", "/usr/bin/ld: {}: file not recognized: file truncated"])
def test_what_a_kill_left_in_the_cache_is_made_anew(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = tmp_path / "abc.main.so"
    torn.touch()

    def compile_by_torn(function: Any, **_: Any) -> Any:
        if torn.exists():
            raise RuntimeError(f"ImportError: {said.format(torn)}")
        return function

    monkeypatch.setattr("sb3_flow.common.compile.th.compile", compile_by_torn)
    double = Compiled(Doubler().twice, True, CPU)
    assert not warned(lambda: double(th.ones(2)))
    assert not double.failed
    assert not torn.exists()
    monkeypatch.setattr(torn.__class__, "exists", lambda _: True)  # what is not there cannot be removed
    assert any(
        "torch.compile failed" in text for text in warned(lambda: Compiled(Doubler().twice, True, CPU)(th.ones(2)))
    )


def test_what_a_version_of_pytorch_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def note(function: Any, options: dict[str, Any]) -> Any:
        asked.append(options)
        return function

    monkeypatch.setattr("sb3_flow.common.compile.th.compile", note)
    known = th._inductor.list_options()
    for options in (known, [name for name in known if name != "cpp_wrapper_build_separate"]):
        monkeypatch.setattr("torch._inductor.list_options", lambda options=options: options)
        Compiled(Doubler().twice, True, CPU)(th.ones(2))
    newer, older = asked
    assert newer.keys() - older.keys() == {"cpp_wrapper_build_separate"}
    assert "cpp_wrapper" in older


def test_a_mistake_in_the_computation_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_flow.common.compile.th.compile", no_compiler)
    with pytest.raises(RuntimeError, match="must match"):
        Compiled(Doubler().twice, True, CPU)(th.ones(2), th.ones(3))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow_t", "qc"])
def test_a_compiled_model_saves_loads_and_goes_on_bit_identically(name: str, tmp_path: Path, backend: Counter) -> None:
    model = make_variant(name, compile=True, env=RandomEnv()).learn(LEARNING_STARTS + 5)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = type(model).load(tmp_path / "model", env=RandomEnv())
    loaded.load_replay_buffer(tmp_path / "buffer")
    graphs = backend.graphs
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        with random_state_kept():
            each.train(6, 8)
    assert backend.graphs == graphs + graphs_of(name) - 1  # all but acting
    assert differences(snapshot(model), snapshot(loaded)) == []


@pytest.mark.slow
def test_loaded_parameters_are_the_ones_that_are_trained(backend: Counter) -> None:
    source, model = make_model(compile=True, seed=1), make_model(compile=True).learn(LEARNING_STARTS + 5)
    parameters = source.get_parameters()
    model.set_parameters(parameters)
    eager = make_model().learn(LEARNING_STARTS + 5)
    eager.set_parameters(parameters)
    eager.replay_buffer = model.replay_buffer
    for each in (model, eager):
        with random_state_kept():
            each.train(3, 8)
    assert differences(snapshot(eager), snapshot(model)) == []


def test_a_compiled_method_can_be_pickled(backend: Counter) -> None:
    compiled = Compiled(Doubler().twice, True, CPU)
    x = th.ones(3)
    compiled(x)
    assert th.equal(pickle.loads(pickle.dumps(compiled))(x), compiled(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow_t", "fql", "qc"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_compiled_policy_acts_the_same(deterministic: bool, name: str, backend: Counter) -> None:
    eager, compiled = make_variant(name), make_variant(name, compile=True)
    obs = observations(eager)
    actions = []
    for model in (eager, compiled):
        model.set_random_seed(3)
        actions.append(model.predict(obs, deterministic=deterministic)[0])
    assert backend.graphs == 1
    assert (actions[0] == actions[1]).all()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_acting_follows_the_weights() -> None:
    net = {"flow_steps": 1, "net_arch": {"qf": [4], "pi": [4]}}
    eager, compiled = (make_model("FlowGPolicy", net=net, compile=mode) for mode in (False, True))
    other = make_model("FlowGPolicy", net=net, seed=1).get_parameters()
    for batch_size in (1, 3):
        obs = observations(eager, batch_size)
        for parameters in (eager.get_parameters(), other):
            actions = []
            for model in (eager, compiled):
                model.set_parameters(parameters)
                actions.append(model.predict(obs, deterministic=True)[0])
            np.testing.assert_allclose(actions[0], actions[1], atol=1e-6)
    assert isinstance(compiled.actor.action_fn, Compiled)
    assert not compiled.actor.action_fn.failed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_best_sample_is_chosen_by_the_critics_of_now() -> None:
    # They are no part of the actor, whose layers are not looked at again
    net = {"flow_steps": 1, "net_arch": [4]}
    eager, compiled = (make_variant("qc", net=net, compile=mode) for mode in (False, True))
    obs = observations(eager, 3)
    for seed in (0, 1):
        parameters = make_variant("qc", net=net, seed=seed).get_parameters()
        actions = []
        for model in (eager, compiled):
            model.set_parameters(parameters)
            actions.append(model.predict(obs, deterministic=True)[0])
        np.testing.assert_allclose(actions[0], actions[1], atol=1e-6)
    assert isinstance(compiled.actor.action_fn, Compiled)
    assert not compiled.actor.action_fn.failed


def test_the_time_it_takes_is_announced(backend: Counter, capsys: pytest.CaptureFixture[str]) -> None:
    compiled = Compiled(Doubler().twice, True, CPU, verbose=1)
    compiled(th.ones(3))
    compiled(th.ones(3))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Compiling the twice: about")
    assert lines[1].startswith("Compiled the twice in ")


@pytest.mark.parametrize(("steps", "compile", "hint"), [(5e4, False, True), (5e4, True, False), (1e3, False, False)])
def test_a_long_uncompiled_run_says_that_there_is_a_faster_way(
    steps: float, compile: bool, hint: bool, backend: Counter, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(compile=compile, verbose=1).learn(steps, callback=lambda *_: False)
    assert ("compile=True" in capsys.readouterr().out) == hint


def test_without_compilation_the_method_is_called_directly() -> None:
    method = Doubler().twice
    assert make_model(compile=False)._compiled(method) is method
