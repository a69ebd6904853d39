"""More episodes of a trained model than its training evaluated it on: return and success, without noise and with it.

    python benchmarks/evaluate.py runs/benchmarks/results/offline/<task>/flow_t/1/model.zip --env <task> --episodes 100

Both ways to act begin in the same states, normalised where a `vecnormalize.pkl` lies beside the model.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from arguments import check_tasks, positive
from contenders import OURS, THEIRS, algorithm_of
from gymnasium import registry
from numpy.typing import NDArray
from on_policy import as_trained
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_flow.envs import register

# All of them step until the last episode is over, so that one failure costs its length times their number
EVAL_ENVS = 10


class Episodes(NamedTuple):
    """What some episodes came to."""

    returns: NDArray[np.float64]  # (episodes,)
    successes: list[bool]  # empty where the environment does not tell

    @property
    def success_rate(self) -> float | None:
        return float(np.mean(self.successes)) if self.successes else None


def episodes(model: BaseAlgorithm, env: VecEnv, number: int, deterministic: bool) -> Episodes:
    """Let a model act.

    :param model: the model
    :param env: with a `Monitor`, whose returns count
    :param number: of the episodes
    :param deterministic: whether it acts without noise
    """
    successes: list[bool] = []

    def collect(local: dict[str, Any], _: dict[str, Any]) -> None:
        # Called at every step of every environment, after `dones` is known
        if local["done"] and "is_success" in local["info"]:
            successes.append(bool(local["info"]["is_success"]))

    returns, _ = evaluate_policy(
        model, env, number, deterministic=deterministic, return_episode_rewards=True, callback=collect
    )
    return Episodes(np.asarray(returns, np.float64), successes)


def described(name: str, of: Episodes) -> str:
    """A line for one way to act."""
    line = f"{name}: return {of.returns.mean():.1f}, standard deviation {of.returns.std():.1f}"
    if of.success_rate is None:
        return line
    from scipy.stats import binomtest  # of the extra "dev"; training does without

    low, high = binomtest(sum(of.successes), len(of.successes)).proportion_ci(method="wilson")
    return f"{line}, success {of.success_rate:.3f}, 95 % CI {low:.3f} to {high:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--env", required=True)
    parser.add_argument("--algo", choices=[*OURS, *THEIRS], default="flow_t", help="what was trained")
    parser.add_argument("--episodes", type=positive, default=100)
    parser.add_argument("--seed", type=int, default=20_000, help="of the episodes, and of the policy's noise")
    args = parser.parse_args()
    register()
    check_tasks(parser, [args.env], sorted(registry))
    th.set_num_threads(1)
    model = algorithm_of(args.algo).load(args.model, device="cpu")
    env = as_trained(args.model, make_vec_env(args.env, n_envs=min(args.episodes, EVAL_ENVS), seed=args.seed))
    for name, deterministic in (("deterministic", True), ("stochastic", False)):
        env.seed(args.seed)
        model.set_random_seed(args.seed)
        print(described(name, episodes(model, env, args.episodes, deterministic)), flush=True)
    env.close()


if __name__ == "__main__":
    main()
