"""A strip of pictures: one episode of a trained model, without noise.

    python benchmarks/film.py runs/benchmarks/results/offline/<task>/flow_t/2/model.zip \\
        --env cube-single-play-singletask-task1-v0 --out docs/images/cube_single.png
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # before anything imports MuJoCo: its default needs a display

import gymnasium as gym
import numpy as np
from arguments import positive
from contenders import OURS, THEIRS, algorithm_of
from matplotlib.figure import Figure
from numpy.typing import NDArray
from on_policy import as_trained
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import sb3_flow.envs  # noqa: F401 (registers the tasks)


def film(
    model: BaseAlgorithm, env: gym.Env[Any, Any], seed: int, normalize: VecNormalize | None = None
) -> list[NDArray[np.uint8]]:
    """The pictures of one episode, the first state's included.

    :param model: acts without noise
    :param env: renders "rgb_array"
    :param seed: determines the episode
    :param normalize: what the model learned with
    """
    obs, _ = env.reset(seed=seed)
    state, over = None, False
    pictures: list[Any] = [env.render()]
    while not over:
        seen = obs if normalize is None else normalize.normalize_obs(obs)
        action, state = model.predict(seen, state, deterministic=True)
        obs, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
        pictures.append(env.render())
    return pictures


def draw_strip(pictures: list[NDArray[np.uint8]], moments: int, path: Path) -> None:
    """Some pictures side by side, evenly spaced in time, the first and the last among them.

    :param pictures: of an episode
    :param moments: how many are drawn
    :param path: of the strip
    """
    chosen = np.linspace(0, len(pictures) - 1, moments).round().astype(int)
    height, width, _ = pictures[0].shape
    figure = Figure(figsize=(2 * moments, 2 * height / width + 0.25), layout="constrained")
    for axes, step in zip(figure.subplots(1, moments, squeeze=False)[0], chosen, strict=True):
        axes.imshow(pictures[step])
        axes.set_title(f"step {step}", fontsize=9)
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--env", required=True)
    parser.add_argument("--algo", choices=[*OURS, *THEIRS], default="flow_t", help="what was trained")
    parser.add_argument("--seed", type=int, default=0, help="of the episode")
    parser.add_argument("--moments", type=positive, default=6)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    env = gym.make(args.env, render_mode="rgb_array")
    known = as_trained(args.model, DummyVecEnv([lambda: env]))
    normalize = known if isinstance(known, VecNormalize) else None
    pictures = film(algorithm_of(args.algo).load(args.model, device="cpu"), env, args.seed, normalize)
    env.close()
    draw_strip(pictures, args.moments, args.out)
    print(f"{args.out}: {len(pictures) - 1} steps")


if __name__ == "__main__":
    main()
