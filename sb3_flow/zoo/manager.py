"""rl-zoo3's ExperimentManager for our algorithms: our YAMLs, trials of several seeds, studies shared by workers."""

import copy
import secrets
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import optuna
import rl_zoo3.exp_manager
from optuna.distributions import distribution_to_json
from optuna.study import StudyDirection
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.vec_env import VecEnv

from sb3_flow import ReinFlow
from sb3_flow.common.checkpoints import checkpoint_of
from sb3_flow.common.checks import require, require_integer
from sb3_flow.common.files import write_text
from sb3_flow.datasets import DataError, HorizonError
from sb3_flow.envs.registration import LOW_DIM, SINGLE_TASK
from sb3_flow.zoo.files import GoingOn, save_statistics, surviving
from sb3_flow.zoo.registration import ALGORITHMS, config_of
from sb3_flow.zoo.search.base import BUDGET, GIVEN, Fixed, given_arguments
from sb3_flow.zoo.seeds import SeedTrial, mean_of_seeds
from sb3_flow.zoo.storage import HEARTBEAT, load_study, open_storage

ZOO_HYPERPARAMS = Path(rl_zoo3.exp_manager.__file__).parent / "hyperparams"
SETTINGS = "sb3_flow_settings"  # the study's attribute that workers compare
NO_FRAME_STACK = (
    "with frame_stack the zoo stacks frames outside of VecNormalize, and a replay buffer holds what is inside of it; "
    "stack them in env_wrapper: [{gymnasium.wrappers.FrameStackObservation: {stack_size: 2}}, "
    "gymnasium.wrappers.FlattenObservation]"
)
# Optuna's states of trials, for a report; of a worker that was killed only a database learns
MEANING = {"fail": "failed or interrupted", "running": "running, or their worker was killed"}
NONE_FINISHED = "No trials are completed yet."  # what Optuna says of a study without a best trial
REASON = "reason"  # a trial's attribute: why it was not trained to its end
OLD_SETTINGS = "sac_flow_settings"  # its name in version 0.1
# What the command line may say beside hyperparameters
COMMAND_LINE = ("n_timesteps", "n_evaluations", "n_eval_episodes", "env_kwargs", "eval_env_kwargs")


class TrialNumber(int):
    """A number of a trial that is true even if it is 0, which rl-zoo3 takes for none."""

    def __bool__(self) -> bool:
        return True


class FlowExperimentManager(ExperimentManager):
    """What `ExperimentManager(...)` makes for an algorithm of ours, once `sb3_flow.zoo.register` was called.

    One hyperparameter more, `seeds_per_trial`: how many seeds a trial averages. The parameters are ExperimentManager's.
    """

    seeds_per_trial = 1
    heartbeat = HEARTBEAT
    custom_hyperparams: dict[str, Any] | None
    _study: optuna.Study | None = None  # that was joined, or that of the trials so far

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.search = ALGORITHMS[self.algo].search
        if Path(self.config) == ZOO_HYPERPARAMS / f"{self.algo}.yml":
            self.config = str(config_of(self.algo))
        if self.trial_id is not None:
            known = self.storage is not None and self.study_name is not None
            require(known, "trial_id", self.trial_id, "a trial of a study, which --storage and --study-name tell")
            self.trial_id = TrialNumber(self.trial_id)

    def read_hyperparameters(self) -> Any:
        given = self.custom_hyperparams or {}
        policy_kwargs = given.get("policy_kwargs")
        if self.trial_id is not None and isinstance(policy_kwargs, dict):
            # The zoo replaces policy_kwargs as a whole, the trial's K with them
            trial = self.load_trial(cast(str, self.storage), cast(str, self.study_name), self.trial_id)
            self.custom_hyperparams = {**given, "policy_kwargs": {**trial["policy_kwargs"], **policy_kwargs}}
        hyperparams, saved = super().read_hyperparameters()
        self._warn_of_no_data(hyperparams)
        return hyperparams, saved

    def _warn_of_no_data(self, hyperparams: dict[str, Any]) -> None:
        """Point out that a run which one would take for one from data begins with nothing."""
        task = self.env_name.gym_id
        spec = gym.registry.get(task)
        expected = issubclass(ALGORITHMS[self.algo].algorithm, ReinFlow)
        expected |= spec is not None and spec.entry_point in (SINGLE_TASK, LOW_DIM)
        if expected and hyperparams.get("offline_dataset") is None:
            warnings.warn(
                f"{Path(self.config).name} has no data for {task}: --algo {self.algo} learns from scratch there. Give "
                "offline_dataset with -params, or take a task that has a row in that file.",
                stacklevel=2,
            )

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        # As text now: schedules and wrappers become objects, which print differently in every process
        self._given = {name: str(value) for name, value in hyperparams.items()}
        # Here and not earlier: it stays in the config.yml that is saved beside a model
        self.seeds_per_trial = hyperparams.pop("seeds_per_trial", 1)
        stacks = hyperparams.get("frame_stack") is not None and bool(hyperparams.get("normalize", False))
        require(not stacks, "normalize", hyperparams.get("normalize"), NO_FRAME_STACK)
        require_integer("seeds_per_trial", self.seeds_per_trial)
        return super()._preprocess_hyperparams(hyperparams)

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        hyperparams = ExperimentManager._preprocess_schedules(hyperparams)
        for name in ("qf_learning_rate", "vf_learning_rate"):  # the zoo knows arguments of its own algorithms
            rate = hyperparams.get(name)
            if isinstance(rate, str) and rate.startswith("lin_"):
                hyperparams[name] = ExperimentManager._preprocess_schedules({"learning_rate": rate})["learning_rate"]
        return hyperparams

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        hyperparams = super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)
        self.n_actions = get_action_dim(env.action_space)  # the zoo's is the first of several dimensions
        return hyperparams

    def create_callbacks(self) -> None:
        super().create_callbacks()  # type: ignore[no-untyped-call]
        self.callbacks[:] = surviving(self.callbacks, self.save_path, self.save_replay_buffer)

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        """Go on from a checkpoint of `--save-freq`, if that is what `-i` names; else as the zoo does.

        A checkpoint's run is completed: the timesteps are those of the whole run, and not those to add.
        """
        checkpoint = checkpoint_of(self.trained_agent)
        if checkpoint is None:
            return super()._load_pretrained_agent(hyperparams, env)
        arguments = {name: value for name, value in hyperparams.items() if name not in ("policy", "policy_kwargs")}
        print(f"Going on from the checkpoint of {checkpoint.steps} timesteps")
        return ALGORITHMS[self.algo].algorithm.resume(
            self.trained_agent,
            env=env,
            device=self.device,
            force_reset=True,
            seed=self.seed,
            tensorboard_log=self.tensorboard_log,
            verbose=self.verbose,
            **arguments,
        )

    def learn(self, model: BaseAlgorithm) -> None:
        goes_on = self.continue_training and checkpoint_of(self.trained_agent) is not None
        if not goes_on:
            super().learn(model)
            return
        print(f"{model.num_timesteps} of {self.n_timesteps} timesteps are done")
        if model.num_timesteps < self.n_timesteps:  # else callbacks would be told of the end of what did not begin
            super().learn(cast(BaseAlgorithm, GoingOn(model)))

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        normalize, self.normalize = self.normalize, False  # the zoo would write the statistics in place
        super().save_trained_model(model)
        self.normalize = normalize
        if normalize:
            save_statistics(model, self.params_path)

    def hyperparameters_optimization(self) -> None:
        """Work on the study until it, or this worker, has enough trials.

        :raises ValueError: if the storage is damaged, or holds a study of this name with other settings
        """
        if self.storage is not None:
            storage = open_storage(self.storage, self.heartbeat)
            if self.study_name is not None:
                self._join_study(storage)
            self.storage = cast(str, storage)  # which rl-zoo3 would else open itself
        self._say_what_is_not_searched()
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            if self._study is None or str(error) != NONE_FINISHED:
                raise
            raise ValueError(self._report_failures(self._study)) from None

    def _say_what_is_not_searched(self) -> None:
        fixed = Fixed({name: str(value) for name, value in self._hyperparams.items()} | self._budget, self.n_actions)
        if fixed.is_offline and not fixed.is_online:
            searches = not issubclass(ALGORITHMS[self.algo].algorithm, ReinFlow)
            advice = "all of them clone data, for which nothing is searched; give more, or fewer offline_steps"
            require(searches, "n_timesteps", self.n_timesteps, advice)
            warnings.warn(
                f"A trial has {self.n_timesteps} timesteps, all of them in the offline phase: what concerns the "
                "environment alone (offline_ratio, a second bc_coef) is not searched.",
                stacklevel=2,
            )

    @property
    def _budget(self) -> dict[str, str]:
        return {BUDGET: str(self.n_timesteps)}

    def _report_failures(self, study: optuna.Study) -> str:
        """Write the table of trials where the zoo would, and say why none finished."""
        trials = study.get_trials(deepcopy=False)
        path = Path(self.log_path) / f"report_{self.env_name}_{len(trials)}-trials_{int(time.time())}.csv"
        write_text(path, study.trials_dataframe().to_csv())
        reasons = {trial.user_attrs[REASON]: trial.number for trial in reversed(trials) if REASON in trial.user_attrs}
        states = Counter(trial.state.name.lower() for trial in trials)
        counts = [f"{n} {MEANING.get(state, state)}" for state, n in states.items()]
        why = "; ".join([*counts, *(f"trial {number}: {reason}" for reason, number in reasons.items())])
        return f"None of {len(trials)} trials finished ({why}). All of them are in {path}"

    def _create_sampler(self, sampler_method: str) -> optuna.samplers.BaseSampler:
        manager = copy.copy(self)
        if self.storage is not None:
            # Else workers with one command would draw the same candidates
            manager.seed = secrets.randbits(32)
        return ExperimentManager._create_sampler(manager, sampler_method)

    def objective(self, trial: optuna.Trial) -> float:
        """The value of a trial, which is the mean over `seeds_per_trial` seeds.

        :param trial: the trial
        :raises optuna.TrialPruned: if the mean is worse than that of other trials, or a seed gets to NaN
        """
        self._study = trial.study
        if GIVEN not in trial.study.user_attrs:  # a study that nobody can join
            attributes = {GIVEN: given_arguments(self.custom_hyperparams), SETTINGS: {"algorithm": self.algo}}
            for name, value in (attributes | self._budget).items():
                trial.study.set_user_attr(name, value)
        try:
            return self._value(trial)
        except (optuna.TrialPruned, HorizonError) as error:
            cause = error if isinstance(error, HorizonError) else error.__cause__
            if isinstance(cause, DataError) and not (isinstance(cause, HorizonError) and _draws_horizon(trial)):
                raise cause from None  # no candidate would do better
            if cause is not None:
                trial.set_user_attr(REASON, str(cause))
            raise optuna.TrialPruned from cause

    def _value(self, trial: optuna.Trial) -> float:
        if self.seeds_per_trial == 1:
            return float(super().objective(trial))

        def train(seed_trial: SeedTrial, seed: int) -> float:
            manager = copy.copy(self)
            manager.seed = self.seed + seed
            return float(ExperimentManager.objective(manager, cast(optuna.Trial, seed_trial)))

        return mean_of_seeds(train, trial, self.seeds_per_trial)

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> Any:
        """Hyperparameters of a trial.

        :param storage: a journal file or the URL of a database
        :param study_name: the study's name
        :param trial_id: number of the trial; None for the best
        :param convert: to arguments of the algorithm
        :raises ValueError: if there is no such trial, nothing was sampled for it, or it is another algorithm's
        """
        study = load_study(storage, study_name)
        algo = settings_of(study).get("algorithm")
        advice = f"its trials are not {self.algo}'s" + (f"; use --algo {algo}" if algo else "")
        require(algo == self.algo, "study_name", study_name, advice)
        if trial_id is not None:
            sampled = [trial.number for trial in study.trials if trial.params]
            require(
                trial_id in sampled, "trial_id", trial_id, f"a number up to {len(study.trials) - 1} that was sampled"
            )
        return super().load_trial(storage, study_name, trial_id, convert)

    def _join_study(self, storage: optuna.storages.BaseStorage) -> None:
        """Make the study, or check that it searches what this command would.

        Every worker does this before its first trial: rl-zoo3's own note of the settings, which the sampler reads, is
        left to the worker that made the study, and it may not have got there yet.
        """
        fixed = {name: str(value) for name, value in self._hyperparams.items()}
        fixed |= self._budget
        fixed[GIVEN] = given_arguments(self.custom_hyperparams)
        ours = self._settings(fixed)
        study = optuna.create_study(
            storage=storage, study_name=self.study_name, direction="maximize", load_if_exists=True
        )
        # Before the attributes: another worker writes these first. Waiting trials have no parameters yet
        empty = study.direction is StudyDirection.MAXIMIZE and not any(trial.params for trial in study.trials)
        if empty and not {"command", SETTINGS, OLD_SETTINGS} & study.user_attrs.keys():
            for name, value in fixed.items():
                study.set_user_attr(name, value)
            study.set_user_attr(SETTINGS, ours)
        theirs = settings_of(study)  # as they are now, should two workers with different settings have made it at once
        algo = theirs.get("algorithm", self.algo)
        advice = f"that is a study of --algo {algo}; give another --study-name"
        require(algo == self.algo, "study_name", self.study_name, advice)
        differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        advice = f"that study has other settings ({', '.join(differing)}): give the same, or another --study-name"
        require(not differing, "study_name", self.study_name, advice)
        self._study = study
        # Here too, or `--max-total-trials` would count trials of the dead
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)

    def _settings(self, fixed: dict[str, str]) -> dict[str, str]:
        """What the workers of a study must agree on.

        :param fixed: see `sb3_flow.zoo.search.base.Fixed`
        """
        space = self.search.space(fixed, self.n_actions)
        searched = self.search.searched_arguments(space)
        settings = {
            **{name: value for name, value in self._given.items() if name not in searched},
            "algorithm": self.algo,
            "environment": self.env_name.gym_id,
            # These may come from the command line too
            **{name: str(getattr(self, name)) for name in COMMAND_LINE},
            "seeds_per_trial": str(self.seeds_per_trial),
            **{name: distribution_to_json(distribution) for name, distribution in space.items()},
        }
        if "offline_dataset" in settings:
            # Each machine has its own folder
            settings["offline_dataset"] = settings["offline_dataset"].partition("@")[0]
        return settings


def _draws_horizon(trial: optuna.Trial) -> bool:
    """Whether the length of the chunks is one of several."""
    return len(getattr(trial.distributions.get("horizon_length"), "choices", ())) > 1


def settings_of(study: optuna.Study) -> dict[str, str]:
    """What the workers of a study agreed on, its algorithm among it; nothing for a study that is not ours.

    :param study: the study
    """
    attrs = study.user_attrs
    if SETTINGS in attrs:
        return dict(attrs[SETTINGS])
    if GIVEN in attrs:  # version 0.1 had one algorithm
        return {"algorithm": "sac_flow", **attrs.get(OLD_SETTINGS, {})}
    return {}
