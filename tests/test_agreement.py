"""What `predict` returns is the rollout that is trained: seeded noise if stochastic, none if deterministic."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from gymnasium import spaces
from helpers import CRITICS, POLICIES, ROLLOUTS, RandomEnv, make_model, observations

from sb3_flow import SACFlow

ACTION_SPACES = [
    spaces.Box(-1.0, 1.0, (2,), np.float32),
    spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32)),
    spaces.Box(-1.0, 3.0, (2, 3), np.float32),
]


def unscaled(model: SACFlow, actions: th.Tensor) -> npt.NDArray[Any]:
    """Actions in [-1, 1] as the environment takes them."""
    assert isinstance(model.action_space, spaces.Box)
    low, high = model.action_space.low, model.action_space.high
    result: npt.NDArray[Any] = low + 0.5 * (actions.numpy().reshape(-1, *low.shape) + 1) * (high - low)
    return result


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("noise_std", [None, 0.3])
@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_predict_is_the_rollout(policy: str, rollout: str, noise_std: float | None, deterministic: bool) -> None:
    model = make_model(policy, net={"rollout": rollout, "noise_std": noise_std}).learn(14)
    obs = observations(model)
    th.manual_seed(3)
    actions, state = model.predict(obs, deterministic=deterministic)
    th.manual_seed(3)
    noise = model.actor.sample_noise(len(obs))
    with th.no_grad():
        path = model.actor.path(th.as_tensor(obs), th.zeros_like(noise) if deterministic else noise)
    assert state is None
    np.testing.assert_allclose(actions, unscaled(model, th.tanh(path.x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_predict_fills_the_action_space(policy: str, action_space: spaces.Box) -> None:
    model = make_model(policy, RandomEnv(action_space=action_space)).learn(14)
    obs = observations(model, 200)
    actions, _ = model.predict(obs)
    with th.no_grad():
        zeros = th.zeros(model.actor.flow_steps + 1, len(obs), model.actor.chunk_dim)
        path = model.actor.path(th.as_tensor(obs), zeros)
    deterministic, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(deterministic, unscaled(model, th.tanh(path.x)), rtol=1e-5, atol=1e-5)
    assert actions.shape == (200, *action_space.shape)
    assert all(action_space.contains(action) for action in actions)
    # Noise covers both halves of every dimension
    centre = (action_space.low + action_space.high) / 2
    assert ((actions > centre).any(axis=0) & (actions < centre).any(axis=0)).all()


@pytest.mark.parametrize("critic", CRITICS)
def test_action_log_prob_samples_what_predict_does(policy: str, critic: str) -> None:
    model = make_model(policy, critic=critic).learn(14)
    obs = observations(model)
    model.set_random_seed(5)
    predicted, _ = model.predict(obs)
    model.set_random_seed(5)
    with th.no_grad():
        actions, log_prob = model.actor.action_log_prob(th.as_tensor(obs))
    np.testing.assert_allclose(predicted, actions.numpy(), rtol=1e-5, atol=1e-6)
    assert log_prob.shape == (len(obs),)


def test_deterministic_prediction_draws_no_random_numbers(policy: str) -> None:
    model = make_model(policy)
    before = th.get_rng_state()
    first, _ = model.predict(observations(model), deterministic=True)
    assert th.equal(before, th.get_rng_state())
    second, _ = model.predict(observations(model), deterministic=True)
    np.testing.assert_array_equal(first, second)


def test_stochastic_predictions_vary_and_repeat_with_the_seed(policy: str) -> None:
    model = make_model(policy)
    obs = observations(model)

    def sample(seed: int) -> Any:
        model.set_random_seed(seed)
        return model.predict(obs)[0]

    np.testing.assert_array_equal(sample(1), sample(1))
    assert not np.allclose(sample(1), sample(2))
    assert not np.allclose(model.predict(obs)[0], model.predict(obs)[0])


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(policy: str) -> None:
    model = make_model(policy).learn(14)
    obs = observations(model)
    batch, _ = model.predict(obs, deterministic=True)
    for i, row in enumerate(obs):
        np.testing.assert_allclose(model.predict(row, deterministic=True)[0], batch[i], rtol=1e-4, atol=1e-5)


def test_prediction_leaves_running_statistics_as_they_are(policy: str) -> None:
    model = make_model(policy).learn(14)
    before = {name: buffer.clone() for name, buffer in model.policy.named_buffers()}
    model.predict(100 * observations(model))
    assert before
    assert all(th.equal(before[name], buffer) for name, buffer in model.policy.named_buffers())


def test_prediction_puts_every_net_into_evaluation_mode(policy: str) -> None:
    model = make_model(policy).learn(10)
    model.policy.set_training_mode(True)
    model.predict(observations(model))
    assert not any(module.training for module in model.policy.modules())
