"""Environments under the papers' names: what the suites' own ones lack is there, and nothing else is changed."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from dataset_files import env_args, write_robomimic
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import sb3_flow.envs
from sb3_flow.datasets.ogbench import env_id
from sb3_flow.envs.registration import HORIZONS

pytest.importorskip("ogbench")
pytest.importorskip("robosuite")

import mujoco

from sb3_flow.envs.robomimic import ENV_KWARGS

CUBE, SCENE = "cube-single-play-singletask-task1-v0", "scene-play-singletask-task2-v0"
LIFT = "lift-mh-low_dim-v0"
SPARSE = "puzzle-3x3-sparse-play-singletask-task5-v0"
OGBENCH_IDS = [name for name in gym.registry if "-singletask" in name and "-play" in name]
ROBOMIMIC_IDS = [f"{task}-{kind}-low_dim-v0" for task in HORIZONS for kind in ("mh", "ph")]
OBJECT = {"lift": 10, "can": 14, "square": 14}


@pytest.fixture(scope="module")
def envs() -> Iterator[dict[str, gym.Env[Any, Any]]]:
    """One of each kind: making them takes long."""
    made = {name: gym.make(name, render_mode="rgb_array", width=64, height=48) for name in (CUBE, SCENE, SPARSE, LIFT)}
    yield made
    for env in made.values():
        env.close()


@pytest.fixture(params=[CUBE, SCENE, SPARSE, LIFT])
def env(request: pytest.FixtureRequest, envs: dict[str, Any]) -> Any:
    return envs[request.param]


def episode(env: Any, seed: int, steps: int = 20) -> NDArray[np.float32]:
    """Observations under the same random actions whatever the seed."""
    rng = np.random.default_rng(0)
    rows = [env.reset(seed=seed)[0]]
    rows += [env.step(rng.uniform(-1, 1, env.action_space.shape))[0] for _ in range(steps)]
    return np.array(rows)


def test_ids() -> None:
    scenes = ["cube-single", "cube-double", "cube-triple", "cube-quadruple", "scene", "puzzle-3x3", "puzzle-4x4"]
    data = [f"{scene}-play" for scene in scenes]
    data += ["scene-sparse-play", "puzzle-3x3-sparse-play", "puzzle-4x4-sparse-play"]
    data += ["cube-quadruple-play-100m", "puzzle-4x4-play-100m", "puzzle-4x4-sparse-play-100m"]
    tasks = ["", *(f"-task{number}" for number in range(1, 6))]
    assert set(OGBENCH_IDS) == {f"{name}-singletask{task}-v0" for name in data for task in tasks}
    assert len(ROBOMIMIC_IDS) == 6
    for name in OGBENCH_IDS + ROBOMIMIC_IDS:
        assert name in gym.registry
    assert [gym.spec(f"{task}-ph-low_dim-v0").max_episode_steps for task in HORIZONS] == [300, 300, 400]


@pytest.mark.parametrize("name", OGBENCH_IDS)
def test_ogbench_is_asked_for_the_task_of_the_data_of_that_name(name: str) -> None:
    import ogbench  # noqa: F401 (registers its environments)

    ours, theirs = gym.spec(name), gym.spec(env_id(name))
    assert ours.max_episode_steps == theirs.max_episode_steps
    for key in ("env_type", "reward_task_id"):
        assert ours.kwargs[key] == theirs.kwargs[key]
    assert ours.kwargs["sparse"] == ("-sparse-" in name)


def test_registering_again_changes_nothing() -> None:
    before = dict(gym.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_flow.envs.register()
    assert gym.registry == before


@pytest.mark.slow
def test_the_zoo_knows_them_without_importing_a_suite_and_a_missing_one_is_named() -> None:
    code = f"""
import sys
import custom_envs  # which rl_zoo3's commands import
import gymnasium as gym
for package, name in (("ogbench", {CUBE!r}), ("robosuite", {LIFT!r})):
    assert name in gym.registry
    assert package not in sys.modules
    sys.modules[package] = None
    try:
        gym.make(name)
    except ImportError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "pip install -c constraints.txt '.[ogbench]', in the clone" in result.stdout
    assert "pip install -c constraints.txt '.[robomimic]', in the clone" in result.stdout


@pytest.mark.slow
def test_spaces_and_types(env: Any) -> None:
    sizes = {CUBE: (28, 5), SCENE: (40, 5), SPARSE: (55, 5), LIFT: (19, 7)}
    observation_size, action_size = sizes[env.spec.id]
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (action_size,), np.float32)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert info["is_success"] is False
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert observation in env.observation_space
    assert [type(value) for value in (reward, terminated, truncated, info["is_success"])] == [float, bool, bool, bool]


def test_checkers_find_nothing(env: Any) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
        check_env_for_sb3(env)
    # Robots' joints and velocities have no bounds to declare: MuJoCo's own environments get these two warnings as well
    allowed = ("minimum value is -infinity", "maximum value is infinity")
    assert [str(w.message) for w in found if not any(part in str(w.message) for part in allowed)] == []


def test_a_seed_determines_the_episode(env: Any) -> None:
    first = episode(env, 1)
    episode(env, 2)
    env.action_space.seed(7)
    np.random.seed(7)
    np.testing.assert_array_equal(episode(env, 1), first)
    fresh = gym.make(env.spec.id)
    np.testing.assert_array_equal(episode(fresh, 1), first)
    fresh.close()


def test_other_seeds_place_robot_and_objects_elsewhere(env: Any) -> None:
    starts = np.array([env.reset(seed=seed)[0] for seed in range(3)])
    objects = {CUBE: slice(19, 22), SCENE: slice(19, 22), LIFT: slice(9, 12)}  # a puzzle's buttons stay where they are
    for part in (slice(0, 3), objects.get(env.spec.id, slice(0, 3))):
        assert len(np.unique(starts[:, part], axis=0)) == 3
    # Without a seed the next episode is another one, but the same one every time
    again = [[env.reset(seed=0)[0], env.reset()[0]] for _ in range(2)]
    np.testing.assert_array_equal(again[0], again[1])
    assert (again[0][0] != again[0][1]).any()


def test_environments_without_a_seed_differ() -> None:
    made = [gym.make(LIFT) for _ in range(2)]
    first, second = [np.array([env.reset()[0] for _ in range(2)]) for env in made]
    for env in made:
        env.close()
    assert (first != second).any(axis=1).all()


def test_the_users_own_draws_of_actions_are_left_alone(env: Any) -> None:
    env.action_space.seed(3)
    expected = [env.action_space.sample() for _ in range(2)]
    env.action_space.seed(3)
    drawn = [env.action_space.sample()]
    env.reset(seed=0)
    np.testing.assert_array_equal([*drawn, env.action_space.sample()], expected)


def test_an_ogbench_step_is_rewarded_for_what_it_led_to(envs: dict[str, Any]) -> None:
    env = envs[CUBE]
    env.reset(seed=0)
    nothing = np.zeros(5)
    assert env.step(nothing)[1:3] == (-1.0, False)
    data = env.unwrapped.simulation._data
    data.joint("object_joint_0").qpos[:3] = data.mocap_pos[0]
    _, reward, terminated, truncated, info = env.step(nothing)
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, True, False, True)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_costs_the_buttons_that_are_wrong_or_one_if_any_is(sparse: bool, envs: dict[str, Any]) -> None:
    env = envs[SPARSE].unwrapped
    env.reset(seed=0)
    env.sparse = sparse
    missing = int((env.simulation._cur_button_states != env.simulation._target_button_states).sum())
    assert missing > 1
    assert env.step(np.zeros(5))[1] == (-1.0 if sparse else -missing)
    env.simulation._cur_button_states[:] = env.simulation._target_button_states
    assert env.step(np.zeros(5))[1:3] == (0.0, True)
    env.sparse = True


def test_lift_costs_a_step_and_ends_with_success(envs: dict[str, Any]) -> None:
    env = envs[LIFT]
    env.reset(seed=0)
    nothing = np.zeros(7)
    *_, reward, terminated, truncated, info = env.step(nothing)
    assert (reward, terminated, truncated, info["is_success"]) == (-1.0, False, False, False)
    env.unwrapped.simulation.sim.data.set_joint_qpos("cube_joint0", [0, 0, 1, 1, 0, 0, 0])
    *_, reward, terminated, truncated, info = env.step(nothing)
    assert (reward, terminated, truncated, info["is_success"]) == (-1.0, True, False, True)


def test_the_suites_time_limit_truncates(envs: dict[str, Any]) -> None:
    env = envs[CUBE]
    env.reset(seed=0)
    ends = [env.step(np.zeros(5))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


@pytest.mark.parametrize("task", OBJECT)
def test_robomimics_observation_in_its_order_and_up_to_date(task: str, envs: dict[str, Any]) -> None:
    env = envs[LIFT] if task == "lift" else gym.make(f"{task}-ph-low_dim-v0")
    env.reset(seed=0)
    simulation = env.unwrapped.simulation
    for _ in range(30):
        observation = env.step(env.action_space.sample())[0]
        names = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object-state")
        parts = simulation._get_observations()
        np.testing.assert_array_equal(observation, np.concatenate([parts[n] for n in names]).astype(np.float32))
        assert len(observation) == 9 + OBJECT[task]
        # What depends on the state must be of this state, not of one before
        simulation.sim.forward()
        grip = simulation.sim.data.site_xpos[simulation.robots[0].eef_site_id["right"]]
        np.testing.assert_array_equal(observation[:3], grip.astype(np.float32))
    if task != "lift":
        env.close()


def test_robomimics_environment_as_a_file_says(tmp_path: Path) -> None:
    part = {**ENV_KWARGS["controller_configs"]["body_parts"]["right"], "kp": 10}
    del part["gripper"], part["input_ref_frame"]  # as robosuite 1.4 wrote it
    args = env_args(part)
    path = tmp_path / "low_dim.hdf5"
    write_robomimic(path, [3], args=args)
    env: Any = gym.make(LIFT, env_args=path)
    env.reset(seed=0)
    env.step(np.zeros(7))
    assert (env.unwrapped.simulation.robots[0].part_controllers["right"].kp == 10).all()
    env.close()
    with pytest.raises(ValueError, match="'Lift', not of 'can'"):
        gym.make("can-mh-low_dim-v0", env_args=path)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="task='push' is not allowed"):
        gym.make(LIFT, task="push")
    with pytest.raises(ValueError, match="env_type='octuple' is not allowed"):
        gym.make(CUBE, env_type="octuple")


@pytest.mark.slow
def test_pictures_whoever_else_draws(envs: dict[str, Any]) -> None:
    try:
        mujoco.GLContext(8, 8).free()
    except Exception as error:
        pytest.skip(f"no OpenGL: {error}")
    drawn = {name: envs[name] for name in (CUBE, LIFT)}
    pictures = {}
    for name, env in drawn.items():
        env.reset(seed=0)
        pictures[name] = env.render()
        assert (pictures[name].shape, pictures[name].dtype) == ((48, 64, 3), np.uint8)
    other = gym.make(LIFT, render_mode="rgb_array")
    other.reset(seed=1)
    assert other.render().shape == (256, 256, 3)
    other.close()
    for name, env in drawn.items():
        np.testing.assert_array_equal(env.render(), pictures[name])
        env.step(env.action_space.high)
        assert (env.render() != pictures[name]).any()


def test_without_a_render_mode_nothing_is_drawn() -> None:
    for name in (CUBE, LIFT):
        env = gym.make(name)
        env.reset()
        with pytest.warns(UserWarning, match="rgb_array"):
            assert env.render() is None
        env.close()
