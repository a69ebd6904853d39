"""How the code is laid out: what may import what, how long a file may be, and that algorithms are only added."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from gymnasium import spaces
from helpers import RandomEnv, Value
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_flow.common.buffers import Batch
from sb3_flow.common.critics import CRITIC_KINDS
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.common.policies import ChunkActor, ChunkPolicy

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sb3_flow"
FILES = sorted(PACKAGE.rglob("*.py"))
ALGORITHMS = sorted(path.parent.name for path in PACKAGE.glob("*/losses.py"))
# Lower layers first. What reads and writes data needs checks and files alone, the rest of common reads data through it
LAYERS = [("common.checks", "common.files"), ("datasets",), ("common",), tuple(ALGORITHMS), ("envs", "export", "zoo")]


def module(path: Path) -> str:
    """Dotted, below the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def layer(name: str) -> int | None:
    """Number of a module's layer; None for the package's own names and what is left at old paths."""
    for i, prefixes in enumerate(LAYERS):
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return i
    return None


def imports(path: Path) -> Iterator[str]:
    """What a file of ours imports of the package, dotted, below the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name.removeprefix("sb3_flow.") for name in names if name.startswith("sb3_flow."))


def test_there_are_the_algorithms_that_the_package_names() -> None:
    assert {"sac_flow", "fql", "flow_rl", "qsm", "dime", "reinflow"} <= set(ALGORITHMS)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_one_way(path: Path) -> None:
    own = layer(module(path))
    if own is None:
        return
    for name in imports(path):
        imported = layer(name)
        assert imported is None or imported <= own, f"{module(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_no_algorithm_imports_another(path: Path) -> None:
    own = module(path).partition(".")[0]
    if own in ALGORITHMS:
        others = {name.partition(".")[0] for name in imports(path)} & set(ALGORITHMS)
        assert others <= {own}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_no_file_and_no_class_is_too_long_to_read(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            assert len(methods) <= 30, node.name


def test_the_common_modules_name_no_algorithm() -> None:
    for path in (PACKAGE / "common").glob("*.py"):
        for name in ("SACFlow", "FQL", "FlowRL", "QSM", "DIME", "ReinFlow"):
            assert name not in path.read_text(), f"{path.name}: {name}"


# --- An algorithm of one's own: nothing of the above knows it ---


class MeanActor(ChunkActor):
    """A linear policy with a little noise."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.net = th.nn.Linear(self.features_dim, self.chunk_dim)

    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        return th.tanh(self.net(self.extract_features(obs, self.features_extractor)) + 0.1 * noise)

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        return batch_size, self.chunk_dim


class MeanPolicy(ChunkPolicy):
    """That actor with the critics of Q-chunking."""

    critic_kind = CRITIC_KINDS["target"]._replace(net_arch=[8])

    def _make_actor(self) -> MeanActor:
        extractor = self.make_features_extractor()
        arguments = (self.observation_space, self.action_space, extractor, extractor.features_dim, self.chunk_dim)
        return MeanActor(*arguments).to(self.device)


class Dummy(OffPolicyFlowAlgorithm):
    """Deterministic policy gradients."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MeanPolicy}
    policy_type: ClassVar[type[Any]] = MeanPolicy

    def __init__(self, policy: Any, env: Any, learning_rate: float = 1e-3, **kwargs: Any):
        shared: dict[str, Any] = {
            "learning_starts": 10,
            "horizon_length": 1,
            "offline_dataset": None,
            "offline_steps": 0,
            "offline_ratio": None,
            "start_training": 0,
            "random_shift": 0,
            "bc_coef": 0.0,
            "compile": False,
            "amp": None,
            "_init_setup_model": True,
        }
        super().__init__(policy, env, learning_rate, **(shared | kwargs))

    def _setup_model(self) -> None:
        super()._setup_model()
        self._critic_loss_fn = self._compiled_loss(self._critic_loss)
        self._actor_loss_fn = self._compiled_loss(self._actor_loss)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        for batch, log in self._batches(gradient_steps, batch_size):
            noise = self.actor.sample_noise(len(batch.actions))
            self._update(self.critic, log, self._critic_loss_fn, batch, noise)
            self._update(self.actor, log, self._actor_loss_fn, batch, noise)
            self._update_target()

    def _critic_loss(self, batch: Batch, noise: th.Tensor) -> Value:
        assert self.critic_target is not None
        with th.no_grad():
            next_q = self.critic_target(batch.next_observations, self.actor.action(batch.next_observations, noise))
            target = batch.rewards + batch.discounts * (1 - batch.dones) * self.critic.reduce(next_q)
        return Value((self.critic(batch.observations, batch.actions) - target).square().mean())

    def _actor_loss(self, batch: Batch, noise: th.Tensor) -> Value:
        actions = self.actor.action(batch.observations, noise)
        return Value(-self.critic(batch.observations, actions).mean())


@pytest.mark.parametrize("horizon", [1, 3])
def test_an_algorithm_is_added_without_a_change_of_the_common_modules(horizon: int, tmp_path: Path) -> None:
    env = RandomEnv(spaces.Box(-1.0, 1.0, (3,), np.float32))
    data = regular_arrays(trajectories([20, 30]))
    model = Dummy("MlpPolicy", env, horizon_length=horizon, offline_dataset=data, offline_steps=5, seed=0, device="cpu")
    model.learn(25)
    assert model._n_updates == 5 + 15
    model.save(tmp_path / "dummy")
    loaded = Dummy.load(tmp_path / "dummy", env=env, device="cpu", offline_dataset=data)
    obs = np.zeros((1, 3), np.float32)
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))
    loaded.learn(10, reset_num_timesteps=False)
    assert not [name for name in sys.modules if name.startswith("sb3_flow.dummy")]
