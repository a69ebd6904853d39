"""Demonstrations of Lift or Can by a script with human faults, in the form of Robomimic's low-dimensional files.

    python benchmarks/generate_robomimic.py --task lift --demos 200 --out lift.hdf5 --jobs 2

A third each is by a good, a middling and a bad operator (filters better, okay and worse): slower, shakier, with pauses
and detours. Whoever fails tries again from another start, unless --keep-failures. The same seed makes the same data
whatever --jobs is. A stopped command that is given again goes on with the parts that are finished; they stay in
`<out>.parts`, so that adding demonstrations later costs only the difference, and may be deleted.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from arguments import positive
from numpy.typing import NDArray
from parts import make_parts, write_whole

import sb3_flow.envs  # noqa: F401 (registers the environments)
from sb3_flow.datasets.robomimic import ENVIRONMENTS

Vector = NDArray[np.float64]

TASKS = ("lift", "can")
PART_DEMOS = 10
ROBOSUITE_TYPE = 1  # robomimic's number
STEP_METRES = 0.05  # what an action of 1 asks for
STEP_RADIANS = 0.5
GAIN = 2.0  # a step covers about a quarter of what it is asked for
OPEN, CLOSED = -1.0, 1.0
UP = np.array([0.0, 0.0, 1.0])
NOISE_KEPT = 0.8  # from one step to the next
POSITION = {"lift": "cube_pos", "can": "Can_pos"}
GRASP = 2  # number of the stage
SLIPPED = 0.05  # metres from the gripper


@dataclass(frozen=True)
class Operator:
    """How well a demonstrator does it.

    :param speed: lowest and highest share of full speed
    :param noise: standard deviation of the actions' noise, which is correlated in time
    :param pause: probability to stop, a step
    :param detour: standard deviation of what the first approach misses the object by, in metres
    """

    speed: tuple[float, float]
    noise: float
    pause: float
    detour: float


OPERATORS = {
    "better": Operator((0.8, 1.0), 0.05, 0.0, 0.01),
    "okay": Operator((0.5, 0.9), 0.15, 0.01, 0.04),
    "worse": Operator((0.4, 0.8), 0.3, 0.02, 0.08),
}


@dataclass(frozen=True)
class Settings:
    """All that the data depend on.

    :param task: one of TASKS
    :param seed: of all random numbers
    :param keep_failures: keep the first attempt of every demonstration, whether it succeeds or not
    :param part_demos: demonstrations in a file that one process makes
    """

    task: str
    seed: int
    keep_failures: bool
    part_demos: int


@dataclass(frozen=True)
class Stage:
    """A part of the way.

    :param target: where the gripper shall be, from where the object is and where it was grasped
    :param grip: OPEN or CLOSED
    :param tolerance: at most so far from it, in metres
    :param steps: at least so long
    """

    target: Callable[[Vector, Vector], Vector]
    grip: float
    tolerance: float = 0.015
    steps: int = 0


def above(height: float) -> Callable[[Vector, Vector], Vector]:
    return lambda thing, grasped: thing + height * UP


def stages(task: str, simulation: Any) -> list[Stage]:
    """The way to success; the last stage goes on until then."""
    grasp = [Stage(above(0.1), OPEN, 0.03), Stage(above(0), OPEN, 0.01), Stage(above(0), CLOSED, 0.03, steps=8)]
    if task == "lift":
        return [*grasp, Stage(lambda thing, grasped: grasped + 0.15 * UP, CLOSED)]
    can_bin = simulation.target_bin_placements[simulation.object_id]
    high = 0.3 * UP
    return [
        *grasp,
        Stage(lambda thing, grasped: grasped + high, CLOSED, 0.05),
        Stage(lambda thing, grasped: can_bin + high, CLOSED, 0.03),
        Stage(lambda thing, grasped: can_bin + high / 2, CLOSED, 0.03),
        Stage(lambda thing, grasped: can_bin + high / 2, OPEN, 0.05, steps=5),
        Stage(lambda thing, grasped: can_bin + high, OPEN),
    ]


class Script:
    """Acts stage by stage, and starts over when the object has slipped.

    :param env: the environment, after its reset
    :param task: one of TASKS
    :param operator: who acts
    :param rng: of all random numbers
    """

    def __init__(self, env: Any, task: str, operator: Operator, rng: np.random.Generator):
        self.task = task
        self.stages = stages(task, env.simulation)
        self.operator = operator
        self.rng = rng
        self.speed = rng.uniform(*operator.speed)
        self.detour = rng.normal(0, operator.detour, 3) * (1, 1, 0.5)
        self.noise = np.zeros(4)
        self.pause = 0
        self.stage = self.steps = 0

    def act(self, obs: dict[str, Any]) -> Vector:
        """The next action.

        :param obs: robosuite's observations by name
        """
        gripper, thing = obs["robot0_eef_pos"], obs[POSITION[self.task]]
        if self.stages[self.stage].grip == OPEN:
            self.grasped = thing
        elif self.stage > GRASP and np.linalg.norm(thing - gripper) > SLIPPED:
            self.stage = self.steps = 0
        stage = self.stages[self.stage]
        way = stage.target(thing, self.grasped) - gripper
        if self.stage == 0:
            way = way + self.detour
        self.steps += 1
        if np.linalg.norm(way) <= stage.tolerance and self.steps > stage.steps and stage is not self.stages[-1]:
            self.stage, self.steps = self.stage + 1, 0
        return self._faulty(GAIN * np.array([*way / STEP_METRES, self._turn(obs) / STEP_RADIANS]), stage.grip)

    def _turn(self, obs: dict[str, Any]) -> float:
        """Radians about the vertical to the nearest side of the cube, or back to the start for a can."""
        x, y, _, _ = obs["robot0_eef_quat"]
        if self.task != "lift":
            return -2 * math.atan2(y, x)
        _, _, z, w = obs["cube_quat"]
        quarter = math.pi / 2
        return (2 * math.atan2(z, w) - 2 * math.atan2(y, x) + quarter / 2) % quarter - quarter / 2

    def _faulty(self, wanted: Vector, grip: float) -> Vector:
        """What the operator makes of a movement of x, y, z and turn."""
        self.noise = NOISE_KEPT * self.noise + math.sqrt(1 - NOISE_KEPT**2) * self.rng.normal(0, self.operator.noise, 4)
        if self.pause == 0 and self.rng.random() < self.operator.pause:
            self.pause = int(self.rng.integers(3, 15))
        if self.pause > 0:
            self.pause -= 1
            wanted = np.zeros(4)
        x, y, z, turn = np.clip(self.speed * np.clip(wanted, -1, 1) + self.noise, -1, 1)
        return np.array([x, y, z, 0, 0, turn, grip])


def make_part(path: Path, settings: Settings) -> None:
    """Write the demonstrations that a file's number stands for."""
    env = gym.make(f"{settings.task}-mh-low_dim-v0")
    first = int(path.stem) * settings.part_demos
    write_whole(path, partial(save_part, env=env, settings=settings, numbers=range(first, first + settings.part_demos)))
    env.close()


def save_part(path: Path, env: Any, settings: Settings, numbers: range) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {
                "env_name": ENVIRONMENTS[settings.task],
                "env_version": version("robosuite"),
                "type": ROBOSUITE_TYPE,
                "env_kwargs": env.unwrapped.env_kwargs,
            },
            indent=4,
        )
        for number in numbers:
            make_demo(data.create_group(f"demo_{number}"), env, settings, number)


def make_demo(group: Any, env: Any, settings: Settings, number: int) -> None:
    """One demonstration, which only its number and the settings determine."""
    for attempt in count(1):
        rng = np.random.default_rng([settings.seed, number, attempt])
        seed = int(rng.integers(2**31))
        script_for = partial(Script, env.unwrapped, settings.task, OPERATORS[operator_of(number)], rng)
        actions, states, frames, success = demonstrate(env, seed, script_for)
        if success or settings.keep_failures:
            break
    steps = len(actions)
    group.attrs.update({"num_samples": steps, "seed": seed, "attempts": attempt, "success": success})
    group.attrs["model_file"] = env.unwrapped.simulation.sim.model.get_xml()
    done = (np.arange(steps) == steps - 1) & success
    group["actions"], group["states"] = actions, states[:-1]
    group["rewards"], group["dones"] = done.astype(np.float64), done.astype(np.int64)
    for key in frames[0]:
        values = np.array([frame[key] for frame in frames])
        group[f"obs/{key}"], group[f"next_obs/{key}"] = values[:-1], values[1:]


def demonstrate(
    env: Any, seed: int, script_for: Callable[[], Script]
) -> tuple[list[Vector], list[Vector], list[dict[str, Any]], bool]:
    """Actions, and one more each of simulator states and observations; and whether it was a success."""
    env.reset(seed=seed)
    simulation = env.unwrapped.simulation
    script = script_for()
    actions: list[Vector] = []
    raw = [simulation._get_observations()]
    states = [simulation.sim.get_state().flatten()]
    over = success = False
    while not over:
        actions.append(script.act(raw[-1]))
        _, _, success, truncated, _ = env.step(actions[-1])
        raw.append(simulation._get_observations())
        states.append(simulation.sim.get_state().flatten())
        over = success or truncated
    return actions, states, [robomimic_names(obs) for obs in raw], success


def robomimic_names(obs: dict[str, Any]) -> dict[str, Any]:
    """What robomimic keeps of robosuite's observations."""
    kept = {key: value for key, value in obs.items() if key.startswith("robot0_") and key != "robot0_proprio-state"}
    return {"object": obs["object-state"], **kept}


def operator_of(number: int) -> str:
    return list(OPERATORS)[number % len(OPERATORS)]


def join(parts: list[Path], demos: int, out: Path) -> None:
    """Write the first demonstrations of all parts to one file, with filters."""
    with h5py.File(out, "w") as file:
        data = file.create_group("data")
        for path in parts:
            with h5py.File(path) as part:
                data.attrs["env_args"] = part["data"].attrs["env_args"]
                for name in part["data"]:
                    if number_of(name) < demos:
                        part.copy(f"data/{name}", data)
        names = sorted(data, key=number_of)
        data.attrs["total"] = sum(int(data[name].attrs["num_samples"]) for name in names)
        filters = {key: [name for name in names if operator_of(number_of(name)) == key] for key in OPERATORS}
        # A tenth to validate on, as robomimic splits
        filters |= {
            "train": [n for n in names if number_of(n) % 10],
            "valid": [n for n in names if not number_of(n) % 10],
        }
        for key, members in filters.items():
            file[f"mask/{key}"] = np.array(members, dtype="S")


def number_of(name: str) -> int:
    return int(name.removeprefix("demo_"))


def report(out: Path) -> str:
    """How often the script succeeded, and how long it took."""
    lines = []
    with h5py.File(out) as file:
        for key in OPERATORS:
            attrs = [file["data"][name.decode()].attrs for name in file[f"mask/{key}"][()]]
            attempts, steps = sum(int(a["attempts"]) for a in attrs), [int(a["num_samples"]) for a in attrs]
            successes = sum(bool(a["success"]) for a in attrs)
            lines.append(f"{key:7} {successes} successes in {attempts} attempts, {np.mean(steps or 0):.0f} steps each")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="lift", choices=TASKS)
    parser.add_argument("--demos", type=positive, default=200)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=positive, default=1, help="parallel processes")
    parser.add_argument("--keep-failures", action="store_true")
    args = parser.parse_args()

    settings = Settings(args.task, args.seed, args.keep_failures, PART_DEMOS)
    folder = args.out.with_name(f"{args.out.name}.parts")
    paths = [folder / f"{i:04d}.hdf5" for i in range(math.ceil(args.demos / PART_DEMOS))]
    versions = {package: version(package) for package in ("robosuite", "mujoco")}
    make_parts(paths, PART_DEMOS, asdict(settings) | versions, partial(make_part, settings=settings), args.jobs)
    write_whole(args.out, partial(join, paths, args.demos))
    print(f"{report(args.out)}\n{args.out}: load_dataset('robomimic:{args.task}/mh@{args.out}')")


if __name__ == "__main__":
    main()
