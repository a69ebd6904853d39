"""Optuna's search space for `rl_zoo3.train -optimize`."""

import ast
from typing import Any

import optuna

from sb3_flow.policies import LOG_STD_RANGES, FlowTPolicy
from sb3_flow.sac_flow import SACFlow

FLOW_STEPS = (1, 2, 4, 7, 10)
FLOW_T = tuple(name for name, policy in SACFlow.policy_aliases.items() if policy is FlowTPolicy)
LOWEST_LOG_STD = min(low for low, _ in LOG_STD_RANGES.values())


def sample_sac_flow_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Draw one candidate; the parameters are those that rl-zoo3 gives every sampler.

    What is searched depends on the YAML: beta, h and the share of the data only with offline data, alpha only where it
    is learned, sigma itself where it is fixed and its upper bound where it is learned, width and depth only for Flow-T.

    :param trial: the trial
    :param n_actions: d, which scales the target entropy
    :param n_envs: unused
    :param additional_args: unused
    :return: arguments of SACFlow that replace those of the YAML
    :raises ValueError: if the YAML's policy_kwargs hold more than Python literals
    """
    # rl-zoo3 shows the sampler the YAML's values only here, as text
    yaml = trial.study.user_attrs
    # A choice of one carries them into the trial's parameters, the only thing that `--trial-id` hands to the converter
    trial.suggest_categorical("policy_kwargs", [yaml.get("policy_kwargs", "{}")])
    policy_kwargs = _literal(trial.params["policy_kwargs"])

    trial.suggest_categorical("flow_steps", FLOW_STEPS)
    trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True)
    trial.suggest_float("qf_learning_rate", 1e-4, 3e-3, log=True)
    trial.suggest_float("one_minus_gamma", 1e-3, 5e-2, log=True)
    trial.suggest_int("batch_size_pow", 6, 9)
    trial.suggest_int("policy_delay", 1, 4)
    if yaml.get("ent_coef", "auto").startswith("auto"):
        trial.suggest_float("initial_ent_coef", 1e-2, 1.0, log=True)
        trial.suggest_float("target_entropy", -2.0 * n_actions, -0.25 * n_actions)
    if policy_kwargs.get("noise_std") is not None:
        trial.suggest_float("noise_std", 0.03, 0.5, log=True)
    else:
        trial.suggest_float("highest_log_std", -2.0, 0.0)
    if yaml.get("policy", FLOW_T[0]) in FLOW_T:
        trial.suggest_categorical("d_model", (32, 64, 128))
        trial.suggest_int("n_layers", 1, 3)
    if yaml.get("offline_dataset", "None") != "None":
        trial.suggest_float("bc_coef", 1.0, 1e5, log=True)
        trial.suggest_categorical("horizon_length", (1, 5, 10))
        trial.suggest_categorical("offline_ratio", (None, 0.25, 0.5, 0.75))

    hyperparams = convert_sac_flow_params(trial.params)
    for name in ("gamma", "batch_size"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_sac_flow_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Turn a trial's parameters into arguments of SACFlow.

    :param sampled_params: the trial's parameters
    :raises ValueError: if the trial's policy_kwargs hold more than Python literals
    """
    params = dict(sampled_params)
    policy_kwargs = _literal(params.pop("policy_kwargs"))
    for name in ("flow_steps", "noise_std", "d_model", "n_layers"):
        if name in params:
            policy_kwargs[name] = params.pop(name)
    if "highest_log_std" in params:
        policy_kwargs["log_std_range"] = (LOWEST_LOG_STD, params.pop("highest_log_std"))
    if "initial_ent_coef" in params:
        params["ent_coef"] = f"auto_{params.pop('initial_ent_coef')}"
    return {
        "gamma": 1 - params.pop("one_minus_gamma"),
        "batch_size": 2 ** params.pop("batch_size_pow"),
        "policy_kwargs": policy_kwargs,
        **params,
    }


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
