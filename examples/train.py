"""Train, evaluate and save a flow policy.

python examples/train.py --steps 20000
"""

import argparse

from stable_baselines3.common.evaluation import evaluate_policy

from sb3_flow import SACFlow

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=10_000)
parser.add_argument("--policy", default="FlowTPolicy", help="FlowTPolicy, FlowGPolicy or FlowMLPPolicy")
parser.add_argument("--out", default="pendulum")
args = parser.parse_args()

model = SACFlow(
    args.policy,
    "Pendulum-v1",
    learning_starts=min(1_000, args.steps // 2),
    policy_kwargs={"net_arch": {"qf": [256, 256]}},  # small critics for a small task
    verbose=1,
)
model.learn(args.steps)

env = model.get_env()
assert env is not None
mean, std = evaluate_policy(model, env, n_eval_episodes=10)
print(f"return {mean:.0f} +- {std:.0f}; an upright pendulum is worth about -150")
model.save(args.out)
print(f"saved to {args.out}.zip; see it with: python examples/load_and_render.py --model {args.out}.zip")
