"""What version 0.1 saved is loaded, and its module paths work, with a warning."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import regular_arrays, trajectories
from gymnasium import spaces
from helpers import VECTOR, RandomEnv, make_model

from sb3_flow import FlowTPolicy, SACFlow
from sb3_flow.common.buffers import ChunkDictReplayBuffer, ChunkReplayBuffer
from sb3_flow.export import ActingPolicy
from sb3_flow.sac_flow.policies import FlowActor

# Made by 0.1, at commit d641420; `actions.npz` has what each model did then in the states of `OBSERVATIONS`
FOLDER = Path(__file__).parent / "data" / "v0_1"
OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
MODULES = ["buffers", "checks", "compile", "flow", "layers", "losses", "normalize", "policies", "velocity"]

pytestmark = pytest.mark.filterwarnings("ignore:sb3_flow.* has moved:DeprecationWarning")


def test_the_exported_module_has_its_old_name() -> None:
    with pytest.warns(DeprecationWarning, match="has moved: it is ActingPolicy now"):
        from sb3_flow.export import DeterministicPolicy
    assert DeterministicPolicy is ActingPolicy


def then(name: str) -> Any:
    return np.load(FOLDER / "actions.npz")[name]


@pytest.mark.parametrize("name", ["flow_t", "flow_g", "flow_mlp", "offline"])
def test_a_model_of_0_1_acts_as_it_did_and_learns_on(name: str, tmp_path: Path) -> None:
    model = SACFlow.load(FOLDER / name, env=RandomEnv(), device="cpu")
    np.testing.assert_allclose(model.predict(OBSERVATIONS, deterministic=True)[0], then(name), rtol=1e-4, atol=1e-5)
    if name == "offline":
        assert model.is_offline  # 15 of 30 updates are done
        model.offline_dataset = regular_arrays(trajectories([20, 30]))
    before = model._n_updates
    model.learn(20, reset_num_timesteps=False)
    assert model._n_updates > before
    model.save(tmp_path / "again")
    again = SACFlow.load(tmp_path / "again", device="cpu")
    assert type(again.policy).__module__ == "sb3_flow.sac_flow.policies"


@pytest.mark.parametrize(("name", "buffer"), [("flow_t", "buffer"), ("flow_g", "chunks")])
def test_a_buffer_of_0_1_is_learned_from(name: str, buffer: str) -> None:
    model = SACFlow.load(FOLDER / name, env=RandomEnv(), device="cpu")
    model.load_replay_buffer(FOLDER / buffer)
    assert model.replay_buffer.size() == 15
    model.learn(5, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 20
    if buffer == "chunks":
        assert type(model.replay_buffer) is ChunkReplayBuffer


def test_a_buffer_of_chunks_of_dicts_of_0_1_is_learned_from() -> None:
    env = RandomEnv(spaces.Dict({"a": VECTOR}))
    model = make_model("MultiInputPolicy", env, horizon_length=2)
    model.load_replay_buffer(FOLDER / "dict_chunks")
    assert type(model.replay_buffer) is ChunkDictReplayBuffer
    assert model._sample(4).actions.shape == (4, 4)


@pytest.mark.parametrize(("kind", "file"), [(FlowTPolicy, "policy.pth"), (FlowActor, "actor.pth")])
def test_a_policy_or_an_actor_that_0_1_saved_alone_acts_as_it_did(kind: Any, file: str) -> None:
    alone = kind.load(FOLDER / file, device="cpu")
    actions, _ = alone.predict(OBSERVATIONS, deterministic=True)
    np.testing.assert_allclose(actions, then("flow_t"), rtol=1e-4, atol=1e-5)


CHECK = """
import importlib, inspect, sys, warnings
for name in sys.argv[1:]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(f"import sb3_flow.{name} as old")
    (warning,) = (w for w in caught if f"sb3_flow.{name} has moved" in str(w.message))
    assert warning.category is DeprecationWarning
    assert warning.filename == "<string>", "it does not point at the import"
    new = importlib.import_module(str(warning.message).rpartition("import from ")[2].split(" or ")[0])
    for key, value in vars(new).items():
        if inspect.isclass(value) or inspect.isfunction(value):
            assert getattr(old, key) is value
    try:
        old.nothing
    except AttributeError as error:
        assert "nothing" in str(error)
"""


@pytest.mark.slow
def test_old_module_paths_warn_and_lead_to_the_same_objects() -> None:
    result = subprocess.run([sys.executable, "-c", CHECK, *MODULES], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
