"""What the search spaces of all algorithms share: what is fixed, what is drawn, and which arguments that makes."""

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Space = dict[str, BaseDistribution]

FLOW_STEPS = (1, 2, 4, 7, 10)
HORIZONS = (1, 5, 10)
BUDGET = "n_timesteps"  # the study's attribute with the timesteps of a trial
GIVEN = "given_arguments"  # the study's attribute with the names of `given_arguments`
CONSTANT = re.compile(r"ConstantSchedule\(val=(.+)\)")  # what rl-zoo3 makes of the numbers of some arguments


class Fixed:
    """What is fixed in a study.

    :param attributes: values of the YAML and the command line as text, as rl-zoo3 writes them into the study, and the
        names of the latter, under `GIVEN`
    :param n_actions: d
    :raises ValueError: if the YAML's policy_kwargs hold more than Python literals
    """

    def __init__(self, attributes: Mapping[str, str], n_actions: int):
        self._attributes = attributes
        self.n_actions = n_actions
        self.policy_kwargs = literal(self.text("policy_kwargs", "{}"))
        self.given = set(self.text(GIVEN, "").split())
        self.is_offline = not self.is_none("offline_dataset")
        budget, offline_steps = (float(self.text(name, "0")) for name in (BUDGET, "offline_steps"))
        self.is_online = budget == 0 or offline_steps < budget  # whether the environment is ever stepped

    def text(self, name: str, default: str) -> str:
        """An argument of the algorithm as text."""
        return self._attributes.get(name, default)

    def number(self, name: str) -> float | None:
        """An argument of the algorithm, None if it is left out, or no number: a schedule that falls, say."""
        text = self.text(name, "")
        constant = CONSTANT.fullmatch(text)
        try:
            return float(constant[1] if constant else text)
        except ValueError:
            return None

    def is_none(self, name: str) -> bool:
        """Whether an argument is None, or left out where that is its default."""
        return self.text(name, "None") == "None"

    @property
    def has_single_steps(self) -> bool:
        """Whether another argument goes with no action chunks."""
        repeated = self.text("noise_repeat", "1") != "1"
        return repeated or self.text("optimize_memory_usage", "False") == "True" or not self.is_none("action_noise")


class SearchSpace(ABC):
    """What is searched for one algorithm; a subclass adds what is that algorithm's own.

    With offline data h, unless another argument goes with no chunks, and, where an algorithm has it, the share of the
    data are searched, too. Nothing that was given on the command line is.
    Parameters with one choice are not searched, they carry what `convert` needs to know: a trial's parameters are the
    only thing that `--trial-id` hands to it.
    """

    # The policy's argument for K, and the choices
    steps: ClassVar[tuple[str, tuple[int, ...]]] = ("flow_steps", FLOW_STEPS)
    has_offline_ratio: ClassVar[bool] = True
    # Parameters that are arguments of the policy, too
    in_policy_kwargs: ClassVar[tuple[str, ...]] = ()
    # What a parameter decides, where it has another name
    decides: ClassVar[Mapping[str, str]] = {
        "one_minus_gamma": "gamma",
        "batch_size_pow": "batch_size",
        "online_bc_coef": "bc_coef",
    }

    @abstractmethod
    def own_parameters(self, fixed: Fixed) -> Space:
        """The parameters that not all algorithms have."""

    def convert_own(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters, with the algorithm's own turned into the arguments that they decide.

        :param params: of the trial, with policy_kwargs as a dict; both may be changed
        """
        return params

    def space(self, attributes: Mapping[str, str], n_actions: int) -> Space:
        """What is searched, which depends on what is fixed.

        :param attributes: see `Fixed`
        :param n_actions: d
        :raises ValueError: if the YAML's policy_kwargs hold more than Python literals
        """
        fixed = Fixed(attributes, n_actions)
        horizon_length = int(fixed.text("horizon_length", "1"))
        space: Space = {
            self.steps[0]: CategoricalDistribution(self.steps[1]),
            "learning_rate": reaching(1e-4, 1e-3, fixed.number("learning_rate")),
            "one_minus_gamma": reaching(1e-3, 5e-2, 1 - (fixed.number("gamma") or 0.99)),
            "batch_size_pow": IntDistribution(6, 9),
            **self.own_parameters(fixed),
        }
        if fixed.is_offline and not fixed.has_single_steps:
            space["horizon_length"] = CategoricalDistribution(sorted({*HORIZONS, horizon_length}))
        if fixed.is_offline and fixed.is_online and self.has_offline_ratio:
            space["offline_ratio"] = CategoricalDistribution((None, 0.25, 0.5, 0.75))
        return {
            "policy_kwargs": CategoricalDistribution([fixed.text("policy_kwargs", "{}")]),
            "horizon_length": CategoricalDistribution([horizon_length]),
            **{name: choices for name, choices in space.items() if self.decides.get(name, name) not in fixed.given},
        }

    def sample(
        self, trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw one candidate; the parameters are those that rl-zoo3 gives every sampler.

        :param trial: the trial
        :param n_actions: d
        :param n_envs: unused
        :param additional_args: unused
        :return: arguments of the algorithm that replace those of the YAML
        :raises ValueError: if the YAML's policy_kwargs hold more than Python literals
        """
        # rl-zoo3 shows the sampler the YAML's values only here
        for name, distribution in self.space(trial.study.user_attrs, n_actions).items():
            _suggest(trial, name, distribution)
        hyperparams = self.convert(trial.params)
        for name in {"gamma", "batch_size"} & hyperparams.keys():
            trial.set_user_attr(name, hyperparams[name])
        return hyperparams

    def convert(self, sampled_params: dict[str, Any]) -> dict[str, Any]:
        """Turn a trial's parameters into arguments of the algorithm.

        :param sampled_params: the trial's parameters
        :raises ValueError: if the trial's policy_kwargs hold more than Python literals
        """
        params = self.convert_own({**sampled_params, "policy_kwargs": literal(sampled_params["policy_kwargs"])})
        for name in (self.steps[0], *self.in_policy_kwargs):
            if name in params:
                params["policy_kwargs"][name] = params.pop(name)
        if "online_bc_coef" in params:
            params["bc_coef"] = [params["bc_coef"], params.pop("online_bc_coef")]
        if "one_minus_gamma" in params:
            params["gamma"] = 1 - params.pop("one_minus_gamma")
        if "batch_size_pow" in params:
            params["batch_size"] = 2 ** params.pop("batch_size_pow")
        return params

    def searched_arguments(self, space: Space) -> set[str]:
        """Names of the algorithm's arguments that a search space decides.

        :param space: of `SearchSpace.space`
        """
        return set(self.convert({name: _any_value(distribution) for name, distribution in space.items()}))


class Unsearched(SearchSpace):
    """That of an algorithm for which nobody has said what to search."""

    def own_parameters(self, fixed: Fixed) -> Space:
        raise ValueError(
            "This algorithm has nothing to optimize: pass register_algorithm(..., search=...) a SearchSpace"
        )


def reaching(low: float, high: float, value: float | None) -> FloatDistribution:
    """Numbers on a log scale, with those around a value that lies outside of the bounds.

    :param low: bound for most values
    :param high: bound for most values
    :param value: that the YAML has, None if it has none
    """
    if value is not None and value > 0:
        low, high = (value / 3 if value < low else low), (3 * value if value > high else high)
    return FloatDistribution(low, high, log=True)


def convert_temperature(params: dict[str, Any]) -> dict[str, Any]:
    """The start of a learned alpha and the target entropy of a whole chunk, from what was sampled for them.

    :param params: of the trial; it is changed
    """
    if "initial_ent_coef" in params:
        params["ent_coef"] = f"auto_{params.pop('initial_ent_coef')}"
    if "target_entropy" in params:
        params["target_entropy"] *= params.pop("n_actions") * params["horizon_length"]
    return params


def bc_coef_parameters(fixed: Fixed, weights: FloatDistribution) -> Space:
    """The weight of what holds the policy to the data, one for each phase if the YAML has two.

    :param fixed: what is fixed
    :param weights: to choose from
    """
    two = fixed.is_online and fixed.text("bc_coef", "0").startswith(("[", "("))
    return {"bc_coef": weights, **({"online_bc_coef": weights} if two else {})}


def given_arguments(hyperparams: Mapping[str, Any] | None) -> str:
    """Names of the arguments that the command line gives, those inside of its policy_kwargs included.

    :param hyperparams: of the command line
    """
    hyperparams = hyperparams or {}
    policy_kwargs = hyperparams.get("policy_kwargs")
    # noise_std outside of policy_kwargs is that of the zoo's action noise
    outside = hyperparams.keys() - {"noise_std"}
    return " ".join(sorted({*outside, *(policy_kwargs if isinstance(policy_kwargs, dict) else ())}))


def literal(text: str) -> dict[str, Any]:
    """The policy_kwargs that a study holds as text.

    :param text: a dict as Python prints it
    :raises ValueError: if they hold more than Python literals
    """
    try:
        policy_kwargs = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"policy_kwargs={text} cannot be tuned around: an Optuna study stores text, so use numbers, strings, lists "
            "and dicts only; leave classes (optimizer_class, features_extractor_class) at their defaults"
        ) from error
    return dict(policy_kwargs)


def _any_value(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
