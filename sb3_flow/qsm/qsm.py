"""Q-score matching: a diffusion policy whose score is fitted to the critics' gradient."""

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule

from sb3_flow.common.buffers import Batch
from sb3_flow.common.checks import require_choice, require_number
from sb3_flow.common.compile import CompileMode
from sb3_flow.common.critics import CriticLoss, FlowCritic, critic_loss
from sb3_flow.common.diffusion import noised
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.common.schedules import BCCoef
from sb3_flow.datasets import DatasetSpec
from sb3_flow.qsm import losses
from sb3_flow.qsm.policies import DiffusionActor, QSMCnnPolicy, QSMPolicy


class Defaults(NamedTuple):
    """What the two weights are unless the user says otherwise."""

    q_coef: float  # of a gradient that is not normalised
    bc_coef: float


FROM_SCRATCH = Defaults(50.0, 0.0)  # the authors' code's
WITH_DATA = Defaults(1.0, 10.0)  # "QSM" of github.com/ColinQiyangLi/qam, on cube-double
# M_q for each diffusion step if the gradient is normalised: half of what overshoots where its slope is 1 (docs/qsm.md)
NORMALIZED_Q_COEF = 0.4


class QSM(OffPolicyFlowAlgorithm):
    """Q-score matching: the noise that a diffusion policy predicts is fitted to Q's gradient by the noised action.

    Paper: https://arxiv.org/abs/2312.11752, code: https://github.com/Alescontrela/score_matching_rl. With a `bc_coef`
    the same net is fitted to the data too, as https://github.com/ColinQiyangLi/qam has it for offline data. What is the
    policy's (diffusion steps, nets, critics) goes into `policy_kwargs`, see `sb3_flow.qsm.policies.QSMPolicy`;
    parameters without an explanation here are those of SB3's TD3.

    :param policy: "QSMPolicy", a class of this, or SB3's names for it
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
    :param q_coef: M_q >= 0, how strongly Q's gradient acts, an inverse temperature: higher is greedier; None for 0.4 a
        diffusion step with `normalize_gradient`, else for 50, the authors', or 1 with `offline_dataset`
    :param normalize_gradient: divide Q's gradient by its mean size, which makes `q_coef` matter alike on all tasks;
        None for True from scratch, unless a `q_coef` is given, and False with `offline_dataset`
    :param bc_coef: alpha >= 0, the weight of the diffusion model's own loss on the replayed actions: a float, a
        schedule, or two of these, for the offline and the online phase; None for 0, or 10 with `offline_dataset`
    :param exploration_noise: standard deviation >= 0 of the normal noise on actions in [-1, 1], when acting in training
        and in the critics' target
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
        "QSMPolicy": QSMPolicy,
        "MlpPolicy": QSMPolicy,
        "CnnPolicy": QSMCnnPolicy,
        "MultiInputPolicy": QSMPolicy,
    }
    policy_type: ClassVar[type[Any]] = QSMPolicy
    policy: QSMPolicy
    actor: DiffusionActor
    critic_target: FlowCritic

    def __init__(
        self,
        policy: str | type[QSMPolicy],
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
        q_coef: float | None = None,
        normalize_gradient: bool | None = None,
        bc_coef: BCCoef | None = None,
        exploration_noise: float = 0.1,
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
        defaults = FROM_SCRATCH if offline_dataset is None else WITH_DATA
        self.q_coef = q_coef
        self.normalize_gradient = normalize_gradient
        self.exploration_noise = exploration_noise
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
            bc_coef=defaults.bc_coef if bc_coef is None else bc_coef,
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
        require_choice("normalize_gradient", self.normalize_gradient, (None, False, True))
        require_number("exploration_noise", self.exploration_noise, 0, math.inf, "a number >= 0")
        if self.q_coef is not None:  # else it is settled with the nets, `normalize_gradient` too
            require_number("q_coef", self.q_coef, 0, math.inf, "a number >= 0")

    def _setup_model(self) -> None:
        super()._setup_model()
        self._complete_defaults()
        self._critic_loss_fn = self._compiled_loss(self._critic_loss)
        self._actor_loss_fn = self._compiled_loss(self._actor_loss)

    def _follow_arguments(self) -> None:
        super()._follow_arguments()
        self._complete_defaults()

    def _complete_defaults(self) -> None:
        if self.normalize_gradient is None:
            self.normalize_gradient = self.q_coef is None and self.offline_dataset is None
        if self.q_coef is None:
            defaults = FROM_SCRATCH if self.offline_dataset is None else WITH_DATA
            normalized = NORMALIZED_Q_COEF * self.actor.diffusion_steps
            self.q_coef = normalized if self.normalize_gradient else defaults.q_coef

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        bc_coef = self._bc_coef_now()
        for batch, log in self._batches(gradient_steps, batch_size):
            n = len(batch.actions)
            next_noise, exploration = self.actor.sample_noise(n), th.randn_like(batch.actions)
            self._update(self.critic, log, self._critic_loss_fn, batch, next_noise, exploration)
            self._update_target()
            steps, noise = self.actor.sample_steps(n), th.randn_like(batch.actions)
            self._update(self.actor, log, self._actor_loss_fn, batch, steps, noise, bc_coef)

    def _critic_loss(self, batch: Batch, next_noise: th.Tensor, exploration: th.Tensor) -> CriticLoss:
        """The TD error to the value of the policy that explores."""
        with th.no_grad():
            next_actions = self.actor.action(batch.next_observations, next_noise)
            next_actions = (next_actions + self.exploration_noise * exploration).clamp(-1, 1)
            next_q = self.critic_target.reduce(self.critic_target(batch.next_observations, next_actions))
        q = self.critic(batch.observations, batch.actions)
        return critic_loss(q, batch.rewards, batch.dones, batch.discounts, next_q, batch.valid)

    def _actor_loss(self, batch: Batch, steps: th.Tensor, noise: th.Tensor, bc_coef: th.Tensor) -> losses.ActorLoss:
        """Predicted noise against Q's gradient, and against the noise itself, in noised replayed actions."""
        actions = noised(batch.actions, noise, self.actor.alpha_bars[steps])
        gradient = self._action_gradient(batch.observations, actions)
        epsilon = self.actor.field(batch.observations)(actions, steps.to(actions.dtype))
        assert self.q_coef is not None
        assert self.normalize_gradient is not None
        return losses.actor_loss(
            epsilon, gradient, noise, self.q_coef, bc_coef, self.normalize_gradient, batch.in_episode
        )

    @th.no_grad()
    def _action_gradient(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Gradient of the critics' mean by the action, (B, D)."""
        features = self.critic.extract_features(obs, self.critic.features_extractor)

        def total(actions: th.Tensor) -> th.Tensor:
            return self.critic.judge(features, actions).mean(dim=0).sum()

        gradient: th.Tensor = th.func.grad(total)(actions)
        return gradient

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        actions, scaled = super()._sample_action(learning_starts, action_noise, n_envs)
        if self.num_timesteps < learning_starts:  # random
            return actions, scaled
        noise = np.random.normal(scale=self.exploration_noise, size=scaled.shape)
        scaled = np.clip(scaled + noise, -1, 1).astype(scaled.dtype)
        return self.policy.unscale_action(scaled), scaled
