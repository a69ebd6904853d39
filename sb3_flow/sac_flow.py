"""SAC Flow: off-policy training of flow policies, end to end (arXiv 2509.25756)."""

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    RolloutReturn,
    Schedule,
    TrainFreq,
)
from stable_baselines3.common.utils import FloatSchedule, polyak_update, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_flow import losses
from sb3_flow.buffers import (
    Batch,
    ChunkDictReplayBuffer,
    ChunkReplayBuffer,
    ChunkSampling,
    end_episodes,
    join,
    sample_dataset,
    to_batch,
)
from sb3_flow.checks import (
    NonFiniteError,
    check_finite,
    check_loss,
    check_spaces,
    require,
    require_choice,
    require_integer,
    require_number,
    require_whole,
)
from sb3_flow.compile import COMPILE_MODES, CompileMode, maybe_compile
from sb3_flow.datasets import Dataset, DatasetSpec, check_fits, load_dataset
from sb3_flow.flow import (
    MATCHING_TARGETS,
    Line,
    MatchingTarget,
    auto_target_entropy,
    matching_error,
)
from sb3_flow.normalize import learn_statistics
from sb3_flow.policies import (
    FlowActor,
    FlowCritic,
    FlowGPolicy,
    FlowMLPPolicy,
    FlowPolicy,
    FlowTCnnPolicy,
    FlowTPolicy,
)

SelfSACFlow = TypeVar("SelfSACFlow", bound="SACFlow")

BCCoef = float | Schedule
LONG_RUN = 50_000  # timesteps, after which compiling has paid for itself twice
OFFLINE_LOG_INTERVAL = 1000  # updates; there are no episodes to count


class SACFlow(OffPolicyAlgorithm):
    """Soft Actor-Critic with a K-step flow policy, trained through the rollout.

    Paper: https://arxiv.org/abs/2509.25756. What is the policy's (K, noise, nets, critics) goes into `policy_kwargs`,
    see `sb3_flow.policies.FlowPolicy`; parameters without an explanation here are those of SB3's SAC.

    :param policy: "FlowTPolicy", "FlowGPolicy", "FlowMLPPolicy", a class of these, or SB3's names for the first
    :param env: the environment, with a bounded Box action space
    :param learning_rate: of the actor; a float or a schedule of the progress remaining, from 1 to 0
    :param buffer_size: transitions in the replay buffer
    :param learning_starts: steps of random actions before learning; None for 5,000, or 0 with offline data. The
        updates of the offline phase count as such steps: with `offline_steps` >= `learning_starts` no action is random
    :param batch_size: transitions per update
    :param tau: Polyak coefficient of the target critics; unused by "crossq" critics, which have none
    :param gamma: discount factor
    :param train_freq: update every so many steps, or a tuple such as `(1, "episode")`
    :param gradient_steps: updates at each of these times; -1 for as many as environment steps were made
    :param action_noise: added to the policy's own
    :param replay_buffer_class: for instance `HerReplayBuffer`; None for the one that fits the observation space
    :param replay_buffer_kwargs: its arguments
    :param optimize_memory_usage: the memory-efficient variant of the buffer
    :param n_steps: n-step returns; with chunks the return is that of h steps
    :param horizon_length: h >= 1, actions that are decided at once and executed open loop (Q-chunking)
    :param ent_coef: alpha; "auto" or "auto_0.2" to learn it from that start, or a float >= 0
    :param target_entropy: target of the entropy in nats; "auto" for `sb3_flow.flow.auto_target_entropy`
    :param bc_coef: beta >= 0 of the proximity term (Eq. 12) to the replayed actions: a float, a schedule, or two of
        these, for the offline and the online phase
    :param offline_dataset: data to learn from: a path, a string such as
        "ogbench:cube-double-play-singletask-task2-v0", a dict of arrays, or a dataset, see
        `sb3_flow.datasets.load_dataset`
    :param offline_steps: timesteps at the start of training that are updates from these data, without the environment
    :param offline_ratio: share of the data in a batch when learning online, in [0, 1]; None to sample from the union of
        data and replay buffer
    :param matching_target: what the flow is matched to offline: "atanh" of the actions, or the "raw" actions
    :param qf_learning_rate: of critics and temperature; None for 1e-3 with "crossq" critics, 3e-4 with "target"
    :param policy_delay: critic updates per actor update; None for 3 with "crossq" critics, 1 with "target"
    :param compile: True for torch.compile of losses and acting, with CUDA graphs on CUDA; "max" to compile longer
        for faster code; it pays for itself after some ten thousand updates (docs/speed.md)
    :param amp: "bf16" for the matrix products of the losses in bfloat16; targets, densities, statistics and optimizers
        stay in float32. None for float32 throughout
    :param use_sde: not supported: the rollout explores by itself
    :param stats_window_size: episodes that the logged return is averaged over
    :param tensorboard_log: folder of the TensorBoard log
    :param policy_kwargs: arguments of the policy; with offline data its `critic` is "target" unless it is given here
    :param verbose: 0 nothing, 1 information, 2 debugging
    :param seed: of all random generators
    :param device: "auto", "cpu", "cuda", ...
    :raises ValueError: before training, for arguments outside of what is stated here
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowTPolicy": FlowTPolicy,
        "FlowGPolicy": FlowGPolicy,
        "FlowMLPPolicy": FlowMLPPolicy,
        "MlpPolicy": FlowTPolicy,
        "CnnPolicy": FlowTCnnPolicy,
        "MultiInputPolicy": FlowTPolicy,
    }
    policy: FlowPolicy
    actor: FlowActor
    critic: FlowCritic
    critic_target: FlowCritic | None
    replay_buffer: ReplayBuffer

    def __init__(
        self,
        policy: str | type[FlowPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | None = None,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        horizon_length: int = 1,
        ent_coef: str | float = "auto_0.2",
        target_entropy: str | float = "auto",
        bc_coef: BCCoef | Sequence[BCCoef] = 0.0,
        offline_dataset: DatasetSpec | None = None,
        offline_steps: int = 0,
        offline_ratio: float | None = None,
        matching_target: MatchingTarget = "atanh",
        qf_learning_rate: float | Schedule | None = None,
        policy_delay: int | None = None,
        compile: CompileMode = False,
        amp: str | None = None,
        use_sde: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        if learning_starts is None:
            learning_starts = 5_000 if offline_dataset is None else 0
        if offline_dataset is not None:
            policy_kwargs = {"critic": "target", **(policy_kwargs or {})}
        require(not use_sde, "use_sde", use_sde, "the rollout explores by itself; set its noise with `noise_std`")
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            support_multi_env=True,
        )
        known = isinstance(self.policy_class, type) and issubclass(self.policy_class, FlowPolicy)
        require(
            known and self.policy_class is not FlowPolicy,
            "policy",
            self.policy_class,
            "it must be a subclass of FlowPolicy; a saved model of another algorithm is loaded with that algorithm",
        )
        self.horizon_length = horizon_length
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.bc_coef = bc_coef
        self.offline_dataset = offline_dataset
        self.offline_steps = offline_steps
        self.offline_ratio = offline_ratio
        self.matching_target: MatchingTarget = matching_target
        self._dataset: Dataset | None = None
        self._dataset_name = ""
        self._n_offline = 0  # updates of the offline phase that are done
        self._env_knows_data = False  # see `learn_statistics`
        self.qf_learning_rate = qf_learning_rate
        self.policy_delay = policy_delay
        self.compile: CompileMode = compile
        self.amp = amp
        self.log_ent_coef: th.Tensor | None = None
        self.ent_coef_optimizer: th.optim.Optimizer | None = None
        self._chunk_state: tuple[NDArray[Any], ...] | None = None
        if _init_setup_model:
            self._setup_model()
            self._load_dataset()

    def _check_arguments(self) -> None:
        require_integer("n_steps", self.n_steps)
        has_buffer = self.n_steps == 1 or not isinstance(self.observation_space, spaces.Dict)
        advice = "SB3 has no n-step buffer for Dict observations; use n_steps=1 or flatten them"
        require(has_buffer, "n_steps", self.n_steps, advice)
        require_integer("horizon_length", self.horizon_length)
        require_integer("batch_size", self.batch_size, lowest=2)  # batches are normalised
        if self.policy_delay is not None:
            require_integer("policy_delay", self.policy_delay)
        require_choice("compile", self.compile, COMPILE_MODES)
        require_choice("amp", self.amp, (None, "bf16"))
        require_number("gamma", self.gamma, 0, 1, "a number in [0, 1]")
        require_number("tau", self.tau, 0, 1, "a number in [0, 1]")
        self._check_chunks()
        self._check_offline()
        for name in ("learning_rate", "qf_learning_rate"):
            value = getattr(self, name)
            number = callable(value) or isinstance(value, Real) or (value is None and name == "qf_learning_rate")
            require(number, name, value, "a number or a schedule; in YAML write 0.001 or !!float 1e-3")
            if isinstance(value, Real):
                setattr(self, name, float(value))  # SB3's schedules refuse NumPy's numbers
        if isinstance(self.ent_coef, str):
            _initial_ent_coef(self.ent_coef)
        else:
            require_number("ent_coef", self.ent_coef, 0, math.inf, "a number >= 0, 'auto' or 'auto_<initial value>'")
        if isinstance(self.target_entropy, str):
            require(self.target_entropy == "auto", "target_entropy", self.target_entropy, "'auto' or a number")
        else:
            require_number("target_entropy", self.target_entropy, -math.inf, math.inf, "'auto' or a finite number")

    def _check_chunks(self) -> None:
        h, buffer = self.horizon_length, self.replay_buffer_class
        built_for = self.policy_kwargs.get("horizon_length", h)
        advice = f"the policy's is {built_for}; set it in SACFlow, not in policy_kwargs and not when loading"
        require(built_for == h, "horizon_length", h, advice)
        if h == 1:
            return
        hindsight = buffer is not None and issubclass(buffer, HerReplayBuffer)
        require(not hindsight, "horizon_length", h, "HerReplayBuffer relabels single steps; use horizon_length=1")
        chunks = buffer is None or issubclass(buffer, ChunkSampling)
        require(
            chunks, "replay_buffer_class", buffer, f"horizon_length={h} needs a buffer of sb3_flow.buffers, or None"
        )
        require(
            self.n_steps == 1, "n_steps", self.n_steps, f"the return of a chunk is that of horizon_length={h} steps"
        )
        require(self.action_noise is None, "action_noise", self.action_noise, "a chunk is executed as it was decided")

    def _check_offline(self) -> None:
        require_whole("offline_steps", self.offline_steps, lowest=0)
        self.offline_steps = int(self.offline_steps)
        if self.offline_ratio is not None:
            require_number("offline_ratio", self.offline_ratio, 0, 1, "a number in [0, 1], or None for the union")
        require_choice("matching_target", self.matching_target, MATCHING_TARGETS)
        weights = "a number >= 0, a schedule, or two of these, offline and online; in YAML write 0.001 or !!float 1e-3"
        for bc_coef in _offline_online(self.bc_coef):
            require(callable(bc_coef) or isinstance(bc_coef, Real), "bc_coef", self.bc_coef, weights)
            for progress in (1.0, 0.75, 0.5, 0.25, 0.0):
                value = _schedule(bc_coef)(progress)
                allowed = "a number >= 0, at every progress if it is a schedule"
                require(0 <= value < math.inf, "bc_coef", value, allowed)

    def _load_dataset(self) -> None:
        """The data behind `offline_dataset`, unless they are here; a loaded model reads them when it learns."""
        if self.offline_dataset is None:
            left = self.offline_steps - self._n_offline
            advice = f"{left} of them are left, and there is no offline_dataset; pass it, to `load` as well"
            require(left <= 0, "offline_steps", self.offline_steps, advice)
            advice = "it is the share of offline data, and there is no offline_dataset"
            require(self.offline_ratio is None or self._dataset_name != "", "offline_ratio", self.offline_ratio, advice)
            if self._dataset_name:
                warnings.warn(
                    f"Learning goes on without the offline data that this model had ({self._dataset_name}). To keep "
                    "them, pass offline_dataset to `load`.",
                    stacklevel=3,
                )
                self._dataset_name, self.offline_ratio = "", None
        elif self._dataset is None:
            require(self.n_steps == 1, "n_steps", self.n_steps, "offline data have single steps; use horizon_length")
            dataset = load_dataset(self.offline_dataset)
            check_fits(dataset, self.observation_space, self.action_space)
            dataset.check_chunks(self.horizon_length)
            self._dataset, self._dataset_name = dataset, repr(dataset)

    @classmethod
    def _get_policy_from_name(cls, policy_name: str) -> type[BasePolicy]:
        require_choice("policy", policy_name, tuple(cls.policy_aliases))
        return cls.policy_aliases[policy_name]

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_spaces(env.observation_space, env.action_space)
        return OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        # Here and not in __init__: `load` sets the attributes in between
        self._check_arguments()
        self._setup_chunks()
        super()._setup_model()
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        kind = self.policy.critic_kind
        if self.policy_delay is None:
            self.policy_delay = kind.policy_delay
        qf_learning_rate = kind.learning_rate if self.qf_learning_rate is None else self.qf_learning_rate
        self.qf_lr_schedule = FloatSchedule(qf_learning_rate)
        self.bc_schedules = [_schedule(bc_coef) for bc_coef in _offline_online(self.bc_coef)]
        if self.target_entropy == "auto":
            self.target_entropy = auto_target_entropy(
                self.policy.chunk_dim,
                self.policy.flow_steps,
                self.policy.rollout,
                self.policy.noise_std,
                self.policy.likelihood,
            )
        self.target_entropy = float(self.target_entropy)
        self._setup_ent_coef()
        self._critic_loss_fn = maybe_compile(self._critic_loss, self.compile, self.device, self.verbose)
        self.actor.action_fn = maybe_compile(self.actor.action, self.compile, self.device, self.verbose)
        self._actor_loss_fn = maybe_compile(self._actor_loss, self.compile, self.device, self.verbose)

    def _setup_ent_coef(self) -> None:
        self.log_ent_coef = self.ent_coef_optimizer = None
        if isinstance(self.ent_coef, str):
            initial = th.full((1,), _initial_ent_coef(self.ent_coef), device=self.device)
            self.log_ent_coef = initial.log().requires_grad_(True)
            beta1 = self.policy.critic_kind.adam_beta1
            self.ent_coef_optimizer = th.optim.Adam(
                [self.log_ent_coef], lr=self.qf_lr_schedule(1), betas=(beta1, 0.999), fused=True
            )
        else:
            self.ent_coef_tensor = th.tensor(float(self.ent_coef), device=self.device)

    def _current_ent_coef(self) -> th.Tensor:
        """Alpha, learned or fixed, without a gradient."""
        return self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()

    def _setup_chunks(self) -> None:
        """Give the policy the chunk's length, and the buffer that, n_steps and gamma as they are now."""
        buffer = self.replay_buffer_class
        if self.n_steps > 1 and buffer in (ReplayBuffer, NStepReplayBuffer):
            self.replay_buffer_class = None  # a saved model has SB3's choice for the n_steps and gamma of then
        if self.horizon_length == 1 and not (buffer is not None and issubclass(buffer, ChunkSampling)):
            return
        self.policy_kwargs = {**self.policy_kwargs, "horizon_length": self.horizon_length}
        if buffer is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.replay_buffer_class = ChunkDictReplayBuffer if is_dict else ChunkReplayBuffer
        chunks = {"horizon_length": self.horizon_length, "gamma": self.gamma}
        self.replay_buffer_kwargs = {**self.replay_buffer_kwargs, **chunks}

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        if self._dataset is None and 0 < self.replay_buffer.size() < self.horizon_length:
            return  # a loaded model goes on without its replay buffer, and the first chunk is not complete
        self._update_learning_rates()
        # A tensor: torch.compile would make a new graph for every number
        bc_schedule = self.bc_schedules[0 if self.is_offline else 1]
        bc_coef = th.tensor(bc_schedule(self._current_progress_remaining), device=self.device)
        assert self.policy_delay is not None
        log = _Log()
        start = time.perf_counter()

        for _ in range(gradient_steps):
            self._n_updates += 1
            batch = self._sample(batch_size)
            ent_coef = self._current_ent_coef()
            with _statistics_restored(self.critic):
                self._update_critic(batch, ent_coef, log)
            if self._n_updates % self.policy_delay == 0:
                with _statistics_restored(self.actor):
                    log_prob = self._update_actor(batch, ent_coef, bc_coef, log)
                self._update_temperature(log_prob, log)
            if self.critic_target is not None:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                for target, online in zip(self.critic_target.buffers(), self.critic.buffers(), strict=True):
                    target.copy_(online)  # running statistics of a features extractor
            log.add(ent_coef=ent_coef)
        # In training mode a call of the policy itself would move its running statistics
        self.policy.set_training_mode(False)

        for key, value in log.means():
            self.logger.record(f"train/{key}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/fps", gradient_steps / (time.perf_counter() - start))

    def _sample(self, batch_size: int) -> Batch:
        n_offline = self._offline_share(batch_size)
        batches = []
        if n_offline < batch_size:
            samples = self.replay_buffer.sample(batch_size - n_offline, env=self._vec_normalize_env)
            batches.append(to_batch(samples, self.gamma))
        if n_offline > 0:
            assert self._dataset is not None
            data, env = self._dataset.at(self._n_updates - 1), self._vec_normalize_env
            chunks = sample_dataset(data, n_offline, self.horizon_length, self.gamma, self.device, env)
            batches.append(to_batch(chunks, self.gamma))
        batch = batches[0] if len(batches) == 1 else join(*batches)
        if batch.valid is not None and not batch.valid.any():
            warnings.warn(
                f"A time limit cuts short each of {batch_size} chunks, and the critic learns from no others. If "
                f"episodes are shorter than horizon_length={self.horizon_length}, choose a lower one.",
                stacklevel=2,
            )
        check_finite(
            "replay batch",
            observations=batch.observations,
            actions=batch.actions,
            rewards=batch.rewards,
            next_observations=batch.next_observations,
        )
        return batch

    def _offline_share(self, batch_size: int) -> int:
        """How many of a batch come from the offline data."""
        if self._dataset is None:
            return 0
        stored = (self.replay_buffer.size() - self.horizon_length + 1) * self.n_envs
        if self.is_offline or stored <= 0:
            return batch_size
        if self.offline_ratio is not None:
            return round(self.offline_ratio * batch_size)
        return int(np.random.binomial(batch_size, len(self._dataset) / (len(self._dataset) + stored)))

    def _update_critic(self, batch: Batch, ent_coef: th.Tensor, log: "_Log") -> None:
        """One step on the TD error (Eq. 10)."""
        self.actor.set_training_mode(False)
        self.critic.set_training_mode(True)
        noise = self.actor.sample_noise(len(batch.actions))
        with self._autocast():
            critic = self._critic_loss_fn(batch, noise, ent_coef)
        target = critic.target
        made_of = {"next_log_prob": target.next_log_prob, "next_q": target.next_q, "target_q": target.q}
        check_loss("critic update", "critic_loss", critic.loss, **made_of)
        _step(self.critic.optimizer, critic.loss, "critic")
        log.add(critic_loss=critic.loss, q_mean=critic.q)

    def _autocast(self) -> th.autocast:
        return th.autocast(self.device.type, th.bfloat16, enabled=self.amp is not None)

    def _critic_loss(self, batch: Batch, noise: th.Tensor, ent_coef: th.Tensor) -> losses.CriticLoss:
        with th.no_grad():
            path = self.actor.path(batch.next_observations, noise)
        q, next_q = self._q_and_next_q(batch, th.tanh(path.x))
        target = losses.td_target(
            batch.rewards,
            batch.dones,
            batch.discounts,
            self.critic.reduce(next_q),
            path.log_prob,
            ent_coef,
        )
        return losses.critic_loss(q, target, batch.valid)

    def _q_and_next_q(self, batch: Batch, next_actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Q of (s, a) and of (s', a'), each (N, B)."""
        if self.critic_target is not None:
            with th.no_grad():
                next_q = self.critic_target(batch.next_observations, next_actions)
            return self.critic(batch.observations, batch.actions), next_q
        # CrossQ: both in one batch, so that the normalisation sees the mixture of the two distributions
        obs = _cat_obs(batch.observations, batch.next_observations)
        q, next_q = self.critic(obs, th.cat([batch.actions, next_actions])).chunk(2, dim=1)
        return q, next_q

    def _update_actor(self, batch: Batch, ent_coef: th.Tensor, bc_coef: th.Tensor, log: "_Log") -> th.Tensor:
        """One step on `alpha log pi - Q` and the proximity term (Eq. 11, 12), offline on Eq. 3 too. log pi, (B,)."""
        self.actor.set_training_mode(True)
        self.critic.set_training_mode(False)
        noise = self.actor.sample_noise(len(batch.actions))
        line = self.actor.sample_line(len(batch.actions)) if self.is_offline else None
        # Gradients flow through the critic to the actions, not into its parameters
        with _frozen(self.critic), self._autocast():
            actor = self._actor_loss_fn(batch, noise, ent_coef, bc_coef, line)
        check_loss("actor update", "actor_loss", actor.loss, log_prob=actor.log_prob)
        _step(self.actor.optimizer, actor.loss, "actor")
        log.add(
            actor_loss=actor.loss,
            bc_loss=actor.bc_loss,
            entropy=-actor.log_prob,
            path_entropy=-actor.path_log_prob,
            log_std=actor.log_std,
            saturated=actor.saturated,
        )
        if actor.matching_loss is not None:
            log.add(matching_loss=actor.matching_loss)
        return actor.log_prob

    def _actor_loss(
        self, batch: Batch, noise: th.Tensor, ent_coef: th.Tensor, bc_coef: th.Tensor, line: Line | None = None
    ) -> losses.ActorLoss:
        velocity = self.actor.field(batch.observations)
        path = self.actor.path_in(velocity, noise)
        actions = th.tanh(path.x)
        q = self.critic.reduce(self.critic(batch.observations, actions))
        actor = losses.actor_loss(path, q, ent_coef, actions, batch.actions, bc_coef, batch.in_episode)
        if line is None:
            return actor
        error = matching_error(velocity, batch.actions, line, self.matching_target)
        return losses.add_matching(actor, error, batch.in_episode)

    def _update_temperature(self, log_prob: th.Tensor, log: "_Log") -> None:
        """One step on alpha towards the target entropy (Eq. 24)."""
        if self.log_ent_coef is None or self.ent_coef_optimizer is None:
            return
        assert isinstance(self.target_entropy, float)
        loss = losses.ent_coef_loss(self.log_ent_coef, log_prob, self.target_entropy)
        _step(self.ent_coef_optimizer, loss, "temperature")
        log.add(ent_coef_loss=loss)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.horizon_length == 1 or self.num_timesteps < learning_starts:
            self._chunk_state = None
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert self._last_obs is not None
        actions, self._chunk_state = self.predict(self._last_obs, self._chunk_state, self._last_episode_starts)
        return actions, self.policy.scale_action(actions)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: NDArray[Any] | dict[str, NDArray[Any]],
        reward: NDArray[Any],
        dones: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._last_episode_starts = dones  # empties the queues of the environments that were reset

    def _update_learning_rates(self) -> None:
        self._update_learning_rate(self.actor.optimizer)
        qf_learning_rate = self.qf_lr_schedule(self._current_progress_remaining)
        self.logger.record("train/qf_learning_rate", qf_learning_rate)
        update_learning_rate(self.critic.optimizer, qf_learning_rate)
        if self.ent_coef_optimizer is not None:
            update_learning_rate(self.ent_coef_optimizer, qf_learning_rate)

    @property
    def is_offline(self) -> bool:
        """Whether the next update belongs to the offline phase."""
        return self._n_offline < self.offline_steps

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        goes_on = not self.is_offline or self._train_offline(callback, log_interval)
        if not goes_on or self.num_timesteps >= self._total_timesteps:
            return RolloutReturn(0, 0, continue_training=False)
        rollout = super().collect_rollouts(
            env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
        )
        if not rollout.continue_training:
            self._last_obs = None  # SB3 did not store the last step: a later `learn` has to start with a reset
        return rollout

    def _train_offline(self, callback: BaseCallback, log_interval: int | None) -> bool:
        """The offline phase, as far as the timesteps reach. Returns whether to go on."""
        while self.is_offline and self.num_timesteps < self._total_timesteps:
            # As many updates between two calls of the callback as there are steps when learning online
            left = min(self.offline_steps - self._n_offline, self._total_timesteps - self.num_timesteps)
            updates = min(self.n_envs, left)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self.train(updates, self.batch_size)
            self._n_offline += updates
            self.num_timesteps += updates
            if log_interval is not None and self._n_offline % OFFLINE_LOG_INTERVAL < updates:
                self.dump_logs()
            callback.update_locals(locals() | _no_steps(self.n_envs))
            if not callback.on_step():
                return False
        return True

    def learn(
        self: SelfSACFlow,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SACFlow",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSACFlow:
        """Learn for so many timesteps: first what is left of the `offline_steps`, then in the environment.

        After a callback stopped it in the environment, another `learn` starts with a reset of the environments, for
        SB3 does not store the last step.

        :param total_timesteps: updates of the offline phase and steps of the environment, together

        The other parameters are those of SB3's `learn`.
        """
        self._load_dataset()
        if self._dataset is not None and self._vec_normalize_env is not None and not self._env_knows_data:
            learn_statistics(self._vec_normalize_env, self._dataset.at(0))
            self._env_knows_data = True
        if self.verbose > 0 and not self.compile and total_timesteps >= LONG_RUN:
            print("A run this long is faster with compile=True, see docs/speed.md")
        if reset_num_timesteps or self._last_obs is None:
            end_episodes(self.replay_buffer)  # SB3 is about to reset the environments
        return super().learn(
            total_timesteps=int(total_timesteps),
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def learn_offline(self: SelfSACFlow, steps: float, **kwargs: Any) -> SelfSACFlow:
        """Make some updates from the offline data alone, whatever `offline_steps` says; then `learn` goes on online.

        That is so as well if they are stopped early. A checkpoint made on the way goes on with them.

        :param steps: number of updates
        :param kwargs: arguments of `learn`: callback, log_interval, progress_bar, ...
        :raises ValueError: without `offline_dataset`, and if steps is no whole number >= 1
        """
        advice = "there are no data to learn from; pass it to SACFlow, or to `load`"
        require(self.offline_dataset is not None, "offline_dataset", None, advice)
        require_whole("steps", steps)
        # Before the phase is lengthened: if the data are refused, nothing has changed
        self._load_dataset()
        self.offline_steps = self._n_offline + int(steps)
        try:
            return self.learn(steps, **kwargs)
        finally:
            self.offline_steps = self._n_offline

    @classmethod
    def load(cls: type[SelfSACFlow], path: str | Path | BufferedIOBase, *args: Any, **kwargs: Any) -> SelfSACFlow:
        """Load a model as SB3's `load` does, and change `ent_coef` where that cannot: from learned to fixed and back.

        :param path: of the zip-file, or the open file
        :param args: env, device, custom_objects, ... of SB3's `load`
        :param kwargs: these by name, and arguments of SACFlow to change; where alpha is learned before and after, it
            is kept
        """
        ent_coef = kwargs.pop("ent_coef", None)
        model = super().load(path, *args, **kwargs)
        if ent_coef is not None:
            goes_on = isinstance(ent_coef, str) and isinstance(model.ent_coef, str)
            model.ent_coef = ent_coef
            model._check_arguments()
            if not goes_on:
                model._setup_ent_coef()
        return model

    def load_replay_buffer(self, path: str | Path | BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load a replay buffer as SB3's method of this name does.

        :param path: of the pickled buffer, or the open file
        :param truncate_last_traj: take the last episode for finished, with chunks and n-step returns too; False
            if the environments go on where they were
        :raises ValueError: if the buffer has no chunks for `horizon_length` > 1
        """
        super().load_replay_buffer(path, truncate_last_traj)
        buffer, h = self.replay_buffer, self.horizon_length
        # h and gamma come with the buffer, from the model that filled it
        if isinstance(buffer, ChunkSampling):
            buffer.horizon_length = h
        else:
            require(h == 1, "horizon_length", h, f"{path} holds a {type(buffer).__name__}, which has no chunks")
        if isinstance(buffer, (ChunkSampling, NStepReplayBuffer)):
            buffer.gamma = self.gamma
        if truncate_last_traj:
            end_episodes(buffer)  # SB3 does so for hindsight only

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "actor",
            "critic",
            "critic_target",
            "_critic_loss_fn",
            "_actor_loss_fn",
            "_dataset",
            # A name is kept, data are not
            *([] if isinstance(self.offline_dataset, (str, PathLike)) else ["offline_dataset"]),
        ]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.ent_coef_optimizer is None:
            return state_dicts, ["ent_coef_tensor"]
        return [*state_dicts, "ent_coef_optimizer"], ["log_ent_coef"]


class _Log:
    """Collects tensors during the updates and turns them into floats once, at the end."""

    def __init__(self) -> None:
        self.values: dict[str, list[th.Tensor]] = defaultdict(list)

    def add(self, **values: th.Tensor) -> None:
        for key, value in values.items():
            self.values[key].append(value.detach().mean())

    def means(self) -> list[tuple[str, float]]:
        return [(key, th.stack(values).mean().item()) for key, values in self.values.items()]


@contextmanager
def _frozen(net: th.nn.Module) -> Iterator[None]:
    """No gradient into the parameters; those that the user froze stay frozen afterwards."""
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _statistics_restored(net: th.nn.Module) -> Iterator[None]:
    """Put the running statistics back if the update stops at a number that is not finite."""
    kept = [buffer.clone() for buffer in net.buffers()]
    try:
        yield
    except NonFiniteError:
        for buffer, value in zip(net.buffers(), kept, strict=True):
            buffer.copy_(value)
        raise


def _no_steps(n_envs: int) -> dict[str, Any]:
    """What callbacks read of the environments' steps, where none was made: no reward, and no episode ended."""
    return {
        "rewards": np.zeros(n_envs, np.float32),
        "dones": np.zeros(n_envs, np.bool_),
        "infos": [{} for _ in range(n_envs)],
    }


def _step(optimizer: th.optim.Optimizer, loss: th.Tensor, name: str) -> None:
    """One optimizer step, unless the gradient is not finite."""
    optimizer.zero_grad()
    th.autograd.backward(loss)
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    check_finite(f"{name} update", **{f"{name}_gradient_norm": th.nn.utils.get_total_norm(grads)})
    optimizer.step()


def _cat_obs(obs: PyTorchObs, next_obs: PyTorchObs) -> PyTorchObs:
    """Stack two batches of observations, key by key if they are Dicts."""
    if isinstance(obs, dict):
        assert isinstance(next_obs, dict)
        return {key: th.cat([value, next_obs[key]]) for key, value in obs.items()}
    assert isinstance(next_obs, th.Tensor)
    return th.cat([obs, next_obs])


def _offline_online(bc_coef: BCCoef | Sequence[BCCoef]) -> tuple[BCCoef, BCCoef]:
    """The proximity term's weight in the two phases."""
    if not isinstance(bc_coef, Sequence):
        return bc_coef, bc_coef
    two = not isinstance(bc_coef, str) and len(bc_coef) == 2
    require(two, "bc_coef", bc_coef, "a number >= 0, a schedule, or two of these, offline and online")
    return bc_coef[0], bc_coef[1]


def _schedule(value: float | Schedule) -> FloatSchedule:
    """SB3's schedule, which refuses NumPy's numbers."""
    return FloatSchedule(value if callable(value) else float(value))


def _initial_ent_coef(ent_coef: str) -> float:
    """Start of a learned alpha: 1 for "auto", x for "auto_x"."""
    allowed = "a number >= 0, 'auto', or 'auto_<initial value>' with a value > 0"
    head, separator, tail = ent_coef.partition("_")
    try:
        initial = float(tail) if separator else 1.0
    except ValueError:
        initial = float("nan")
    require(head == "auto" and 0 < initial < math.inf, "ent_coef", ent_coef, allowed)
    return initial
