"""Several environments at once, observations normalised, as many updates as steps.

python examples/vectorised.py --steps 20000 --n-envs 4
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_flow import SACFlow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--n-envs", type=int, default=4)
    args = parser.parse_args()

    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=args.n_envs, vec_env_cls=SubprocVecEnv), norm_reward=False)
    model = SACFlow(
        "FlowTPolicy",
        env,
        train_freq=1,
        gradient_steps=-1,  # one update for every environment step, however many environments there are
        learning_starts=min(1_000, args.steps // 2),
        policy_kwargs={"net_arch": {"qf": [256, 256]}},
        verbose=1,
    )
    model.learn(args.steps, log_interval=20)
    model.save("pendulum_vectorised")
    env.save("pendulum_vectorised_stats.pkl")  # the policy needs these again when it acts
    env.close()


if __name__ == "__main__":  # worker processes import this file
    main()
