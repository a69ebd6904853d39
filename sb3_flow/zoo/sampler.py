"""Optuna's search space for `rl_zoo3.train -optimize`."""

import ast
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sb3_flow import SACFlow
from sb3_flow.sac_flow.policies import LOG_STD_RANGES, FlowTPolicy

FLOW_STEPS = (1, 2, 4, 7, 10)
HORIZONS = (1, 5, 10)
FLOW_T = tuple(name for name, policy in SACFlow.policy_aliases.items() if issubclass(policy, FlowTPolicy))
BETA = FloatDistribution(1.0, 1e5, log=True)
GIVEN = "given_arguments"  # the study's attribute with the names of `given_arguments`
# What a parameter of the search decides, where it has another name
DECIDED = {
    "one_minus_gamma": "gamma",
    "batch_size_pow": "batch_size",
    "initial_ent_coef": "ent_coef",
    "highest_log_std": "log_std_range",
    "n_actions": "target_entropy",
    "online_bc_coef": "bc_coef",
}


def search_space(fixed: Mapping[str, str], n_actions: int) -> dict[str, BaseDistribution]:
    """What is searched, which depends on what is fixed.

    Beta, h and the share of the data only with offline data; alpha only where it is learned; sigma itself where it is
    fixed, and its upper bound and the target entropy where it is learned; width and depth only for Flow-T. Parameters
    with one choice are not searched, they carry what `convert_sac_flow_params` needs to know. Nothing that was given on
    the command line is searched.

    :param fixed: values of the YAML and the command line as text, as rl-zoo3 writes them into the study, and the names
        of the latter, under `GIVEN`
    :param n_actions: d
    :raises ValueError: if the YAML's policy_kwargs hold more than Python literals
    """
    policy_kwargs = _literal(fixed.get("policy_kwargs", "{}"))
    offline = fixed.get("offline_dataset", "None") != "None"
    given = set(fixed.get(GIVEN, "").split())
    space: dict[str, BaseDistribution] = {
        "flow_steps": CategoricalDistribution(FLOW_STEPS),
        "learning_rate": FloatDistribution(1e-4, 1e-3, log=True),
        "qf_learning_rate": FloatDistribution(1e-4, 3e-3, log=True),
        "one_minus_gamma": FloatDistribution(1e-3, 5e-2, log=True),
        "batch_size_pow": IntDistribution(6, 9),
        "policy_delay": IntDistribution(1, 4),
    }
    alpha_is_learned = fixed.get("ent_coef", "auto").startswith("auto")
    sigma_is_learned = policy_kwargs.get("noise_std") is None
    if alpha_is_learned:
        space["initial_ent_coef"] = FloatDistribution(1e-2, 1.0, log=True)
    if sigma_is_learned:
        low, high = _log_std_range(policy_kwargs)
        space["highest_log_std"] = FloatDistribution(max(high - 1.0, (low + high) / 2), high)
    else:
        space["noise_std"] = FloatDistribution(0.03, 0.5, log=True)
    # With a fixed sigma, or for the whole path, "auto" alone knows what is in reach
    if alpha_is_learned and sigma_is_learned and policy_kwargs.get("likelihood", "action") == "action":
        space["n_actions"] = CategoricalDistribution([n_actions])
        # Nats per number in a chunk. K = 10 and log sigma <= -1 allow -0.73: alpha would grow without bound above that
        space["target_entropy"] = FloatDistribution(-2.0, -0.75)
    if fixed.get("policy", FLOW_T[0]) in FLOW_T:
        space["d_model"] = CategoricalDistribution((32, 64, 128))
        space["n_layers"] = IntDistribution(1, 3)
    if offline:
        space["horizon_length"] = CategoricalDistribution(HORIZONS)
        space["bc_coef"] = BETA
        if fixed.get("bc_coef", "0").startswith(("[", "(")):
            space["online_bc_coef"] = BETA
        space["offline_ratio"] = CategoricalDistribution((None, 0.25, 0.5, 0.75))
    return {
        # Into the trial's parameters, the only thing that `--trial-id` hands to the converter
        "policy_kwargs": CategoricalDistribution([fixed.get("policy_kwargs", "{}")]),
        "horizon_length": CategoricalDistribution([int(fixed.get("horizon_length", "1"))]),
        **{name: choices for name, choices in space.items() if DECIDED.get(name, name) not in given},
    }


def given_arguments(hyperparams: Mapping[str, Any] | None) -> str:
    """Names of the arguments that the command line gives, those inside of its policy_kwargs included.

    :param hyperparams: of the command line
    """
    hyperparams = hyperparams or {}
    policy_kwargs = hyperparams.get("policy_kwargs")
    # noise_std outside of policy_kwargs is that of the zoo's action noise
    outside = hyperparams.keys() - {"noise_std"}
    return " ".join(sorted({*outside, *(policy_kwargs if isinstance(policy_kwargs, dict) else ())}))


def sample_sac_flow_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Draw one candidate of `search_space`; the parameters are those that rl-zoo3 gives every sampler.

    :param trial: the trial
    :param n_actions: d, which scales the target entropy
    :param n_envs: unused
    :param additional_args: unused
    :return: arguments of SACFlow that replace those of the YAML
    :raises ValueError: if the YAML's policy_kwargs hold more than Python literals
    """
    # rl-zoo3 shows the sampler the YAML's values only here
    for name, distribution in search_space(trial.study.user_attrs, n_actions).items():
        _suggest(trial, name, distribution)
    hyperparams = convert_sac_flow_params(trial.params)
    for name in {"gamma", "batch_size"} & hyperparams.keys():
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_sac_flow_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Turn a trial's parameters into arguments of SACFlow.

    :param sampled_params: the trial's parameters
    :raises ValueError: if the trial's policy_kwargs hold more than Python literals
    """
    params = dict(sampled_params)
    policy_kwargs = _literal(params.pop("policy_kwargs"))
    if "highest_log_std" in params:
        policy_kwargs["log_std_range"] = (_log_std_range(policy_kwargs)[0], params.pop("highest_log_std"))
    for name in ("flow_steps", "noise_std", "d_model", "n_layers"):
        if name in params:
            policy_kwargs[name] = params.pop(name)
    if "initial_ent_coef" in params:
        params["ent_coef"] = f"auto_{params.pop('initial_ent_coef')}"
    if "target_entropy" in params:
        params["target_entropy"] *= params.pop("n_actions") * params["horizon_length"]
    if "online_bc_coef" in params:
        params["bc_coef"] = [params["bc_coef"], params.pop("online_bc_coef")]
    if "one_minus_gamma" in params:
        params["gamma"] = 1 - params.pop("one_minus_gamma")
    if "batch_size_pow" in params:
        params["batch_size"] = 2 ** params.pop("batch_size_pow")
    return {"policy_kwargs": policy_kwargs, **params}


def searched_arguments(space: Mapping[str, BaseDistribution]) -> set[str]:
    """Names of SACFlow's arguments that a search space decides.

    :param space: of `search_space`
    """
    return set(convert_sac_flow_params({name: _any_value(distribution) for name, distribution in space.items()}))


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


def _log_std_range(policy_kwargs: dict[str, Any]) -> tuple[float, float]:
    """The bounds of the learned log sigma without a search."""
    low, high = policy_kwargs.get("log_std_range") or LOG_STD_RANGES[policy_kwargs.get("rollout", "sde")]
    return low, high


def _literal(text: str) -> dict[str, Any]:
    """The policy_kwargs that a study holds as text."""
    try:
        policy_kwargs = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"policy_kwargs={text} cannot be tuned around: an Optuna study stores text, so use numbers, strings, lists "
            "and dicts only; leave classes (optimizer_class, features_extractor_class) at their defaults"
        ) from error
    return dict(policy_kwargs)
