"""Every observation and action space that SB3's SAC takes."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from helpers import (
    EVERY_KIND,
    GUESTS,
    LEARNING_STARTS,
    ON_POLICY,
    ONE_OF_EACH,
    POLICIES,
    VARIANTS,
    RandomEnv,
    make_any,
    make_model,
    make_variant,
)
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)

OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "integers": spaces.Box(-5, 5, (3,), np.int64),
    "matrix": spaces.Box(-1.0, 1.0, (3, 4), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(5),
    "image": IMAGE,
    "image_channels_first": spaces.Box(0, 255, (3, 36, 40), np.uint8),
    "dict": spaces.Dict({"vec": VECTOR, "level": spaces.Discrete(3), "bits": spaces.MultiBinary(2)}),
    "dict_with_image": spaces.Dict({"vec": VECTOR, "image": IMAGE}),
}
ACTION_SPACES = [
    spaces.Box(-1.0, 1.0, (1,), np.float32),
    spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32)),
    spaces.Box(5.0, 6.0, (2,), np.float32),
    spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    spaces.Box(-2.0, 2.0, (2,), np.float64),
]


def stack(observations: list[Any]) -> Any:
    """A batch of observations, key by key if they are Dicts."""
    if isinstance(observations[0], dict):
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)


def policies_for(space: spaces.Space[Any]) -> list[str]:
    return ["MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy", "FlowGPolicy", "FlowMLPPolicy"]


@pytest.mark.parametrize("policy", range(3), ids=POLICIES)
@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_every_observation_space_learns_and_predicts(name: str, policy: int) -> None:
    env = RandomEnv(OBSERVATION_SPACES[name])
    model = make_model(policies_for(env.observation_space)[policy], env, buffer_size=30, learning_starts=8)
    model.learn(12)
    assert model._n_updates == 4
    batch = [env.observation_space.sample() for _ in range(4)]
    action, state = model.predict(batch[0])
    assert action.shape == (2,)
    assert state is None
    actions, _ = model.predict(stack(batch), deterministic=True)
    assert actions.shape == (4, 2)
    singles = [model.predict(obs, deterministic=True)[0] for obs in batch]
    np.testing.assert_allclose(actions, np.stack(singles), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", GUESTS)
@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_guests_learn_and_predict_in_every_observation_space(name: str, variant: str) -> None:
    env = RandomEnv(OBSERVATION_SPACES[name])
    policies = [
        VARIANTS[variant].policy,
        "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy",
    ]
    model = make_variant(
        variant, env, policy=policies[variant in ("fql", "flow_rl", "qsm")], buffer_size=30, learning_starts=8
    ).learn(12)
    assert model._n_updates == 4
    batch = [env.observation_space.sample() for _ in range(4)]
    action, state = model.predict(batch[0])
    assert action.shape == (2,)
    assert (state is None) == (model.horizon_length == 1)
    actions, _ = model.predict(stack(batch), deterministic=True)
    assert actions.shape == (4, 2)
    singles = [model.predict(obs, deterministic=True)[0] for obs in batch]
    np.testing.assert_allclose(actions, np.stack(singles), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["discrete", "image", "dict_with_image"])
def test_target_critics_take_every_kind_of_observation(name: str) -> None:
    space = OBSERVATION_SPACES[name]
    model = make_model(policies_for(space)[0], RandomEnv(space), "target", buffer_size=30, learning_starts=8)
    model.learn(12)
    assert model._n_updates == 4


@pytest.mark.parametrize(
    ("name", "extractor"),
    [("float64", FlattenExtractor), ("matrix", FlattenExtractor), ("image", NatureCNN), ("dict", CombinedExtractor)],
)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_features_extractor_follows_the_observations(policy: str, name: str, extractor: type) -> None:
    model = make_model(policy, RandomEnv(OBSERVATION_SPACES[name]), buffer_size=10)
    assert type(model.actor.features_extractor) is extractor
    assert type(model.critic.features_extractor) is extractor
    assert model.actor.features_extractor is not model.critic.features_extractor


@pytest.mark.parametrize("variant", ["fql", "flow_rl", "qsm"])
@pytest.mark.parametrize("name", ["image", "dict"])
def test_every_net_of_guests_has_a_features_extractor_of_its_own(name: str, variant: str) -> None:
    model = make_variant(variant, RandomEnv(OBSERVATION_SPACES[name]), buffer_size=10)
    extractors = [net.features_extractor for net in (*model._nets.values(), model.critic_target)]
    if variant == "fql":
        extractors.insert(0, model.actor.one_step_extractor)  # type: ignore[arg-type]
    assert {type(extractor) for extractor in extractors} == {NatureCNN if name == "image" else CombinedExtractor}
    ids = [id(parameter) for extractor in extractors for parameter in extractor.parameters()]
    assert len(set(ids)) == len(ids)
    trained = {id(p) for net in model._nets.values() for g in net.optimizer.param_groups for p in g["params"]}
    assert trained >= {id(p) for extractor in extractors[:-1] for p in extractor.parameters()}


@pytest.mark.parametrize("name", EVERY_KIND)
def test_the_user_chooses_the_features_extractor(name: str) -> None:
    net = {"features_extractor_class": NatureCNN, "features_extractor_kwargs": {"features_dim": 8}}
    model = make_any(name, RandomEnv(IMAGE), policy="CnnPolicy", net=net, buffer_size=30)
    model.learn(12)
    assert isinstance(model.actor.features_extractor, NatureCNN)
    assert model.actor.features_extractor.features_dim == 8


def test_normalized_images_need_not_be_divided() -> None:
    space = spaces.Box(0.0, 1.0, (3, 36, 36), np.float32)
    net = {
        "features_extractor_class": NatureCNN,
        "features_extractor_kwargs": {"normalized_image": True},
        "normalize_images": False,
    }
    model = make_model("CnnPolicy", RandomEnv(space), net=net, buffer_size=30).learn(12)
    assert model._n_updates == 2


@pytest.mark.parametrize("name", EVERY_KIND)
def test_cnn_policy_takes_images_that_vec_normalize_made_floats(name: str) -> None:
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(spaces.Box(0, 255, (3, 36, 36), np.uint8))]))
    net = {"normalize_images": False, "features_extractor_kwargs": {"features_dim": 8, "normalized_image": True}}
    model = make_any(name, env, policy="CnnPolicy", net=net, buffer_size=30).learn(12)
    assert type(model.actor.features_extractor) is NatureCNN
    assert model.actor.features_extractor.features_dim == 8
    assert model._n_updates > 0


@pytest.mark.parametrize("name", ["flow_t", "fql"])
def test_cnn_policy_wants_images(name: str) -> None:
    with pytest.raises(ValueError, match=r"observation_space=Box.*cannot be encoded by NatureCNN"):
        make_variant(name, policy="CnnPolicy")


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_dict_of_one_vector_is_that_vector(name: str) -> None:
    flat = make_any(name, RandomEnv(VECTOR), policy="MlpPolicy").learn(20)
    as_dict = TransformObservation(RandomEnv(VECTOR), lambda obs: {"vec": obs}, spaces.Dict({"vec": VECTOR}))
    keyed = make_any(name, as_dict, policy="MultiInputPolicy").learn(20)
    obs = VECTOR.sample()
    np.testing.assert_array_equal(
        flat.predict(obs, deterministic=True)[0], keyed.predict({"vec": obs}, deterministic=True)[0]
    )


def test_dict_observations_come_from_processes_and_are_stacked() -> None:
    space = spaces.Dict({"vec": VECTOR, "image": spaces.Box(0, 255, (3, 36, 36), np.uint8)})
    env = VecFrameStack(SubprocVecEnv([lambda: RandomEnv(space)] * 2, start_method="fork"), 2)
    try:
        model = make_model("MultiInputPolicy", env, buffer_size=30).learn(14)
        assert model._n_updates == 2
        assert model.observation_space["image"].shape == (6, 36, 36)  # type: ignore[index]
    finally:
        env.close()


def test_images_are_stacked() -> None:
    env = VecFrameStack(DummyVecEnv([lambda: RandomEnv(IMAGE)]), 2, channels_order="last")
    model = make_model("CnnPolicy", env, buffer_size=30).learn(12)
    assert model.observation_space.shape == (6, 36, 36)


@pytest.mark.parametrize("name", [*VARIANTS, *ON_POLICY])
@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_every_action_space_learns_and_predicts(action_space: spaces.Box, name: str) -> None:
    env = RandomEnv(action_space=action_space)
    model = make_any(name, env).learn(13)
    assert model._n_updates > 0
    assert all(action_space.contains(action.astype(action_space.dtype)) for action in env.actions)
    obs = env.observation_space.sample()
    for deterministic in (True, False):
        action, _ = model.predict(obs, deterministic=deterministic)
        assert action.shape == action_space.shape
        assert action_space.contains(action.astype(action_space.dtype))
        actions, _ = model.predict(np.stack([obs] * 3), deterministic=deterministic)
        assert actions.shape == (3, *action_space.shape)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_the_buffer_holds_scaled_actions_of_what_was_done(action_space: spaces.Box, name: str) -> None:
    env = RandomEnv(action_space=action_space)
    model = make_variant(name, env).learn(14)
    stored = model.replay_buffer.actions[:14].reshape(14, *action_space.shape)
    assert np.abs(stored).max() <= 1
    done = action_space.low + 0.5 * (stored + 1) * (action_space.high - action_space.low)
    np.testing.assert_allclose(np.stack(env.actions), done, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
@pytest.mark.parametrize("policy", ["MultiInputPolicy", "FlowGPolicy", "FlowMLPPolicy"])
def test_hindsight_replay_learns(policy: str, strategy: str) -> None:
    model = make_model(
        policy,
        BitFlippingEnv(n_bits=3, continuous=True, max_steps=5),
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 2, "goal_selection_strategy": strategy},
    )
    model.learn(24)
    assert model._n_updates == 24 - LEARNING_STARTS


@pytest.mark.parametrize(
    ("name", "policy"),
    [("fql", "MultiInputPolicy"), ("qc", "FQLPolicy"), ("flow_rl", "MultiInputPolicy"), ("qsm", "QSMPolicy")],
)
def test_guests_learn_from_hindsight_replay(name: str, policy: str) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)
    model = make_variant(name, env, policy=policy, replay_buffer_class=HerReplayBuffer, horizon_length=1).learn(24)
    assert model._n_updates == 24 - LEARNING_STARTS


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("with_noise", [False, True])
def test_hindsight_replay_learns_from_several_environments(with_noise: bool, with_images: bool) -> None:
    def make_env() -> BitFlippingEnv:
        return BitFlippingEnv(n_bits=3, continuous=True, max_steps=5, image_obs_space=with_images, channel_first=True)

    noise = VectorizedActionNoise(NormalActionNoise(np.zeros(3), 0.1 * np.ones(3)), 2)
    model = make_model(
        "MultiInputPolicy",
        DummyVecEnv([make_env] * 2),
        replay_buffer_class=HerReplayBuffer,
        action_noise=noise if with_noise else None,
        buffer_size=60,
    )
    model.learn(24)
    assert model._n_updates == 12 - LEARNING_STARTS // 2


def test_hindsight_replay_goes_on_when_the_buffer_is_full_and_rewards_are_normalized() -> None:
    env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)])
    env = VecNormalize(env, norm_obs=False)  # the goals are bits
    model = make_model("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, buffer_size=15)
    model.learn(40)
    assert model.replay_buffer.full
    assert model._n_updates == 40 - LEARNING_STARTS


@pytest.mark.parametrize("truncate_last_traj", [True, False])
def test_hindsight_replay_ends_the_last_trajectory_when_loaded(truncate_last_traj: bool, tmp_path: Any) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)
    model = make_model("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer).learn(23)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=truncate_last_traj)
    assert model.replay_buffer.dones[model.replay_buffer.pos - 1, 0] == truncate_last_traj
    model.learn(6, reset_num_timesteps=False)
    assert model._n_updates == 29 - LEARNING_STARTS


@pytest.mark.parametrize("name", ["flow_t", "fql"])
def test_hindsight_replay_goes_on_after_loading(name: str, tmp_path: Any) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)
    model = make_variant(name, env, "target", policy="MultiInputPolicy", replay_buffer_class=HerReplayBuffer).learn(24)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = type(model).load(tmp_path / "model", env=env, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 24
    loaded.learn(6, reset_num_timesteps=False)
    assert loaded._n_updates == model._n_updates + 6
    obs, _ = env.reset()
    assert loaded.predict(obs, deterministic=True)[0].shape == (3,)


@pytest.mark.parametrize(
    ("name", "critic"), [("flow_t", "crossq"), ("flow_t", "target"), *((name, None) for name in GUESTS)]
)
def test_dict_observations_are_normalized(name: str, critic: str | None) -> None:
    space = spaces.Dict({"a": VECTOR, "b": VECTOR})
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(space)] * 2), norm_obs_keys=["a"])
    model = make_variant(name, env, critic, policy="MultiInputPolicy").learn(20)
    assert isinstance(model.replay_buffer, DictReplayBuffer)
    assert model._n_updates == 5
