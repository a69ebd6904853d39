"""Callbacks: evaluate, keep the best model, write checkpoints that a run goes on from, stop when it is good enough.

python examples/callbacks.py --steps 15000
"""

import argparse

from stable_baselines3.common.callbacks import CallbackList, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from sb3_flow import SACFlow
from sb3_flow.common.checkpoints import CheckpointCallback

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=15_000)
parser.add_argument("--out", default="callbacks")
args = parser.parse_args()

model = SACFlow(
    "FlowTPolicy",
    "Pendulum-v1",
    learning_starts=min(1_000, args.steps // 2),
    policy_kwargs={"net_arch": {"qf": [256, 256]}},
)
every = max(args.steps // 10, 1)
evaluation = EvalCallback(
    make_vec_env("Pendulum-v1", n_envs=5),
    callback_on_new_best=StopTrainingOnRewardThreshold(-150, verbose=1),
    eval_freq=every,
    best_model_save_path=args.out,
    log_path=args.out,
)
checkpoints = CheckpointCallback(every, args.out)  # of one run: begin the next in another folder
model.learn(args.steps, callback=CallbackList([evaluation, checkpoints]))
print(f"last mean return {evaluation.last_mean_reward:.0f}; best model, checkpoints and evaluations.npz: {args.out}/")
