"""What ReinFlow has and no other algorithm: rollouts of paths, PPO on them, and what it starts from."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from gymnasium import spaces
from helpers import (
    ON_POLICY,
    SAC_FLOWS,
    RandomEnv,
    differences,
    make_any,
    make_variant,
    observations,
    snapshot,
    warned,
)
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_flow import ReinFlow
from sb3_flow.common.checkpoints import CheckpointCallback, checkpoints
from sb3_flow.reinflow.losses import PolicyLoss

NAN = float("nan")
BOUND = "/policy/actor.high"


def data(value: float = 0.6) -> dict[str, Any]:
    """Actions around one value, in episodes of 20 steps."""
    arrays = regular_arrays(trajectories([20] * 40))
    noise = np.random.default_rng(0).normal(0, 0.1, arrays["actions"].shape)
    return {**arrays, "actions": np.clip(value + noise, -1, 1)}


def learned(before: dict[str, th.Tensor], model: ReinFlow) -> list[str]:
    """What training has changed, but the bound of the noise, which a rollout moves."""
    return [name for name in differences(before, snapshot(model)) if name != BOUND]


def envs(n: int) -> DummyVecEnv:
    return DummyVecEnv([RandomEnv] * n)


class WithStatistics(nn.Flatten):
    """A features extractor that normalises by the batch while it is trained."""

    def __init__(self, observation_space: spaces.Space[Any], features_dim: int = 0):
        super().__init__()
        self.features_dim = int(np.prod(observation_space.shape or ()))
        self.norm = nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(super().forward(observations))  # type: ignore[no-any-return]


# --- The ratio ---


def first_losses(model: ReinFlow) -> Iterator[PolicyLoss]:
    """What the loss says of a rollout before any update."""
    model.learn(model.n_steps * model.n_envs)
    model._setup_learn(10**6)
    model.collect_rollouts(model.env, Nothing().fresh(model), model.rollout_buffer, model.n_steps)
    for batch in model.rollout_buffer.batches(model.batch_size):
        yield model._policy_loss(batch, th.tensor(0.01))


class Nothing(BaseCallback):
    def fresh(self, model: ReinFlow) -> "Nothing":
        self.init_callback(model)
        return self

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("start", [None, "flow_t", "fql"])
def test_the_ratio_of_the_first_epoch_is_one(name: str, start: str | None) -> None:
    horizon = ON_POLICY[name].kwargs.get("horizon_length", 1)
    net = {"flow_steps": 4, "features_extractor_class": WithStatistics}
    model = make_any(name, envs(3), net=net, learning_rate=1e-2, n_steps=20, noise_decay=0.1, noise_hold=0.0)
    if start is not None:
        model.start_from(make_variant(start, horizon_length=horizon).learn(15))
    for loss in first_losses(model):
        np.testing.assert_allclose(loss.ratio, 1, rtol=0, atol=2e-6)
        assert loss.clip_fraction == 0
        assert abs(loss.approx_kl) < 1e-6


def test_the_ratio_leaves_one_where_the_policy_moves() -> None:
    model = make_any("reinflow", envs(2), learning_rate=1e-2).learn(20)
    model.learn(20, log_interval=None, reset_num_timesteps=False)
    logged = model.logger.name_to_value
    assert logged["train/approx_kl"] > 0
    assert logged["train/clip_fraction"] > 0
    names = {"policy_gradient_loss", "entropy_loss", "std", "value_loss", "explained_variance", "n_updates"}
    assert {f"train/{name}" for name in names} <= logged.keys()
    assert 0.1 <= logged["train/std"] <= logged["train/highest_std"] <= 0.24 + 1e-6


# --- Rollouts ---


@pytest.mark.parametrize("name", ON_POLICY)
def test_every_step_is_stored_and_chunks_are_executed_open_loop(name: str) -> None:
    env = DummyVecEnv([lambda: RandomEnv(episode_length=7), lambda: RandomEnv(episode_length=10)])
    model = make_any(name, env, n_steps=20).learn(40)
    buffer, h = model.rollout_buffer, model.horizon_length
    starts = buffer.episode_starts
    assert np.flatnonzero(starts[:, 0]).tolist() == [0, 7, 14]
    assert np.flatnonzero(starts[:, 1]).tolist() == [0, 10]
    for e, length in enumerate((7, 10)):
        assert np.flatnonzero(buffer.decided[:, e]).tolist() == [t for t in range(20) if t % length % h == 0]
        for t in range(20):
            since = t % length % h
            ends = buffer.paths[t - since, e, -1].clip(-1, 1).reshape(h, 2)
            done = env.envs[e].unwrapped.actions[t]  # type: ignore[attr-defined]
            np.testing.assert_allclose(done, ends[since], rtol=0, atol=1e-6)
    assert model._n_updates == 2 * -(-len(buffer) // 8)


def test_what_a_time_limit_cuts_off_is_worth_its_value() -> None:
    model = make_any("reinflow", RandomEnv(episode_length=5), n_steps=10, gamma=0.5)
    with th.no_grad():
        for parameter in model.critic.net[-1].parameters():
            parameter.fill_(0.0)
        model.critic.net[-1].bias.fill_(8.0)
    model.learn(10)
    rewards = model.rollout_buffer.rewards[:, 0]
    assert (rewards[[4, 9]] > 2).all()  # 0.5 * 8, and between -1 and 0
    assert (rewards[[0, 1, 2, 3, 5, 6, 7, 8]] <= 0).all()


def test_a_stopped_rollout_is_not_learned_from_and_the_next_begins_with_a_reset() -> None:
    model = make_any("reinflow").learn(20)
    before = snapshot(model)
    model.learn(30, callback=lambda local, _: local["self"].num_timesteps < 24, reset_num_timesteps=False)
    assert model.num_timesteps == 24
    assert learned(before, model) == []
    assert model._last_obs is None
    model.learn(10, reset_num_timesteps=False)
    assert model.rollout_buffer.episode_starts[0, 0]


# --- Updates ---


def test_only_the_value_net_learns_during_its_warmup() -> None:
    model = make_any("reinflow", critic_warmup=2)
    before = snapshot(model)
    changed = differences(before, snapshot(model.learn(20)))
    assert any("critic" in name for name in changed)
    assert changed == [name for name in changed if "critic" in name or name == BOUND]
    after = differences(before, snapshot(model.learn(10, reset_num_timesteps=False)))
    assert [name for name in after if name.startswith("/policy/actor.")]


def test_updates_end_once_the_policy_is_too_far_from_that_of_the_rollout() -> None:
    settings = {"learning_rate": 1e-2, "n_epochs": 8, "batch_size": 5, "target_kl": 1e-5}
    assert make_any("reinflow", **settings).learn(10)._n_updates < 16
    assert make_any("reinflow", **{**settings, "target_kl": None}).learn(10)._n_updates == 16


def test_statistics_of_a_batch_never_enter_a_density() -> None:
    model = make_any("reinflow", net={"features_extractor_class": WithStatistics})
    before = model.actor.features_extractor.norm.running_mean.clone()
    model.learn(10)
    assert th.equal(model.actor.features_extractor.norm.running_mean, before)
    assert not th.equal(model.critic.features_extractor.norm.running_mean, before)
    model.pretrain(data(), 5)
    assert not th.equal(model.actor.features_extractor.norm.running_mean, before)


@pytest.mark.parametrize(("net", "named"), [("actor", "paths"), ("critic", "values")])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_bad_net_is_seen_before_an_update(net: str, named: str) -> None:
    model = make_any("reinflow").learn(10)
    with th.no_grad():
        parameters = dict(getattr(model, net).named_parameters())
        parameters["noise_net.net.4.bias" if net == "actor" else "net.0.bias"].fill_(NAN)
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=f"rollout: `{named}`"):
        model.learn(10, reset_num_timesteps=False)
    assert not [name for name in learned(before, model) if not th.isnan(before[name]).any()]


@pytest.mark.parametrize("net", ["actor", "critic"])
def test_training_stops_at_a_bad_gradient_and_goes_on_after_it(net: str) -> None:
    model = make_any("reinflow", n_epochs=1, batch_size=16).learn(10)
    hook = next(iter(getattr(model, net).noise_net.parameters() if net == "actor" else model.critic.parameters()))
    handle = hook.register_hook(lambda gradient: gradient * NAN)
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=f"`{net}_gradient_norm`"):
        model.learn(10, reset_num_timesteps=False)
    assert not [name for name in learned(before, model) if net in name]
    handle.remove()
    model.learn(10, reset_num_timesteps=False)
    assert all(th.isfinite(tensor).all() for tensor in snapshot(model).values())


# --- What it starts from ---


@pytest.mark.slow
def test_fine_tuning_is_better_than_the_clone() -> None:
    model = make_any(
        "reinflow",
        envs(4),
        net={"net_arch": [32] * 3, "flow_steps": 4},
        n_steps=30,
        batch_size=60,
        n_epochs=5,
        learning_rate=2e-3,
        vf_learning_rate=3e-3,
        clip_range=0.1,
        ent_coef=0.0,
    )
    model.pretrain(data(), 200)
    obs = observations(model, 300)

    def mean_reward() -> float:
        actions, _ = model.predict(obs)
        return -float(np.square(actions).mean())

    assert model._n_offline == 200
    assert mean_reward() == pytest.approx(-(0.6**2), abs=0.1)
    model.learn(120 * 10)
    assert mean_reward() > -0.2


def test_cloning_keeps_both_modes_of_the_data() -> None:
    arrays = data(0.7)
    arrays["actions"] *= np.where(np.arange(len(arrays["actions"])) % 2 == 0, 1, -1)[:, None]
    model = make_any("reinflow", net={"net_arch": [32] * 3, "flow_steps": 5}, offline_learning_rate=5e-3)
    model.pretrain(arrays, 400)
    actions, _ = model.predict(observations(model, 500))
    for sign in (-1, 1):
        assert (np.abs(actions - sign * 0.7).max(axis=1) < 0.45).mean() > 0.25


def test_the_offline_phase_comes_first_and_its_moments_do_not_stay() -> None:
    model = make_any("reinflow", envs(2), offline_dataset=data(), offline_steps=15)
    states: list[tuple[int, int, int]] = []

    def record(local: dict[str, Any], _: dict[str, Any]) -> bool:
        states.append((model._n_offline, model._n_updates, len(model.actor.optimizer.state)))
        return True

    model.learn(15 + 20, callback=record)
    parameters = len(list(model.actor.parameters()))
    in_flow = parameters - len(list(model.actor.noise_net.parameters()))
    assert states[:8] == [(n, 0, in_flow) for n in (2, 4, 6, 8, 10, 12, 14, 15)]
    assert states[8:] == [(15, 0, 0)] * 10
    assert (model.num_timesteps, len(model.actor.optimizer.state)) == (35, parameters)


def moments_when_fine_tuning_begins(model: ReinFlow) -> int:
    """How many parameters the actor's optimizer has moments of at the first step in the environment."""
    seen: list[int] = []

    def record(*_: Any) -> bool:
        seen.append(len(model.actor.optimizer.state))
        return True

    model.learn(10, callback=record, reset_num_timesteps=False)
    return seen[0]


def test_cloning_that_is_stopped_leaves_no_moments() -> None:
    model = make_any("reinflow")
    model.pretrain(data(), 8, callback=lambda *_: model._n_offline < 3)
    assert (model._n_offline, model.is_offline) == (3, False)
    assert moments_when_fine_tuning_begins(model) == 0


def test_a_checkpoint_of_the_last_cloning_leaves_no_moments(tmp_path: Path) -> None:
    model = make_any("reinflow", offline_dataset=data(), offline_steps=4)
    model.learn(4, callback=CheckpointCallback(4, tmp_path))
    resumed = ReinFlow.resume(tmp_path, RandomEnv(), "cpu")
    assert (resumed.num_timesteps, resumed.is_offline) == (4, False)
    assert moments_when_fine_tuning_begins(resumed) == moments_when_fine_tuning_begins(model) == 0


def source_actions(source: Any, obs: th.Tensor) -> th.Tensor:
    """Where a model's flow goes without noise, (B, D)."""
    noise = th.zeros(len(obs), source.policy.chunk_dim)
    with th.no_grad():
        if source.__class__.__name__ == "FQL":
            actions: th.Tensor = source.actor.flow_actions(source.actor.field(obs), noise)
            return actions
        return source.actor.action(obs, source.actor.fixed_noise(len(obs)))  # type: ignore[no-any-return]


def test_a_flow_of_another_model_is_in_training_mode_while_it_clones() -> None:
    source = make_variant("flow_t").learn(15)
    model = make_any("reinflow").start_from(source)
    before = int(model.actor.norm.steps)
    model.pretrain(regular_arrays(trajectories([20])), 3)
    assert model.actor.norm.steps == before + 3


def test_statistics_that_the_start_had_and_the_model_lacks_are_pointed_out() -> None:
    known = VecNormalize(DummyVecEnv([RandomEnv]))
    source = make_variant("fql", known).learn(15)
    steps = {"flow_steps": source.policy.flow_steps}

    def said(env: Any, start: Any = source) -> list[str]:
        return warned(lambda: make_any("reinflow", env, net=steps).start_from(start))

    for env in (
        RandomEnv(),
        VecNormalize(DummyVecEnv([RandomEnv])),
        VecNormalize(DummyVecEnv([RandomEnv]), norm_obs=False),
    ):
        (message,) = said(env)
        assert "The FQL learned from observations that a VecNormalize had normalised" in message
    assert not said(known)
    assert not said(VecNormalize(DummyVecEnv([RandomEnv])), make_variant("fql"))
    assert not said(RandomEnv(), make_variant("fql").learn(15))


def test_a_start_from_a_flow_of_another_k_is_pointed_out() -> None:
    source = make_variant("flow_t", net={"flow_steps": 5})
    (message,) = warned(lambda: make_any("reinflow").start_from(source))
    assert "flow_steps=2 here and 5 in the SACFlow" in message
    assert "policy_kwargs={'flow_steps': 5}" in message
    assert not warned(lambda: make_any("reinflow", net={"flow_steps": 5}).start_from(source))


def test_data_that_would_not_be_cloned_are_refused() -> None:
    data = regular_arrays(trajectories([20]))
    with pytest.raises(ValueError, match="offline_steps=0 is not allowed: no update would be made from the data"):
        make_any("reinflow", offline_dataset=data)
    make_any("reinflow", offline_dataset=data, offline_steps=1)


@pytest.mark.parametrize("name", [*SAC_FLOWS, "fql", "qc_fql", "qc", "reinflow"])
def test_it_starts_from_the_flow_of_another_model(name: str, tmp_path: Path) -> None:
    source = make_any(name, net={"flow_steps": 3}, seed=5)
    horizon = getattr(source, "horizon_length", 1)
    model = make_any("reinflow", net={"flow_steps": 3}, horizon_length=horizon).start_from(source)
    obs = th.as_tensor(observations(model, 7))
    before = source_actions(source, obs)
    with th.no_grad():
        th.testing.assert_close(model.actor.action(obs, model.actor.fixed_noise(7)), before)
    model.learn(20)
    th.testing.assert_close(source_actions(source, obs), before)  # its nets were copied
    start = model.policy.flow.velocity.state_dict()  # and so were those that are saved as an argument
    th.testing.assert_close(start, source.actor.flow().velocity.state_dict(), rtol=0, atol=0)
    model.save(tmp_path / "model")
    loaded = ReinFlow.load(tmp_path / "model", env=RandomEnv(), device="cpu")
    assert differences(snapshot(model), snapshot(loaded)) == []
    np.testing.assert_array_equal(*(m.predict(obs.numpy(), deterministic=True)[0] for m in (model, loaded)))
    loaded.learn(10)


def test_a_start_that_does_not_fit_is_refused() -> None:
    image = RandomEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8))
    raw = make_variant("flow_t", image, policy="CnnPolicy", net={"normalize_images": False}, buffer_size=10)
    with pytest.raises(ValueError, match="normalize_images=False' is not allowed: it is True here"):
        make_any("reinflow", image, policy="CnnPolicy").start_from(raw)
    model = make_any("reinflow")
    with pytest.raises(ValueError, match=r"model='SAC' is not allowed: it has no flow of its own.*FQL"):
        model.start_from(SAC("MlpPolicy", RandomEnv(), buffer_size=10, device="cpu"))
    with pytest.raises(ValueError, match="it has no flow of its own"):
        model.start_from(make_variant("dime"))
    with pytest.raises(ValueError, match=r"model='FQL\(horizon_length=3\)'.*horizon_length is 1 here"):
        model.start_from(make_variant("qc_fql"))
    other = RandomEnv(action_space=spaces.Box(-2.0, 2.0, (2,), np.float32))
    with pytest.raises(ValueError, match="action_space is Box"):
        model.start_from(make_variant("fql", other))
    with pytest.raises(ValueError, match=r"num_timesteps=10.*start a new model"):
        model.learn(10).start_from(make_variant("fql"))


def test_data_that_do_not_fit_are_refused_before_anything_changes() -> None:
    model = make_any("reinflow")
    wrong = {**data(), "actions": np.zeros((800, 5))}
    with pytest.raises(ValueError, match="actions"):
        model.pretrain(wrong, 10)
    assert (model.offline_dataset, model.offline_steps) == (None, 0)
    with pytest.raises(ValueError, match=r"steps=0\.5"):
        model.pretrain(data(), 0.5)
    with pytest.raises(ValueError, match="offline_steps=5 is not allowed: 5 of them are left"):
        make_any("reinflow", offline_steps=5)


# --- Arguments ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_steps", 1),
        ("n_steps", 2.5),
        ("batch_size", 1),
        ("n_epochs", 0),
        ("horizon_length", 0),
        ("critic_warmup", -1),
        ("gamma", 1.5),
        ("gae_lambda", -0.1),
        ("noise_hold", 2.0),
        ("noise_decay", "x"),
        ("ent_coef", -1.0),
        ("target_kl", -0.1),
        ("clip_range", "0.1"),
        ("vf_learning_rate", None),
        ("offline_batch_size", 1),
        ("compile", "fast"),
    ],
)
def test_bad_arguments_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value!r}"):
        make_any("reinflow", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_std_range", (0.2, 0.1)),
        ("noise_std_range", (0.0, 0.1)),
        ("noise_std_range", [0.1]),
        ("noise_std_range", 0.1),
        ("net_arch", [16, 16]),
        ("net_arch", [16, 8, 16]),
        ("net_arch", {"qf": [16]}),
        ("flow_steps", 0),
        ("horizon_length", 2),
    ],
    ids=str,
)
def test_bad_arguments_of_the_policy_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        make_any("reinflow", net={name: value})


def test_loading_checks_arguments_and_keeps_chunks(tmp_path: Path) -> None:
    make_any("reinflow_chunks").save(tmp_path / "model")
    with pytest.raises(ValueError, match="gamma=7"):
        ReinFlow.load(tmp_path / "model", gamma=7, device="cpu")
    with pytest.raises(ValueError, match=r"horizon_length=2.*the policy's is 3"):
        ReinFlow.load(tmp_path / "model", horizon_length=2, device="cpu")
    with pytest.raises(ValueError, match="max_grad_norm is no argument of ReinFlow"):
        ReinFlow.load(tmp_path / "model", max_grad_norm=1.0, device="cpu")


# --- Going on ---


class CopyOfTheEnvironment(BaseCallback):
    """Keeps the environment as it is when the first checkpoint is made."""

    env: Any = None

    def _on_step(self) -> bool:
        if self.n_calls == 13:
            model: Any = self.model
            model.call_between_steps(self._copy)
        return True

    def _copy(self) -> None:
        env = self.model.get_env()
        self.env = deepcopy(env)
        if isinstance(env, VecNormalize):  # its copy lacks what is not pickled
            self.env.set_venv(deepcopy(env.venv))
            self.env.returns = env.returns.copy()


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("offline_steps", [0, 60, 10**6])
def test_a_run_goes_on_from_a_checkpoint_bit_identically(
    name: str, n_envs: int, offline_steps: int, tmp_path: Path
) -> None:
    given = {"offline_dataset": data()} if offline_steps else {}
    env = VecNormalize(envs(n_envs))
    model = make_any(name, env, offline_steps=offline_steps, n_steps=5, batch_size=4, **given)
    total, copy = 90, CopyOfTheEnvironment()
    model.learn(total, callback=[CheckpointCallback(13, tmp_path, keep=None), copy])
    first = checkpoints(tmp_path)[0]
    resumed = ReinFlow.resume(first.model, copy.env, "cpu", force_reset=False, **given)
    assert resumed.num_timesteps == first.steps
    if not offline_steps:
        assert first.steps == 15 * n_envs  # the rollout was completed
    resumed.learn(total - resumed.num_timesteps, reset_num_timesteps=False)
    assert differences(snapshot(model), snapshot(resumed)) == []
    for counter in ("_n_updates", "_n_offline", "_n_rollouts", "num_timesteps"):
        assert getattr(model, counter) == getattr(resumed, counter)
    assert model._n_updates + model._n_offline > 10


def test_same_seed_same_run() -> None:
    runs = [snapshot(make_any("reinflow_chunks", envs(2), seed=seed).learn(40)) for seed in (1, 1, 2)]
    assert differences(runs[0], runs[1]) == []
    assert differences(runs[0], runs[2])
