"""What the tests share: environments and models small enough to train in a fraction of a second."""

import inspect
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn

from sb3_flow import DIME, FQL, QSM, FlowRL, ReinFlow, SACFlow
from sb3_flow.common.algorithm import FlowAlgorithm
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

POLICIES = ("FlowTPolicy", "FlowGPolicy", "FlowMLPPolicy")
CRITICS = ("crossq", "categorical", "xqc", "target")
ROLLOUTS = ("sde", "noise")
LEARNING_STARTS = 10
# Of every algorithm
TINY: dict[str, Any] = {
    "learning_starts": LEARNING_STARTS,
    "batch_size": 8,
    "buffer_size": 500,
    "seed": 0,
    "device": "cpu",
}


class Variant(NamedTuple):
    """An algorithm, as it is in the tests of what all algorithms do."""

    algorithm: Any  # a class
    policy: str
    kwargs: dict[str, Any]  # of the algorithm
    steps: str = "flow_steps"  # the policy's argument for K


VARIANTS = {
    "flow_t": Variant(SACFlow, "FlowTPolicy", {}),
    "flow_g": Variant(SACFlow, "FlowGPolicy", {}),
    "flow_mlp": Variant(SACFlow, "FlowMLPPolicy", {}),
    "fql": Variant(FQL, "FQLPolicy", {}),
    "qc_fql": Variant(FQL, "FQLPolicy", {"horizon_length": 3}),
    "qc": Variant(FQL, "FQLPolicy", {"horizon_length": 3, "best_of_n": 4}),
    # As often as the others, where updates are counted
    "dime": Variant(DIME, "DIMEPolicy", {"gradient_steps": 1, "policy_delay": 1}, "diffusion_steps"),
    "flow_rl": Variant(FlowRL, "FlowRLPolicy", {"policy_delay": 1}),
    "qsm": Variant(QSM, "QSMPolicy", {}, "diffusion_steps"),
}
SAC_FLOWS = [name for name, variant in VARIANTS.items() if variant.algorithm is SACFlow]
FQLS = [name for name, variant in VARIANTS.items() if variant.algorithm is FQL]
# What learns on-policy, for the tests of what does not hang on a replay buffer
ON_POLICY = {
    "reinflow": Variant(ReinFlow, "ReinFlowPolicy", {}),
    "reinflow_chunks": Variant(ReinFlow, "ReinFlowPolicy", {"horizon_length": 3}),
}
# Whose critics say a distribution of returns: targets beyond its support are no error
CATEGORICAL = ("categorical", "xqc", "flashsac")
# All but SAC Flow
GUESTS = [name for name in VARIANTS if name not in SAC_FLOWS]
ONE_OF_EACH = ["flow_t", *GUESTS]
EVERY_KIND = [*ONE_OF_EACH, "reinflow"]


def taking(argument: str, names: list[str]) -> list[str]:
    """The variants whose algorithm has an argument."""
    return [name for name in names if argument in inspect.signature(VARIANTS[name].algorithm).parameters]


# The parameters "name" and "critic" of `make_variant`: SAC Flow has a choice of critics, which no velocity net knows of
EVERY_MODEL = [
    pytest.param(name, critic, id=f"{name}-{critic}")
    for name in SAC_FLOWS
    for critic in ((*CRITICS, "flashsac") if name == "flow_t" else ("crossq", "target"))
]
EVERY_MODEL += [pytest.param(name, None, id=name) for name in GUESTS]

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
ACTION = spaces.Box(-1.0, 1.0, (2,), np.float32)
UNEVEN = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32))


def steps_of(name: str, steps: int) -> dict[str, int]:
    """How many steps the policy of a variant takes, by the name that the argument has there."""
    return {VARIANTS[name].steps: steps}


class RandomEnv(gym.Env[Any, Any]):
    """Observations drawn from any space, small actions rewarded, ten steps an episode; a copy goes on identically.

    :param observation_space: what it shows
    :param action_space: what it takes
    :param episode_length: steps until truncation
    :param bad_reward: reward from step `bad_from` on; None for the usual one
    :param bad_obs: value of one number of the observation from step `bad_from` on; None for the usual one
    :param bad_from: steps since construction before anything goes wrong
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] = VECTOR,
        action_space: spaces.Space[Any] = ACTION,
        episode_length: int = 10,
        bad_reward: float | None = None,
        bad_obs: float | None = None,
        bad_from: int = 15,
    ):
        # Spaces hold a random generator: it must be this environment's own
        self.observation_space = deepcopy(observation_space)
        self.action_space = deepcopy(action_space)
        self.episode_length = episode_length
        self.bad_reward = bad_reward
        self.bad_obs = bad_obs
        self.bad_from = bad_from
        self.actions: list[Any] = []
        self.elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.elapsed = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(np.copy(action))
        self.elapsed += 1
        reward = -float(np.square(action).mean())
        if self.bad_reward is not None and len(self.actions) > self.bad_from:
            reward = self.bad_reward
        return self._observe(), reward, False, self.elapsed >= self.episode_length, {}

    def _observe(self) -> Any:
        obs = self.observation_space.sample()
        if self.bad_obs is not None and len(self.actions) > self.bad_from:
            obs[0] = self.bad_obs
        return obs


class TeleopEvents(Enum):
    """As LeRobot's."""

    IS_INTERVENTION = "is_intervention"


class TakenOver(RandomEnv):
    """A person acts in three steps of every ten, and `info` says so.

    :param says: by which key; "" to be silent
    :param from_step: of an episode
    """

    def __init__(self, says: str = "intervene_action", from_step: int = 4, **kwargs: Any):
        super().__init__(action_space=UNEVEN, **kwargs)
        self.says = says
        self.from_step = from_step
        self.decided: list[npt.NDArray[Any]] = []
        self.taken_over: list[bool] = []

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.decided.append(np.copy(action))
        acts = self.from_step <= self.elapsed < self.from_step + 3
        self.taken_over.append(acts)
        if acts:
            action = np.array([-1.5, 1.0 + self.elapsed], np.float32)
        obs, reward, terminated, truncated, info = super().step(action)
        if self.says == "intervene_action":
            info |= {"intervene_action": action} if acts else {}
        elif self.says == "teleop_action":
            info |= {"is_intervention": acts, "teleop_action": action}
        elif self.says == "LeRobot":
            info |= {TeleopEvents.IS_INTERVENTION: acts, "teleop_action": th.tensor(action)}
        return obs, reward, terminated, truncated, info


def scaled(actions: Any) -> npt.NDArray[Any]:
    """Actions of `UNEVEN`, as a buffer has them."""
    low, high = UNEVEN.low, UNEVEN.high
    return np.asarray(2 * (np.asarray(actions) - low) / (high - low) - 1)


def policy_kwargs(policy: str, critic: str = "crossq", **kwargs: Any) -> dict[str, Any]:
    """Arguments that make a policy tiny."""
    tiny: dict[str, Any] = {"critic": critic, "flow_steps": 2, "net_arch": {"qf": [16, 16]}}
    if policy in POLICIES and policy != "FlowTPolicy":
        tiny["net_arch"] = {"qf": [16, 16], "pi": [16, 16]}
    else:
        tiny |= {"d_model": 16, "n_layers": 1, "n_heads": 2}
    return tiny | kwargs


def make_model(
    policy: str = "FlowTPolicy",
    env: GymEnv | str | None = None,
    critic: str = "crossq",
    net: dict[str, Any] | None = None,
    algorithm: type[SACFlow] = SACFlow,
    **kwargs: Any,
) -> SACFlow:
    """A tiny model on CPU, seeded, that learns from the 11th step on.

    :param net: changes to the tiny policy's arguments
    :param kwargs: changes to SACFlow's arguments
    """
    tiny = policy_kwargs(policy, **({"critic": critic} | (net or {})))
    return algorithm(policy, RandomEnv() if env is None else env, **(TINY | {"policy_kwargs": tiny} | kwargs))


def make_variant(
    name: str,
    env: GymEnv | str | None = None,
    critic: str | None = None,
    net: dict[str, Any] | None = None,
    policy: str | None = None,
    sac_flow: dict[str, Any] | None = None,
    **kwargs: Any,
) -> OffPolicyFlowAlgorithm:
    """A tiny model as `make_model` makes it, of any algorithm.

    :param name: of one of `VARIANTS`
    :param critic: SAC Flow's, None for "crossq"
    :param net: changes to the tiny policy's arguments
    :param policy: another of the algorithm's names for the policy
    :param sac_flow: changes to arguments that only SAC Flow has
    :param kwargs: changes to those that all algorithms have
    """
    variant = VARIANTS[name]
    policy = variant.policy if policy is None else policy
    kwargs = variant.kwargs | kwargs
    if name in SAC_FLOWS:
        return make_model(policy, env, critic or "crossq", net, **((sac_flow or {}) | kwargs))
    # Two steps of QSM amplify what an untrained net says until all actions are at the bounds
    tiny = {variant.steps: 5 if variant.algorithm is QSM else 2, "net_arch": [16, 16]} | (net or {})
    return variant.algorithm(policy, RandomEnv() if env is None else env, **(TINY | {"policy_kwargs": tiny} | kwargs))


def make_any(
    name: str,
    env: GymEnv | str | None = None,
    net: dict[str, Any] | None = None,
    policy: str | None = None,
    **kwargs: Any,
) -> Any:
    """A tiny model as `make_variant` makes it, or on-policy, where `learn(20)` makes two rollouts.

    The parameters are those of `make_variant`; what concerns a replay buffer is left out on-policy.
    """
    if name not in ON_POLICY:
        return make_variant(name, env, net=net, policy=policy, **kwargs)
    variant = ON_POLICY[name]
    tiny = {"net_arch": [16] * 3, "flow_steps": 2} | (net or {})
    settings = {"n_steps": 10, "batch_size": 8, "n_epochs": 2, "policy_kwargs": tiny} | variant.kwargs | kwargs
    settings = {key: value for key, value in settings.items() if key not in ("buffer_size", "learning_starts")}
    env = RandomEnv() if env is None else env
    return variant.algorithm(policy or variant.policy, env, **({"seed": 0, "device": "cpu"} | settings))


class Value(NamedTuple):
    """A loss that says nothing of itself but its size."""

    loss: th.Tensor

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {"some_loss": self.loss}


def snapshot(model: FlowAlgorithm) -> dict[str, th.Tensor]:
    """Copies of every tensor that training changes: parameters, running statistics, optimizers, temperature."""
    tensors = dict(_tensors(model.get_parameters()))
    for name in ("log_ent_coef", "ent_coef_tensor"):
        value = getattr(model, name, None)
        if value is not None:
            tensors[name] = value
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _tensors(tree: Any, path: str = "") -> Iterator[tuple[str, th.Tensor]]:
    if isinstance(tree, th.Tensor):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _tensors(value, f"{path}/{key}")


def differences(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> list[str]:
    """Names of the tensors that are not bit-identical, or in only one of two snapshots."""
    names = before.keys() | after.keys()
    return sorted(
        name for name in names if name not in before or name not in after or not th.equal(before[name], after[name])
    )


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the global random generators as they were on entry."""
    python, numpy, torch = random.getstate(), np.random.get_state(), th.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        th.set_rng_state(torch)


def warned(call: Any) -> list[str]:
    """What a call says in warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


def observations(model: FlowAlgorithm, n: int = 5) -> npt.NDArray[np.float32]:
    """Some observations of a model with a vector observation space."""
    return np.random.default_rng(0).normal(size=(n, *(model.observation_space.shape or ()))).astype(np.float32)


def randn(*shape: int, seed: int = 0) -> th.Tensor:
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


def randomize(module: nn.Module) -> None:
    """Move every parameter off its initial value: a scale of 1 and a bias of 0 would hide mistakes."""
    with th.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * randn(*parameter.shape, seed=100 + i))


def gradients(output: th.Tensor, inputs: list[th.Tensor]) -> list[th.Tensor]:
    """Vector-Jacobian products with a fixed, uneven cotangent."""
    return list(th.autograd.grad(output, inputs, th.cos(th.arange(output.numel(), dtype=output.dtype)).view_as(output)))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
