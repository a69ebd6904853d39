"""Export a policy to ONNX, and run it with onnxruntime alone, as on a robot that has neither SB3 nor PyTorch.

python examples/onnx_export.py --steps 3000
"""

import argparse

import gymnasium as gym
import numpy as np
import onnxruntime

from sb3_flow import SACFlow
from sb3_flow.export import export_onnx

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=3_000)
args = parser.parse_args()

CHUNK = 2  # actions that are decided at once
model = SACFlow("FlowTPolicy", "Pendulum-v1", learning_starts=min(500, args.steps // 2), horizon_length=CHUNK, seed=0)
model.learn(args.steps, progress_bar=True)
export_onnx(model, "pendulum.onnx")

# From here on nothing of SB3 or PyTorch is used
session = onnxruntime.InferenceSession("pendulum.onnx")
env = gym.make("Pendulum-v1")
obs, _ = env.reset(seed=0)
total, ended = 0.0, False
while not ended:
    (chunks,) = session.run(["action"], {"observation": np.asarray(obs, dtype=np.float32)[None]})  # (1, h, 1)
    for action in chunks[0]:
        obs, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        ended = terminated or truncated
        if ended:
            break
print(f"return with onnxruntime: {total:.0f}")
