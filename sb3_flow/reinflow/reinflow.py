"""ReinFlow: PPO on the paths of a flow policy."""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.common.utils import explained_variance, obs_as_tensor, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_flow.common.checks import as_integer, check_finite, require, require_choice, require_number
from sb3_flow.common.compile import COMPILE_MODES, CompileMode
from sb3_flow.common.encoding import n_observations
from sb3_flow.common.guard import Guard
from sb3_flow.common.interventions import refuse_interventions
from sb3_flow.common.log import Log
from sb3_flow.common.schedules import as_schedule
from sb3_flow.common.shift import check_shift
from sb3_flow.common.updates import Descent, L
from sb3_flow.datasets import DatasetSpec
from sb3_flow.reinflow import losses
from sb3_flow.reinflow.buffers import Decisions, PathRolloutBuffer
from sb3_flow.reinflow.chain import highest_std
from sb3_flow.reinflow.networks import ValueNet
from sb3_flow.reinflow.policies import ReinFlowActor, ReinFlowCnnPolicy, ReinFlowPolicy
from sb3_flow.reinflow.pretraining import PretrainedAlgorithm

# Attributes that are whole numbers, and the lowest that they may be
SIZES = {
    "n_steps": 1,
    "batch_size": 2,  # advantages are normalised
    "n_epochs": 1,
    "horizon_length": 1,
    "critic_warmup": 0,
    "offline_steps": 0,
    "offline_batch_size": 2,
    "random_shift": 0,
    "_stats_window_size": 1,
}
# Those that are numbers in [0, 1]
SHARES = ("gamma", "gae_lambda", "noise_hold", "noise_decay")


class ReinFlow(PretrainedAlgorithm):
    """Fine-tunes a flow policy by PPO over the Markov chain that noise in its steps makes of it.

    Paper: https://arxiv.org/abs/2505.22094, code: https://github.com/ReinFlow/ReinFlow. The flow is cloned from data
    first (`offline_dataset`, or `pretrain`), or is another model's (`start_from`). What is the policy's (flow steps,
    bounds of the noise, nets) goes into `policy_kwargs`, see `sb3_flow.reinflow.policies.ReinFlowPolicy`; parameters
    without an explanation here are those of SB3's PPO.

    :param policy: "ReinFlowPolicy", a class of this, or SB3's names for it
    :param env: the environment, with a bounded Box action space
    :param learning_rate: of the actor in fine-tuning; a float or a schedule of the progress remaining, from 1 to 0
    :param n_steps: steps of each environment in a rollout, whether they decide a chunk or execute one
    :param batch_size: decisions per update, >= 2
    :param n_epochs: passes over a rollout
    :param gamma: discount factor of a single step, in [0, 1]
    :param gae_lambda: lambda of generalized advantage estimation, of a decision
    :param clip_range: of the ratio of two densities of a path, each per number in it; a float or a schedule
    :param vf_learning_rate: of the value net, as `learning_rate`
    :param ent_coef: weight of the entropy per number in a path
    :param target_kl: end the updates from a rollout once an update's KL divergence was above it; None for never
    :param horizon_length: h >= 1, actions that are decided at once and executed open loop
    :param critic_warmup: rollouts at the start from which the value net alone learns
    :param noise_hold: share of training after which the upper bound of the noise begins to fall
    :param noise_decay: share of the way from the lower to the upper bound at which it ends; 1 for a constant bound
    :param offline_dataset: data to clone: a path, a string such as "robomimic:lift/mh", a dict of arrays, or
        a dataset, see `sb3_flow.datasets.load_dataset`
    :param offline_steps: timesteps at the start of training that are updates from these data, without the environment
    :param offline_batch_size: chunks per update from data
    :param offline_learning_rate: of the updates from data; it falls to a tenth along half a cosine
    :param random_shift: pixels by which each image of the data is moved at most, at random (DrQ-v2: 4 of 84); 0 for
        images as they are, which those of fine-tuning always are
    :param compile: True for torch.compile of losses and acting, with CUDA graphs on CUDA; "max" to compile longer
        for faster code (docs/speed.md)
    :param stats_window_size: episodes that the logged return is averaged over
    :param tensorboard_log: folder of the TensorBoard log
    :param policy_kwargs: arguments of the policy
    :param verbose: 0 nothing, 1 information, 2 debugging
    :param seed: of all random generators
    :param device: "auto", "cpu", "cuda", ...
    :raises ValueError: before training, for arguments outside of what is stated here
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "ReinFlowPolicy": ReinFlowPolicy,
        "MlpPolicy": ReinFlowPolicy,
        "CnnPolicy": ReinFlowCnnPolicy,
        "MultiInputPolicy": ReinFlowPolicy,
    }
    policy_type: ClassVar[type[Any]] = ReinFlowPolicy
    policy: ReinFlowPolicy  # type: ignore[assignment]
    actor: ReinFlowActor
    critic: ValueNet
    rollout_buffer: PathRolloutBuffer  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[ReinFlowPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 4.5e-5,
        n_steps: int = 2048,
        batch_size: int = 256,
        n_epochs: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.01,
        *,
        vf_learning_rate: float | Schedule = 6.5e-4,
        ent_coef: float = 0.03,
        target_kl: float | None = None,
        horizon_length: int = 1,
        critic_warmup: int = 0,
        noise_hold: float = 0.35,
        noise_decay: float = 0.7,
        offline_dataset: DatasetSpec | None = None,
        offline_steps: int = 0,
        offline_batch_size: int = 128,
        offline_learning_rate: float = 1e-3,
        random_shift: int = 0,
        compile: CompileMode = False,
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
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=1.0,  # the value net has its own optimizer
            max_grad_norm=float("inf"),
            use_sde=False,
            sde_sample_freq=-1,
            offline_dataset=offline_dataset,
            offline_steps=offline_steps,
            offline_batch_size=offline_batch_size,
            offline_learning_rate=offline_learning_rate,
            random_shift=random_shift,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self._check_policy_class()
        self.vf_learning_rate = vf_learning_rate
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.target_kl = target_kl
        self.horizon_length = horizon_length
        self.critic_warmup = critic_warmup
        self.noise_hold = noise_hold
        self.noise_decay = noise_decay
        self.compile = compile
        self._n_rollouts = 0  # that were learned from
        if _init_setup_model:
            self._check_env(env)
            advice = "no update would be made from the data; say how many, or leave them out and call pretrain"
            require(offline_dataset is None or offline_steps > 0, "offline_steps", offline_steps, advice)
            self._setup_model()
            self._load_dataset()

    def _check_arguments(self) -> None:
        for name, lowest in SIZES.items():
            setattr(self, name, as_integer(name.removeprefix("_"), self.__dict__[name], lowest))
        check_shift(self.random_shift, self.observation_space, self.policy_kwargs)
        for name in SHARES:
            require_number(name, getattr(self, name), 0, 1, "a number in [0, 1]")
        positive = {"ent_coef": self.ent_coef, "offline_learning_rate": self.offline_learning_rate}
        positive |= {} if self.target_kl is None else {"target_kl": self.target_kl}
        for name, value in positive.items():
            require_number(name, value, 0, float("inf"), "a number >= 0")
        for name in ("learning_rate", "vf_learning_rate", "clip_range"):
            self._check_learning_rate(name)
        require_choice("compile", self.compile, COMPILE_MODES)
        h, built_for = self.horizon_length, self.policy_kwargs.get("horizon_length", self.horizon_length)
        advice = f"the policy's is {built_for}; set it in ReinFlow, not in policy_kwargs and not when loading"
        require(built_for == h, "horizon_length", h, advice)
        decisions = -(-self.n_steps // h) * self.n_envs
        advice = f"{decisions} decision in a rollout has no advantage over others; choose more steps or environments"
        require(decisions > 1, "n_steps", self.n_steps, advice)

    def _setup_model(self) -> None:
        self._check_arguments()
        self.policy_kwargs = {**self.policy_kwargs, "horizon_length": self.horizon_length}
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)
        self.policy = policy.to(self.device)  # type: ignore[assignment]
        self.actor, self.critic = self.policy.actor, self.policy.critic
        self._set_up_rollouts()
        self._guard, self._recorded = Guard(self.device), {}
        self.actor.action_fn = self._compiled(self.actor.action)
        self._path_fn = self._compiled(self._path)
        self._policy_loss_fn = self._compiled_loss(self._policy_loss)
        self._value_loss_fn = self._compiled_loss(self._value_loss)
        self._set_up_cloning()

    def _follow_arguments(self) -> None:
        self._check_arguments()
        self._check_compile()
        self._follow_learning_rate()
        self._forget_stale_graphs()
        self._set_up_rollouts()

    def _set_up_rollouts(self) -> None:
        """What the arguments make that a rollout and the learning from it use."""
        self.vf_schedule, self.clip_schedule = as_schedule(self.vf_learning_rate), as_schedule(self.clip_range)
        self.rollout_buffer = PathRolloutBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            self.device,
            self.gamma,
            self.gae_lambda,
            self.n_envs,
            (self.policy.flow_steps + 1, self.policy.chunk_dim),
        )

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: PathRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        self._call_between_steps()
        if self.is_offline and not self._clone(callback):
            return False
        if self.num_timesteps >= self._total_timesteps:
            return False
        self._train_by("fine-tuning")
        self.policy.set_training_mode(False)
        low, high = self.policy.noise_std_range
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)  # SB3's is of the run before
        done = 1 - self._current_progress_remaining
        self.actor.bound_noise(highest_std(low, high, done, self.noise_hold, self.noise_decay))
        rollout_buffer.reset()
        callback.on_rollout_start()
        dones = self._roll_out(env, callback, rollout_buffer, n_rollout_steps)
        if dones is None:
            self._last_obs = None  # the last step was not stored: a later `learn` has to start with a reset
            return False
        self._judge(rollout_buffer, dones)
        callback.on_rollout_end()
        return True

    def _roll_out(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: PathRolloutBuffer, n_rollout_steps: int
    ) -> NDArray[np.bool_] | None:
        """Fill the buffer. Returns which episodes ended with the last step; None if the callback stopped it before."""
        h, n_envs = self.horizon_length, env.num_envs
        # The chunks of the last rollout are left where it ended: its returns say so, too
        executed = np.full(n_envs, h)
        chunks = np.zeros((n_envs, h, *self.policy.action_space.shape), np.float32)
        paths = np.zeros((n_envs, *rollout_buffer.path_shape), np.float32)
        for _ in range(n_rollout_steps):
            # An environment may write its next observation into this array, and it is not stored yet
            self._last_obs = deepcopy(self._last_obs)
            assert self._last_obs is not None
            starts = np.asarray(self._last_episode_starts, np.bool_)
            decided = starts | (executed == h)
            if decided.any():
                points, actions = self._decide()
                paths[decided] = points[decided]
                chunks[decided] = actions.reshape(chunks.shape)[decided]
                executed[decided] = 0
            actions = self.policy.unscale_action(chunks[np.arange(n_envs), executed])
            executed += 1
            new_obs, rewards, dones, infos = env.step(actions)
            self.num_timesteps += n_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return None
            refuse_interventions(infos)
            self._update_info_buffer(infos, dones)
            rewards = rewards + self._after_time_limits(dones, infos)
            rollout_buffer.add(self._last_obs, rewards, starts, decided, paths)
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        return np.asarray(self._last_episode_starts, np.bool_)

    def _decide(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """A path in every environment, (E, K + 1, D), and the actions in [-1, 1] that they end in, (E, D)."""
        obs = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
        with th.no_grad():
            points = self._path_fn(obs, self.actor.sample_noise(n_observations(obs)))
            actions = self.actor.ends(points[-1])
        return points.transpose(0, 1).cpu().numpy(), actions.cpu().numpy()

    def _path(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        return self.actor.path(obs, noise)

    def _after_time_limits(self, dones: NDArray[np.bool_], infos: list[dict[str, Any]]) -> NDArray[np.float32]:
        """What the states are worth, discounted, in which time limits ended episodes; 0 for other environments."""
        worth = np.zeros(len(dones), np.float32)
        for i in np.flatnonzero(dones):
            if infos[i].get("TimeLimit.truncated", False):
                obs, _ = self.policy.obs_to_tensor(infos[i]["terminal_observation"])
                with th.no_grad():
                    worth[i] = self.gamma * self.critic(obs).item()
        return worth

    def _judge(self, rollout_buffer: PathRolloutBuffer, dones: NDArray[np.bool_]) -> None:
        """Advantages of the rollout's decisions, and how likely they were, under the parameters that made them."""
        values, log_probs = [], []
        with th.no_grad():
            for start in range(0, len(rollout_buffer), self.batch_size):
                rows = np.arange(start, min(start + self.batch_size, len(rollout_buffer)))
                obs, paths = rollout_buffer.decisions(rows)
                check_finite("rollout", observations=obs, paths=paths)
                values.append(self.critic(obs))
                log_probs.append(self.actor.score(obs, paths.transpose(0, 1)).log_prob)
            last_values = self.critic(obs_as_tensor(self._last_obs, self.device))  # type: ignore[arg-type]
        rewards, of_decisions = th.as_tensor(rollout_buffer.rewards), th.cat(values)
        check_finite("rollout", values=of_decisions, last_values=last_values, rewards=rewards)
        of_values, of_paths, last = (x.cpu().numpy() for x in (of_decisions, th.cat(log_probs), last_values))
        rollout_buffer.finish(of_values, of_paths, last, dones)

    def train(self) -> None:
        clip = self._value_now("clip_range", self.clip_schedule)
        self.logger.record("train/clip_range", clip)
        clip_range = th.tensor(clip, device=self.device)
        self._update_learning_rates()
        actor_learns = self._n_rollouts >= self.critic_warmup
        log, start, before = Log(), time.perf_counter(), self._n_updates
        self._guard.begin()
        for batch in self._batches():
            self._guard.update = self._n_updates
            if actor_learns:
                result = self._update(self.actor, log, self._policy_loss_fn, batch, clip_range)
                if self.target_kl is not None and result.approx_kl > self.target_kl:
                    break
            self._update(self.critic, log, self._value_loss_fn, batch)
            self._n_updates += 1
        self._stop_if_bad()
        self._n_rollouts += 1
        self._record(log, (self._n_updates - before) / (time.perf_counter() - start))

    def _batches(self) -> Iterator[Decisions]:
        """The rollout's decisions, `n_epochs` times."""
        for _ in range(self.n_epochs):
            yield from self.rollout_buffer.batches(self.batch_size)

    def _update(self, net: BaseModel, log: Log, loss_fn: Callable[..., Descent[L]], *args: Any) -> L:
        """One step of a net on a loss, unless this or an earlier one is not finite."""
        # The actor stays in evaluation mode: statistics of a batch would change densities that a rollout had without
        self.actor.set_training_mode(False)
        self.critic.set_training_mode(net is self.critic)
        return self._step("actor" if net is self.actor else "critic", net, log, loss_fn, *args)

    def _policy_loss(self, batch: Decisions, clip_range: th.Tensor) -> losses.PolicyLoss:
        """PPO's loss of the actor, whose likelihood is that of whole paths."""
        score = self.actor.score(batch.observations, batch.paths.transpose(0, 1))
        return losses.policy_loss(score, batch.old_log_prob, batch.advantages, clip_range, self.ent_coef)

    def _value_loss(self, batch: Decisions) -> losses.ValueLoss:
        return losses.value_loss(self.critic(batch.observations), batch.returns)

    def _update_learning_rates(self) -> None:
        self._update_learning_rate(self.actor.optimizer)
        rate = self._value_now("vf_learning_rate", self.vf_schedule)
        update_learning_rate(self.critic.optimizer, rate)
        self.logger.record("train/vf_learning_rate", rate)

    def _record(self, log: Log, updates_per_second: float) -> None:
        log.record(self.logger)
        buffer = self.rollout_buffer
        self.logger.record("train/explained_variance", explained_variance(buffer.values, buffer.returns))
        self.logger.record("train/highest_std", self.actor.high.exp().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/fps", updates_per_second)
