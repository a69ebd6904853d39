"""Flow Q-learning, with single actions and with chunks of them."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_flow.common.buffers import Batch
from sb3_flow.common.checks import require, require_choice, require_integer
from sb3_flow.common.compile import CompileMode
from sb3_flow.common.critics import CriticLoss, FlowCritic
from sb3_flow.common.flow import Line, matching_error
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.common.schedules import BCCoef, PhaseSchedules, phase_schedules
from sb3_flow.datasets import DatasetSpec
from sb3_flow.fql import losses
from sb3_flow.fql.policies import BestOfNActor, FQLCnnPolicy, FQLPolicy, OneStepActor

DEFAULT_BC_COEF = 10.0  # the authors' code's


class FQL(OffPolicyFlowAlgorithm):
    """Flow Q-learning: a flow clones the data, a one-step policy is held to it for the same noise and maximises Q.

    Paper: https://arxiv.org/abs/2502.02538, code: https://github.com/seohongpark/fql. With `horizon_length` > 1 it is
    QC-FQL, with `best_of_n` too QC (https://arxiv.org/abs/2507.07969, https://github.com/ColinQiyangLi/qc). What is the
    policy's (flow steps, nets, critics) goes into `policy_kwargs`, see `sb3_flow.fql.policies.FQLPolicy`; parameters
    without an explanation here are those of SB3's TD3.

    :param policy: "FQLPolicy", a class of this, or SB3's names for it
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
    :param horizon_length: h >= 1, actions that are decided at once and executed open loop (Q-chunking)
    :param best_of_n: n samples of the behaviour flow, of which the one that the critics prefer acts, and is a' in their
        target; None for a one-step policy
    :param bc_coef: alpha >= 0, the weight of the distillation term: a float, a schedule, or two of these, for the
        offline and the online phase; None for 10. The right one depends on the scale of Q: the papers' are between 3
        and 30,000
    :param normalize_q_loss: divide the actor's Q by its mean size, which makes `bc_coef` matter alike on all tasks
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
        "FQLPolicy": FQLPolicy,
        "MlpPolicy": FQLPolicy,
        "CnnPolicy": FQLCnnPolicy,
        "MultiInputPolicy": FQLPolicy,
    }
    policy_type: ClassVar[type[Any]] = FQLPolicy
    policy: FQLPolicy
    actor: OneStepActor | BestOfNActor
    critic_target: FlowCritic

    def __init__(
        self,
        policy: str | type[FQLPolicy],
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
        best_of_n: int | None = None,
        bc_coef: BCCoef | None = None,
        normalize_q_loss: bool = False,
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
        self.best_of_n = best_of_n
        self.normalize_q_loss = normalize_q_loss
        self._has_one_step: bool | None = None  # None until there is a policy
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
        self._check_best_of_n()
        require_choice("normalize_q_loss", self.normalize_q_loss, (False, True))
        if self.best_of_n is not None:
            advice = "best_of_n has no one-step policy that it would concern; leave it at"
            require(self.bc_coef is None, "bc_coef", self.bc_coef, f"{advice} None")
            require(not self.normalize_q_loss, "normalize_q_loss", self.normalize_q_loss, f"{advice} False")
        super()._check_arguments()

    def _check_best_of_n(self) -> None:
        n = self.best_of_n
        if n is not None:
            require_integer("best_of_n", n)
        if self._has_one_step is None:
            given = self.policy_kwargs.get("best_of_n", n)
            require(given == n, "best_of_n", n, f"policy_kwargs say {given}; set it in FQL, not in policy_kwargs")
        else:
            advice = "a saved model with a one-step policy keeps it; one without may have any number, but not None"
            require(self._has_one_step == (n is None), "best_of_n", n, advice)

    def _follow_arguments(self) -> None:
        super()._follow_arguments()
        built = self.policy.best_of_n
        advice = f"the policy draws {built}; save the model and give another number to `load`"
        require(self.best_of_n == built, "best_of_n", self.best_of_n, advice)

    def _phase_schedules(self) -> PhaseSchedules:
        if self.best_of_n is not None:
            return phase_schedules(0.0)
        return phase_schedules(DEFAULT_BC_COEF if self.bc_coef is None else self.bc_coef)

    def _complete_arguments(self) -> None:
        super()._complete_arguments()
        if self.best_of_n is not None:
            self.policy_kwargs = {**self.policy_kwargs, "best_of_n": self.best_of_n}

    def _setup_model(self) -> None:
        super()._setup_model()
        self._has_one_step = self.best_of_n is None
        self._next_actions_fn = self._compiled(self._next_actions)
        self._critic_loss_fn = self._compiled_loss(self._critic_loss)
        self._actor_loss_fn = self._compiled_loss(self._actor_loss)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        bc_coef = self._bc_coef_now()
        for batch, log in self._batches(gradient_steps, batch_size):
            n = len(batch.actions)
            # The papers take both gradients before any net moves. With a' known the critic's no longer depends on the
            # actor, and the actor's comes before the critic's step
            self.policy.set_training_mode(False)
            with th.no_grad():
                next_actions = self._next_actions_fn(batch, self.actor.sample_noise(n)).clone()
            line = self.actor.sample_line(n)
            noise = None if self.best_of_n is not None else self.actor.sample_noise(n)
            self._update(self.actor, log, self._actor_loss_fn, batch, line, noise, bc_coef)
            self._update(self.critic, log, self._critic_loss_fn, batch, next_actions)
            self._update_target()

    def _next_actions(self, batch: Batch, noise: th.Tensor) -> th.Tensor:
        """a' of the critics' target, (B, D)."""
        with self._autocast():
            return self.actor.action(self.policy.encoded(batch).next_observations, noise)

    def _critic_loss(self, batch: Batch, next_actions: th.Tensor) -> CriticLoss:
        """The TD error."""
        with th.no_grad():
            next_q = self.critic_target.reduce(self.critic_target(batch.next_observations, next_actions))
        q = self.critic(batch.observations, batch.actions)
        return losses.critic_loss(q, batch.rewards, batch.dones, batch.discounts, next_q, batch.valid)

    def _actor_loss(self, batch: Batch, line: Line, noise: th.Tensor | None, bc_coef: th.Tensor) -> losses.ActorLoss:
        """Flow matching; with noise for a one-step policy its distillation and Q too."""
        velocity = self.actor.field(batch.observations)
        error = matching_error(velocity, batch.actions, line, "raw")
        matching = losses.matching_loss(error, batch.in_episode)
        if noise is None:
            return matching
        assert isinstance(self.actor, OneStepActor)
        with th.no_grad():
            flow_actions = self.actor.flow_actions(velocity, noise)
        actions = self.actor.mu(batch.observations, noise)
        q = self.critic.reduce(self.critic(batch.observations, actions.clamp(-1, 1)))
        return losses.actor_loss(matching, actions, flow_actions, q, bc_coef, self.normalize_q_loss)
