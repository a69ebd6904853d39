"""Saved models come back whole: what they predict, what they hold, and how they go on learning."""

import io
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import (
    CRITICS,
    EVERY_KIND,
    EVERY_MODEL,
    GUESTS,
    ONE_OF_EACH,
    POLICIES,
    VARIANTS,
    RandomEnv,
    differences,
    make_any,
    make_model,
    make_variant,
    observations,
    random_state_kept,
    snapshot,
    taking,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_flow import FlowGPolicy, FlowMLPPolicy, FlowTPolicy, SACFlow
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.fql.policies import OneStepActor
from sb3_flow.sac_flow.policies import FlowActor

pytestmark = pytest.mark.filterwarnings("ignore:Path .* does not exist")

# Odd numbers of updates, so that the next ones cross a boundary of policy_delay 3 (crossq) or 2 (target, below)
FIRST, REST = 15, 8


def delayed(name: str, critic: str | None) -> OffPolicyFlowAlgorithm:
    delay = {"policy_delay": 2 if critic == "target" else None}
    # The rate of "xqc" falls over the steps of one `learn`
    return make_variant(name, critic=critic, sac_flow={"qf_learning_rate": 1e-3, **delay})


def assert_same_predictions(one: OffPolicyFlowAlgorithm, other: OffPolicyFlowAlgorithm) -> None:
    obs = observations(one)
    np.testing.assert_array_equal(one.predict(obs, deterministic=True)[0], other.predict(obs, deterministic=True)[0])
    samples = []
    for model in (one, other):
        model.set_random_seed(11)
        samples.append(model.predict(obs)[0])
    np.testing.assert_array_equal(*samples)


def assert_same_state(one: OffPolicyFlowAlgorithm, other: OffPolicyFlowAlgorithm) -> None:
    assert not differences(snapshot(one), snapshot(other))
    assert one._n_updates == other._n_updates
    assert one.num_timesteps == other.num_timesteps
    assert one._episode_num == other._episode_num
    assert one.replay_buffer.size() == other.replay_buffer.size()
    for name in ("observations", "actions", "rewards", "dones"):
        np.testing.assert_array_equal(getattr(one.replay_buffer, name), getattr(other.replay_buffer, name))


def saved_and_loaded(model: OffPolicyFlowAlgorithm, path: Path, **kwargs: Any) -> OffPolicyFlowAlgorithm:
    """A copy of the model, its buffer and its environment, by way of the disk."""
    model.save(path / "model")
    model.save_replay_buffer(path / "buffer")
    env = deepcopy(model.get_env())
    # Loading seeds the global generators, as with all of SB3
    with random_state_kept():
        loaded = type(model).load(path / "model", env=env, device="cpu", force_reset=False, **kwargs)
    loaded.load_replay_buffer(path / "buffer", truncate_last_traj=False)
    return loaded


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_a_loaded_model_is_the_saved_one(name: str, critic: str | None, tmp_path: Path) -> None:
    model = delayed(name, critic).learn(FIRST)
    loaded = saved_and_loaded(model, tmp_path)
    assert_same_state(model, loaded)
    assert_same_predictions(model, loaded)


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_updates_after_loading_are_bit_identical(name: str, critic: str | None, tmp_path: Path) -> None:
    model = delayed(name, critic).learn(FIRST)
    assert model._n_updates == 5
    loaded = saved_and_loaded(model, tmp_path)
    loaded.set_logger(configure(None, []))
    before = snapshot(model)
    with random_state_kept():
        model.train(4, batch_size=8)
    loaded.train(4, batch_size=8)
    assert any(name.startswith("/policy/actor.") for name in differences(before, snapshot(model)))
    assert_same_state(model, loaded)


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_learning_after_loading_is_bit_identical_to_never_having_stopped(
    name: str, critic: str | None, tmp_path: Path
) -> None:
    unstopped = delayed(name, critic).learn(FIRST + REST)
    model = delayed(name, critic).learn(FIRST)
    loaded = saved_and_loaded(model, tmp_path)
    with random_state_kept():
        model.learn(REST, reset_num_timesteps=False)
    loaded.learn(REST, reset_num_timesteps=False)
    assert_same_state(model, loaded)
    assert_same_state(model, unstopped)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"ent_coef": 0.1},
        {"n_steps": 3},
        {"bc_coef": lambda progress: 5 * progress, "learning_rate": lambda progress: 1e-3 * progress},
        {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.2 * np.ones(2))},
        {"train_freq": (1, "episode"), "gradient_steps": -1},
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
        {"buffer_size": 12},
        {"horizon_length": 4},
        {"env": DummyVecEnv([RandomEnv, RandomEnv])},
        {"net": {"noise_std": 0.2, "rollout": "noise", "flow_steps": 3, "state_tokens": 2}},
        {"net": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"amsgrad": True}}},
    ],
    ids=lambda kwargs: ",".join(kwargs),
)
def test_learning_goes_on_bit_identically_with_every_option(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**kwargs).learn(FIRST)
    loaded = saved_and_loaded(model, tmp_path)
    with random_state_kept():
        model.learn(REST, reset_num_timesteps=False)
    loaded.learn(REST, reset_num_timesteps=False)
    assert_same_state(model, loaded)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("fql", {"n_steps": 3}),
        ("fql", {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.2 * np.ones(2))}),
        ("fql", {"normalize_q_loss": True, "learning_rate": lambda progress: 1e-3 * progress}),
        ("fql", {"bc_coef": [3.0, lambda progress: 5 * progress]}),
        ("qc_fql", {"env": DummyVecEnv([RandomEnv, RandomEnv])}),
        ("qc", {"horizon_length": 1, "best_of_n": 2}),
        ("qc", {"net": {"flow_steps": 3, "n_critics": 3, "optimizer_class": th.optim.AdamW}}),
        ("qsm", {"normalize_gradient": True, "bc_coef": [3.0, lambda progress: 5 * progress]}),
        ("qsm", {"horizon_length": 3, "env": DummyVecEnv([RandomEnv, RandomEnv]), "net": {"diffusion_steps": 3}}),
        ("flow_rl", {"policy_delay": 3, "expectile": 0.7, "bc_coef": [3.0, lambda progress: 5 * progress]}),
        (
            "flow_rl",
            {"horizon_length": 3, "env": DummyVecEnv([RandomEnv, RandomEnv]), "net": {"critic_pessimism": 0.5}},
        ),
    ],
    ids=lambda value: ",".join(value),
)
def test_guests_go_on_bit_identically_with_every_option(name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = make_variant(name, **kwargs).learn(FIRST)
    loaded = saved_and_loaded(model, tmp_path)
    with random_state_kept():
        model.learn(REST, reset_num_timesteps=False)
    loaded.learn(REST, reset_num_timesteps=False)
    assert_same_state(model, loaded)


@pytest.mark.parametrize("name", GUESTS)
def test_everything_the_user_chose_of_guests_is_saved(name: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"batch_size": 7, "gamma": 0.7, "gradient_steps": 2}
    chosen |= {"tau": 0.3} if name in taking("tau", GUESTS) else {}
    chosen |= {
        "dime": {"ent_coef": 0.1, "policy_delay": 4, "qf_learning_rate": 2e-3},
        "qc": {"best_of_n": 5},
        "qsm": {"bc_coef": 1.5, "q_coef": 3.0, "normalize_gradient": True, "exploration_noise": 0.2},
        "flow_rl": {"bc_coef": 1.5, "expectile": 0.7, "policy_delay": 3},
    }.get(name, {"bc_coef": 1.5, "normalize_q_loss": True})
    model = make_variant(name, **chosen)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", device="cpu")
    assert {key: getattr(loaded, key) for key in chosen} == chosen
    assert loaded.policy_kwargs == model.policy_kwargs
    assert loaded.horizon_length == loaded.policy.horizon_length == model.horizon_length
    assert type(loaded.actor) is type(model.actor)


def test_everything_the_user_chose_is_saved(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {
        "batch_size": 7,
        "tau": 0.3,
        "gamma": 0.7,
        "gradient_steps": 2,
        "bc_coef": 1.5,
        "target_entropy": -4.0,
        "qf_learning_rate": 2e-3,
        "policy_delay": 5,
        "n_steps": 2,
    }
    model = make_model("FlowGPolicy", critic="target", **chosen)
    model.save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", device="cpu")
    assert {name: getattr(loaded, name) for name in chosen} == chosen
    assert loaded.policy_kwargs == model.policy_kwargs
    assert isinstance(loaded.policy, FlowGPolicy)
    assert loaded.bc_schedules[1](0.5) == 1.5
    assert loaded.qf_lr_schedule(0.5) == 2e-3


def test_defaults_that_hang_on_the_critic_survive(tmp_path: Path) -> None:
    model = make_model(critic="target")
    model.save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", device="cpu")
    assert loaded.policy_delay == model.policy_delay == 1
    assert loaded.qf_lr_schedule(1) == model.qf_lr_schedule(1) == 3e-4
    assert loaded.target_entropy == model.target_entropy


@pytest.mark.parametrize("suffix", ["", ".zip", ".anything"])
def test_models_are_saved_to_paths(suffix: str, tmp_path: Path) -> None:
    model = make_model()
    path = tmp_path / "new_folder" / f"model{suffix}"
    model.save(path)
    assert (path if suffix else path.with_suffix(".zip")).is_file()
    assert_same_predictions(model, SACFlow.load(path, device="cpu"))


def test_models_are_saved_to_memory() -> None:
    model = make_model().learn(20)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    assert_same_predictions(model, SACFlow.load(file, device="cpu"))


def test_a_zip_holds_no_net_twice(tmp_path: Path) -> None:
    model = make_model(critic="target").learn(20)
    model.save(tmp_path / "model")
    data, params, variables = load_from_zip_file(tmp_path / "model")
    assert data is not None
    assert variables is not None
    assert not {"policy", "actor", "critic", "critic_target", "env", "replay_buffer", "log_ent_coef"} & data.keys()
    assert not any(isinstance(value, th.nn.Module | th.Tensor | th.optim.Optimizer) for value in data.values())
    assert params.keys() == {"policy", "actor.optimizer", "critic.optimizer", "ent_coef_optimizer"}
    assert variables.keys() == {"log_ent_coef"}


@pytest.mark.parametrize("name", GUESTS)
def test_a_zip_of_guests_holds_no_net_twice(name: str, tmp_path: Path) -> None:
    model = make_variant(name).learn(20)
    model.save(tmp_path / "model")
    data, params, variables = load_from_zip_file(tmp_path / "model")
    assert data is not None
    assert not {"policy", "critic_target", "env", "replay_buffer", *model._nets} & data.keys()
    assert not any(isinstance(value, th.nn.Module | th.Tensor | th.optim.Optimizer) for value in data.values())
    assert not any(name.endswith("_fn") for name in data)
    has_temperature = name in taking("ent_coef", GUESTS)
    temperature = {"ent_coef_optimizer"} if has_temperature else set()
    assert params.keys() == {"policy", *(f"{net}.optimizer" for net in model._nets)} | temperature
    assert (variables or {}).keys() == ({"log_ent_coef"} if has_temperature else set())


def test_a_loaded_model_without_env_predicts_and_then_learns(tmp_path: Path) -> None:
    model = make_model().learn(20)
    model.save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", device="cpu")
    assert loaded.get_env() is None
    assert_same_predictions(model, loaded)
    loaded.set_env(RandomEnv())
    loaded.learn(20)
    assert loaded._n_updates == model._n_updates + 10


def test_load_takes_another_number_of_envs(tmp_path: Path) -> None:
    make_model().learn(20).save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", env=DummyVecEnv([RandomEnv] * 3), device="cpu")
    assert loaded.n_envs == 3
    loaded.learn(21)
    assert loaded._n_updates == 10 + 4


@pytest.mark.parametrize(
    "env",
    [
        RandomEnv(observation_space=spaces.Box(-1.0, 1.0, (4,), np.float32)),
        RandomEnv(action_space=spaces.Box(-1.0, 1.0, (3,), np.float32)),
    ],
    ids=["observations", "actions"],
)
def test_envs_with_other_spaces_are_refused(env: RandomEnv, tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="spaces do not match"):
        SACFlow.load(tmp_path / "model", env=env)
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(env)


def test_set_env_wants_as_many_envs() -> None:
    with pytest.raises(AssertionError, match="number of environments"):
        make_model().set_env(DummyVecEnv([RandomEnv, RandomEnv]))


@pytest.mark.parametrize("force_reset", [True, False])
def test_set_env_resets_on_demand(force_reset: bool) -> None:
    model = make_model().learn(20)
    last_obs = model._last_obs
    model.set_env(RandomEnv(), force_reset=force_reset)
    assert (model._last_obs is None) == force_reset
    assert force_reset or model._last_obs is last_obs


def test_load_changes_arguments(tmp_path: Path) -> None:
    make_model(bc_coef=1.0).save(tmp_path / "model")
    loaded = SACFlow.load(
        tmp_path / "model", env=RandomEnv(), device="cpu", bc_coef=3.0, policy_delay=1, learning_rate=1e-5, seed=4
    )
    assert (loaded.bc_coef, loaded.bc_schedules[1](0.5)) == (3.0, 3.0)
    assert loaded.policy_delay == 1
    assert loaded.seed == 4
    loaded.learn(12)
    assert loaded.actor.optimizer.param_groups[0]["lr"] == 1e-5


@pytest.mark.parametrize(("saved", "ent_coef"), [(0.1, 0.0), ("auto_0.1", 0.0), (0.1, "auto_0.3"), (0.1, 0.1)])
def test_load_changes_alpha_between_learned_and_fixed(
    saved: str | float, ent_coef: str | float, tmp_path: Path
) -> None:
    model = make_model(ent_coef=saved).learn(15)
    model.save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", env=RandomEnv(), device="cpu", ent_coef=ent_coef)
    assert_same_predictions(model, loaded)
    loaded.learn(13)
    alpha = loaded.logger.name_to_value["train/ent_coef"]
    assert alpha == pytest.approx(0.3 if ent_coef == "auto_0.3" else ent_coef, rel=0.02)
    assert ("train/ent_coef_loss" in loaded.logger.name_to_value) == isinstance(ent_coef, str)
    loaded.save(tmp_path / "again")
    assert not differences(snapshot(loaded), snapshot(SACFlow.load(tmp_path / "again", device="cpu")))


def test_an_alpha_that_is_learned_further_goes_on_from_where_it_was(tmp_path: Path) -> None:
    model = make_model(ent_coef="auto_0.1").learn(15)
    model.save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", device="cpu", ent_coef="auto")
    assert not differences(snapshot(model), snapshot(loaded))


@pytest.mark.parametrize("kwargs", [{"horizon_length": 3}, {"n_steps": 3}])
def test_a_loaded_replay_buffer_has_the_discount_of_the_model(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**kwargs).learn(15)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = SACFlow.load(tmp_path / "model", env=RandomEnv(), device="cpu", gamma=0.5)
    loaded.load_replay_buffer(tmp_path / "buffer")
    discounts = loaded.replay_buffer.sample(50).discounts
    assert discounts is not None
    assert discounts.min() == 0.125


@pytest.mark.parametrize("saved", [1, 2])
def test_load_changes_n_step_returns(saved: int, tmp_path: Path) -> None:
    make_model(n_steps=saved).learn(15).save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", env=RandomEnv(), device="cpu", n_steps=3, gamma=0.5)
    discounts = loaded.learn(15).replay_buffer.sample(50).discounts
    assert discounts is not None
    assert discounts.min() == 0.125


@pytest.mark.parametrize("kwargs", [{"horizon_length": 3}, {"n_steps": 3}])
@pytest.mark.parametrize("truncate_last_traj", [True, False])
def test_a_loaded_replay_buffer_ends_its_last_episode(
    kwargs: dict[str, Any], truncate_last_traj: bool, tmp_path: Path
) -> None:
    model = make_model(**kwargs).learn(15)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=truncate_last_traj)
    assert model.replay_buffer.dones[14, 0] == model.replay_buffer.timeouts[14, 0] == truncate_last_traj


@pytest.mark.parametrize(("stored", "horizon_length"), [(3, 1), (3, 4)])
def test_chunks_of_another_length_are_sampled_from_a_loaded_replay_buffer(
    stored: int, horizon_length: int, tmp_path: Path
) -> None:
    make_model(horizon_length=stored).learn(15).save_replay_buffer(tmp_path / "buffer")
    model = make_model(horizon_length=horizon_length)
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.sample(8).actions.shape == (8, 2 * horizon_length)


def test_a_loaded_replay_buffer_without_chunks_is_refused(tmp_path: Path) -> None:
    make_model().learn(15).save_replay_buffer(tmp_path / "buffer")
    model = make_model(horizon_length=3)
    with pytest.raises(
        ValueError, match=r"horizon_length=3 is not allowed: .*buffer holds a ReplayBuffer, which has no"
    ):
        model.load_replay_buffer(tmp_path / "buffer")


def test_load_refuses_other_policy_kwargs(tmp_path: Path) -> None:
    make_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="policy kwargs"):
        SACFlow.load(tmp_path / "model", policy_kwargs={"flow_steps": 9})


def test_custom_objects_replace_what_was_saved(tmp_path: Path) -> None:
    make_model(learning_rate=lambda progress: progress).save(tmp_path / "model")
    custom = {"learning_rate": 1e-5, "lr_schedule": lambda _: 1e-5, "bc_coef": 2.0}
    loaded = SACFlow.load(tmp_path / "model", device="cpu", custom_objects=custom)
    assert loaded.learning_rate == 1e-5
    assert loaded.lr_schedule(0.5) == 1e-5
    assert loaded.bc_schedules[1](0.5) == 2.0


def test_save_excludes_and_includes(tmp_path: Path) -> None:
    model = make_model(bc_coef=1.0).learn(20)
    model.save(tmp_path / "model", exclude=["bc_coef", "bc_schedules"], include=["replay_buffer"])
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert data is not None
    assert "bc_coef" not in data
    loaded = SACFlow.load(tmp_path / "model", device="cpu")
    assert loaded.bc_coef == 0.0
    assert loaded.replay_buffer.size() == 20


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_parameters_travel_between_models(name: str, critic: str | None) -> None:
    source = make_variant(name, critic=critic).learn(20)
    target = make_variant(name, critic=critic, seed=1)
    parameters = deepcopy(source.get_parameters())
    target.set_parameters(parameters)
    changed = differences(snapshot(source), snapshot(target))
    # As in SB3's SAC it is not among the parameters
    assert changed == ([] if getattr(source, "log_ent_coef", None) is None else ["log_ent_coef"])
    assert_same_predictions(source, target)


def test_parameters_are_read_from_a_zip(tmp_path: Path) -> None:
    source, target = make_model().learn(20), make_model(seed=1)
    source.save(tmp_path / "model")
    target.set_parameters(tmp_path / "model", device="cpu")
    assert_same_predictions(source, target)


def test_set_parameters_is_strict_unless_told_otherwise() -> None:
    source, target = make_model().learn(20), make_model(seed=1)
    parameters = source.get_parameters()
    with pytest.raises(ValueError, match="invalid object name"):
        target.set_parameters(parameters | {"no_such_net": {}})
    some = {"policy": parameters["policy"]}
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        target.set_parameters(some)
    incomplete = {"policy": dict(list(parameters["policy"].items())[1:])}
    with pytest.raises(RuntimeError, match="Missing key"):
        target.set_parameters(parameters | incomplete)
    target.set_parameters(some, exact_match=False)
    assert_same_predictions(source, target)


def test_set_random_seed_repeats_everything_random() -> None:
    model = make_model(seed=None)

    def draw() -> list[Any]:
        model.set_random_seed(3)
        env = model.get_env()
        assert env is not None
        return [env.reset(), model.action_space.sample(), model.predict(observations(model))[0], th.rand(2).numpy()]

    for first, second in zip(draw(), draw(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("policy_class", [FlowTPolicy, FlowGPolicy, FlowMLPPolicy])
def test_a_policy_is_saved_alone(policy_class: Any, critic: str, tmp_path: Path) -> None:
    net: dict[str, Any] = {"noise_std": 0.2, "rollout": "noise", "log_std_range": (-3, 1), "n_critics": 3}
    if policy_class is FlowTPolicy:
        net |= {"state_tokens": 2}
    model = make_model(policy_class.__name__, critic=critic, net=net).learn(20)
    model.policy.save(tmp_path / "policy")
    loaded = policy_class.load(tmp_path / "policy", device="cpu")
    obs = observations(model)
    predictions = [policy.predict(obs, deterministic=True)[0] for policy in (model.policy, loaded)]
    np.testing.assert_array_equal(*predictions)
    actions = th.zeros(len(obs), 2)
    values = [policy.critic(th.as_tensor(obs), actions) for policy in (model.policy, loaded)]
    # predict puts all of it into evaluation mode, where the critic's verdict depends on saved statistics only
    assert th.equal(*values)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_actor_is_saved_alone(policy: str, tmp_path: Path) -> None:
    net = {"noise_std": 0.2, "rollout": "noise", "likelihood": "path", "flow_steps": 3}
    model = make_model(policy, net=net).learn(20)
    model.actor.save(tmp_path / "actor")
    loaded = FlowActor.load(tmp_path / "actor", device="cpu")
    obs = observations(model)
    predictions = [actor.predict(obs, deterministic=True)[0] for actor in (model.actor, loaded)]
    np.testing.assert_array_equal(*predictions)
    path, same = (actor.path(th.as_tensor(obs), th.ones(4, len(obs), 2)) for actor in (model.actor, loaded))
    assert th.equal(path.log_prob, same.log_prob)


def test_a_one_step_actor_is_saved_alone(tmp_path: Path) -> None:
    model = make_variant("fql").learn(20)
    model.actor.save(tmp_path / "actor")
    loaded = OneStepActor.load(tmp_path / "actor", device="cpu")
    obs = observations(model)
    predictions = [actor.predict(obs, deterministic=True)[0] for actor in (model.actor, loaded)]
    np.testing.assert_array_equal(*predictions)


@pytest.mark.parametrize("module", [pickle, cloudpickle], ids=lambda module: module.__name__)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_policy_is_pickled(name: str, module: Any) -> None:
    model = make_variant(name).learn(20)
    copy = module.loads(module.dumps(model.policy))
    obs = observations(model)
    predictions = [policy.predict(obs, deterministic=True)[0] for policy in (model.policy, copy)]
    np.testing.assert_array_equal(*predictions)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_replay_buffer_is_saved(name: str, tmp_path: Path) -> None:
    model = make_variant(name).learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make_variant(name)
    other.load_replay_buffer(tmp_path / "buffer")
    assert other.replay_buffer.size() == 20
    np.testing.assert_array_equal(model.replay_buffer.observations, other.replay_buffer.observations)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_model_that_got_anothers_parameters_trains_apart_from_it(name: str) -> None:
    source, model = make_any(name).learn(20), make_any(name)
    model.set_parameters(source.get_parameters())
    before = snapshot(source)
    model.learn(20)
    assert differences(before, snapshot(source)) == []
