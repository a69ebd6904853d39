"""SAC Flow: off-policy training of flow policies, end to end (arXiv 2509.25756)."""

import math
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, get_args

import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_flow.common.buffers import Batch
from sb3_flow.common.checks import as_integer, require, require_choice
from sb3_flow.common.compile import CompileMode
from sb3_flow.common.critics import outputs_and_next
from sb3_flow.common.flow import (
    MATCHING_TARGETS,
    Line,
    MatchingTarget,
    auto_target_entropy,
    constant_entropy,
    matching_error,
)
from sb3_flow.common.matching import MatchingLoss, matching_loss
from sb3_flow.common.max_entropy import MaxEntropyAlgorithm
from sb3_flow.common.schedules import BCCoef, is_ever_positive
from sb3_flow.common.temperature import Temperature
from sb3_flow.datasets import DatasetSpec
from sb3_flow.sac_flow import losses
from sb3_flow.sac_flow.policies import (
    DEFAULTS,
    FlowActor,
    FlowGPolicy,
    FlowMLPPolicy,
    FlowPolicy,
    FlowTCnnPolicy,
    FlowTPolicy,
)
from sb3_flow.sac_flow.repeated_noise import RepeatedNoise

Proximity = Literal["data", "behavior"]
PROXIMITIES: tuple[str, ...] = get_args(Proximity)
TAU = 0.005


class SACFlow(MaxEntropyAlgorithm):
    """Soft Actor-Critic with a K-step flow policy, trained through the rollout.

    Paper: https://arxiv.org/abs/2509.25756. What is the policy's (K, noise, nets, critics) goes into `policy_kwargs`,
    see `sb3_flow.sac_flow.policies.FlowPolicy`; parameters without an explanation here are those of SB3's SAC.

    :param policy: "FlowTPolicy", "FlowGPolicy", "FlowMLPPolicy", a class of these, or SB3's names for the first
    :param env: the environment, with a bounded Box action space
    :param learning_rate: of the actor; a float or a schedule of the progress remaining, from 1 to 0
    :param buffer_size: transitions in the replay buffer, >= 1
    :param learning_starts: steps of random actions before learning; None for 5,000, or 0 with offline data. The
        updates of the offline phase count as such steps: with `offline_steps` >= `learning_starts` no action is random
    :param batch_size: transitions per update, >= 2
    :param tau: Polyak coefficient of the target critics, in [0, 1]; "crossq" and "categorical" critics have none
    :param gamma: discount factor, in [0, 1]
    :param train_freq: update every so many steps, or a tuple such as `(1, "episode")`
    :param gradient_steps: updates at each of these times; -1 for as many as environment steps were made
    :param action_noise: added to the policy's own
    :param replay_buffer_class: for instance `HerReplayBuffer`; None for the one that fits the observation space
    :param replay_buffer_kwargs: its arguments
    :param optimize_memory_usage: the memory-efficient variant of the buffer
    :param n_steps: n-step returns, >= 1; with chunks the return is that of h steps
    :param horizon_length: h >= 1, actions that are decided at once and executed open loop (Q-chunking)
    :param ent_coef: alpha; "auto" or "auto_0.2" to learn it from that start, or a float >= 0; with "categorical", "xqc"
        and "flashsac" critics it is that of the scaled rewards. None for "auto_0.01" with these, else "auto_0.2"
    :param target_entropy: target of the entropy in nats; "auto" for `sb3_flow.common.flow.auto_target_entropy`
    :param bc_coef: beta >= 0 of the proximity term (Eq. 12) to the replayed actions: a float, a schedule, or two of
        these, for the offline and the online phase; 0 is for learning from scratch
    :param offline_dataset: data to learn from: a path, a string such as
        "ogbench:cube-double-play-singletask-task2-v0", a dict of arrays, or a dataset, see
        `sb3_flow.datasets.load_dataset`
    :param offline_steps: timesteps at the start of training that are updates from these data, without the environment
    :param offline_ratio: share of the data in a batch when learning online, in [0, 1]; None to sample from the union of
        data and replay buffer
    :param start_training: steps of the environment to store, after the offline phase, before the first update (5,000 in
        Q-chunking's code)
    :param random_shift: pixels by which each image of a batch is moved at most, at random (DrQ-v2: 4 of 84); 0 for
        images as they are
    :param matching_target: what the flow is matched to offline: "atanh" of the actions, or the "raw" actions
    :param proximity: what `bc_coef` holds the policy to: "data", the replayed actions (Eq. 12), which draws every path
        to their mean, or "behavior", a second flow's action for the same noise; that flow clones the replayed actions,
        and their modes are kept
    :param qf_learning_rate: of critics and temperature; None for 1e-3 with "crossq" and "categorical" critics, 3e-4
        with "target", and 3e-4 falling to 3e-5 with "xqc", to 1.5e-4 with "flashsac"
    :param policy_delay: critic updates per actor update, >= 1; None for 1 with "target", 2 with "flashsac", else 3
    :param noise_repeat: the noise of the rollout is kept for up to so many steps of an environment when learning, a
        number that is drawn from a zeta distribution (16 in FlashSAC); 1 for new noise at every step
    :param compile: True for torch.compile of losses and acting, with CUDA graphs on CUDA; "max" to try more kernels
        there; it pays for itself after some ten thousand updates (docs/speed.md)
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
    policy_type: ClassVar[type[Any]] = FlowPolicy
    policy: FlowPolicy
    actor: FlowActor

    def __init__(
        self,
        policy: str | type[FlowPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | None = None,
        batch_size: int = 256,
        tau: float = TAU,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        horizon_length: int = 1,
        ent_coef: str | float | None = None,
        target_entropy: str | float = "auto",
        bc_coef: BCCoef = 0.0,
        offline_dataset: DatasetSpec | None = None,
        offline_steps: int = 0,
        offline_ratio: float | None = None,
        start_training: int = 0,
        random_shift: int = 0,
        matching_target: MatchingTarget = "atanh",
        proximity: Proximity = "data",
        qf_learning_rate: float | Schedule | None = None,
        policy_delay: int | None = None,
        noise_repeat: int = 1,
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
        if offline_dataset is not None:
            policy_kwargs = {"critic": "target", **(policy_kwargs or {})}
        require(not use_sde, "use_sde", use_sde, "the rollout explores by itself; set its noise with `noise_std`")
        self.matching_target: MatchingTarget = matching_target
        self.proximity: Proximity = proximity
        self._has_behavior: bool | None = None  # None until there is a policy
        self.noise_repeat = noise_repeat
        self._repeated_noise = RepeatedNoise()
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            horizon_length=horizon_length,
            ent_coef=ent_coef,
            target_entropy=target_entropy,
            qf_learning_rate=qf_learning_rate,
            policy_delay=policy_delay,
            bc_coef=bc_coef,
            offline_dataset=offline_dataset,
            offline_steps=offline_steps,
            offline_ratio=offline_ratio,
            start_training=start_training,
            random_shift=random_shift,
            compile=compile,
            amp=amp,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _check_arguments(self) -> None:
        super()._check_arguments()
        require_choice("matching_target", self.matching_target, MATCHING_TARGETS)
        self._check_proximity()
        self.noise_repeat = as_integer("noise_repeat", self.noise_repeat)
        single = self.noise_repeat == 1 or self.horizon_length == 1
        require(single, "noise_repeat", self.noise_repeat, "a chunk is decided with one noise; use horizon_length=1")

    def _check_proximity(self) -> None:
        require_choice("proximity", self.proximity, PROXIMITIES)
        behavior = self.proximity == "behavior"
        same = self._has_behavior is None or self._has_behavior == behavior
        advice = "a saved model keeps its own, and so does this one: it has, or has not, a behaviour flow"
        require(same, "proximity", self.proximity, advice)
        # A model that has one may be let loose
        weighs = self._has_behavior is True or any(map(is_ever_positive, self._phase_schedules()))
        advice = "with bc_coef=0 nothing is held to the behaviour flow; give it a weight, or leave proximity at 'data'"
        require(not behavior or weighs, "proximity", self.proximity, advice)

    def _complete_arguments(self) -> None:
        super()._complete_arguments()
        if self.proximity == "behavior":
            self.policy_kwargs = {**self.policy_kwargs, "has_behavior": True}

    def _setup_model(self) -> None:
        super()._setup_model()
        self._has_behavior = self.policy.has_behavior
        self._warn_of_target_entropy()
        self._warn_of_tau()
        self._critic_loss_fn = self._compiled_loss(self._critic_loss)
        self._actor_loss_fn = self._compiled_loss(self._actor_loss)
        self._behavior_loss_fn = self._compiled_loss(self._behavior_loss)

    def _complete_defaults(self) -> None:
        defaults = DEFAULTS[self.policy.critic_name]
        if self.policy_delay is None:
            self.policy_delay = defaults.policy_delay
        if self.ent_coef is None:
            self.ent_coef = defaults.ent_coef
        if self.qf_learning_rate is None:
            self.qf_learning_rate = defaults.qf_learning_rate
        net = self.policy
        if self.target_entropy == "auto":
            self.target_entropy = auto_target_entropy(
                net.chunk_dim, net.flow_steps, net.rollout, net.noise_std, net.likelihood, self._highest_log_std
            )

    @property
    def _highest_log_std(self) -> float:
        net = self.policy
        return net.log_std_range[1] if net.noise_std is None else math.log(net.noise_std)

    def _warn_of_target_entropy(self) -> None:
        net = self.policy
        reach = constant_entropy(net.chunk_dim, net.flow_steps, self._highest_log_std, net.rollout, net.likelihood)
        assert isinstance(self.target_entropy, float)
        if isinstance(self.ent_coef, str) and self.target_entropy > reach:
            warnings.warn(
                f"target_entropy={self.target_entropy:g} is out of reach: the highest sigma allows {reach:.3g} nats, "
                "so that alpha would grow for ever. Choose a lower one, or raise log_std_range or noise_std.",
                stacklevel=2,
            )

    def _warn_of_tau(self) -> None:
        if self.tau != TAU and not self._targets:
            warnings.warn(
                f"tau={self.tau:g} does nothing: {self.policy.critic_name!r} critics have no target nets. Leave it "
                "out, or take policy_kwargs={'critic': 'target'}.",
                stacklevel=2,
            )

    def _hints(self, total_timesteps: int, reset_num_timesteps: bool) -> Iterator[str]:
        yield from super()._hints(total_timesteps, reset_num_timesteps)
        if self.is_offline and not is_ever_positive(self.bc_schedules.offline):
            yield (
                "bc_coef=0 holds the policy to nothing while it learns from data alone: it comes to actions that "
                "no one took and critics overrate (docs/results.md). The paper has 300 for OGBench's tasks, 10,000 for "
                "Robomimic's."
            )

    def _make_temperature(self, ent_coef: str | float) -> Temperature:
        beta1 = DEFAULTS[self.policy.critic_name].adam_beta1
        return Temperature(ent_coef, self.qf_lr_schedule(1), beta1, self.device)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.noise_repeat == 1 or self.num_timesteps < learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert self._last_episode_starts is not None
        fresh = self.actor.sample_noise(n_envs)
        with self.actor.acting_with(self._repeated_noise.next(fresh, self._last_episode_starts, self.noise_repeat)):
            return super()._sample_action(learning_starts, action_noise, n_envs)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        bc_coef = self._bc_coef_now()
        for batch, log in self._batches(gradient_steps, batch_size):
            ent_coef, n = self.temperature.value, len(batch.actions)
            self._update(self.critic, log, self._critic_loss_fn, batch, self.actor.sample_noise(n), ent_coef)
            if self._updates_actor:
                noise, line = self.actor.sample_noise(n), None
                if self.behavior is not None:
                    self._update(self.behavior, log, self._behavior_loss_fn, batch, self.actor.sample_line(n))
                elif self.is_offline:
                    line = self.actor.sample_line(n)
                actor = self._update(self.actor, log, self._actor_loss_fn, batch, noise, ent_coef, bc_coef, line)
                self._update_temperature(actor.log_prob, log)
            self._update_target()
            log.add(("ent_coef",), ent_coef.view(1))

    def _critic_loss(self, batch: Batch, noise: th.Tensor, ent_coef: th.Tensor) -> losses.CriticLoss:
        """The TD error (Eq. 10)."""
        with th.no_grad():
            path = self.actor.path(batch.next_observations, noise)
        critic = self.critic
        outputs, next_outputs = outputs_and_next(
            critic,
            self.critic_target,
            batch.observations,
            batch.actions,
            batch.next_observations,
            th.tanh(path.x),
        )
        q, next_q = critic.q(outputs), critic.reduce(critic.q(next_outputs))
        target = losses.td_target(batch.rewards, batch.dones, batch.discounts, next_q, path.log_prob, ent_coef)
        if critic.support is None:
            return losses.critic_loss(q, target, batch.valid)
        probs = critic.target_distribution(next_outputs, target.q, batch.discounts * (1 - batch.dones))
        return losses.categorical_critic_loss(outputs, q, probs, target, critic.support, batch.valid)

    def _actor_loss(
        self, batch: Batch, noise: th.Tensor, ent_coef: th.Tensor, bc_coef: th.Tensor, line: Line | None = None
    ) -> losses.ActorLoss:
        """`alpha log pi - Q` and the proximity term (Eq. 11, 12), with a line on Eq. 3 too."""
        velocity = self.actor.field(batch.observations)
        path = self.actor.path_in(velocity, noise)
        actions = th.tanh(path.x)
        q = self.critic.reduce(self.critic(batch.observations, actions))
        near, in_episode = batch.actions, batch.in_episode
        if self.behavior is not None:
            near, in_episode = self._behavior_actions(batch, noise), None
        actor = losses.actor_loss(path, q, ent_coef, actions, near, bc_coef, in_episode)
        if line is None:
            return actor
        error = matching_error(velocity, batch.actions, line, self.matching_target)
        return losses.add_matching(actor, error, batch.in_episode)

    def _behavior_actions(self, batch: Batch, noise: th.Tensor) -> th.Tensor:
        """What the behaviour flow does for the same noise, without a gradient: of each step's where sigma is fixed."""
        assert self.behavior is not None
        with th.no_grad():
            if self.policy.noise_std is None:
                return self.behavior.without_noise(batch.observations, noise[0])
            return self.behavior.action(batch.observations, noise)

    def _behavior_loss(self, batch: Batch, line: Line) -> MatchingLoss:
        """Flow matching to the replayed actions (Eq. 3)."""
        assert self.behavior is not None
        error = matching_error(self.behavior.field(batch.observations), batch.actions, line, self.matching_target)
        return matching_loss(error, batch.in_episode)

    @property
    def behavior(self) -> FlowActor | None:
        """The flow that clones the replayed actions, with `proximity="behavior"`."""
        return self.policy.behavior

    @property
    def _nets(self) -> dict[str, BaseModel]:
        behavior = {} if self.behavior is None else {"behavior": self.behavior}
        return {**super()._nets, **behavior}
