"""Trials that average several seeds: they train side by side, and are judged by their mean at every evaluation."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from statistics import fmean
from typing import Any

import optuna


class SeedTrial:
    """What the training of one seed sees of a trial, in place of an `optuna.Trial`.

    :param trial: the trial
    :param meeting: where its seeds meet
    :param seed: which of them this is, from 0
    """

    def __init__(self, trial: optuna.Trial, meeting: "Meeting", seed: int):
        self._trial = trial
        self._meeting = meeting
        self._seed = seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    @property
    def number(self) -> str:
        """Of the trial and the seed: rl-zoo3 names the folder of the best model after it."""
        return f"{self._trial.number}_seed_{self._seed}"

    def report(self, value: float, step: int) -> None:
        """Wait for the other seeds; their mean is what the study is told.

        :param value: of this seed
        :param step: number of the evaluation
        """
        self._meeting.report(self._seed, value, step)

    def should_prune(self) -> bool:
        """Whether the trial is pruned for its mean."""
        return self._meeting.pruned


class OtherSeedStoppedError(RuntimeError):
    """Another seed of the trial stopped, or Ctrl-C was pressed."""


class Meeting:
    """Where the seeds of a trial wait for each other. They take turns: one trains at a time, as without threads.

    :param trial: the trial
    :param n_seeds: how many they are
    """

    def __init__(self, trial: optuna.Trial, n_seeds: int):
        self.pruned = False
        self.stopped = False
        self.turn = threading.Condition()
        self._trial = trial
        self._values = [math.nan] * n_seeds
        self._training = set(range(n_seeds))
        self._waiting: set[int] = set()
        self._step = 0

    def report(self, seed: int, value: float, step: int) -> None:
        """Let the others train until they have a value too.

        :raises OtherSeedStoppedError: if one of them never will
        """
        self._values[seed], self._step = value, step
        self._waiting.add(seed)
        self._meet()
        self.turn.wait_for(lambda: self.stopped or seed not in self._waiting)
        if self.stopped:
            raise OtherSeedStoppedError

    def leave(self, seed: int, value: float) -> None:
        """Wait no longer for a seed that has finished; it counts with its value, so that means stay comparable."""
        self._values[seed] = value
        self._training.remove(seed)
        self._meet()

    def stop(self) -> None:
        """Let nobody wait for what will not come; called by the seed whose turn it is."""
        self.stopped = True
        self.turn.notify_all()

    def _meet(self) -> None:
        if self._waiting and self._waiting == self._training:
            self._trial.report(fmean(self._values), self._step)
            self.pruned = self._trial.should_prune()
            self._waiting.clear()
            self.turn.notify_all()


def mean_of_seeds(train: Callable[[SeedTrial, int], float], trial: optuna.Trial, n_seeds: int) -> float:
    """The mean of an objective over seeds, pruned on the mean of what they report.

    :param train: trains one seed; one that reports less often than others counts with its result at their later reports
    :param trial: the trial, which also gets the seeds' values as the attribute "seeds"
    :param n_seeds: number of seeds, from 0
    :raises optuna.TrialPruned: if the mean is pruned, or one seed is
    """
    meeting = Meeting(trial, n_seeds)

    def train_one(seed: int) -> float:
        with meeting.turn:
            try:
                if meeting.stopped:  # before this one began
                    raise OtherSeedStoppedError
                value = train(SeedTrial(trial, meeting, seed), seed)
                meeting.leave(seed, value)
                return value
            except BaseException:
                meeting.stop()
                raise

    with ThreadPoolExecutor(n_seeds) as pool:
        futures = [pool.submit(train_one, seed) for seed in range(n_seeds)]
        try:
            wait(futures)
        except BaseException:
            meeting.stopped = True  # Ctrl-C: training ends with the next evaluation, whose seed wakes the others
            raise
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    # The others broke off because of the first that has a reason of its own
    for error in sorted(errors, key=lambda error: isinstance(error, OtherSeedStoppedError)):
        raise error
    values = [future.result() for future in futures]
    trial.set_user_attr("seeds", values)
    return fmean(values)
