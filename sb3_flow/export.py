"""The policy on its own: a module from raw observations to actions, and its ONNX file."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_flow.common.algorithm import FlowAlgorithm
from sb3_flow.common.checks import extra, require
from sb3_flow.common.hints import normalizes
from sb3_flow.common.policies import ActorPolicy
from sb3_flow.datasets.observations import parts

Observation = th.Tensor | dict[str, th.Tensor]
ACTION, NOISE = "action", "noise"  # names in the file
ROWS = 2  # of an example: PyTorch takes a batch of one for a constant


class ActingPolicy(nn.Module):
    """What `predict` computes from the environment's observations, without SB3 around it.

    Its call takes B observations, a tensor or a dict of tensors, and standard normal numbers of the shape that
    `model.actor.noise_shape(B)` says, or None for the deterministic policy. It returns actions in the environment's
    units, (B, action shape), or with chunks (B, h, action shape), to be executed one after the other.

    :param policy: the policy; it is not copied
    :param normalize: the environment's VecNormalize, whose statistics are then built in; None if there is none
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: ActorPolicy, normalize: VecNormalize | None = None):
        super().__init__()
        self.actor = policy.actor
        self.critic = policy.critic  # an actor may choose by its verdict
        self._policy = (policy,)  # in a tuple: not all of its nets act
        self.chunk = (policy.horizon_length,) if policy.horizon_length > 1 else ()
        self.action_shape = policy.action_space.shape
        self.register_buffer("low", th.as_tensor(policy.action_space.low, device=policy.device))
        self.register_buffer("high", th.as_tensor(policy.action_space.high, device=policy.device))
        self._normalizers = _normalizers(normalize, policy.device)
        self.normalizers = nn.ModuleList(self._normalizers.values())  # ModuleDict refuses some keys of spaces
        policy.set_training_mode(False)
        self.train(False)

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> "ActingPolicy":
        # An actor may ask nets that are not its own, and has to find them on the same device
        self._policy[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, observations: Observation, noise: th.Tensor | None = None) -> th.Tensor:
        if isinstance(observations, dict):
            observations = {key: self._normalize(key, value) for key, value in observations.items()}
            batch_size = next(iter(observations.values())).shape[0]
        else:
            observations = self._normalize("", observations)
            batch_size = observations.shape[0]
        noise = self.actor.fixed_noise(batch_size) if noise is None else self.actor.cut_noise(noise)
        # Not by way of `action_fn`: what is compiled cannot be exported
        actions = self.actor.action(observations, noise)  # (B, D) in [-1, 1]
        actions = actions.reshape(batch_size, *self.chunk, *self.action_shape)
        scaled = self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return th.maximum(th.minimum(scaled, self.high), self.low)  # rounding may lead out of the bounds

    def _normalize(self, key: str, observations: th.Tensor) -> th.Tensor:
        normalized: th.Tensor = self._normalizers[key](observations) if key in self._normalizers else observations
        return normalized


class _Normalizer(nn.Module):
    """What VecNormalize does to one observation, by its statistics of now."""

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, rms: RunningMeanStd, normalize: VecNormalize, device: th.device):
        super().__init__()
        std = np.sqrt(rms.var + normalize.epsilon)
        self.register_buffer("mean", th.as_tensor(rms.mean, dtype=th.float32, device=device))
        self.register_buffer("std", th.as_tensor(std, dtype=th.float32, device=device))
        self.limit = float(normalize.clip_obs)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return ((observations - self.mean) / self.std).clamp(-self.limit, self.limit)


def export_onnx(
    model: FlowAlgorithm,
    path: str | PathLike[str],
    normalize: VecNormalize | None = None,
    deterministic: bool = True,
) -> None:
    """Write the policy as an ONNX file, for runtimes that have neither SB3 nor PyTorch.

    Inputs are named "observation", or by the keys of a Dict space, with any number of rows; the output is "action".
    Images are channels first, as the policy sees them; numbers have the type of the observation space, which is float64
    in MuJoCo's v4 and v5 tasks.

    :param model: the trained model
    :param path: of the file
    :param normalize: see `ActingPolicy`
    :param deterministic: False for the stochastic policy: the file has one more input then, "noise", for standard
        normal numbers, new ones for each decision, float32, of the shape that it states
    :raises ValueError: if that is no model of this package, the folder does not exist, or an observation has a name
        that the file has for something else
    :raises ImportError: without the packages of the extra "onnx"
    """
    require(isinstance(model, FlowAlgorithm), "model", model, "a model of sb3_flow; the path comes second")
    folder = Path(path).parent
    require(folder.is_dir(), "path", str(path), f"make the folder {folder} first")
    example = _example(model)
    names = list(example) if isinstance(example, dict) else ["observation"]
    own = {ACTION} if deterministic else {ACTION, NOISE}
    advice = "the file has that name for what is not observed; rename the observation"
    require(own.isdisjoint(names), "model.observation_space", sorted(own.intersection(names)), advice)
    try:
        import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
    except ImportError as error:
        raise ImportError(f"The ONNX export needs more packages: {extra('onnx')}") from error
    statistics = model.get_vec_normalize_env()
    if normalize is None and (model._was_normalized or normalizes(statistics)):
        where = "model.get_vec_normalize_env()" if normalizes(statistics) else "VecNormalize.load(its file, an env)"
        warnings.warn(
            "This model learned from observations that its VecNormalize had normalised, and the file expects such. To "
            f"build the statistics in, pass normalize={where}.",
            stacklevel=2,
        )
    # A copy: recordings of updates go on reading the nets where they are
    policy = deepcopy(ActingPolicy(cast(ActorPolicy, model.policy), normalize)).to("cpu")
    batch = th.export.Dim("batch")
    rows: Any = {0: batch}
    inputs: dict[str, Any] = {"observations": example}
    shapes: dict[str, Any] = {"observations": dict.fromkeys(names, rows) if isinstance(example, dict) else rows}
    if not deterministic:
        shape = policy.actor.noise_shape(ROWS)
        inputs[NOISE], names = th.zeros(shape), [*names, NOISE]
        axes = [i for i, n in enumerate(policy.actor.noise_shape(ROWS + 1)) if n != shape[i]]
        advice = "B has to be an axis of its own, for one file takes any number of rows"
        require(
            [shape[i] for i in axes] == [ROWS], f"{type(policy.actor).__name__}.noise_shape(B={ROWS})", shape, advice
        )
        shapes[NOISE] = {axes[0]: batch}
    with _without_foreign_warnings():
        th.onnx.export(
            policy,
            (),
            path,
            kwargs=inputs,
            dynamo=True,
            input_names=names,
            output_names=[ACTION],
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _without_foreign_warnings() -> Iterator[None]:
    """PyTorch's exporter tells of torchvision, which is not needed, of its use of what is deprecated, and of axes."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", ".*The axis name")  # of observations and of noise it is the same one
            yield
    finally:
        logger.setLevel(level)


def _example(model: FlowAlgorithm) -> Observation:
    """Observations to trace with."""
    sample = model.observation_space.sample()
    if isinstance(sample, Mapping):
        return {key: th.as_tensor(np.stack([value] * ROWS)) for key, value in sample.items()}
    return th.as_tensor(np.stack([sample] * ROWS))


def _normalizers(normalize: VecNormalize | None, device: th.device) -> dict[str, _Normalizer]:
    """Of each key; the key of an observation that is no Dict is ""."""
    if not normalizes(normalize):
        return {}
    statistics: dict[str, RunningMeanStd] = parts(normalize.obs_rms)
    return {key: _Normalizer(one, normalize, device) for key, one in statistics.items()}


def __getattr__(name: str) -> Any:
    """The module under its name of 0.1, until 0.3."""
    if name != "DeterministicPolicy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.{name} has moved: it is ActingPolicy now", DeprecationWarning, stacklevel=2)
    return ActingPolicy
