"""`make demo`: train Flow-T on HalfCheetah for a few minutes, then leave a model, a learning curve and a video.

The curve stands beside those of SAC, CrossQ and Flow-T over 100,000 steps, from the results in the repository.

python examples/demo.py --steps 15000 --minutes 5 --out demo
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # before anything imports MuJoCo: its default needs a display

import gymnasium as gym
import imageio.v3 as iio
import mujoco
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecVideoRecorder

from sb3_flow import SACFlow

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "learning"
SHOWN = {"flow_t": ("Flow-T", "#0b6e99"), "crossq": ("CrossQ", "#555555"), "sac": ("SB3's SAC", "#a0a0a0")}
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, returns


class StopAfter(BaseCallback):
    """Ends training some minutes after its start, however slow the machine is."""

    def __init__(self, minutes: float):
        super().__init__()
        self.minutes = minutes

    def _init_callback(self) -> None:
        self.end = time.perf_counter() + 60 * self.minutes

    def _on_step(self) -> bool:
        return time.perf_counter() < self.end


def committed_curves(env_id: str) -> dict[str, Curve]:
    """Mean return over seeds of the runs in the repository, by label; none for a task that has none there."""
    task = f"{env_id.rpartition('-')[0]}-v4"
    folder = RESULTS / task
    curves = {}
    for name, (label, _) in SHOWN.items():
        runs = [np.genfromtxt(path, delimiter=",", names=True) for path in sorted((folder / name).glob("*.csv"))]
        if runs:
            returns = np.mean([run["deterministic_return"] for run in runs], axis=0)
            curves[f"{label}, {task}, 100,000 steps, mean of {len(runs)} seeds"] = (runs[0]["step"], returns)
    return curves


def draw_picture(evaluations: Path, video: Path | None, picture: Path, env_id: str) -> None:
    """This run's curve beside those of the repository, under six consecutive moments of the video."""
    data = np.load(evaluations)
    returns = data["results"]
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    strip, curve = np.asarray(figure.subfigures(2, 1, height_ratios=[1, 2.2]))
    axes = curve.subplots()
    for (label, (steps, means)), (_, color) in zip(committed_curves(env_id).items(), SHOWN.values(), strict=False):
        axes.plot(steps, means, color=color, lw=1.5, label=label)
    axes.plot(
        data["timesteps"], returns.mean(axis=1), marker="o", ms=3, lw=2.5, color="#d1495b", label="this run, Flow-T"
    )
    axes.fill_between(data["timesteps"], returns.min(axis=1), returns.max(axis=1), alpha=0.2, color="#d1495b", lw=0)
    axes.set(xlabel="environment steps", ylabel="evaluation return")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    strip.suptitle(f"SAC Flow-T on {env_id}, from scratch")
    if video is not None:
        frames = iio.imread(video, plugin="FFMPEG")  # (n, height, width, 3)
        moments = np.linspace(len(frames) // 2, len(frames) // 2 + len(frames) // 12, 6).astype(int)
        for box, moment in zip(strip.subplots(1, 6), moments, strict=True):
            box.imshow(frames[moment])
            box.axis("off")
    figure.savefig(picture, dpi=120)


def record_video(model: SACFlow, env_id: str, folder: Path, length: int) -> Path | None:
    """Film the deterministic policy, if this machine can render."""
    kwargs = {"render_mode": "rgb_array"}
    if str(gym.spec(env_id).entry_point).startswith("gymnasium.envs.mujoco"):
        kwargs["camera_name"] = "track"  # the default camera stays where the robot started
    env = make_vec_env(env_id, env_kwargs=kwargs, seed=1)
    try:
        recorder = VecVideoRecorder(env, str(folder), lambda step: step == 0, length, name_prefix="policy")
        obs: Any = recorder.reset()
        for _ in range(length):
            action, _ = model.predict(obs, deterministic=True)
            obs = recorder.step(action)[0]
        recorder.close()
    except (gym.error.DependencyNotInstalled, mujoco.FatalError, AttributeError, ImportError, RuntimeError) as error:
        # Without libEGL, PyOpenGL fails with an AttributeError
        print(f"No video: this machine cannot render ({error}). Everything else is done.")
        return None
    return max(folder.glob("policy*.mp4"), key=os.path.getmtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--minutes", type=float, default=5.0, help="training ends at the first evaluation after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument(
        "--video-length", type=int, default=180, help="steps; soon after, a good cheetah leaves the drawn floor"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    print(f"Training Flow-T on {args.env} for {args.steps} steps, at most {args.minutes:g} minutes.")
    model = SACFlow(
        "FlowTPolicy",
        args.env,
        learning_starts=min(2_000, args.steps // 4),
        buffer_size=args.steps,
        policy_kwargs={"net_arch": [256, 256]},  # the paper's critics are 1024 wide; these suit a laptop
        seed=args.seed,
    )
    # Five episodes at once: one batched predict serves all
    eval_env = make_vec_env(args.env, n_envs=5, seed=args.seed + 1000)
    evaluation = EvalCallback(
        eval_env,
        callback_after_eval=StopAfter(args.minutes),
        n_eval_episodes=5,
        eval_freq=max(args.steps // 10, 1),
        log_path=str(args.out),
        verbose=0,
    )
    start = time.perf_counter()
    model.learn(args.steps, callback=evaluation, progress_bar=True)
    minutes = (time.perf_counter() - start) / 60

    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=10, deterministic=True)
    model.save(args.out / "model")
    video = record_video(model, args.env, args.out, args.video_length)
    draw_picture(args.out / "evaluations.npz", video, args.out / "learning_curve.png", args.env)

    # The first steps are random, and take no time
    enough = math.ceil(1.5 * minutes * args.steps / model.num_timesteps)
    more = "" if model.num_timesteps >= args.steps else f" (all {args.steps} with --minutes {enough})"
    print(f"\nTrained for {model.num_timesteps} steps in {minutes:.1f} minutes{more}.")
    print(f"Return without noise: {mean:.0f} +- {std:.0f} over 10 episodes.")
    print(f"  model           {args.out / 'model.zip'}")
    print(f"  learning curve  {args.out / 'learning_curve.png'}")
    if video is not None:
        print(f"  video           {video}")
    print("\nNext:")
    print(f"  look at it            {args.out / 'learning_curve.png'}: this run beside SAC, CrossQ and Flow-T")
    print("  another robot         .venv/bin/python examples/demo.py --env Hopper-v5 --out demo/hopper")
    print("  with rl-zoo3          .venv/bin/python -m rl_zoo3.train --algo sac_flow --env Pendulum-v1 -P")
    print("  your own environment  examples/custom_env.py, and docs/from_sb3.md")
    print("  your own data         docs/own_data.md")


if __name__ == "__main__":
    main()
