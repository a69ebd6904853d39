"""Training runs with every policy and every option that SB3's SAC has."""

from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import (
    CRITICS,
    EVERY_KIND,
    EVERY_MODEL,
    GUESTS,
    LEARNING_STARTS,
    ONE_OF_EACH,
    POLICIES,
    ROLLOUTS,
    VARIANTS,
    RandomEnv,
    differences,
    make_any,
    make_model,
    make_variant,
    snapshot,
    taking,
)
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow import DIME, FQL, QSM, FlowGPolicy, FlowRL, SACFlow
from sb3_flow.common.flow import auto_target_entropy
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

STEPS = 16
UPDATES = STEPS - LEARNING_STARTS


def parts(model: OffPolicyFlowAlgorithm) -> list[str]:
    """What learning must change."""
    if isinstance(model, SACFlow):
        return ["actor.velocity", "critic.q_networks"]
    if isinstance(model, DIME):
        return ["actor.control", "actor.dt", "actor.friction", "critic.q_networks"]
    if isinstance(model, FlowRL):
        behavior = ["behavior_critic.q_networks", "behavior_critic_target.q_networks", "behavior_value.value"]
        return ["actor.velocity", "critic.q_networks", "critic_target.q_networks", *behavior]
    if isinstance(model, QSM):
        return ["actor.epsilon", "critic.q_networks", "critic_target.q_networks"]
    one_step = ["actor.one_step"] if getattr(model, "best_of_n", None) is None else []
    return ["actor.behavior", "critic.q_networks", "critic_target.q_networks", *one_step]


def assert_learns(model: OffPolicyFlowAlgorithm, total_timesteps: float, updates: int) -> None:
    """Train; it must make that many updates, change actor and critic, and stay finite."""
    before = snapshot(model)
    assert model.learn(total_timesteps) is model
    after = snapshot(model)
    changed = differences(before, after)
    assert model._n_updates == updates
    for part in parts(model):
        assert any(name.startswith(f"/policy/{part}") for name in changed)
    assert all(th.isfinite(tensor).all() for tensor in after.values())


def two_envs() -> DummyVecEnv:
    return DummyVecEnv([RandomEnv, RandomEnv])


@pytest.mark.parametrize("noise_std", [None, 0.3])
@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_learns(policy: str, critic: str, rollout: str, noise_std: float | None) -> None:
    model = make_model(policy, critic=critic, net={"rollout": rollout, "noise_std": noise_std})
    assert_learns(model, STEPS, UPDATES)


@pytest.mark.parametrize("name", GUESTS)
def test_every_guest_learns(name: str) -> None:
    assert_learns(make_variant(name), STEPS, UPDATES)


@pytest.mark.parametrize("policy", ["MlpPolicy", "FlowTPolicy", FlowGPolicy])
def test_learns_on_a_registered_environment(policy: Any) -> None:
    net = {"flow_steps": 2, "net_arch": {"qf": [16, 16]}}
    model = SACFlow(policy, "Pendulum-v1", learning_starts=10, batch_size=8, buffer_size=100, policy_kwargs=net)
    assert_learns(model, 16, 6)


OPTIONS: list[dict[str, Any]] = [
    {"bc_coef": 2.0},
    {"bc_coef": lambda progress: 10 * progress},
    {"n_steps": 3},
    {"ent_coef": 0.1},
    {"ent_coef": 0.0},
    {"ent_coef": "auto"},
    {"ent_coef": "auto_0.5"},
    {"target_entropy": -3.0},
    {"learning_rate": lambda progress: 1e-3 * progress, "qf_learning_rate": lambda progress: 1e-2 * progress},
    {"tau": 0.5, "gamma": 0.9},
    {"policy_delay": 2},
    {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    {"action_noise": NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))},
    {"buffer_size": 12},
    {"learning_starts": 0, "updates": STEPS},
    {"net": {"n_critics": 1}},
    {"net": {"n_critics": 3}},
    {"net": {"state_tokens": 3}},
    {"net": {"net_arch": [16]}},
    {"net": {"flow_steps": 1}},
    {"net": {"flow_steps": 7}},
    {"net": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}},
    {"net": {"optimizer_class": th.optim.RMSprop}},
    {"net": {"optimizer_kwargs": {"foreach": True}}},
]


def named(kwargs: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" if isinstance(v, str | float | int) else k for k, v in kwargs.items())


@pytest.mark.parametrize(
    ("kwargs", "critic"),
    # Each with two of the critics, all over the table
    [
        pytest.param(kwargs, critic, id=f"{named(kwargs)}-{critic}")
        for i, kwargs in enumerate(OPTIONS)
        for critic in (CRITICS[i % len(CRITICS)], CRITICS[(i + 1) % len(CRITICS)])
    ],
)
def test_every_option_learns(kwargs: dict[str, Any], critic: str) -> None:
    options = dict(kwargs)
    updates = options.pop("updates", UPDATES)
    assert_learns(make_model(critic=critic, **options), STEPS, updates)


@pytest.mark.parametrize(("algorithm", "name"), [(FQL, "FQLPolicy"), (FlowRL, "FlowRLPolicy"), (QSM, "QSMPolicy")])
@pytest.mark.parametrize("named", ["MlpPolicy", None])
def test_guests_learn_on_a_registered_environment(algorithm: Any, name: str, named: str | None) -> None:
    net = {"net_arch": [16]}
    model = algorithm(
        named or name, "Pendulum-v1", learning_starts=10, batch_size=8, buffer_size=100, policy_kwargs=net
    )
    assert_learns(model, 16, 6)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("fql", {"bc_coef": 0.0}),
        ("fql", {"bc_coef": lambda progress: 10 * progress}),
        ("qc_fql", {"normalize_q_loss": True}),
        ("fql", {"n_steps": 3}),
        ("qc", {"horizon_length": 1}),
        ("qc", {"best_of_n": 1}),
        ("qc_fql", {"learning_rate": lambda progress: 1e-3 * progress}),
        ("fql", {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}),
        ("fql", {"action_noise": NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))}),
        ("qc", {"buffer_size": 12}),
        ("fql", {"learning_starts": 0, "updates": STEPS}),
        ("qc", {"net": {"n_critics": 1}}),
        ("qc_fql", {"net": {"n_critics": 3, "flow_steps": 1}}),
        ("fql", {"net": {"net_arch": {"pi": [16], "qf": [16, 16, 16]}, "flow_steps": 7}}),
        ("fql", {"net": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}}),
        ("fql", {"net": {"optimizer_class": th.optim.RMSprop}}),
        ("flow_rl", {"bc_coef": 0.0}),
        ("flow_rl", {"bc_coef": [1.0, lambda progress: progress], "learning_rate": lambda progress: 1e-3 * progress}),
        ("flow_rl", {"n_steps": 3, "action_noise": NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))}),
        ("flow_rl", {"horizon_length": 3, "net": {"n_critics": 3, "critic_pessimism": 0.5}}),
        ("flow_rl", {"net": {"net_arch": {"pi": [16], "qf": []}, "flow_steps": 3}}),
        ("qsm", {"q_coef": 0.0, "bc_coef": 1.0}),
        ("qsm", {"normalize_gradient": True, "bc_coef": [1.0, lambda progress: progress]}),
        ("qsm", {"n_steps": 3, "exploration_noise": 0.0, "learning_rate": lambda progress: 1e-3 * progress}),
        ("qsm", {"horizon_length": 3, "net": {"n_critics": 3, "critic_pessimism": 0.5, "diffusion_steps": 1}}),
        ("qsm", {"action_noise": NormalActionNoise(np.zeros(2), 0.1 * np.ones(2)), "net": {"diffusion_steps": 7}}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_every_option_of_guests_learns(name: str, kwargs: dict[str, Any]) -> None:
    options = dict(kwargs)
    updates = options.pop("updates", UPDATES)
    assert_learns(make_variant(name, **options), STEPS, updates)


@pytest.mark.parametrize("name", ["flow_mlp", "fql", "qc"])
@pytest.mark.parametrize(
    ("train_freq", "gradient_steps", "n_envs", "timesteps", "updates"),
    [
        (1, 3, 1, 30, 60),
        (1, -1, 1, 30, 20),
        (4, 1, 1, 32, 6),
        (4, -1, 1, 32, 24),
        ((1, "episode"), 1, 1, 30, 2),
        ((1, "episode"), -1, 1, 30, 20),
        ((2, "step"), 2, 1, 30, 20),
        (1, 1, 2, 30, 10),
        (1, -1, 2, 30, 20),
        (1, 0, 1, 30, 0),
    ],
)
def test_updates_follow_train_freq(
    train_freq: Any, gradient_steps: int, n_envs: int, timesteps: int, updates: int, name: str
) -> None:
    env = DummyVecEnv([RandomEnv] * n_envs)
    model = make_variant(name, env, train_freq=train_freq, gradient_steps=gradient_steps)
    model.learn(30)
    assert (model.num_timesteps, model._n_updates) == (timesteps, updates)


@pytest.mark.parametrize("name", VARIANTS)
def test_several_envs_learn(name: str) -> None:
    assert_learns(make_variant(name, two_envs()), STEPS, UPDATES // 2)


def test_total_timesteps_may_be_a_float() -> None:
    model = make_model()
    assert_learns(model, 1.6e1, UPDATES)
    assert model.num_timesteps == STEPS
    assert isinstance(model._total_timesteps, int)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_learning_goes_on_after_learn(name: str) -> None:
    model = make_variant(name).learn(20)
    model.learn(10, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (30, 20)
    model.learn(12)
    assert (model.num_timesteps, model._n_updates) == (12, 22)


def test_n_steps_uses_n_step_returns() -> None:
    model = make_model(n_steps=3, gamma=0.5)
    model.learn(STEPS)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    discounts = model.replay_buffer.sample(64).discounts
    assert discounts is not None
    assert set(discounts.flatten().tolist()) == {0.5, 0.25, 0.125}


@pytest.mark.parametrize(
    ("name", "critic"), [("flow_t", "crossq"), ("flow_t", "target"), ("fql", None), ("flow_rl", None), ("qsm", None)]
)
def test_critics_discount_by_the_steps_of_each_return(name: str, critic: str | None) -> None:
    critics = []
    for factor in (1.0, 0.5):
        model = make_variant(name, critic=critic, n_steps=3).learn(13)
        batch = model.replay_buffer.sample(8)
        assert batch.discounts is not None
        batch = batch._replace(dones=th.zeros_like(batch.dones), discounts=factor * batch.discounts)
        model.replay_buffer.sample = lambda *args, batch=batch, **kwargs: batch
        model.train(1, batch_size=8)
        critics.append(snapshot(model))
    assert any(name.startswith("/policy/critic.") for name in differences(*critics))


@pytest.mark.parametrize(("ent_coef", "initial"), [("auto", 1.0), ("auto_0.5", 0.5)])
def test_learned_ent_coef_starts_as_asked_and_moves(ent_coef: str, initial: float) -> None:
    model = make_model(ent_coef=ent_coef)
    assert model.log_ent_coef is not None
    assert model.log_ent_coef.exp().item() == pytest.approx(initial)
    model.learn(STEPS)
    assert model.log_ent_coef.exp().item() != pytest.approx(initial, rel=1e-6)


def test_fixed_ent_coef_stays() -> None:
    model = make_model(ent_coef=0.3).learn(STEPS)
    assert model.log_ent_coef is None
    assert model.ent_coef_tensor.item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("target_entropy", "noise_std", "expected"),
    [
        ("auto", None, auto_target_entropy(2, 2, "sde", None, "action")),
        ("auto", 0.3, auto_target_entropy(2, 2, "sde", 0.3, "action")),
        (-7.5, None, -7.5),
        (3, 0.3, 3.0),
    ],
)
def test_target_entropy_is_resolved(target_entropy: Any, noise_std: float | None, expected: float) -> None:
    model = make_model(target_entropy=target_entropy, net={"noise_std": noise_std})
    assert isinstance(model.target_entropy, float)
    assert model.target_entropy == expected


@pytest.mark.parametrize("critic", CRITICS)
def test_optimizers_follow_their_schedules(critic: str) -> None:
    model = make_model(
        critic=critic, learning_rate=lambda progress: 1e-3 * progress, qf_learning_rate=lambda progress: 1e-2 * progress
    )
    model.learn(40, callback=lambda locals_, _: locals_["self"].num_timesteps < 20)
    # Stopped at step 20: the last update came after step 19
    progress = 1 - 19 / 40
    assert model.ent_coef_optimizer is not None
    assert model.actor.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * progress)
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * progress)
    assert model.ent_coef_optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * progress)


@pytest.mark.parametrize("name", [name for name in GUESTS if name not in taking("qf_learning_rate", GUESTS)])
def test_one_schedule_is_that_of_all_optimizers_of_guests(name: str) -> None:
    model = make_variant(name, learning_rate=lambda progress: 1e-3 * progress)
    model.learn(40, callback=lambda locals_, _: locals_["self"].num_timesteps < 20)
    for net in model._nets.values():
        assert net.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * (1 - 19 / 40))


@pytest.mark.parametrize("model", ["flow_t", "fql", "flow_rl"])
@pytest.mark.parametrize(("name", "value", "other"), [("bc_coef", 2.0, 0.0), ("learning_rate", 1e-2, 1e-3)])
def test_a_constant_schedule_is_a_float(name: str, value: float, other: float, model: str) -> None:
    as_float = snapshot(make_variant(model, **{name: value}).learn(STEPS))
    as_schedule = snapshot(make_variant(model, **{name: lambda progress: value}).learn(STEPS))
    as_other = snapshot(make_variant(model, **{name: other}).learn(STEPS))
    assert not differences(as_float, as_schedule)
    assert differences(as_float, as_other)


@pytest.mark.parametrize(
    ("critic", "policy_delay", "delay"), [("crossq", None, 3), ("target", None, 1), ("target", 4, 4)]
)
def test_the_actor_waits_for_policy_delay(critic: str, policy_delay: int | None, delay: int) -> None:
    model = make_model(critic=critic, policy_delay=policy_delay)
    model.learn(LEARNING_STARTS)
    for update in range(1, 9):
        before = snapshot(model)
        model.train(1, batch_size=8)
        changed = differences(before, snapshot(model))
        assert any(name.startswith("/policy/critic.") for name in changed)
        assert any(name.startswith("/policy/actor.") for name in changed) == (update % delay == 0)
        assert ("log_ent_coef" in changed) == (update % delay == 0)


@pytest.mark.parametrize("name", taking("tau", ONE_OF_EACH))
def test_target_critic_follows_by_tau(name: str) -> None:
    model = make_variant(name, critic="target", tau=0.25)
    model.learn(LEARNING_STARTS)
    assert model.critic_target is not None
    before = [p.clone() for p in model.critic_target.parameters()]
    model.train(1, batch_size=8)
    for old, target, online in zip(before, model.critic_target.parameters(), model.critic.parameters(), strict=True):
        th.testing.assert_close(target, 0.75 * old + 0.25 * online)


def test_crossq_critics_have_no_target() -> None:
    assert make_model(critic="crossq").critic_target is None


@pytest.mark.parametrize("noise_class", [NormalActionNoise, OrnsteinUhlenbeckActionNoise])
def test_action_noise_is_vectorized_for_several_envs(noise_class: Any) -> None:
    model = make_model(env=two_envs(), action_noise=noise_class(np.zeros(2), 0.1 * np.ones(2)))
    model.learn(STEPS)
    assert isinstance(model.action_noise, VectorizedActionNoise)


def test_action_noise_changes_what_is_done() -> None:
    quiet = make_model().learn(20)
    noisy = make_model(action_noise=NormalActionNoise(np.ones(2), np.zeros(2))).learn(20)
    assert not np.array_equal(quiet.replay_buffer.actions[:20], noisy.replay_buffer.actions[:20])
    # A mean of 1 pushes half the actions' range against the bound
    assert (noisy.replay_buffer.actions[10:20] >= 0).all()


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_same_seed_same_run(name: str, critic: str | None) -> None:
    runs = [snapshot(make_variant(name, critic=critic, seed=seed).learn(14)) for seed in (1, 1, 2)]
    assert not differences(runs[0], runs[1])
    assert differences(runs[0], runs[2])


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluation_gives_returns(deterministic: bool) -> None:
    model = make_model(env="Pendulum-v1")
    model.learn(20)
    returns, lengths = evaluate_policy(
        model, make_vec_env("Pendulum-v1", 2, seed=1), 2, deterministic, return_episode_rewards=True
    )
    assert lengths == [200, 200]
    assert np.isfinite(returns).all()


def test_deterministic_evaluation_repeats() -> None:
    model = make_model(env="Pendulum-v1").learn(20)
    returns = [evaluate_policy(model, make_vec_env("Pendulum-v1", 1, seed=1), 1, deterministic=True) for _ in range(2)]
    assert returns[0] == returns[1]


@pytest.mark.parametrize("name", EVERY_KIND)
def test_deterministic_evaluation_leaves_training_as_it_is(name: str) -> None:
    alone = make_any(name).learn(STEPS)
    watched = make_any(name).learn(STEPS, EvalCallback(Monitor(RandomEnv()), eval_freq=7, verbose=0))
    assert not differences(snapshot(alone), snapshot(watched))


@pytest.mark.parametrize("name", VARIANTS)
def test_vec_normalize_learns(name: str) -> None:
    env = VecNormalize(two_envs())
    assert_learns(make_variant(name, env), STEPS, UPDATES // 2)
    assert env.obs_rms.count > STEPS


def test_progress_bar_shows_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    make_model().learn(20, progress_bar=True)
    captured = capsys.readouterr()
    assert "20/20" in captured.out + captured.err


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_frozen_actor_stays_while_the_critics_learn(name: str) -> None:
    model = make_variant(name, sac_flow={"policy_delay": 1})
    model.actor.requires_grad_(False)
    before = [[parameter.clone() for parameter in net.parameters()] for net in (model.actor, model.critic)]
    model.learn(LEARNING_STARTS + 5)
    now = [list(net.parameters()) for net in (model.actor, model.critic)]
    actor, critic = (all(map(th.equal, old, new)) for old, new in zip(before, now, strict=True))
    assert actor
    assert not critic


@pytest.mark.parametrize("name", taking("ent_coef", ONE_OF_EACH))
def test_a_frozen_temperature_stays(name: str) -> None:
    model: Any = make_variant(name, ent_coef="auto", sac_flow={"policy_delay": 1})
    model.log_ent_coef.requires_grad_(False)
    before = model.log_ent_coef.clone()
    model.learn(LEARNING_STARTS + 5)
    assert th.equal(model.log_ent_coef, before)
