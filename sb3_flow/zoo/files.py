"""The zoo's checkpoints and statistics as files that survive a kill, and runs that go on from them."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from rl_zoo3.callbacks import SaveVecNormalizeCallback
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.callbacks import CheckpointCallback as SB3CheckpointCallback

from sb3_flow.common.checkpoints import CheckpointCallback
from sb3_flow.common.files import write_pickle

VECNORMALIZE = "vecnormalize.pkl"


class SaveStatistics(SaveVecNormalizeCallback):
    """The zoo's callback for VecNormalize's statistics, which replaces the file in one move."""

    def _on_step(self) -> bool:
        save_statistics(self.model, self.save_path)
        return True


def save_statistics(model: Any, folder: str | PathLike[str]) -> None:
    """Save VecNormalize's statistics under the zoo's name, if the model has any."""
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        write_pickle(Path(folder) / VECNORMALIZE, normalize)


def surviving(callbacks: Sequence[BaseCallback], save_path: str, save_replay_buffer: bool) -> list[BaseCallback]:
    """The zoo's callbacks, with those that save replaced by ours; the user's are left as they are.

    :param callbacks: of ExperimentManager
    :param save_path: the run's folder, into which the zoo's own saves
    :param save_replay_buffer: whether `--save-replay-buffer` was given
    """
    ours: list[BaseCallback] = []
    for callback in callbacks:
        if type(callback) is SB3CheckpointCallback and callback.save_path == save_path:
            callback = CheckpointCallback(
                callback.save_freq,
                callback.save_path,
                callback.name_prefix,
                keep_models=True,  # `enjoy --load-checkpoint` plays any of them
                save_replay_buffer=save_replay_buffer,
                verbose=callback.verbose,
            )
        elif isinstance(callback, EvalCallback) and type(callback.callback_on_new_best) is SaveVecNormalizeCallback:
            callback.callback_on_new_best = SaveStatistics(1, callback.callback_on_new_best.save_path)
            callback.callback_on_new_best.parent = callback
        ours.append(callback)
    return ours


class GoingOn:
    """A resumed model as the zoo's `learn` sees it: its timesteps are those of the whole run.

    :param model: the model
    """

    def __init__(self, model: BaseAlgorithm):
        self.model = model
        self.env = model.env

    def learn(self, total_timesteps: int, **kwargs: Any) -> None:
        """Make what is left of them."""
        self.model.learn(total_timesteps - self.model.num_timesteps, reset_num_timesteps=False, **kwargs)
