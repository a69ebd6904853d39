"""Optuna's search space for `rl_zoo3.train -optimize`."""

import ast
from typing import Any

import optuna

FLOW_STEPS = (1, 2, 4, 7, 10)


def sample_sac_flow_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Draw one candidate; the parameters are those that rl-zoo3 gives every sampler.

    :param trial: the trial
    :param n_actions: unused
    :param n_envs: unused
    :param additional_args: unused
    :return: arguments of SACFlow that replace those of the YAML
    :raises ValueError: if the YAML's policy_kwargs hold more than Python literals
    """
    trial.suggest_categorical("flow_steps", FLOW_STEPS)
    trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True)
    trial.suggest_float("qf_learning_rate", 1e-4, 3e-3, log=True)
    trial.suggest_float("one_minus_gamma", 1e-3, 5e-2, log=True)
    trial.suggest_int("batch_size_pow", 6, 9)
    trial.suggest_int("policy_delay", 1, 4)
    trial.suggest_float("initial_ent_coef", 1e-2, 1.0, log=True)
    # rl-zoo3 replaces the YAML's policy_kwargs by the sampler's and shows the former as a string in the study only.
    # A choice of one carries them into the trial's parameters, the only thing that `--trial-id` hands to the converter.
    trial.suggest_categorical("policy_kwargs", [trial.study.user_attrs.get("policy_kwargs", "{}")])

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
    text = params.pop("policy_kwargs")
    try:
        policy_kwargs = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"policy_kwargs={text} cannot be tuned around: an Optuna study stores text, so use numbers, strings, lists "
            "and dicts only; leave classes (optimizer_class, features_extractor_class) at their defaults"
        ) from error
    return {
        "gamma": 1 - params.pop("one_minus_gamma"),
        "batch_size": 2 ** params.pop("batch_size_pow"),
        "ent_coef": f"auto_{params.pop('initial_ent_coef')}",
        "policy_kwargs": {**policy_kwargs, "flow_steps": params.pop("flow_steps")},
        **params,
    }
