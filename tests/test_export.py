"""The exported policy acts as `predict` does."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch as th
from gymnasium import spaces
from helpers import EVERY_KIND, SAC_FLOWS, VECTOR, RandomEnv, make_any, make_variant, observations, warned
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.export import ActingPolicy, export_onnx

ACTION = spaces.Box(np.array([-3.0, 0.0], np.float32), np.array([1.0, 0.5], np.float32))
DICT = spaces.Dict({"b": VECTOR, "a": spaces.Box(-1.0, 1.0, (2,), np.float32)})


def chunks_of(model: OffPolicyFlowAlgorithm, obs: Any) -> Any:
    """What `predict` decides, as the export returns it: (B, d), or with chunks (B, h, d)."""
    actions, state = model.predict(obs, deterministic=True)
    return actions if state is None else state[0]


def run_onnx(path: Path, inputs: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(path).run(["action"], inputs)[0]


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("name", [*SAC_FLOWS, "fql", "qc", "dime", "flow_rl", "qsm", "reinflow"])
def test_the_module_acts_as_the_policy_in_the_units_of_the_environment(name: str, horizon: int) -> None:
    model = make_any(name, RandomEnv(action_space=ACTION), horizon_length=horizon).learn(20)
    obs = observations(model)
    with th.no_grad():
        actions = ActingPolicy(model.policy)(th.as_tensor(obs)).numpy()
    np.testing.assert_allclose(actions, chunks_of(model, obs), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "horizon"),
    [("flow_t", 3), ("flow_g", 1), ("fql", 1), ("qc_fql", 3), ("qc", 3), ("flow_rl", 1), ("qsm", 3), ("reinflow", 3)],
)
def test_the_onnx_file_acts_as_the_policy_for_any_number_of_rows(name: str, horizon: int, tmp_path: Path) -> None:
    model = make_any(name, RandomEnv(action_space=ACTION), horizon_length=horizon).learn(20)
    export_onnx(model, tmp_path / "policy.onnx")
    for rows in (1, 5):
        obs = observations(model, rows)
        actions = run_onnx(tmp_path / "policy.onnx", {"observation": obs})
        np.testing.assert_allclose(actions, chunks_of(model, obs), atol=1e-5)
    model.learn(20)  # the export leaves a model that trains on


def decided(model: OffPolicyFlowAlgorithm, obs: th.Tensor, noise: th.Tensor) -> Any:
    """What the policy makes of noise, in the units of the environment."""
    with th.no_grad():
        actions = model.actor.action(obs, model.actor.cut_noise(noise)).numpy()
    h = model.policy.horizon_length
    return model.policy.unscale_action(actions.reshape(len(obs), *([h] if h > 1 else []), *ACTION.shape))


@pytest.mark.parametrize("name", [*SAC_FLOWS, "fql", "qc", "dime", "flow_rl", "qsm", "reinflow"])
def test_with_noise_the_module_acts_as_the_stochastic_policy(name: str) -> None:
    model = make_any(name, RandomEnv(action_space=ACTION), horizon_length=3).learn(20)
    obs, module = th.as_tensor(observations(model)), ActingPolicy(model.policy)
    th.manual_seed(0)
    noise = th.randn(model.actor.noise_shape(len(obs)))
    with th.no_grad():
        actions = module(obs, noise).numpy()
    th.manual_seed(0)
    _, (chunks, _) = model.predict(obs.numpy())
    np.testing.assert_allclose(actions, chunks, atol=1e-6)
    assert np.abs(actions - chunks_of(model, obs.numpy())).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "horizon"), [("flow_t", 3), ("fql", 1), ("qc", 3), ("flow_rl", 1), ("reinflow", 3)])
def test_the_stochastic_file_has_its_noise_as_an_input(name: str, horizon: int, tmp_path: Path) -> None:
    model = make_any(name, RandomEnv(action_space=ACTION), horizon_length=horizon).learn(20)
    state = th.get_rng_state()
    export_onnx(model, tmp_path / "policy.onnx", deterministic=False)
    assert th.equal(th.get_rng_state(), state)  # the run that is exported goes on as without
    for rows in (1, 5):
        obs = observations(model, rows)
        noise = 2 * th.randn(model.actor.noise_shape(rows))
        actions = run_onnx(tmp_path / "policy.onnx", {"observation": obs, "noise": noise.numpy()})
        np.testing.assert_allclose(actions, decided(model, th.as_tensor(obs), noise), atol=1e-5)


@pytest.mark.slow
def test_dict_observations_stand_beside_the_noise(tmp_path: Path) -> None:
    model = make_any("flow_t", RandomEnv(DICT), policy="MultiInputPolicy").learn(20)
    export_onnx(model, tmp_path / "policy.onnx", deterministic=False)
    obs = {key: np.stack([space.sample() for _ in range(4)]) for key, space in DICT.items()}
    noise = np.zeros(model.actor.noise_shape(4), np.float32)
    actions = run_onnx(tmp_path / "policy.onnx", {**obs, "noise": noise})
    np.testing.assert_allclose(actions, chunks_of(model, obs), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow_t", "qc", "reinflow"])
def test_dict_observations_are_inputs_by_their_keys(name: str, tmp_path: Path) -> None:
    model = make_any(name, RandomEnv(DICT), policy="MultiInputPolicy").learn(20)
    export_onnx(model, tmp_path / "policy.onnx")
    obs = {key: np.stack([space.sample() for _ in range(4)]) for key, space in DICT.items()}
    np.testing.assert_allclose(run_onnx(tmp_path / "policy.onnx", obs), chunks_of(model, obs), atol=1e-5)


@pytest.mark.parametrize("name", ["flow_t", "fql", "qc"])
@pytest.mark.parametrize("space", [VECTOR, DICT], ids=["array", "dict"])
def test_the_statistics_of_vec_normalize_are_built_in(space: spaces.Space[Any], name: str) -> None:
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(space)]))
    model = make_variant(name, env, policy="MultiInputPolicy").learn(30)
    raw: Any = env.unnormalize_obs(env.reset())
    normalized = env.normalize_obs(raw)
    tensors = {k: th.as_tensor(v) for k, v in raw.items()} if isinstance(raw, dict) else th.as_tensor(raw)
    policy = ActingPolicy(model.policy, env)
    with th.no_grad():
        actions = policy(tensors).numpy()
    np.testing.assert_allclose(actions, chunks_of(model, normalized), atol=1e-5)
    # They go where the module goes
    names = [name for name, _ in policy.to("meta").named_buffers() if name.endswith((".mean", ".std"))]
    assert len(names) == 2 * (len(space) if isinstance(space, spaces.Dict) else 1)
    assert all(policy.get_buffer(name).is_meta for name in names)


def test_an_export_without_the_statistics_that_a_model_learned_with_is_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(th.onnx, "export", lambda *_, **__: None)
    env = VecNormalize(DummyVecEnv([RandomEnv]))
    model = make_any("flow_g", env)
    with pytest.warns(UserWarning, match=r"pass normalize=model\.get_vec_normalize_env\(\)"):
        export_onnx(model, tmp_path / "policy.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(model, tmp_path / "policy.onnx", env)
        export_onnx(make_any("flow_g"), tmp_path / "policy.onnx")


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_model_remembers_without_its_environment_that_observations_were_normalised(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(th.onnx, "export", lambda *_, **__: None)

    def said(env: Any) -> list[str]:
        model = make_any(name, env).learn(20)
        model.save(tmp_path / "model")
        loaded = type(model).load(tmp_path / "model", device="cpu")
        return warned(lambda: export_onnx(loaded, tmp_path / "policy.onnx"))

    (message,) = said(VecNormalize(DummyVecEnv([RandomEnv])))
    assert "pass normalize=VecNormalize.load" in message
    assert not said(VecNormalize(DummyVecEnv([RandomEnv]), norm_obs=False))
    assert not said(RandomEnv())


@pytest.mark.parametrize("name", EVERY_KIND)
def test_everything_that_acts_goes_where_the_module_goes(name: str) -> None:
    model = make_any(name)
    ActingPolicy(model.policy).to("meta")
    moved = {net: {tensor.is_meta for tensor in net.state_dict().values()} for net in (model.actor, model.critic)}
    # Of n samples the critics choose the best
    assert moved == {model.actor: {True}, model.critic: {True}}


def test_what_cannot_be_exported_is_refused_before_it_is_traced(tmp_path: Path) -> None:
    model = make_any("flow_g")
    with pytest.raises(ValueError, match=r"path=.*make the folder .*nowhere first"):
        export_onnx(model, tmp_path / "nowhere" / "policy.onnx")
    noisy = make_any("flow_g", RandomEnv(spaces.Dict({"noise": VECTOR})), policy="MultiInputPolicy")
    with pytest.raises(
        ValueError, match=r"model.observation_space=\['noise'\] is not allowed: .*rename the observation"
    ):
        export_onnx(noisy, tmp_path / "policy.onnx", deterministic=False)
    acting = make_any("flow_g", RandomEnv(spaces.Dict({"action": VECTOR})), policy="MultiInputPolicy")
    with pytest.raises(ValueError, match=r"model.observation_space=\['action'\] is not allowed: .*rename"):
        export_onnx(acting, tmp_path / "policy.onnx")
    with pytest.raises(ValueError, match=r"model='policy.onnx' is not allowed: a model of sb3_flow"):
        export_onnx("policy.onnx", model)  # type: ignore[arg-type]
