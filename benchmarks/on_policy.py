"""What on-policy contenders need: several environments, normalised ones, and PPO's published settings."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3.exp_manager
import yaml
from rl_zoo3.utils import linear_schedule
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from sb3_flow.common.hints import normalizes

ZOO = Path(rl_zoo3.exp_manager.__file__).parent / "hyperparams" / "ppo.yml"
# Of a run's settings, those that are not the algorithm's
ENVIRONMENT = ("n_envs", "normalize")
STATISTICS = "vecnormalize.pkl"  # of a checkpoint, beside the model


def ppo_settings(task: str, width: int) -> dict[str, Any]:
    """rl-zoo3's tuned settings for PPO on a task, or on another version of it; without a row SB3's own, normalised.

    :param task: id of the environment
    :param width: of the value net's two layers; the policy has 256-256
    """
    rows = yaml.safe_load(ZOO.read_text())
    versions = sorted((name for name in rows if name.rpartition("-v")[0] == task.rpartition("-v")[0]), reverse=True)
    row = rows[task] if task in rows else rows[versions[0]] if versions else {"normalize": True}
    settings = {name: value for name, value in row.items() if name not in ("n_timesteps", "policy", *ENVIRONMENT)}
    for name, value in settings.items():
        if isinstance(value, str) and value.startswith("lin_"):
            settings[name] = linear_schedule(value.removeprefix("lin_"))
    # The zoo evaluates them, too
    policy_kwargs = eval(str(settings.get("policy_kwargs", "{}")), {"nn": nn})
    net_arch = {"pi": [256, 256], "vf": [width, width]}
    environment = {"n_envs": row.get("n_envs", 1), "normalize": row.get("normalize", False)}
    return {**settings, "policy_kwargs": {**policy_kwargs, "net_arch": net_arch}, **environment}


def make_env(
    task: str, seed: int, settings: dict[str, Any], statistics: Path | None = None
) -> VecEnv | gym.Env[Any, Any]:
    """The environments that settings ask for, which are taken out of them; a single one if they ask for none.

    :param task: id of the environment
    :param seed: of the environments
    :param settings: an algorithm's arguments; `env` if there is one already; `n_envs`, and `normalize`: a bool, or
        VecNormalize's arguments
    :param statistics: a VecNormalize's file, to go on from
    """
    n_envs, normalize = settings.pop("n_envs", 1), settings.pop("normalize", False)
    if "env" in settings:
        given: VecEnv | gym.Env[Any, Any] = settings.pop("env")
        return given
    if n_envs == 1 and not normalize:
        return gym.make(task)
    env: VecEnv = make_vec_env(task, n_envs=n_envs, seed=seed)
    if statistics is not None and statistics.exists():
        return VecNormalize.load(str(statistics), env)
    if isinstance(normalize, str):
        normalize = eval(normalize)  # as rl-zoo3 does
    if not normalize:
        return env
    return VecNormalize(env, gamma=settings.get("gamma", 0.99), **(normalize if isinstance(normalize, dict) else {}))


def evaluated_in(model: BaseAlgorithm, env: VecEnv) -> VecEnv:
    """An environment for evaluation, normalised as that of training is, now and later; its rewards are as they are.

    :param model: the model
    :param env: of the same task
    """
    normalize = model.get_vec_normalize_env()
    if not normalizes(normalize):
        return env  # VecNormalize keeps no statistics of what it does not normalise
    wrapped = VecNormalize(env, training=False, norm_reward=False)
    wrapped.obs_rms = normalize.obs_rms
    return wrapped


def as_trained(model: Path, env: VecEnv) -> VecEnv:
    """An environment for a model that was saved, normalised by the statistics that lie beside it.

    :param model: its file
    :param env: of the same task
    """
    if not model.with_name(STATISTICS).exists():
        return env
    normalize = VecNormalize.load(str(model.with_name(STATISTICS)), env)
    normalize.training, normalize.norm_reward = False, False
    return normalize
