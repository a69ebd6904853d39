"""The contenders of the benchmarks: our algorithms, for speed in their variants, SB3's SAC and PPO, contrib's CrossQ
and sbx's.

sbx's CrossQ (JAX) needs `pip install sbx-rl`.
"""

import argparse
import dataclasses
import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from arguments import positive
from cloning import CloningPolicy
from gaussian import GaussianPolicy
from sb3_contrib import CrossQ
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_flow import DIME, FQL, QSM, FlowRL, ReinFlow, SACFlow
from sb3_flow.common.algorithm import FlowAlgorithm
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm


class Ours(NamedTuple):
    """One of our algorithms with one of its policies."""

    algorithm: type[FlowAlgorithm]
    policy: Any  # a name, or a class
    arguments: dict[str, Any] = {}  # noqa: RUF012 (read only)
    policy_kwargs: tuple[str, ...] = ()  # what of `Size` its policy takes

    @property
    def is_off_policy(self) -> bool:
        return issubclass(self.algorithm, OffPolicyFlowAlgorithm)


def on(critic: str) -> dict[str, Any]:
    """Arguments for a kind of critic."""
    return {"policy_kwargs": {"critic": critic}}


VELOCITY_NETS = {
    "flow_t": Ours(SACFlow, "FlowTPolicy", policy_kwargs=("flow_steps",)),
    "flow_g": Ours(SACFlow, "FlowGPolicy", policy_kwargs=("flow_steps",)),
    "flow_mlp": Ours(SACFlow, "FlowMLPPolicy", policy_kwargs=("flow_steps",)),
}
OURS = {
    **VELOCITY_NETS,
    "flow_t_categorical": Ours(SACFlow, "FlowTPolicy", on("categorical"), ("flow_steps",)),
    "flow_t_xqc": Ours(SACFlow, "FlowTPolicy", on("xqc"), ("flow_steps",)),
    "flow_t_flashsac": Ours(SACFlow, "FlowTPolicy", on("flashsac"), ("flow_steps",)),
    # SAC's actor on the same critics: the flow's own share
    "gaussian": Ours(SACFlow, GaussianPolicy),
    "gaussian_categorical": Ours(SACFlow, GaussianPolicy, on("categorical")),
    "gaussian_xqc": Ours(SACFlow, GaussianPolicy, on("xqc")),
    "gaussian_flashsac": Ours(SACFlow, GaussianPolicy, on("flashsac")),
    "cloning": Ours(SACFlow, CloningPolicy),
    # Sixteen steps and two updates a step of the environment, as in its paper
    "dime": Ours(DIME, "DIMEPolicy"),
    # Their flows have ten steps, as in the papers
    "fql": Ours(FQL, "FQLPolicy"),
    "qc_fql": Ours(FQL, "FQLPolicy", {"horizon_length": 5}),
    "qc": Ours(FQL, "FQLPolicy", {"horizon_length": 5, "best_of_n": 32}),
    # A single midpoint step
    "flow_rl": Ours(FlowRL, "FlowRLPolicy"),
    # Five diffusion steps
    "qsm": Ours(QSM, "QSMPolicy"),
    "reinflow": Ours(ReinFlow, "ReinFlowPolicy"),
}
THEIRS: dict[str, type[BaseAlgorithm]] = {"crossq": CrossQ, "sac": SAC, "ppo": PPO}
TEN_CRITICS = {"n_critics": 10, "critic_pessimism": 0.5}  # as in QAM's repository
TIMED = (*VELOCITY_NETS, "flow_t_categorical", "fql", "qc_fql", "qc", "flow_rl", "qsm", "dime")
SUFFIXES: dict[str, dict[str, Any]] = {
    "": {},
    "+bf16": {"amp": "bf16"},
    "+compiled": {"compile": True},
    "+compiled+bf16": {"compile": True, "amp": "bf16"},
    "+max": {"compile": "max"},
}
BASELINES = ["crossq", "sac", "sbx_crossq"]
CONTENDERS = [*BASELINES, *(name + suffix for name in TIMED for suffix in SUFFIXES)]
# Whose updates come in rollouts: there is no step of training to time, but `learn`
ON_POLICY = ["ppo", "reinflow", "reinflow+compiled"]
DEFAULT = ["crossq", "sac", "flow_t", "flow_t+compiled", "flow_g", "flow_g+compiled", "flow_mlp", "flow_mlp+compiled"]


@dataclass(frozen=True)
class Size:
    """What is the same for all contenders."""

    batch: int = 512
    width: int = 1024  # of the two critic layers; the Gaussian actors have 256-256, the flows their defaults
    flow_steps: int = 4  # of SAC Flow
    horizon: int = 1  # but for Q-chunking, which has 5


def ours_of(name: str) -> Ours:
    """What a name stands for, without the label that may stand behind a "+"."""
    return OURS[name.partition("+")[0]]


def algorithm_of(name: str) -> type[BaseAlgorithm]:
    """The class behind a name of ours, labelled or not, or of theirs."""
    return THEIRS[name] if name in THEIRS else ours_of(name).algorithm


def add_sizes(parser: argparse.ArgumentParser, contenders: Sequence[str], default: Sequence[str]) -> None:
    """Who takes part, and how large they are.

    :param parser: takes the arguments
    :param contenders: that can be chosen
    :param default: those that are chosen without a word
    """
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=list(default))
    for field in dataclasses.fields(Size):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=positive, default=field.default)
    parser.add_argument("--device", default="cpu")


def add_arguments(
    parser: argparse.ArgumentParser, rounds: int, warmup: int, contenders: Sequence[str] = CONTENDERS
) -> None:
    """What all speed benchmarks are told.

    :param parser: takes the arguments
    :param contenders: that can be chosen
    :param rounds: default number of measurements
    :param warmup: default number of rounds before them
    """
    add_sizes(parser, contenders, DEFAULT)
    parser.add_argument("--threads", type=positive, default=None)
    parser.add_argument("--matmul-precision", choices=["highest", "high", "medium"], default="highest")
    parser.add_argument("--rounds", type=positive, default=rounds)
    parser.add_argument("--warmup", type=int, default=warmup)


def apply_arguments(args: argparse.Namespace) -> Size:
    """Set threads and precision, and return the size."""
    th.set_float32_matmul_precision(args.matmul_precision)
    if args.threads is not None:
        th.set_num_threads(args.threads)
    return size_of(args)


def size_of(args: argparse.Namespace) -> Size:
    """The size that was asked for."""
    return Size(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Size)})


def make_model(name: str, env: Any, size: Size, device: str = "cpu", **kwargs: Any) -> OffPolicyAlgorithm:
    """A contender without a logger's output.

    :param name: one of `CONTENDERS`
    :param env: the environment
    :param size: of nets and batches
    :param device: where to train
    :param kwargs: further arguments of the algorithm
    """
    common = {"env": env, "batch_size": size.batch, "seed": 0, "device": device, **kwargs}
    critics = [size.width, size.width]
    if name in BASELINES:
        model = _baseline(name)("MlpPolicy", policy_kwargs={"net_arch": {"pi": [256, 256], "qf": critics}}, **common)
    else:
        base, plus, suffix = name.partition("+")
        ours = OURS[base]
        sizes = {key: getattr(size, key) for key in ours.policy_kwargs}
        nets = {"policy_kwargs": {"net_arch": {"qf": critics}, **sizes}}
        own = merged({"horizon_length": size.horizon}, ours.arguments, nets)
        model = ours.algorithm(ours.policy, **own, **SUFFIXES[plus + suffix], **common)
    model.set_logger(configure(None, []))
    return model


def sizes_of(model: Any, size: Size) -> dict[str, Any]:
    """The columns of a size, with the steps K and chunks h of a contender that has its own.

    Baselines have neither; they stand beside the others at every size.

    :param model: a contender
    :param size: that was asked for
    """
    policy = getattr(model, "policy", None)
    steps = getattr(policy, "flow_steps", getattr(policy, "diffusion_steps", size.flow_steps))
    horizon = getattr(model, "horizon_length", size.horizon)
    return {**dataclasses.asdict(size), "flow_steps": steps, "horizon": horizon}


def updates_a_step(name: str) -> int:
    """How many updates a contender makes for each step of the environment, unless it is told otherwise."""
    if name in BASELINES:
        return 1
    default: int = inspect.signature(ours_of(name).algorithm).parameters["gradient_steps"].default
    return default


def make_on_policy(name: str, env: Any, size: Size, n_steps: int, device: str = "cpu") -> BaseAlgorithm:
    """A contender of `ON_POLICY` without a logger's output: batches are SB3's, and ours too.

    :param name: one of them
    :param env: the environments
    :param size: of nets
    :param n_steps: of a rollout in each environment
    :param device: where to train
    """
    common = {"env": env, "n_steps": n_steps, "batch_size": 64, "n_epochs": 10, "seed": 0, "device": device}
    model: BaseAlgorithm
    if name == "ppo":
        nets = {"net_arch": {"pi": [256, 256], "vf": [size.width, size.width]}}
        model = PPO("MlpPolicy", policy_kwargs=nets, **common)
    else:
        _, plus, suffix = name.partition("+")
        flow = {"net_arch": {"vf": [size.width] * 3}, "flow_steps": size.flow_steps}
        model = ReinFlow("ReinFlowPolicy", policy_kwargs=flow, **SUFFIXES[plus + suffix], **common)
    model.set_logger(configure(None, []))
    return model


def merged(*overrides: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an algorithm, later ones first; policy_kwargs are merged too."""
    result: dict[str, Any] = {}
    for update in overrides:
        policy_kwargs = {**result.get("policy_kwargs", {}), **update.get("policy_kwargs", {})}
        result = {**result, **update, **({"policy_kwargs": policy_kwargs} if policy_kwargs else {})}
    return result


def fill(buffer: Any) -> None:
    """Fill a replay buffer that has SB3's arrays with random steps, and an episode's end every 1000.

    :param buffer: the buffer
    """
    rng = np.random.default_rng(0)
    buffer.observations[:] = rng.normal(size=buffer.observations.shape)
    buffer.next_observations[:] = rng.normal(size=buffer.observations.shape)
    buffer.actions[:] = rng.uniform(-1, 1, buffer.actions.shape)
    buffer.rewards[:] = rng.normal(size=buffer.rewards.shape)
    buffer.dones[999::1000] = 1
    buffer.full = True


def _baseline(name: str) -> type[OffPolicyAlgorithm]:
    if name == "sbx_crossq":
        try:
            sbx: type[OffPolicyAlgorithm] = importlib.import_module("sbx").CrossQ
        except ImportError as error:
            raise SystemExit(f"sbx_crossq: {error}; it needs `pip install sbx-rl`") from error
        return sbx
    return CrossQ if name == "crossq" else SAC
