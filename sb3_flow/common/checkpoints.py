"""Checkpoints that a killed run goes on from: model, phase and generators, replay buffer, VecNormalize's statistics."""

import glob
import pickle
import random
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback as SB3CheckpointCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_normalize

from sb3_flow.common.buffers import same_shapes
from sb3_flow.common.checks import require, require_integer
from sb3_flow.common.files import remove_leftovers, write_pickle
from sb3_flow.common.normalize import TAUGHT
from sb3_flow.datasets.observations import as_seen, leaves

MODEL = re.compile(r"(?P<prefix>.+)_(?P<steps>\d+)_steps\.zip")
RETURNS = "returns_at_checkpoint"  # attribute of a saved VecNormalize: SB3 leaves out the running returns


class Generators(NamedTuple):
    """States of all random generators that learning draws from, but those inside of environments."""

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    torch: th.Tensor
    cuda: Sequence[th.Tensor]
    actions: dict[str, Any]  # of the action space, for the random actions at the start

    @classmethod
    def now(cls, action_space: spaces.Space[Any]) -> "Generators":
        """Their states of this moment."""
        cuda = th.cuda.get_rng_state_all() if th.cuda.is_available() else []
        actions = action_space.np_random.bit_generator.state
        return cls(random.getstate(), np.random.get_state(legacy=False), th.get_rng_state(), cuda, actions)  # type: ignore[arg-type]

    def restore(self, action_space: spaces.Space[Any]) -> None:
        """Put all of them back into these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        th.set_rng_state(self.torch)
        if len(self.cuda) == th.cuda.device_count():
            th.cuda.set_rng_state_all(self.cuda)
        action_space.np_random.bit_generator.state = self.actions


class Checkpoint(NamedTuple):
    """The files of one checkpoint, under SB3's names; the model's is written last and removed first."""

    folder: Path
    prefix: str
    steps: int

    @property
    def model(self) -> Path:
        return self.folder / f"{self.prefix}_{self.steps}_steps.zip"

    @property
    def replay_buffer(self) -> Path:
        return self.folder / f"{self.prefix}_replay_buffer_{self.steps}_steps.pkl"

    @property
    def vecnormalize(self) -> Path:
        return self.folder / f"{self.prefix}_vecnormalize_{self.steps}_steps.pkl"

    def remove(self) -> None:
        for path in (self.model, self.replay_buffer, self.vecnormalize):
            path.unlink(missing_ok=True)


def checkpoint_of(model: str | PathLike[str]) -> Checkpoint | None:
    """The checkpoint that a model's file belongs to; None for one with another name."""
    path = Path(model)
    match = MODEL.fullmatch(path.name)
    return None if match is None else Checkpoint(path.parent, match["prefix"], int(match["steps"]))


def checkpoints(folder: str | PathLike[str], prefix: str | None = None) -> list[Checkpoint]:
    """The whole checkpoints of a folder, oldest first.

    :param folder: where a `CheckpointCallback` saves
    :param prefix: of their names; None for any
    """
    found = [checkpoint for path in Path(folder).glob("*_steps.zip") if (checkpoint := checkpoint_of(path)) is not None]
    return sorted(
        (checkpoint for checkpoint in found if prefix in (None, checkpoint.prefix)),
        key=lambda checkpoint: checkpoint.steps,
    )


def unfinished(folder: str | PathLike[str], prefix: str) -> list[Checkpoint]:
    """The checkpoints of a folder whose model is missing, as a kill or a full disk leaves them.

    :param folder: where a `CheckpointCallback` saves
    :param prefix: of their names
    """
    name = re.compile(rf"{re.escape(prefix)}_(replay_buffer|vecnormalize)_(?P<steps>\d+)_steps\.pkl")
    matches = [match for path in Path(folder).glob("*_steps.pkl") if (match := name.fullmatch(path.name)) is not None]
    begun = [Checkpoint(Path(folder), prefix, steps) for steps in {int(match["steps"]) for match in matches}]
    return [checkpoint for checkpoint in begun if not checkpoint.model.exists()]


def newest_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """The checkpoint to go on from.

    :param path: a folder with checkpoints, or one checkpoint's model
    :raises ValueError: if there is none
    """
    found = [checkpoint_of(path)] if Path(path).is_file() else checkpoints(path)
    advice = "there is no whole checkpoint; give the save_path of a CheckpointCallback, or a model's file in it"
    require(bool(found) and found[-1] is not None, "path", str(path), advice)
    checkpoint = found[-1]
    assert checkpoint is not None
    return checkpoint


class CheckpointCallback(SB3CheckpointCallback):
    """SB3's CheckpointCallback, whose files survive a kill, and whose runs go on: `model.resume(save_path, env)`.

    A checkpoint is made between a step and the next, when the last one is stored and learned from: one call later than
    SB3's, or once the rollout is complete and learned from, on-policy and with a train_freq above 1. It holds the
    replay buffer and VecNormalize's statistics too, and older ones are removed once it is whole.

    :param save_freq: calls between two checkpoints: steps of the environment for each of several, as in SB3
    :param save_path: folder of one run
    :param name_prefix: of the files' names
    :param keep: how many of the newest are kept, >= 1; None for all
    :param keep_models: keep the models of the older ones and the statistics that they play with, without the buffers
    :param save_replay_buffer: with the replay buffer, if there is one
    :param save_vecnormalize: with VecNormalize's statistics, if there is one
    :param verbose: 2 to print what is saved
    :raises ValueError: for numbers outside of these, and when learning starts, if the folder has checkpoints of a run
        that was further
    """

    def __init__(
        self,
        save_freq: int,
        save_path: str | PathLike[str],
        name_prefix: str = "rl_model",
        keep: int | None = 2,
        keep_models: bool = False,
        save_replay_buffer: bool = True,
        save_vecnormalize: bool = True,
        verbose: int = 0,
    ):
        require_integer("save_freq", save_freq)
        if keep is not None:
            require_integer("keep", keep)
        super().__init__(save_freq, str(save_path), name_prefix, save_replay_buffer, save_vecnormalize, verbose)
        self.keep = keep
        self.keep_models = keep_models
        self._saved_at = -1  # timesteps of the newest checkpoint

    def _on_training_start(self) -> None:
        there = checkpoints(self.save_path, self.name_prefix)
        further = [checkpoint.model.name for checkpoint in there if checkpoint.steps > self.model.num_timesteps]
        advice = (
            f"it has checkpoints of a run that was further ({', '.join(further)}): resume that, or take a new folder; "
            "if this model is that run's, learn with reset_num_timesteps=False"
        )
        require(not further, "save_path", self.save_path, advice)

    def _on_step(self) -> bool:
        if self.n_calls % self.save_freq == 0:
            model: Any = self.model
            model.call_between_steps(self._save)
        return True

    def _save(self) -> None:
        model: Any = self.model
        # The model's own number: inside of another callback ours may be that of an earlier step
        if model.num_timesteps == self._saved_at:  # on-policy several calls may have waited for the end of one rollout
            return
        self._saved_at = model.num_timesteps
        checkpoint = Checkpoint(Path(self.save_path), self.name_prefix, model.num_timesteps)
        if self.save_replay_buffer and hasattr(model, "save_replay_buffer"):
            model.save_replay_buffer(checkpoint.replay_buffer)
        normalize = model.get_vec_normalize_env()
        if self.save_vecnormalize and normalize is not None:
            setattr(normalize, RETURNS, normalize.returns.copy())
            write_pickle(checkpoint.vecnormalize, normalize)
        model.save_checkpoint(checkpoint.model)
        if self.verbose >= 2:
            print(f"Saved the checkpoint {checkpoint.model}")
        remove_leftovers(checkpoint.folder, f"{glob.escape(self.name_prefix)}_*_steps.*")
        if self.keep is not None:
            self._remove_old(self.keep)

    def _remove_old(self, keep: int) -> None:
        whole = checkpoints(self.save_path, self.name_prefix)
        for old in whole[:-keep]:
            if self.keep_models:
                old.replay_buffer.unlink(missing_ok=True)
            else:
                old.remove()
        for begun in unfinished(self.save_path, self.name_prefix):
            if begun.steps < whole[-1].steps:
                begun.remove()


def _load_around(env: VecEnv, path: Path) -> VecNormalize:
    """A VecNormalize that was saved, around an environment, whose images get channels first if it knows such."""
    with path.open("rb") as file:
        saved: VecNormalize = pickle.load(file)
    known, shown = saved.observation_space, env.observation_space
    if not same_shapes(known, shown) and same_shapes(known, as_seen(shown)):
        env = VecTransposeImage(env)
    shown = env.observation_space
    alike = leaves(known).keys() == leaves(shown).keys() and (
        isinstance(known, spaces.Dict) or same_shapes(known, shown)
    )
    require(alike, "env", shown, f"the VecNormalize of {path} is one of {known}")
    saved.set_venv(env)
    return saved


def with_statistics(env: VecEnv, path: Path) -> VecEnv:
    """An environment that is normalised as at a checkpoint.

    :param env: with or without a VecNormalize; one that is there keeps its settings and takes the statistics
    :param path: of the saved VecNormalize
    """
    there = unwrap_vec_normalize(env)
    saved = _load_around(env if there is None else there.venv, path)
    normalize = saved if there is None else there
    for name in ("obs_rms", "ret_rms", TAUGHT):
        if name in vars(saved):
            setattr(normalize, name, getattr(saved, name))
    returns = vars(saved).get(RETURNS)
    if returns is not None and returns.shape == normalize.returns.shape:
        normalize.returns = returns.copy()  # of episodes that go on; a reset forgets them
    return saved if there is None else env
