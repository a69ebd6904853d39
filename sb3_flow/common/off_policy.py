"""The base class of the off-policy algorithms: what is the same in each of them, but the losses."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_flow.common.algorithm import FlowAlgorithm
from sb3_flow.common.buffers import Batch
from sb3_flow.common.checks import NonFiniteError, require, require_choice, require_integer, require_number
from sb3_flow.common.compile import COMPILE_MODES, CompileMode
from sb3_flow.common.critics import FlowCritic
from sb3_flow.common.graphs import maybe_recorded
from sb3_flow.common.guard import Guard
from sb3_flow.common.log import Log
from sb3_flow.common.offline_to_online import OfflineToOnlineAlgorithm
from sb3_flow.common.policies import ChunkActor, ChunkPolicy
from sb3_flow.common.reward_scale import RewardScale
from sb3_flow.common.schedules import BCCoef, PhaseSchedules, phase_schedules
from sb3_flow.common.target import Follower
from sb3_flow.common.updates import Descent, L

LONG_RUN = 50_000  # timesteps, after which compiling has paid for itself twice


class OffPolicyFlowAlgorithm(FlowAlgorithm, OfflineToOnlineAlgorithm):
    """An actor and critics, trained on batches of experience; the algorithms say by which losses.

    A subclass names its policies, gives its losses as methods that are free of random draws and of branches on tensors,
    and has a `train` that goes through `_batches`; docs/own_algorithm.md is an example.

    :param policy: a class, or a name of `policy_aliases`
    :param bc_coef: weight >= 0 of what holds the policy to the data: a float, a schedule, or two of these, for the
        offline and the online phase
    :param compile: True for torch.compile of losses and acting, "max" to try more kernels on CUDA
    :param amp: "bf16" for the matrix products of the losses in bfloat16; None for float32 throughout
    :raises ValueError: before training, for arguments outside of what is stated here

    The other parameters are those of `OfflineToOnlineAlgorithm` and of SB3's OffPolicyAlgorithm.
    """

    policy_type: ClassVar[type[Any]] = ChunkPolicy
    policy: ChunkPolicy
    actor: ChunkActor
    critic: FlowCritic
    critic_target: FlowCritic | None

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        *,
        bc_coef: BCCoef | None = 0.0,
        compile: CompileMode = False,
        amp: str | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(policy, env, learning_rate, sde_support=False, support_multi_env=True, **kwargs)
        self._check_policy_class()
        self.bc_coef = bc_coef
        self.compile: CompileMode = compile
        self.amp = amp
        if _init_setup_model:
            self._check_env(env)
            self._setup_model()
            self._check_normalized()
            self.replay_buffer = self._make_replay_buffer()
            self._load_dataset()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        require_choice("compile", self.compile, COMPILE_MODES)
        require_choice("amp", self.amp, (None, "bf16"))
        require_number("gamma", self.gamma, 0, 1, "a number in [0, 1]")
        require_number("tau", self.tau, 0, 1, "a number in [0, 1]")
        self._phase_schedules()
        self._check_learning_rate("learning_rate")

    def _setup_model(self) -> None:
        super()._setup_model()
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        self._check_nets()
        if self.critic.support is not None and self.reward_scale is None:
            self.reward_scale = RewardScale(self.critic.support.bound)
        self.bc_schedules = self._phase_schedules()
        self._guard, self._recorded = Guard(self.device), {}
        self._followers = [
            maybe_recorded(Follower(net, target).step, net.optimizer, self.compile, self.device)
            for net, target in self._targets
        ]
        self.actor.action_fn = self._compiled(self.actor.action)

    def _follow_arguments(self) -> None:
        super()._follow_arguments()
        self._check_compile()
        self._forget_stale_graphs()
        self.bc_schedules = self._phase_schedules()
        self._follow_learning_rate()

    @property
    def _schedules(self) -> dict[str, Schedule]:
        return {**super()._schedules, "bc_coef": self.bc_schedules.online}

    @property
    def _online_only(self) -> list[str]:
        two = isinstance(self.bc_coef, Sequence)
        return [*super()._online_only, *(["the second bc_coef"] if two else [])]

    def _phase_schedules(self) -> PhaseSchedules:
        """What `bc_coef` is in the two phases."""
        return phase_schedules(self.bc_coef)

    def _encoded(self, batch: Batch) -> Batch:
        return self.policy.encoded(batch)

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        if self.verbose > 0 and not self.compile and total_timesteps >= LONG_RUN:
            print("A run this long is faster with compile=True, see docs/speed.md")
        return super()._setup_learn(total_timesteps, *args, **kwargs)

    def _bc_coef_now(self) -> th.Tensor:
        """The weight of the phase and the progress: a tensor, for torch.compile would make a graph for every number."""
        schedule = self.bc_schedules.offline if self.is_offline else self.bc_schedules.online
        # Not th.tensor, which waits for the device to copy the number
        return th.full((), self._value_now("bc_coef", schedule), device=self.device)

    def _batches(self, gradient_steps: int, batch_size: int) -> Iterator[tuple[Batch, Log]]:
        """The batches of one call of `train`, and what logs the updates that are made between them.

        Nothing here waits for the device before the last update: it computes one while the next batch is drawn.

        :param gradient_steps: how many
        :param batch_size: B >= 2
        :raises NonFiniteError: if a batch, a loss or a gradient was not finite; `n_updates` says in which update, and
            nothing else has changed since
        """
        if self._only_stores or self.experience.is_empty:
            return
        require_integer("batch_size", batch_size, 2)
        self._update_learning_rates()
        self.policy.set_training_mode(False)  # nets that no update trains are asked in it, too
        if self.critic_target is not None:  # `policy.eval()` is the user's
            self.critic_target.set_training_mode(self.critic.kind.joint)
        self._guard.begin()
        log = Log()
        start = time.perf_counter()
        for _ in range(gradient_steps):
            self._n_updates += 1
            self._guard.update = self._n_updates
            yield self._guarded_sample(batch_size), log
        # In training mode a call of the policy itself would move its running statistics
        self.policy.set_training_mode(False)
        self._stop_if_bad()
        log.record(self.logger)
        if self.reward_scale is not None:
            self.logger.record("train/reward_scale", self.reward_scale.value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        elapsed = max(time.perf_counter() - start, sys.float_info.epsilon)  # some clocks are coarse
        self.logger.record("train/fps", gradient_steps / elapsed)

    def _guarded_sample(self, batch_size: int) -> Batch:
        if self._guard.is_full:
            self._stop_if_bad()
        try:
            return self._sample(batch_size)
        except NonFiniteError:
            self._stop_if_bad()  # an update before it may have been bad
            raise

    def _update_learning_rates(self) -> None:
        self._update_learning_rate([net.optimizer for net in self._nets.values()])

    def _update(
        self,
        net: BaseModel,
        log: Log,
        loss_fn: Callable[..., Descent[L]],
        *args: Any,
        max_gradient: float = math.inf,
    ) -> L:
        """One step of a net on a loss, unless this or an earlier one is not finite.

        :param net: one of `_nets`, in training mode; the others are in evaluation mode and get no gradient
        :param log: gets what the loss says of itself
        :param loss_fn: result of `_compiled_loss`
        :param args: the loss's arguments
        :param max_gradient: largest size of one number of the gradient; larger ones are cut off
        """
        name = self._name_of(net)
        return self._step(name, net, log, loss_fn, *args, max_gradient=max_gradient)

    def _name_of(self, net: BaseModel) -> str:
        """What one of `_nets` is called there."""
        nets = self._nets
        for name, known in nets.items():
            if known is net:
                return name
        owner = type(self).__name__
        raise ValueError(
            f"{owner} updates a {type(net).__name__} that is none of its _nets, {', '.join(nets)}: add it there, or "
            "its optimizer is not saved"
        )

    def _check_nets(self) -> None:
        """Refuse before training what could not be trained, or not saved after it."""
        for name, net in self._nets.items():
            owner, kind = f"{type(self).__name__}.{name}", type(net).__name__
            advice = "its nets have to be SB3's BaseModel, or our ObservingModel, which takes observations"
            require(isinstance(net, BaseModel), owner, kind, advice)
            advice = f"{owner} has to be that net: a property, as `return self.policy.{name}`"
            require(getattr(self, name, None) is net, f"{type(self).__name__}._nets key", name, advice)
            advice = (
                "it has no optimizer; the policy's _build makes one, net.optimizer = self._make_optimizer(net, ...)"
            )
            require(hasattr(net, "optimizer"), owner, kind, advice)

    def _step_on_device(self, net: BaseModel, *args: Any) -> Descent[Any]:
        for known in self._nets.values():
            known.set_training_mode(known is net)
        descent = super()._step_on_device(net, *args)
        if isinstance(net, FlowCritic):
            net.project_weights(self._guard.stopped)
        return descent

    def _update_target(self) -> None:
        """Move the target nets, if there are any."""
        for follow in self._followers:
            follow(self.tau, self._guard.stopped)

    @property
    def _targets(self) -> list[tuple[BaseModel, BaseModel]]:
        """Nets that have a target net, and these."""
        return [] if self.critic_target is None else [(self.critic, self.critic_target)]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.amp is None:  # PyTorch's cache of compiled code takes none that enters autocast, not even to disable it
            return super()._autocast()
        return th.autocast(self.device.type, th.bfloat16)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "critic_target", "_followers"]
