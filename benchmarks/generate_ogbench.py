"""Play data of OGBench's manipulation scenes by its own scripted oracles, in the form of the published files.

    python benchmarks/generate_ogbench.py --env cube-single-play-v0 --steps 1e5 --out cube-single.npz --jobs 2
    python benchmarks/generate_ogbench.py --env cube-quadruple-play-100m-v0 --steps 1e8 --out cube-quadruple --jobs 16

`play` data follow plans with noise in them, `noisy` data (cube-single-noisy-v0) the Markov oracles with noise on their
actions, some of which are random; both with the published data's settings. An output that ends with .npz is one file,
any other a directory of files of --shard-steps each. The same seed makes the same data whatever --jobs is. A stopped
command that is given again goes on with the parts that are finished. One file's parts stay in `<out>.parts`, so that
making it longer later costs only the difference; they may be deleted.
"""

import argparse
import math
import re
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from arguments import positive
from numpy.typing import NDArray
from ogbench.manipspace.envs.cube_env import CubeEnv
from ogbench.manipspace.envs.puzzle_env import PuzzleEnv
from ogbench.manipspace.envs.scene_env import SceneEnv
from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle
from parts import make_parts, write_whole

Arrays = dict[str, NDArray[Any]]

NAME = re.compile(r"(cube-(?:single|double|triple|quadruple)|scene|puzzle-(?:3x3|4x4))-(play|noisy)(?:-\d+m)?-v0")
PLAN = {"cube": CubePlanOracle, "button": ButtonPlanOracle, "drawer": DrawerPlanOracle, "window": WindowPlanOracle}
MARKOV = {
    "cube": CubeMarkovOracle,
    "button": ButtonMarkovOracle,
    "drawer": DrawerMarkovOracle,
    "window": WindowMarkovOracle,
}
# The published data's settings
PLAN_NOISE = {"noise": 0.1, "noise_smoothing": 0.5}
MIN_NORM = 0.4
ACTION_NOISE = 0.1  # the most of an episode
ACTION_NOISE_RATIO = np.array([1, 1, 1, 3, 10])
RANDOM_ACTIONS = {"cube": 0.1, "scene": 0.1, "puzzle": 0.2}  # their share in noisy data
SCENE_CUBE_STEPS = 100  # after which the Markov oracle gives up a cube
STACKING = {"cube-single": (0, 0), "cube-double": (0, 0.25), "cube-triple": (0.05, 0.35), "cube-quadruple": (0.1, 0.5)}
OTHER_STACKING = (0.5, 0.5)
DTYPES = {"terminals": np.bool_, "button_states": np.int64}

PART_EPISODES = 10


@dataclass(frozen=True)
class Settings:
    """All that the data depend on.

    :param scene: "cube-single", ..., "scene", or "puzzle-3x3", ...
    :param kind: "play" or "noisy"
    :param seed: of all random numbers
    :param episode_steps: an episode has one row more
    :param part_episodes: episodes in a file that one process makes
    """

    scene: str
    kind: str
    seed: int
    episode_steps: int
    part_episodes: int

    @property
    def random_actions(self) -> float:
        """Their share."""
        return RANDOM_ACTIONS[self.scene.partition("-")[0]] if self.kind == "noisy" else 0.0

    def all(self) -> dict[str, Any]:
        """What tells whether parts were made alike."""
        own = {"random_actions": self.random_actions} if self.random_actions else {}
        return {**asdict(self), **own, "ogbench": version("ogbench"), "mujoco": version("mujoco")}


def make_part(path: Path, settings: Settings) -> None:
    """Write the episodes that a file's number stands for."""
    # A simulator of its own, so that nothing depends on which process made what before
    env = make_env(settings.scene)
    first = int(path.stem) * settings.part_episodes
    episodes = [make_episode(env, settings, first + i) for i in range(settings.part_episodes)]
    write_whole(path, partial(save, episodes=episodes))


def make_env(scene: str) -> Any:
    """ogbench's environment in the mode in which it draws targets itself."""
    family, _, env_type = scene.partition("-")
    env_class = {"cube": CubeEnv, "scene": SceneEnv, "puzzle": PuzzleEnv}[family]
    return env_class(env_type or family, mode="data_collection", terminate_at_goal=False)


def make_episode(env: Any, settings: Settings, number: int) -> Arrays:
    """One episode, which only its number and the settings determine."""
    for attempt in count():
        seed = int(np.random.SeedSequence([settings.seed, number, attempt]).generate_state(1)[0])
        np.random.seed(seed)  # the oracles draw from it
        episode = run_oracles(env, settings, seed)
        if settings.scene != "scene" or cube_in_sight(episode["qpos"]):
            return episode
    raise AssertionError("unreachable")


def run_oracles(env: Any, settings: Settings, seed: int) -> Arrays:
    """One oracle after the other does what the environment asks for."""
    oracles = make_oracles(env, settings)
    p_stack = np.random.uniform(*STACKING.get(settings.scene, OTHER_STACKING))
    noise = ACTION_NOISE_RATIO * (np.random.uniform(0, ACTION_NOISE) if settings.kind == "noisy" else 0)
    rows = defaultdict(list)
    observation, info = env.reset(seed=seed)
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    for step in range(settings.episode_steps + 1):
        if settings.random_actions > 0 and np.random.rand() < settings.random_actions:
            action = np.random.uniform(-1, 1, len(noise))
        else:
            action = oracle.select_action(observation, info)
            action = np.clip(action + np.random.normal(0, noise), -1, 1)
        after, _, _, _, info = env.step(action)
        rows["observations"].append(observation)
        rows["actions"].append(action)
        rows["terminals"].append(step == settings.episode_steps)
        # The state before the step, to which the observation belongs
        for key in ("qpos", "qvel", "button_states"):
            if f"prev_{key}" in info:
                rows[key].append(info[f"prev_{key}"])
        observation = after
        if oracle.done:
            _, info = env.set_new_target(p_stack=p_stack)
            oracle = oracles[info["privileged/target_task"]]
            oracle.reset(observation, info)
    return {key: np.array(values, dtype=DTYPES.get(key, np.float32)) for key, values in rows.items()}


def make_oracles(env: Any, settings: Settings) -> dict[str, Any]:
    plays = settings.kind == "play"
    common: dict[str, Any] = {"env": env, **(PLAN_NOISE if plays else {"min_norm": MIN_NORM})}
    own: dict[str, dict[str, Any]] = defaultdict(dict)
    if settings.scene.startswith("puzzle"):
        own["button"] = {"gripper_always_closed": True}
    if settings.scene == "scene" and not plays:
        own["cube"] = {"max_step": SCENE_CUBE_STEPS}
    return {target: oracle(**common, **own[target]) for target, oracle in (PLAN if plays else MARKOV).items()}


def cube_in_sight(qpos: NDArray[Any]) -> bool:
    """Whether the scene's cube never left the part of the table that goal pictures show, but into the drawer."""
    _, y, z = qpos[:, 14:17].T
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return not ((y >= 0.29) | ((y <= -0.3) & ~in_drawer)).any()


def save(path: Path, episodes: list[Arrays]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **{key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]})


def join(parts: list[Path], rows: int, out: Path) -> None:
    """Write the first rows of all parts to one file."""
    arrays: list[Arrays] = []
    for path in parts:
        with np.load(path) as part:
            arrays.append({key: part[key] for key in part.files})
    surplus = sum(len(part["terminals"]) for part in arrays) - rows
    arrays[-1] = {key: values[: len(values) - surplus] for key, values in arrays[-1].items()}
    write_whole(out, partial(save, episodes=arrays))


def data_name(text: str) -> re.Match[str]:
    """An argument of the command line: the name of the data, in its parts."""
    match = NAME.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: write it like cube-single-play-v0, scene-play-v0")
    return match


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=data_name, default="cube-single-play-v0", help="name of the data")
    parser.add_argument("--steps", type=positive, default=100_000)
    parser.add_argument("--out", type=Path, required=True, help="a file that ends with .npz, or a directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=positive, default=1, help="parallel processes")
    parser.add_argument("--episode-steps", type=positive, default=1000)
    parser.add_argument("--shard-steps", type=positive, default=1_000_000, help="of a directory's files")
    args = parser.parse_args()

    one_file = args.out.suffix == ".npz"
    part_episodes = PART_EPISODES if one_file else math.ceil(args.shard_steps / args.episode_steps)
    settings = Settings(args.env[1], args.env[2], args.seed, args.episode_steps, part_episodes)
    episodes = math.ceil(args.steps / args.episode_steps)
    folder = args.out.with_name(f"{args.out.name}.parts") if one_file else args.out
    paths = [folder / f"{i:04d}.npz" for i in range(math.ceil(episodes / part_episodes))]
    make_parts(
        paths, part_episodes * args.episode_steps, settings.all(), partial(make_part, settings=settings), args.jobs
    )
    if one_file:
        join(paths, episodes * (args.episode_steps + 1), args.out)
    print(f"{args.out}: load_dataset('ogbench:{args.env[0].removesuffix('-v0')}-singletask-task1-v0@{args.out}')")


if __name__ == "__main__":
    main()
