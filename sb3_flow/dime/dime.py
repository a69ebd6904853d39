"""DIME: maximum-entropy reinforcement learning with a diffusion policy (arXiv 2502.02316)."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_flow.common.buffers import Batch
from sb3_flow.common.compile import CompileMode
from sb3_flow.common.critics import outputs_and_next
from sb3_flow.common.max_entropy import MaxEntropyAlgorithm
from sb3_flow.datasets import DatasetSpec
from sb3_flow.dime import losses
from sb3_flow.dime.policies import DIMEActor, DIMECnnPolicy, DIMEPolicy

MAX_ACTOR_GRADIENT = 1.0  # of one number, against the sixteen steps that it comes back through
TARGET_COST = 4.0  # nats per number of an action, of the path's running cost


class DIME(MaxEntropyAlgorithm):
    """Diffusion-based maximum-entropy RL: an action is the end of a controlled diffusion, the path's cost the entropy.

    Paper: https://arxiv.org/abs/2502.02316. What is the policy's (diffusion steps, nets, critics) goes into
    `policy_kwargs`, see `sb3_flow.dime.policies.DIMEPolicy`; parameters without an explanation here are those of SB3's
    SAC.

    :param policy: "DIMEPolicy", a class of this, or SB3's names for it
    :param env: the environment, with a bounded Box action space
    :param learning_rate: of the actor; a float or a schedule of the progress remaining, from 1 to 0
    :param buffer_size: transitions in the replay buffer, >= 1
    :param learning_starts: steps of random actions before learning; None for 5,000, or 0 with offline data. The
        updates of the offline phase count as such steps: with `offline_steps` >= `learning_starts` no action is random
    :param batch_size: transitions per update, >= 2
    :param gamma: discount factor, in [0, 1]
    :param train_freq: update every so many steps, or a tuple such as `(1, "episode")`
    :param gradient_steps: updates at each of these times; -1 for as many as environment steps were made
    :param action_noise: added to the policy's own
    :param replay_buffer_class: for instance `HerReplayBuffer`; None for the one that fits the observation space
    :param replay_buffer_kwargs: its arguments
    :param optimize_memory_usage: the memory-efficient variant of the buffer
    :param n_steps: n-step returns, >= 1; with chunks the return is that of h steps
    :param horizon_length: h >= 1, actions that are decided at once and executed open loop (Q-chunking)
    :param ent_coef: alpha of the scaled rewards; "auto" or "auto_0.003" to learn it from that start, or a float >= 0
    :param target_entropy: what a learned alpha drives the negative running cost of the paths to, in nats; "auto" for
        -4 per number of an action
    :param offline_dataset: data to learn from: a path, a string such as
        "ogbench:cube-double-play-singletask-task2-v0", a dict of arrays, or a dataset, see
        `sb3_flow.datasets.load_dataset`; nothing holds the policy to them
    :param offline_steps: timesteps at the start of training that are updates from these data, without the environment
    :param offline_ratio: share of the data in a batch when learning online, in [0, 1]; None to sample from the union of
        data and replay buffer
    :param start_training: steps of the environment to store, after the offline phase, before the first update (5,000 in
        Q-chunking's code)
    :param random_shift: pixels by which each image of a batch is moved at most, at random (DrQ-v2: 4 of 84); 0 for
        images as they are
    :param qf_learning_rate: of the critics
    :param policy_delay: critic updates per actor update, >= 1
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
        "DIMEPolicy": DIMEPolicy,
        "MlpPolicy": DIMEPolicy,
        "CnnPolicy": DIMECnnPolicy,
        "MultiInputPolicy": DIMEPolicy,
    }
    policy_type: ClassVar[type[Any]] = DIMEPolicy
    ent_coef_learning_rate: ClassVar[float | None] = 1e-3
    policy: DIMEPolicy
    actor: DIMEActor

    def __init__(
        self,
        policy: str | type[DIMEPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | None = None,
        batch_size: int = 256,
        *,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 2,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        horizon_length: int = 1,
        ent_coef: str | float = "auto_0.003",
        target_entropy: str | float = "auto",
        offline_dataset: DatasetSpec | None = None,
        offline_steps: int = 0,
        offline_ratio: float | None = None,
        start_training: int = 0,
        random_shift: int = 0,
        qf_learning_rate: float | Schedule = 3e-4,
        policy_delay: int = 3,
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
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
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
            bc_coef=0.0,
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

    def _setup_model(self) -> None:
        super()._setup_model()
        self._critic_loss_fn = self._compiled_loss(self._critic_loss)
        self._actor_loss_fn = self._compiled_loss(self._actor_loss)

    def _complete_defaults(self) -> None:
        if self.target_entropy == "auto":
            self.target_entropy = -TARGET_COST * self.policy.chunk_dim

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        for batch, log in self._batches(gradient_steps, batch_size):
            ent_coef, n = self.temperature.value, len(batch.actions)
            self._update(self.critic, log, self._critic_loss_fn, batch, self.actor.sample_noise(n), ent_coef)
            if self._updates_actor:
                noise = self.actor.sample_noise(n)
                actor = self._update(
                    self.actor, log, self._actor_loss_fn, batch, noise, ent_coef, max_gradient=MAX_ACTOR_GRADIENT
                )
                self._update_temperature(actor.running_cost, log)
            log.add(("ent_coef",), ent_coef.view(1))

    def _critic_loss(self, batch: Batch, noise: th.Tensor, ent_coef: th.Tensor) -> losses.CriticLoss:
        """Cross-entropy to the distribution of the soft target."""
        critic = self.critic
        assert critic.support is not None
        with th.no_grad():
            next_actions, cost = self.actor.action_and_cost(batch.next_observations, noise)
        outputs, next_outputs = outputs_and_next(
            critic, None, batch.observations, batch.actions, batch.next_observations, next_actions
        )
        next_q, bootstrap = critic.reduce(critic.q(next_outputs)), batch.discounts * (1 - batch.dones)
        target_q = losses.td_target(batch.rewards, bootstrap, next_q, cost.total, ent_coef)
        probs = critic.target_distribution(next_outputs, target_q, bootstrap)
        q = critic.q(outputs)
        return losses.critic_loss(outputs, q, probs, target_q, next_q, cost.total, critic.support, batch.valid)

    def _actor_loss(self, batch: Batch, noise: th.Tensor, ent_coef: th.Tensor) -> losses.ActorLoss:
        """`alpha c - Q`, through all steps of the path."""
        actions, cost = self.actor.action_and_cost(batch.observations, noise)
        q = self.critic.reduce(self.critic(batch.observations, actions))
        return losses.actor_loss(cost, q, ent_coef, actions)
