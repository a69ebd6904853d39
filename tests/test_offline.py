"""Learning from offline data: what is sampled, what each phase does, and that nothing else is touched."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from dataset_files import compact_arrays, regular_arrays, trajectories
from gymnasium import spaces
from helpers import (
    FQLS,
    LEARNING_STARTS,
    ONE_OF_EACH,
    SAC_FLOWS,
    VECTOR,
    RandomEnv,
    differences,
    make_model,
    make_variant,
    policy_kwargs,
    randn,
    random_state_kept,
    snapshot,
    steps_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow import SACFlow
from sb3_flow.common.buffers import Batch, fold_chunks, join, sample_dataset, to_batch
from sb3_flow.common.flow import Line, Velocity, matching_error
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.datasets import DataError, OfflineDataset, from_arrays
from sb3_flow.datasets.dataset import ShardedDataset

GAMMA = 0.9


def dataset(lengths: list[int] | None = None, seed: int = 0) -> OfflineDataset:
    """Steps with the shapes of `RandomEnv`."""
    return from_arrays(regular_arrays(trajectories(lengths or [20, 30], seed)))


def endless() -> dict[str, NDArray[Any]]:
    """The same steps, none of which terminates."""
    arrays = regular_arrays(trajectories([20, 30]))
    return arrays | {"masks": np.ones_like(arrays["masks"])}


def defaults() -> dict[str, Any]:
    return {"offline_dataset": dataset(), "offline_steps": 12, "learning_starts": None}


def offline_model(policy: str = "FlowTPolicy", **kwargs: Any) -> SACFlow:
    """A tiny model with data, whose offline phase takes 12 updates."""
    return make_model(policy, **(defaults() | kwargs))


def offline_variant(name: str, **kwargs: Any) -> OffPolicyFlowAlgorithm:
    """The same of any algorithm."""
    return make_variant(name, **(defaults() | kwargs))


class Recorder(BaseCallback):
    """What the callback saw, and whether to stop."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.stop_at = stop_at
        self.offline: list[bool] = []
        self.env_steps: list[int] = []

    def _on_step(self) -> bool:
        assert isinstance(self.model, OffPolicyFlowAlgorithm)
        self.offline.append(self.model.num_timesteps <= self.model.offline_steps)
        self.env_steps.append(self.model.replay_buffer.size())
        return self.num_timesteps != self.stop_at


def expected_chunk(episode: dict[str, NDArray[Any]], start: int, horizon: int) -> dict[str, Any]:
    """What one chunk must look like, step by step."""
    reward, counts, done, in_episode = 0.0, True, False, []
    last = len(episode["actions"]) - 1
    for j in range(horizon):
        t = start + j
        in_episode.append(t <= last)
        if t <= last and counts:
            reward += GAMMA**j * float(episode["rewards"][t])
            if episode["masks"][t] == 0:
                counts, done = False, True
    crosses = not in_episode[-1]
    return {
        "rewards": reward,
        "dones": float(done),
        "valid": float(done or not crosses),
        "in_episode": np.repeat(in_episode, 2).astype(np.float32),
        "actions": episode["actions"][start : start + horizon].ravel(),
        "next_observations": None if crosses else episode["observations"][start + horizon],
    }


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    horizon=st.integers(1, 6),
    compact=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_chunk_of_the_data_is_what_walking_the_episode_gives(
    lengths: list[int], horizon: int, compact: bool, seed: int
) -> None:
    episodes = trajectories(lengths, seed)
    data = from_arrays((compact_arrays if compact else regular_arrays)(episodes))
    starts = {
        tuple(episode["observations"][t]): (episode, t) for episode in episodes for t in range(len(episode["actions"]))
    }
    samples = sample_dataset(data, 40, horizon, GAMMA)
    assert isinstance(samples.next_observations, th.Tensor)
    chunks = [expected_chunk(*starts[tuple(obs.tolist())], horizon) for obs in samples.observations]
    for name in ("rewards", "dones", "valid"):
        numbers = getattr(samples, name).squeeze(1).numpy()
        np.testing.assert_allclose(numbers, [chunk[name] for chunk in chunks], rtol=1e-5, atol=1e-6)
    for row, want in enumerate(chunks):
        np.testing.assert_array_equal(samples.in_episode[row], want["in_episode"])
        np.testing.assert_array_equal(samples.actions[row][: len(want["actions"])], want["actions"])
        if want["next_observations"] is not None:
            np.testing.assert_array_equal(samples.next_observations[row], want["next_observations"])


@pytest.mark.parametrize("make", [regular_arrays, compact_arrays])
def test_every_step_of_the_data_is_sampled_equally_often(make: Any) -> None:
    episodes = trajectories([7, 1, 12])
    np.random.seed(0)
    samples = sample_dataset(from_arrays(make(episodes)), 20_000, 5, GAMMA)
    values, counts = np.unique(samples.observations[:, 0], return_counts=True)  # type: ignore[index]
    assert len(values) == 20
    assert stats.chisquare(counts).pvalue > 1e-3


def test_what_follows_a_solved_task_in_play_data_does_not_count() -> None:
    rewards = np.array([[1.0, 2.0, 4.0]], np.float32)
    masks, ends = np.array([[1.0, 0.0, 1.0]], np.float32), np.zeros((1, 3), np.float32)
    fold = fold_chunks(rewards, masks, ends, 0.5)
    assert fold.rewards.item() == 1 + 0.5 * 2
    assert fold.dones.item() == 1
    assert fold.in_episode.all()


def test_joined_batches_mean_what_they_meant_apart() -> None:
    plain = Batch(th.zeros(2, 3), th.zeros(2, 4), th.zeros(2, 3), th.zeros(2), th.zeros(2), 0.9)
    chunks = to_batch(sample_dataset(dataset(), 3, 2, GAMMA), GAMMA)
    batch = join(plain, chunks)
    assert batch.valid is not None
    assert batch.in_episode is not None
    assert chunks.valid is not None
    assert batch.valid.tolist() == [1, 1, *chunks.valid.tolist()]
    assert batch.in_episode[:2].min() == 1
    assert isinstance(batch.discounts, th.Tensor)
    np.testing.assert_allclose(batch.discounts, [0.9, 0.9, 0.81, 0.81, 0.81], rtol=1e-6)
    assert batch.actions.shape == (5, 4)


@pytest.mark.parametrize("target", ["raw", "atanh"])
def test_the_straight_velocity_has_no_matching_error(target: Any) -> None:
    actions = 0.9 * th.tanh(randn(64, 3))
    x_1 = actions if target == "raw" else th.atanh(actions)
    line = Line(randn(64, 3, seed=1), th.rand(64, 1, dtype=th.float64))
    seen = []

    def straight(x: th.Tensor, t: th.Tensor) -> Velocity:
        seen.append(x)
        return Velocity(x_1 - line.x_0, th.zeros(()))

    th.testing.assert_close(matching_error(straight, actions, line, target), th.zeros_like(actions))
    th.testing.assert_close(seen[0], (1 - line.t) * line.x_0 + line.t * x_1)


def test_actions_at_the_bounds_have_a_finite_target() -> None:
    actions, line = th.tensor([[1.0, -1.0]]), Line(th.zeros(1, 2), th.zeros(1, 1))
    error = matching_error(lambda x, t: Velocity(th.zeros_like(x), th.zeros(())), actions, line, "atanh")
    np.testing.assert_allclose(error, np.arctanh([[-0.99, 0.99]]), rtol=1e-5)


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("name", [*SAC_FLOWS, "fql", "qc", "dime", "flow_rl", "qsm"])
def test_the_offline_phase_leaves_the_environment_alone_and_the_online_phase_follows(name: str, horizon: int) -> None:
    env, recorder = RandomEnv(), Recorder()
    model = offline_variant(name, env=env, horizon_length=horizon, critic="target")
    model.learn(20, callback=recorder)
    assert recorder.offline == [True] * 12 + [False] * 8
    assert recorder.env_steps == [0] * 12 + list(range(8))  # a callback comes before its step is stored
    assert len(env.actions) == 8
    assert model.num_timesteps == 20
    assert model._n_updates == 20


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_phases_can_be_called_one_by_one(name: str) -> None:
    model = offline_variant(name, offline_steps=0)
    model.learn_offline(7.0)  # as 1e5 is
    assert (model._n_updates, model.replay_buffer.size(), model.is_offline) == (7, 0, False)
    model.learn_offline(3, reset_num_timesteps=False)
    assert (model._n_updates, model.num_timesteps) == (10, 10)
    model.learn(5, reset_num_timesteps=False)
    assert (model.replay_buffer.size(), model.num_timesteps) == (5, 15)


@pytest.mark.parametrize("name", ["flow_t", "qc_fql"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_an_offline_phase_that_was_stopped_is_over(interrupted: bool, name: str) -> None:
    class Interrupter(Recorder):
        def _on_step(self) -> bool:
            if not super()._on_step():
                raise KeyboardInterrupt
            return True

    model = offline_variant(name, offline_steps=0)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            model.learn_offline(30, callback=Interrupter(stop_at=5))
    else:
        model.learn_offline(30, callback=Recorder(stop_at=5))
    assert (model._n_updates, model.is_offline) == (5, False)
    model.learn(4)
    assert model.replay_buffer.size() == 4


@pytest.mark.parametrize("name", ["flow_t", "fql"])
@pytest.mark.parametrize(
    ("steps", "arguments", "message"),
    [
        (5, {"offline_dataset": None, "offline_steps": 0}, r"offline_dataset=None .*pass it to (SACFlow|FQL),"),
        (0.5, {}, r"steps=0.5 .*whole number >= 1"),
        (0, {}, r"steps=0 .*whole number >= 1"),
        ("5", {}, r"steps='5' .*whole number >= 1"),
    ],
)
def test_an_offline_phase_that_is_refused_changes_nothing(steps: Any, arguments: Any, message: str, name: str) -> None:
    model = offline_variant(name, **arguments)
    before = model.offline_steps
    with pytest.raises(ValueError, match=message):
        model.learn_offline(steps)
    assert model.offline_steps == before
    model.learn(14)
    assert model.num_timesteps == 14


def test_an_offline_phase_whose_data_are_gone_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **regular_arrays(trajectories([20])))
    offline_model(offline_dataset=path, offline_steps=0).save(tmp_path / "model")
    path.unlink()
    loaded = SACFlow.load(tmp_path / "model", env=RandomEnv())
    with pytest.raises(FileNotFoundError):
        loaded.learn_offline(5)
    assert loaded.offline_steps == 0


def test_a_second_learn_does_not_repeat_the_offline_phase() -> None:
    model = offline_model().learn(12)
    assert model.replay_buffer.size() == 0
    model.learn(4)
    assert model.replay_buffer.size() == 4


def test_a_callback_can_stop_the_offline_phase_and_learning_resumes_there() -> None:
    model = offline_model()
    model.learn(20, callback=Recorder(stop_at=5))
    assert (model._n_offline, model.num_timesteps) == (5, 5)
    model.learn(15, reset_num_timesteps=False)
    assert (model._n_offline, model.replay_buffer.size()) == (12, 8)


def test_several_environments_make_as_many_updates_between_callbacks() -> None:
    recorder = Recorder()
    env = DummyVecEnv([RandomEnv, RandomEnv, RandomEnv])
    model = offline_model(env=env, offline_steps=10).learn(16, callback=recorder)
    assert len(recorder.offline) == 4 + 2
    assert (model._n_offline, model.num_timesteps) == (10, 16)


def test_evaluation_works_in_both_phases(tmp_path: Path) -> None:
    callback = EvalCallback(DummyVecEnv([RandomEnv]), eval_freq=5, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
    offline_model(horizon_length=2).learn(20, callback=callback)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [5, 10, 15, 20]


@pytest.mark.parametrize("n_envs", [1, 2])
def test_callbacks_that_count_episodes_see_none_end_offline(n_envs: int) -> None:
    model = offline_model(env=DummyVecEnv([RandomEnv] * n_envs))
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps == 12 + 2 * 10 * n_envs


def test_callbacks_see_steps_without_reward_and_info_offline() -> None:
    seen: list[tuple[float, dict[str, Any]]] = []

    def note(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        seen.extend(zip(locals_["rewards"].tolist(), locals_["infos"], strict=True))
        return True

    offline_model(env=DummyVecEnv([RandomEnv] * 2)).learn(16, callback=note)
    assert seen[:12] == [(0.0, {})] * 12
    assert all(reward < 0 for reward, _ in seen[12:])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_checkpoints_are_saved_in_both_phases(name: str, tmp_path: Path) -> None:
    model = offline_variant(name)
    model.learn(20, callback=CheckpointCallback(8, str(tmp_path), "m", save_replay_buffer=True))
    half, last = (type(model).load(tmp_path / f"m_{steps}_steps") for steps in (8, 16))
    assert (half._n_offline, last._n_offline) == (8, 12)
    last.load_replay_buffer(tmp_path / "m_replay_buffer_16_steps")
    assert last.replay_buffer.size() == 3  # the callback comes before the step is stored


def test_the_matching_loss_is_logged_offline_only() -> None:
    model = offline_model(policy_delay=1)
    model.learn_offline(3)
    assert model.logger.name_to_value["train/matching_loss"] > 0
    model.logger.name_to_value.clear()
    model.learn(3)
    assert "train/actor_loss" in model.logger.name_to_value
    assert "train/matching_loss" not in model.logger.name_to_value


@pytest.mark.parametrize("name", FQLS)
def test_the_behaviour_flow_of_fql_is_matched_in_both_phases(name: str) -> None:
    model = offline_variant(name)
    model.learn_offline(3)
    for _ in range(2):
        values = model.logger.name_to_value
        assert values["train/matching_loss"] > 0
        assert ("train/bc_loss" in values) == (name != "qc")
        values.clear()
        before = {key: value.clone() for key, value in model.actor.state_dict().items()}
        model.learn(3)
        assert any(not th.equal(before[key], value) for key, value in model.actor.state_dict().items() if "beh" in key)


@pytest.mark.parametrize("name", ["flow_t", "fql", "qc_fql"])
def test_each_phase_has_its_own_proximity_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = offline_variant(name, bc_coef=[100.0, lambda progress: 7.0], sac_flow={"policy_delay": 1})
    seen = []
    original = model._actor_loss_fn
    monkeypatch.setattr(model, "_actor_loss_fn", lambda *args: (seen.append(args[5].item()), original(*args))[1])
    model.learn(15)
    assert seen == [100.0] * 12 + [7.0] * 3


def test_schedules_run_over_both_phases() -> None:
    seen = []
    model = offline_model(learning_rate=lambda progress: (seen.append(progress), 1e-3 * (0.1 + progress))[1])
    seen.clear()
    model.learn(20)
    rates = sorted(set(seen), reverse=True)
    assert rates[:12] == pytest.approx([1 - i / 20 for i in range(12)])
    assert min(rates) < 0.1


@pytest.mark.parametrize("name", ["flow_t", "fql"])
@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (0.5, 16, 16), (1.0, 32, 32), (None, 20, 31)])
def test_the_share_of_offline_data(ratio: float | None, low: int, high: int, name: str) -> None:
    model = offline_variant(name, offline_ratio=ratio, offline_steps=0, batch_size=32).learn(9)
    marked = dataset()
    model.replay_buffer.rewards[:] = 1e6
    counts = []
    for _ in range(50):
        batch = model._sample(32)
        counts.append(int((batch.rewards < 1e5).sum()))
    assert low <= np.mean(counts) <= high
    if ratio is None:  # uniform over the union: 50 steps of data, 9 of the environment
        assert np.mean(counts) == pytest.approx(32 * 50 / 59, abs=1.5)
        assert len(set(counts)) > 1
    assert len(marked) == 50


def test_every_start_in_data_and_buffer_is_sampled_equally_often() -> None:
    model = offline_model(horizon_length=3, offline_steps=0).learn(40)
    np.random.seed(0)
    observations = model._sample(40_000).observations
    values, counts = np.unique(observations[:, 0], return_counts=True)  # type: ignore[index]
    assert len(values) == len(dataset()) + 40 - 2
    assert stats.chisquare(counts).pvalue > 1e-3


def test_data_are_sampled_alone_until_a_whole_chunk_is_stored() -> None:
    model = offline_model(horizon_length=5, offline_ratio=0.0, offline_steps=0).learn(4)
    assert model.experience.offline_share(8, update=0) == 8
    model.learn(4, reset_num_timesteps=False)
    assert model.experience.offline_share(8, update=0) == 0


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.97])
def test_a_share_that_is_no_whole_number_is_met_on_average(ratio: float) -> None:
    model = offline_model(offline_ratio=ratio, offline_steps=0).learn(20)
    shares = [model.experience.offline_share(8, update=0) for _ in range(2000)]
    assert set(shares) <= {math.floor(8 * ratio), math.ceil(8 * ratio)}
    assert np.mean(shares) == pytest.approx(8 * ratio, abs=0.05)


def test_of_data_in_shards_the_resident_one_is_weighed(tmp_path: Path) -> None:
    for shard in range(4):
        np.savez(tmp_path / f"{shard}.npz", **regular_arrays(trajectories([10 + 10 * shard], seed=shard)))
    model = offline_model(offline_dataset=tmp_path, offline_steps=0).learn(20)
    assert len(model._dataset) == 100  # type: ignore[arg-type]
    for shard, rows in enumerate([10, 20, 30, 40]):
        shares = [model.experience.offline_share(1000, update=1000 * shard) for _ in range(50)]
        assert np.mean(shares) == pytest.approx(1000 * rows / (rows + 20), abs=12)


@pytest.mark.parametrize("name", ["flow_t", "fql"])
def test_the_first_steps_online_are_stored_without_updates(name: str, tmp_path: Path) -> None:
    whole = offline_variant(name, start_training=6).learn(12)
    before = snapshot(whole)
    whole.learn(5, reset_num_timesteps=False)
    assert differences(snapshot(whole), before) == []
    assert (whole._n_updates, whole.replay_buffer.size()) == (12, 5)
    whole.save(tmp_path / "model")
    whole.save_replay_buffer(tmp_path / "buffer")
    # Where it goes on matters not
    loaded = type(whole).load(tmp_path / "model", env=RandomEnv(), offline_dataset=dataset())
    loaded.load_replay_buffer(tmp_path / "buffer")
    for model in (whole, loaded):
        model.learn(4, reset_num_timesteps=False)
        assert (model._n_updates, model.replay_buffer.size()) == (16, 9)


def test_nothing_is_written_into_the_data_or_from_the_data_into_the_buffer() -> None:
    data = dataset()
    before = {name: getattr(data, name).copy() for name in ("observations", "actions", "rewards", "masks", "ends")}
    model = offline_model(offline_dataset=data).learn(20)
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(data, name), values)
    assert model.replay_buffer.size() == 8


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("name", ["flow_t", "fql", "qc"])
def test_a_phase_that_was_interrupted_goes_on_bit_identically(name: str, horizon: int, tmp_path: Path) -> None:
    data = dataset()

    def model() -> OffPolicyFlowAlgorithm:
        weights = {} if name == "qc" else {"bc_coef": [3.0, 1.0]}
        return offline_variant(name, offline_dataset=data, horizon_length=horizon, **weights)

    with random_state_kept():
        whole = model()
        whole.learn(12)
    with random_state_kept():
        half = model()
        half.learn(12, callback=Recorder(stop_at=6))
        half.save(tmp_path / "half")
        with random_state_kept():
            resumed = type(half).load(tmp_path / "half", env=RandomEnv(), offline_dataset=data)
        resumed.learn(6, reset_num_timesteps=False)
    assert differences(snapshot(whole), snapshot(resumed)) == []
    assert resumed._n_offline == 12


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
def test_the_online_phase_goes_on_bit_identically_in_the_middle_of_a_chunk(name: str, tmp_path: Path) -> None:
    data = dataset()
    model = offline_variant(name, offline_dataset=data, horizon_length=4).learn(12 + 6)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    env = deepcopy(model.get_env())
    with random_state_kept():
        resumed = type(model).load(tmp_path / "model", env, "cpu", force_reset=False, offline_dataset=data)
    resumed.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    with random_state_kept():
        model.learn(15, reset_num_timesteps=False)
    resumed.learn(15, reset_num_timesteps=False)
    assert differences(snapshot(model), snapshot(resumed)) == []
    np.testing.assert_array_equal(model.replay_buffer.actions, resumed.replay_buffer.actions)
    assert model.replay_buffer.size() == resumed.replay_buffer.size() == 6 + 15


def test_data_are_not_saved_but_their_name_is(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **regular_arrays(trajectories([20, 30])))
    offline_model(offline_dataset=str(path)).learn(4).save(tmp_path / "named")
    loaded = SACFlow.load(tmp_path / "named", env=RandomEnv())
    assert loaded.offline_dataset == str(path)
    loaded.learn(8, reset_num_timesteps=False)
    assert loaded._n_offline == 12
    path.unlink()
    SACFlow.load(tmp_path / "named").predict(np.zeros(3, np.float32))  # what only acts needs no data


def test_a_model_whose_data_were_not_named_asks_for_them(tmp_path: Path) -> None:
    offline_model().learn(4).save(tmp_path / "half")
    loaded = SACFlow.load(tmp_path / "half", env=RandomEnv())
    with pytest.raises(ValueError, match=r"offline_steps=12.*8 of them are left.*to `load`"):
        loaded.learn(4)
    offline_model().learn(12).save(tmp_path / "whole")
    loaded = SACFlow.load(tmp_path / "whole", env=RandomEnv())
    with pytest.warns(UserWarning, match="without the offline data"):
        loaded.learn(2)


@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "qc"])
def test_image_data_are_learned_from(name: str) -> None:
    rng = np.random.default_rng(0)
    space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    images = rng.integers(0, 255, (13, 3, 36, 36), dtype=np.uint8)
    arrays = {
        "observations": images[:-1],
        "next_observations": images[1:],
        "actions": rng.uniform(-1, 1, (12, 2)),
        "rewards": np.zeros(12),
        "masks": np.ones(12),
        "terminals": np.arange(12) == 11,
    }
    model = offline_variant(
        name, policy="CnnPolicy", env=RandomEnv(space), offline_dataset=arrays, offline_steps=2, horizon_length=2
    )
    model.learn(8)
    assert model._n_updates == 8


def test_data_are_normalised_as_the_environment_is() -> None:
    env = VecNormalize(DummyVecEnv([RandomEnv]), gamma=GAMMA)
    env.obs_rms.mean = np.full(3, 3.0)  # type: ignore[union-attr]
    env.ret_rms.var = np.asarray(25.0)
    data = dataset()
    np.random.seed(0)
    raw = sample_dataset(data, 8, 1, GAMMA)
    np.random.seed(0)
    normalised = sample_dataset(data, 8, 1, GAMMA, env=env)
    th.testing.assert_close(normalised.rewards, raw.rewards / 5, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(normalised.observations, raw.observations - 3, rtol=1e-4, atol=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["flow_t", "fql"])
@pytest.mark.parametrize("training", [True, False])
def test_the_offline_phase_is_normalised_by_statistics_of_the_data(training: bool, name: str) -> None:
    arrays = regular_arrays(trajectories([20, 30]))
    for key in ("observations", "next_observations"):
        arrays[key] = 100 + 20 * arrays[key]
    arrays["rewards"] = 50 * np.ones(50)
    env = VecNormalize(DummyVecEnv([RandomEnv]), gamma=GAMMA, training=training)
    model = offline_variant(name, env=env, offline_dataset=arrays)
    model.learn(12)
    env = model.get_vec_normalize_env()  # type: ignore[assignment]
    if not training:
        assert env.obs_rms.mean == pytest.approx(0)  # type: ignore[union-attr]
        return
    assert env.obs_rms.mean == pytest.approx(arrays["observations"].mean(axis=0), rel=0.1)  # type: ignore[union-attr]
    normalised = env.normalize_obs(arrays["observations"])
    assert np.abs(normalised).max() < 5  # type: ignore[operator]
    returns, running = [], 0.0
    for t, reward in enumerate(arrays["rewards"]):
        running = reward + GAMMA * running * (t != 20)
        returns.append(running)
    assert env.ret_rms.var == pytest.approx(np.var(returns), rel=1e-3)


def test_statistics_that_were_frozen_learn_from_the_data_when_they_are_not() -> None:
    env = VecNormalize(DummyVecEnv([RandomEnv]), training=False)
    model = make_variant("fql", env=env, offline_dataset=regular_arrays(trajectories([20, 30]))).learn_offline(2)
    frozen = env.obs_rms.count
    env.training = True
    model.learn_offline(2)
    assert env.obs_rms.count > frozen + 49


def test_the_first_of_several_files_is_not_read_again_for_statistics_that_are_known(tmp_path: Path) -> None:
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", **regular_arrays(trajectories([20, 30], i)))
    model = make_variant("fql", env=VecNormalize(DummyVecEnv([RandomEnv])), offline_dataset=tmp_path)
    assert isinstance(model._dataset, ShardedDataset)
    model._dataset.rotate_every = 3
    model.learn_offline(5)
    reads: list[int] = []
    at = model._dataset.at
    model._dataset.at = lambda update: (reads.append(update), at(update))[1]  # type: ignore[method-assign, func-returns-value]
    model.learn_offline(1, reset_num_timesteps=False)
    assert 0 not in reads


def test_statistics_of_the_data_are_learned_once() -> None:
    env = VecNormalize(DummyVecEnv([RandomEnv]), gamma=GAMMA)
    model = offline_model(env=env, offline_steps=0, learning_starts=100)
    counts = []
    for _ in range(2):
        model.learn(4, reset_num_timesteps=False)
        counts.append(model.get_vec_normalize_env().obs_rms.count)  # type: ignore[union-attr]
    assert counts[1] - counts[0] < 10 < counts[0]


def test_a_sharded_set_takes_turns(tmp_path: Path) -> None:
    for shard in range(2):
        episodes = trajectories([20])
        for episode in episodes:
            episode["rewards"][:] = shard
        np.savez(tmp_path / f"shard-{shard}.npz", **regular_arrays(episodes))
    model = offline_model(offline_dataset=tmp_path)
    assert model._dataset is not None
    model._dataset.rotate_every = 3  # type: ignore[union-attr]
    seen = []
    for update in range(1, 10):
        model._n_updates = update
        seen.append(model._sample(8).rewards.unique().tolist())
    assert seen == [[0]] * 3 + [[1]] * 3 + [[0]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SAC_FLOWS, "fql", "qc", "flow_rl", "qsm"])
def test_a_flow_that_is_matched_to_data_acts_like_them(name: str) -> None:
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (500, 3)).astype(np.float32)
    wanted = np.stack([0.8 * obs[:, 0], -0.5 * np.ones(500)], axis=1)
    arrays = {
        "observations": obs,
        "next_observations": obs,
        "actions": wanted,
        "rewards": np.zeros(500),
        "masks": np.zeros(500),
        "terminals": np.ones(500, bool),
    }
    model = offline_variant(
        name,
        offline_dataset=arrays,
        batch_size=64,
        learning_rate=3e-3,
        sac_flow={"ent_coef": 0.0, "bc_coef": 0.0, "policy_delay": 1},
        net={"noise_std": 0.1} if name in SAC_FLOWS else {"net_arch": [32, 32], **steps_of(name, 5)},
    )
    # Q = 0, which is right for these data, so the matching loss is alone
    for parameter in model.critic.parameters():
        parameter.data.zero_()
    model.learn_offline(400 if name in SAC_FLOWS else 200)
    actions, _ = model.predict(obs, deterministic=True)
    assert np.abs(actions - wanted).mean() < 0.15
    assert np.abs(np.zeros_like(wanted) - wanted).mean() > 0.4  # what a policy that knows nothing misses by


@pytest.mark.parametrize("name", ["flow_t", "fql"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offline_steps": -1}, r"offline_steps=-1 .*>= 0"),
        ({"offline_steps": 1.5}, r"offline_steps=1.5 .*an integer >= 0"),
        ({"offline_steps": float("nan")}, r"offline_steps=nan .*an integer >= 0"),
        ({"offline_dataset": None}, r"offline_steps=12 .*no offline_dataset"),
        (
            {"offline_dataset": None, "offline_steps": 0, "offline_ratio": 0.5},
            r"offline_ratio=0.5 .*no offline_dataset",
        ),
        ({"horizon_length": 31, "offline_dataset": endless()}, r"longest episode has 30 steps; horizon_length=31"),
        ({"offline_ratio": 1.5}, r"offline_ratio=1.5 .*\[0, 1\]"),
        ({"start_training": -1}, r"start_training=-1 .*>= 0"),
        (
            {"offline_dataset": None, "offline_steps": 0, "start_training": 5},
            r"start_training=5 .*no offline_dataset.*learning_starts",
        ),
        ({"bc_coef": [1.0, 2.0, 3.0]}, r"bc_coef=\[1.0, 2.0, 3.0\] .*two"),
        ({"bc_coef": [1.0, -2.0]}, r"bc_coef=-2.0 .*>= 0"),
        ({"bc_coef": ["1e3", 1.0]}, r"bc_coef=\['1e3', 1.0\] .*YAML"),
        ({"bc_coef": [1.0, "1e3"]}, r"bc_coef=\[1.0, '1e3'\] .*YAML"),
        ({"n_steps": 3}, r"n_steps=3 .*horizon_length"),
        ({"offline_dataset": 3}, r"offline_dataset=3 "),
        ({"env": RandomEnv(spaces.Box(-1, 1, (4,), np.float32))}, r"observations.*\(3,\).*another environment"),
        ({"env": RandomEnv(VECTOR, spaces.Box(-1, 1, (3,), np.float32))}, r"actions.*2 numbers.*another environment"),
        ({"env": RandomEnv(spaces.Dict({"a": VECTOR}))}, r"observations.*Dict.*FlattenObservation"),
        (
            {"env": RandomEnv(spaces.Dict({"a": VECTOR, "image": spaces.Box(0, 255, (3, 36, 36), np.uint8)}))},
            r"observations.*Dict.*give a dict of arrays, with its keys; Minari",
        ),
    ],
)
def test_bad_input_is_refused_before_training(arguments: dict[str, Any], message: str, name: str) -> None:
    with pytest.raises(ValueError, match=message):
        offline_variant(name, **arguments)


def test_an_unknown_target_of_the_matching_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"matching_target='tanh' .*'atanh', 'raw'"):
        offline_model(matching_target="tanh")


def test_a_missing_file_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        offline_model(offline_dataset=tmp_path / "nowhere")


def test_bad_data_are_refused_before_training() -> None:
    arrays = regular_arrays(trajectories([20]))
    arrays["rewards"][7] = np.nan
    with pytest.raises(DataError, match=r"rewards.*row 7"):
        offline_model(offline_dataset=arrays)


def test_with_data_the_critic_has_a_target_unless_told_otherwise() -> None:
    tiny = policy_kwargs("FlowTPolicy")
    del tiny["critic"]
    assert make_model(policy_kwargs=tiny).policy.critic_name == "crossq"
    assert offline_model(policy_kwargs=tiny).policy.critic_name == "target"
    assert offline_model(policy_kwargs={**tiny, "critic": "crossq"}).policy.critic_name == "crossq"


def test_random_actions_come_first_only_without_data() -> None:
    assert make_model(learning_starts=None).learning_starts == 5_000
    assert offline_model().learning_starts == 0
    assert offline_model(learning_starts=LEARNING_STARTS).learning_starts == LEARNING_STARTS
