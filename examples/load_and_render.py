"""Load the policy that train.py saved, or another, and film one episode.

python examples/load_and_render.py --model pendulum.zip --env Pendulum-v1
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecVideoRecorder

from sb3_flow import SACFlow

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="pendulum.zip")
parser.add_argument(
    "--env", default="Pendulum-v1", help="MuJoCo tasks need MUJOCO_GL=egl on a machine without a screen"
)
parser.add_argument("--out", default="videos")
parser.add_argument("--video-length", type=int, default=200)
args = parser.parse_args()

model = SACFlow.load(args.model)
env = VecVideoRecorder(
    make_vec_env(args.env, seed=0, env_kwargs={"render_mode": "rgb_array"}),
    args.out,
    record_video_trigger=lambda step: step == 0,
    video_length=args.video_length,
)
mean, _ = evaluate_policy(model, env, n_eval_episodes=1)
env.close()
print(f"return {mean:.0f}; the video is in {args.out}/")
