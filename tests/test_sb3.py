"""What SB3 holds its SAC to, where no other file of these tests does: docs/sb3.md has the whole table."""

import base64
import io
import json
import pickletools
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from gymnasium import spaces
from helpers import (
    EVERY_MODEL,
    ONE_OF_EACH,
    VARIANTS,
    RandomEnv,
    differences,
    make_model,
    make_variant,
    observations,
    snapshot,
    taking,
)
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecTransposeImage, is_vecenv_wrapped
from torch import nn

from sb3_flow.common.buffers import ChunkDictReplayBuffer, ChunkReplayBuffer

FRAMES = {
    last: spaces.Box(0, 255, (36, 40, 3) if last else (3, 36, 40), np.uint8) for last in (True, False)
}  # channels last or first


class NoisyFeatures(BaseFeaturesExtractor):
    """BatchNorm, then dropout: both act otherwise in training."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, observation_space.shape[0])
        self.layers = nn.Sequential(nn.BatchNorm1d(observation_space.shape[0]), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        out: th.Tensor = self.layers(observations)
        return out


class Answers(BaseCallback):
    """Says the same thing at every step, and keeps the names of what it can see."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer = answer
        self.seen: set[str] = set()

    def _on_step(self) -> Any:
        self.seen = set(self.locals)
        return self.answer


# --- Learning ---


@pytest.mark.parametrize("train_freq", ["4", ("1", "episode"), "nonsense", (1, "close"), None], ids=str)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_train_freq_that_is_none_is_refused(name: str, train_freq: Any) -> None:
    with pytest.raises(ValueError, match=r"train_freq|[Tt]he unit"):
        make_variant(name, train_freq=train_freq)


@pytest.mark.parametrize("answer", [False, np.bool_(False), th.tensor(False)], ids=lambda answer: type(answer).__name__)
@pytest.mark.parametrize("offline_steps", [0, 10])
@pytest.mark.parametrize("name", ["flow_t", "fql"])
def test_whatever_is_false_stops_learning_at_once(name: str, offline_steps: int, answer: Any) -> None:
    data = regular_arrays(trajectories([20, 30])) if offline_steps else None
    model = make_variant(name, critic="target", offline_dataset=data, offline_steps=offline_steps)
    callback = Answers(answer)
    model.learn(15, callback)
    assert (callback.n_calls, model.num_timesteps) == (1, 1)
    assert {"self", "rewards", "dones", "infos"} <= callback.seen


@pytest.mark.parametrize("name", taking("tau", ONE_OF_EACH))
def test_rates_of_zero_stop_what_they_are_the_rates_of(name: str) -> None:
    model = make_variant(name, critic="target", sac_flow={"qf_learning_rate": 1e-3}).learn(15)
    target = model.critic_target
    assert target is not None

    def parameters() -> tuple[th.Tensor, th.Tensor]:
        flat = nn.utils.parameters_to_vector
        return flat(model.critic.parameters()).clone(), flat(target.parameters()).clone()

    critic, followed = parameters()
    assert not th.equal(critic, followed)
    model.tau = 0.0
    model.train(1, 8)
    trained, same = parameters()
    assert th.equal(followed, same)
    assert not th.equal(critic, trained)
    model.tau, model.lr_schedule, model.qf_lr_schedule = 0.5, lambda _: 0.0, lambda _: 0.0
    model.train(1, 8)
    resting, moved = parameters()
    assert th.equal(trained, resting)
    th.testing.assert_close(moved, (same + trained) / 2)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_clock_that_stands_still_breaks_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for clock in ("perf_counter", "time", "time_ns"):
        monkeypatch.setattr(time, clock, lambda: 42)
    make_variant(name).learn(15)


@pytest.mark.parametrize("name", ["dime", "flow_rl", "qsm", "qc"])
@pytest.mark.parametrize(
    "net",
    [{"net_arch": {"qf": [], "pi": [8, 4]}}, {"optimizer_class": th.optim.RMSprop}],
    ids=lambda net: next(iter(net)),
)
def test_nets_and_optimizers_are_the_users(name: str, net: dict[str, Any]) -> None:
    model = make_variant(name, net=net)
    before = snapshot(model)
    assert differences(before, snapshot(model.learn(15)))
    assert type(model.critic.optimizer) is net.get("optimizer_class", th.optim.Adam)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_same_seed_acts_the_same_after_learning(name: str) -> None:
    acted = []
    for _ in range(2):
        model = make_variant(name, seed=3).learn(15)
        obs = model.get_env().reset()
        acted.append(np.stack([model.predict(obs)[0] for _ in range(5)]))
    np.testing.assert_array_equal(*acted)
    assert not np.array_equal(acted[0][0], acted[0][1])


# --- Acting ---


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_acting_is_in_evaluation_mode_and_moves_no_statistics(name: str) -> None:
    model = make_variant(name, net={"features_extractor_class": NoisyFeatures}, gradient_steps=0)
    before = snapshot(model)
    model.learn(15)
    obs = observations(model)
    first, _ = model.predict(obs, deterministic=True)
    for _ in range(3):
        np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], first)
    assert not differences(before, snapshot(model))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_spaces_may_be_of_a_class_derived_from_box(name: str) -> None:
    class Named(spaces.Box):
        pass

    env = RandomEnv(Named(-1.0, 1.0, (3,), np.float32), Named(-1.0, 1.0, (2,), np.float32))
    model = make_variant(name, env).learn(12)
    action, _ = model.predict(env.reset()[0])
    assert env.action_space.contains(action)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", ["flow_t", "fql", "qc"])
def test_images_are_predicted_as_the_environment_shows_them(name: str, last: bool, tmp_path: Path) -> None:
    model = make_variant(name, RandomEnv(FRAMES[last]), buffer_size=30, learning_starts=8).learn(10)
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage) == last
    shown = FRAMES[last].sample()
    action = model.predict(shown, deterministic=True)[0]
    first = np.moveaxis(shown, -1, 0) if last else shown
    np.testing.assert_array_equal(model.predict(first, deterministic=True)[0], action)
    model.save(tmp_path / "model")
    loaded = VARIANTS[name].algorithm.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(shown, deterministic=True)[0], action)


@pytest.mark.parametrize("name", ["flow_t", "qc"])
def test_a_policy_is_evaluated_without_its_algorithm(name: str) -> None:
    model = make_variant(name)
    rewards = [
        evaluate_policy(
            acting, Monitor(RandomEnv()), n_eval_episodes=2, return_episode_rewards=True, deterministic=True
        )
        for acting in (model, model.policy)
    ]
    assert [len(lengths) for _, lengths in rewards] == [2, 2]  # type: ignore[arg-type]


# --- Storing ---


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("as_dict", [False, True])
def test_chunk_buffers_keep_the_type_of_observations(dtype: Any, as_dict: bool) -> None:
    space = spaces.Box(0, 100, (3,), dtype)
    kind = ChunkDictReplayBuffer if as_dict else ChunkReplayBuffer
    observation_space = spaces.Dict({"obs": space}) if as_dict else space
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)
    buffer = kind(4, observation_space, action_space, device="cpu", horizon_length=2, gamma=0.9)
    buffer.full = True
    samples = buffer.sample(5)
    for sampled in (samples.observations, samples.next_observations):
        array = sampled["obs"] if isinstance(sampled, dict) else sampled
        assert array.numpy().dtype == dtype
    assert samples.actions.dtype == th.float32


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_buffer_may_be_let_go(name: str, tmp_path: Path) -> None:
    model = make_variant(name).learn(15)
    model.save_replay_buffer(tmp_path / "buffer")
    stored = model.replay_buffer.actions[:15].copy()
    del model.replay_buffer
    model.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(model.replay_buffer.actions[:15], stored)


# --- Saving ---


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_load_changes_when_it_trains(name: str, tmp_path: Path) -> None:
    make_variant(name, train_freq=4).save(tmp_path / "model")
    for changed, updates in (({}, 5), ({"train_freq": (1, "episode")}, 2)):
        model = VARIANTS[name].algorithm.load(tmp_path / "model", env=RandomEnv(), device="cpu", **changed)
        model.learn(28)
        assert model._n_updates == updates


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_a_model_holds_no_code_that_another_python_could_not_read(name: str, critic: str | None) -> None:
    file = io.BytesIO()
    make_variant(name, critic=critic).save(file)
    with zipfile.ZipFile(file) as archive:
        data = json.loads(archive.read("data"))
    for key, value in data.items():
        if isinstance(value, dict) and ":serialized:" in value:
            pickled = base64.b64decode(value[":serialized:"])
            texts = {text for _, text, _ in pickletools.genops(pickled) if isinstance(text, str)}
            assert not texts & {"_make_function", "CodeType", "_builtin_type"}, key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow_t", "qc"])
def test_a_policy_that_the_user_compiled_is_saved(name: str, tmp_path: Path) -> None:
    model = make_variant(name).learn(12)
    action = model.predict(observations(model), deterministic=True)[0]
    model.policy = th.compile(model.policy)  # type: ignore[assignment]
    model.save(tmp_path / "model")
    loaded = VARIANTS[name].algorithm.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(observations(loaded), deterministic=True)[0], action)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_is_no_model_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_text("text")
    with pytest.raises(ValueError, match="zip"):
        VARIANTS[name].algorithm.load(tmp_path / "model")


@pytest.mark.filterwarnings("error")
def test_files_are_closed(tmp_path: Path) -> None:
    model = make_model()
    for path in (tmp_path / "new" / "folder" / "as_path", str(tmp_path / "as_text")):
        model.save(path)
        type(model).load(path, device="cpu")
        model.save_replay_buffer(path)
        model.load_replay_buffer(path)
    with (tmp_path / "open").open("w+b") as file:
        model.save_replay_buffer(file)
        file.seek(0)
        model.load_replay_buffer(file)
        assert not file.closed


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_schedule_gives_pythons_numbers(name: str) -> None:
    names = ["learning_rate", *(["qf_learning_rate"] if taking("qf_learning_rate", [name]) else [])]
    model = make_variant(name, **dict.fromkeys(names, lambda progress: np.float64(1e-3) * progress))
    for schedule in model._schedules.values():
        assert type(schedule(0.5)) is float
    assert model.lr_schedule(0.5) == 5e-4


@pytest.mark.parametrize("optimize_memory_usage", [False, True])
@pytest.mark.parametrize("name", ["flow_t", "fql"])
def test_only_a_buffer_that_would_lose_something_is_warned_of(name: str, optimize_memory_usage: bool) -> None:
    model = make_variant(
        name,
        optimize_memory_usage=optimize_memory_usage,
        replay_buffer_kwargs={"handle_timeout_termination": not optimize_memory_usage},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(15).learn(15, reset_num_timesteps=False)
        assert not caught
        model.learn(12)
    assert ["will be truncated" in str(warning.message) for warning in caught] == [True] * optimize_memory_usage
    assert model.replay_buffer.size() == 42
