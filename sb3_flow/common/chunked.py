"""Actions that are decided in chunks and executed open loop, and the buffers that they are learned from."""

from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise

from sb3_flow.common.buffers import ChunkDictReplayBuffer, ChunkReplayBuffer, ChunkSampling
from sb3_flow.common.checks import require
from sb3_flow.common.interventions import executed
from sb3_flow.common.persistence import PersistentOffPolicyAlgorithm


class ChunkedAlgorithm(PersistentOffPolicyAlgorithm):
    """An off-policy algorithm that may decide several actions at once (Q-chunking, arXiv 2507.07969).

    :param horizon_length: h >= 1, actions that are decided at once and executed open loop; 1 for no chunks
    :raises ValueError: for what does not go with chunks

    The other parameters are those of SB3's OffPolicyAlgorithm.
    """

    def __init__(self, *args: Any, horizon_length: int = 1, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.horizon_length = horizon_length
        self._chunk_state: tuple[NDArray[Any], ...] | None = None
        self._built_horizon: int | None = None  # that of the policy
        self._was_taken_over = False  # in one step at least
        self._n_steps_logged = self._n_taken_over = 0  # steps since the last row of the log, and those of them

    def _check_chunks(self) -> None:
        h, buffer = self.horizon_length, self.replay_buffer_class
        built_for = self.policy_kwargs.get("horizon_length", self._built_horizon or h)
        name = type(self).__name__
        advice = f"the policy's is {built_for}; set it in {name}, not in policy_kwargs and not when loading"
        require(built_for == h, "horizon_length", h, advice)
        if h == 1:
            return
        hindsight = buffer is not None and issubclass(buffer, HerReplayBuffer)
        require(not hindsight, "horizon_length", h, "HerReplayBuffer relabels single steps; use horizon_length=1")
        chunks = buffer is None or issubclass(buffer, ChunkSampling)
        advice = f"horizon_length={h} needs a buffer of sb3_flow.common.buffers, or None"
        require(chunks, "replay_buffer_class", buffer, advice)
        advice = f"the return of a chunk is that of horizon_length={h} steps"
        require(self.n_steps == 1, "n_steps", self.n_steps, advice)
        require(self.action_noise is None, "action_noise", self.action_noise, "a chunk is executed as it was decided")

    def _complete_arguments(self) -> None:
        """Give the policy the chunk's length, and the buffer that, n_steps and gamma as they are now."""
        buffer = self.replay_buffer_class
        if buffer in (ReplayBuffer, NStepReplayBuffer):
            # A saved model has SB3's choice for the n_steps and gamma of then
            self.replay_buffer_class = None
            self.replay_buffer_kwargs = _without_returns(self.replay_buffer_kwargs)
        if self.horizon_length == 1 and not (buffer is not None and issubclass(buffer, ChunkSampling)):
            return
        self.policy_kwargs = {**self.policy_kwargs, "horizon_length": self.horizon_length}
        if buffer is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.replay_buffer_class = ChunkDictReplayBuffer if is_dict else ChunkReplayBuffer
        chunks = {"horizon_length": self.horizon_length, "gamma": self.gamma}
        self.replay_buffer_kwargs = {**self.replay_buffer_kwargs, **chunks}

    def _adopt_n_steps(self) -> None:
        """Let `n_steps` be the one number of the kind, where the user gave it to SB3's buffer."""
        kind = self.replay_buffer_class
        if kind is None or not issubclass(kind, NStepReplayBuffer):
            return
        given = self.replay_buffer_kwargs
        n_steps = given.get("n_steps", self.n_steps)
        same = self.n_steps in (1, n_steps) and given.get("gamma", self.gamma) == self.gamma
        advice = f"{type(self).__name__} hands its own n_steps and gamma to the buffer; give them there alone"
        require(same and ("n_steps" in given or self.n_steps > 1), "replay_buffer_kwargs", given, advice)
        self.n_steps, self.replay_buffer_kwargs = n_steps, _without_returns(given)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        # An environment may write its next observation into this array, and it is not stored yet
        self._last_obs = deepcopy(self._last_obs)
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
        assert isinstance(self.action_space, spaces.Box)
        actions, taken_over = executed(buffer_action, infos, self.action_space)
        super()._store_transition(replay_buffer, actions, new_obs, reward, dones, infos)
        # Empties the queues of the environments that were reset, or where another hand led elsewhere
        self._last_episode_starts = np.logical_or(dones, taken_over)
        self._n_steps_logged += len(taken_over)
        self._n_taken_over += int(taken_over.sum())

    def dump_logs(self) -> None:
        self._was_taken_over |= self._n_taken_over > 0
        if self._was_taken_over and self._n_steps_logged > 0:
            self.logger.record("rollout/intervention_rate", self._n_taken_over / self._n_steps_logged)
        self._n_taken_over = self._n_steps_logged = 0
        super().dump_logs()


def _without_returns(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a buffer, but n_steps and gamma, which are the model's."""
    return {name: value for name, value in kwargs.items() if name not in ("n_steps", "gamma")}
