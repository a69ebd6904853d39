"""Kills a process that learns and saves, at random moments, and counts what cannot be read afterwards.

    python benchmarks/kills.py --kills 100

Each of four runs (Flow-T, FQL, chunks with several environments, an offline phase; all with VecNormalize) has a folder
and goes on from it after every kill. In it the model and the replay buffer are saved by name, and a CheckpointCallback
saves as well. After each kill all files must load, and no more may be lost than what was learned since the last save.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from arguments import positive
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow import FQL, SACFlow
from sb3_flow.common.checkpoints import CheckpointCallback, checkpoints
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

MODEL, BUFFER, SAVED = "model.zip", "buffer.pkl", "saved.txt"
EVERY = 6  # calls between two saves
LONGEST = 1.5  # seconds that a process lives
ROWS = 60  # of the data


class CountingEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Shows the number of the step; ten steps an episode."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.full(3, self.t, np.float32), {}

    def step(self, action: NDArray[np.float32]) -> Any:
        self.t += 1
        return np.full(3, self.t, np.float32), -float(np.square(action).sum()), False, self.t >= 10, {}


class Subject(NamedTuple):
    """What is killed."""

    algorithm: type[OffPolicyFlowAlgorithm]
    n_envs: int
    arguments: dict[str, Any]


def data() -> dict[str, NDArray[Any]]:
    """Steps of the environment, the same every time."""
    t = np.arange(ROWS) % 10
    rng = np.random.default_rng(0)
    return {
        "observations": np.repeat(t[:, None], 3, axis=1).astype(np.float32),
        "next_observations": np.repeat(t[:, None] + 1, 3, axis=1).astype(np.float32),
        "actions": rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "masks": np.ones(ROWS, np.float32),
        "terminals": (t == 9).astype(np.float32),
    }


SMALL = {"flow_steps": 2, "net_arch": [32, 32]}
FLOW_T = {"flow_steps": 2, "net_arch": {"qf": [32, 32]}, "d_model": 16, "n_layers": 1, "n_heads": 2}
SUBJECTS = {
    "flow_t": Subject(SACFlow, 1, {"policy_kwargs": FLOW_T}),
    "fql": Subject(FQL, 1, {"policy_kwargs": SMALL}),
    "chunks": Subject(FQL, 3, {"policy_kwargs": SMALL, "horizon_length": 3}),
    "offline": Subject(SACFlow, 1, {"policy": "FlowGPolicy", "policy_kwargs": SMALL, "offline_steps": 10**6}),
}


def make_env(subject: Subject) -> VecNormalize:
    return VecNormalize(DummyVecEnv([CountingEnv] * subject.n_envs))


def dataset_of(subject: Subject) -> dict[str, Any]:
    return {"offline_dataset": data()} if "offline_steps" in subject.arguments else {}


class SaveByName(BaseCallback):
    """Saves model and buffer over those of before, and says so once both are there."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        assert isinstance(self.model, OffPolicyFlowAlgorithm)
        if self.n_calls % EVERY == EVERY // 2:
            self.model.save(self.folder / MODEL)
            self.model.save_replay_buffer(self.folder / BUFFER)
            (self.folder / SAVED).write_text(str(self.num_timesteps))
        return True


def make_model(subject: Subject) -> OffPolicyFlowAlgorithm:
    arguments: dict[str, Any] = {"policy": "MlpPolicy", "learning_starts": 4, "batch_size": 16, "buffer_size": 20_000}
    arguments |= {"seed": 0, "device": "cpu", **dataset_of(subject), **subject.arguments}
    return subject.algorithm(env=make_env(subject), **arguments)


def learn_and_save(subject: Subject, folder: Path) -> None:
    """Learn until killed, from where the last process was killed."""
    th.set_num_threads(1)
    if checkpoints(folder):
        model = subject.algorithm.resume(folder, make_env(subject), "cpu", **dataset_of(subject))
    else:
        model = make_model(subject)
    callbacks = [CheckpointCallback(EVERY, folder), SaveByName(folder)]
    model.learn(10**6, callback=callbacks, reset_num_timesteps=False)


def killed_after(seconds: float, subject: Subject, folder: Path) -> None:
    """Start a process and kill it. It is forked: nothing has to be imported again."""
    child = os.fork()
    if child == 0:
        try:
            learn_and_save(subject, folder)
        except BaseException as error:
            print(f"{folder.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"{folder.name}: the process ended by itself")


def what_is_wrong(subject: Subject, folder: Path) -> str:
    """What of the files in a folder does not load, or is older than it should be; "" if all is well."""
    if not (folder / SAVED).exists():
        return ""  # killed before the first save
    saved = int((folder / SAVED).read_text() or 0)
    try:
        model = subject.algorithm.load(folder / MODEL, env=make_env(subject), device="cpu", **dataset_of(subject))
        model.load_replay_buffer(folder / BUFFER)
        steps = [model.num_timesteps, saved]
        if saved > EVERY * subject.n_envs:  # there was a checkpoint before
            resumed = subject.algorithm.resume(folder, make_env(subject), "cpu", **dataset_of(subject))
            steps[1] = resumed.num_timesteps + EVERY * subject.n_envs
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if min(steps) >= saved else f"{saved} steps were saved, {steps[0]} are there, {steps[1]} after resuming"


def kill_repeatedly(kills: int, folder: Path, seed: int = 0, longest: float = LONGEST) -> list[str]:
    """Kill as often as that, the subjects in turns.

    :param kills: how often
    :param folder: of all their files
    :param seed: of the moments
    :param longest: seconds that a process lives at most
    :return: what was wrong, a line a kill
    """
    for subject in SUBJECTS.values():
        make_model(subject)  # imports what PyTorch imports late, once for all that are forked
    moments = random.Random(seed)
    wrong = []
    for kill in range(kills):
        name = list(SUBJECTS)[kill % len(SUBJECTS)]
        subject = SUBJECTS[name]
        (folder / name).mkdir(parents=True, exist_ok=True)
        killed_after(moments.uniform(0, longest), subject, folder / name)
        problem = what_is_wrong(subject, folder / name)
        if problem:
            wrong.append(f"kill {kill}, {name}: {problem}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=positive, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds that a process lives at most")
    args = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wrong = kill_repeatedly(args.kills, folder, args.seed, args.longest)
        for name in SUBJECTS:
            steps = [checkpoint.steps for checkpoint in checkpoints(folder / name)]
            print(f"{name}: checkpoints of {steps} steps, {len(list((folder / name).iterdir()))} files")
    print("\n".join(wrong) or f"{args.kills} kills, everything loads")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
