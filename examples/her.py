"""Dict observations and hindsight experience replay on a sparse goal-reaching task.

python examples/her.py --steps 6000
"""

import argparse

from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_flow import SACFlow

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=6_000)
args = parser.parse_args()

N_BITS = 6
env = BitFlippingEnv(n_bits=N_BITS, continuous=True, max_steps=N_BITS)
model = SACFlow(
    "MultiInputPolicy",
    env,
    replay_buffer_class=HerReplayBuffer,
    replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"},
    learning_starts=min(500, args.steps // 2),
    policy_kwargs={"net_arch": {"qf": [256, 256]}},
    verbose=1,
)
model.learn(args.steps, log_interval=100)
mean, _ = evaluate_policy(model, env, n_eval_episodes=50)
print(f"mean return {mean:.2f}: 0 is a success at once, {-N_BITS} a failure")
