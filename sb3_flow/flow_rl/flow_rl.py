"""FlowRL: a flow that maximises Q and is held to the best of the replayed actions."""

import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_flow.common.buffers import Batch
from sb3_flow.common.checks import require_integer, require_number
from sb3_flow.common.compile import CompileMode
from sb3_flow.common.critics import CriticLoss, FlowCritic, critic_loss
from sb3_flow.common.flow import Line, matching_error
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.common.schedules import BCCoef
from sb3_flow.datasets import DatasetSpec
from sb3_flow.flow_rl import losses
from sb3_flow.flow_rl.networks import BehaviorValue
from sb3_flow.flow_rl.policies import FlowRLCnnPolicy, FlowRLPolicy, MidpointActor


class FlowRL(OffPolicyFlowAlgorithm):
    """FlowRL: the policy is a flow that maximises Q through its steps, held to the replayed actions that are better.

    Paper: https://arxiv.org/abs/2506.12811, code: https://github.com/bytedance/FlowRL. How good the replayed actions
    are is said by a second pair of critics, Q_beta, whose target is V_beta, an upper expectile of Q_beta over them.
    What is the policy's (flow steps, nets, critics) goes into `policy_kwargs`, see
    `sb3_flow.flow_rl.policies.FlowRLPolicy`; parameters without an explanation here are those of SB3's TD3.

    :param policy: "FlowRLPolicy", a class of this, or SB3's names for it
    :param env: the environment, with a bounded Box action space
    :param learning_rate: of all nets; a float or a schedule of the progress remaining, from 1 to 0
    :param buffer_size: transitions in the replay buffer, >= 1
    :param learning_starts: steps of random actions before learning; None for 5,000, or 0 with offline data. The
        updates of the offline phase count as such steps: with `offline_steps` >= `learning_starts` no action is random
    :param batch_size: transitions per update, >= 2
    :param tau: Polyak coefficient of the target critics, in [0, 1]
    :param gamma: discount factor, in [0, 1]
    :param train_freq: update every so many steps, or a tuple such as `(1, "episode")`
    :param gradient_steps: updates at each of these times; -1 for as many as environment steps were made
    :param action_noise: added to the policy's own
    :param replay_buffer_class: for instance `HerReplayBuffer`; None for the one that fits the observation space
    :param replay_buffer_kwargs: its arguments
    :param optimize_memory_usage: the memory-efficient variant of the buffer
    :param n_steps: n-step returns, >= 1; with chunks the return is that of h steps
    :param horizon_length: h >= 1, actions that are decided at once and executed open loop
    :param bc_coef: lambda >= 0, the weight of the matching term: a float, a schedule, or two of these, for the offline
        and the online phase
    :param expectile: tau_e in (0, 1), of V_beta: 0.5 for the mean of the replayed actions, towards 1 for the best
    :param policy_delay: updates of the critics for each of the actor and the target critics, >= 1
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
    :param compile: True for torch.compile of losses and acting, with CUDA graphs on CUDA; "max" to try more kernels
        there; it pays for itself after some ten thousand updates (docs/speed.md)
    :param amp: "bf16" for the matrix products of the losses in bfloat16; None for float32 throughout
    :param stats_window_size: episodes that the logged return is averaged over
    :param tensorboard_log: folder of the TensorBoard log
    :param policy_kwargs: arguments of the policy
    :param verbose: 0 nothing, 1 information, 2 debugging
    :param seed: of all random generators
    :param device: "auto", "cpu", "cuda", ...
    :raises ValueError: before training, for arguments outside of what is stated here
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowRLPolicy": FlowRLPolicy,
        "MlpPolicy": FlowRLPolicy,
        "CnnPolicy": FlowRLCnnPolicy,
        "MultiInputPolicy": FlowRLPolicy,
    }
    policy_type: ClassVar[type[Any]] = FlowRLPolicy
    policy: FlowRLPolicy
    actor: MidpointActor
    critic_target: FlowCritic

    def __init__(
        self,
        policy: str | type[FlowRLPolicy],
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
        bc_coef: BCCoef = 0.1,
        expectile: float = 0.9,
        policy_delay: int = 2,
        offline_dataset: DatasetSpec | None = None,
        offline_steps: int = 0,
        offline_ratio: float | None = None,
        start_training: int = 0,
        random_shift: int = 0,
        compile: CompileMode = False,
        amp: str | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.expectile = expectile
        self.policy_delay = policy_delay
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
        require_integer("policy_delay", self.policy_delay)
        lowest = math.ulp(0.0)
        require_number("expectile", self.expectile, lowest, 1 - math.ulp(0.5), "a number above 0 and below 1")

    def _setup_model(self) -> None:
        super()._setup_model()
        self._critic_loss_fn = self._compiled_loss(self._critic_loss)
        self._behavior_critic_loss_fn = self._compiled_loss(self._behavior_critic_loss)
        self._behavior_value_loss_fn = self._compiled_loss(self._behavior_value_loss)
        self._actor_loss_fn = self._compiled_loss(self._actor_loss)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        bc_coef = self._bc_coef_now()
        for batch, log in self._batches(gradient_steps, batch_size):
            n = len(batch.actions)
            self._update(self.critic, log, self._critic_loss_fn, batch, self.actor.sample_noise(n))
            behavior = self._update(self.behavior_critic, log, self._behavior_critic_loss_fn, batch)
            behavior_q = behavior.verdict.clone()  # of before the step, and before another graph overwrites it
            self._update(self.behavior_value, log, self._behavior_value_loss_fn, batch)
            if self._n_updates % self.policy_delay == 0:
                noise, line = self.actor.sample_noise(n), self.actor.sample_line(n)
                self._update(self.actor, log, self._actor_loss_fn, batch, noise, line, behavior_q, bc_coef)
                self._update_target()

    def _critic_loss(self, batch: Batch, noise: th.Tensor) -> CriticLoss:
        """The TD error of Q, the value of the policy."""
        with th.no_grad():
            next_actions = self.actor.action(batch.next_observations, noise)
            next_q = self.critic_target.reduce(self.critic_target(batch.next_observations, next_actions))
        q = self.critic(batch.observations, batch.actions)
        return critic_loss(q, batch.rewards, batch.dones, batch.discounts, next_q, batch.valid)

    def _behavior_critic_loss(self, batch: Batch) -> losses.BehaviorCriticLoss:
        """The TD error of Q_beta, the value of the best replayed actions."""
        with th.no_grad():
            next_q = self.behavior_value(batch.next_observations)
        q = self.behavior_critic(batch.observations, batch.actions)
        td = critic_loss(q, batch.rewards, batch.dones, batch.discounts, next_q, batch.valid)
        return losses.BehaviorCriticLoss(td, self.behavior_critic.reduce(q.detach()))

    def _behavior_value_loss(self, batch: Batch) -> losses.ValueLoss:
        """The distance of V_beta from an upper expectile of Q_beta."""
        target = self.policy.behavior_critic_target
        with th.no_grad():
            q = target.reduce(target(batch.observations, batch.actions))
        return losses.value_loss(self.behavior_value(batch.observations), q, self.expectile, batch.valid)

    def _actor_loss(
        self, batch: Batch, noise: th.Tensor, line: Line, behavior_q: th.Tensor, bc_coef: th.Tensor
    ) -> losses.ActorLoss:
        """Q through the flow's steps, and flow matching to the replayed actions, by their weight."""
        velocity = self.actor.field(batch.observations)
        actions = self.actor.action_in(velocity, noise)
        q = self.critic.reduce(self.critic(batch.observations, actions))
        error = matching_error(velocity, batch.actions, line, "raw")
        weights = losses.matching_weights(behavior_q, q, batch.valid)
        return losses.actor_loss(q, actions, error, weights, bc_coef, batch.in_episode)

    @property
    def behavior_critic(self) -> FlowCritic:
        """Q_beta."""
        return self.policy.behavior_critic

    @property
    def behavior_value(self) -> BehaviorValue:
        """V_beta."""
        return self.policy.behavior_value

    @property
    def _nets(self) -> dict[str, BaseModel]:
        behavior = {"behavior_critic": self.behavior_critic, "behavior_value": self.behavior_value}
        return {**super()._nets, **behavior}

    @property
    def _targets(self) -> list[tuple[BaseModel, BaseModel]]:
        return [*super()._targets, (self.behavior_critic, self.policy.behavior_critic_target)]
