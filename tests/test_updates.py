"""What one update may touch, and what it must leave alone."""

from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from helpers import GUESTS, LEARNING_STARTS, ONE_OF_EACH, make_model, make_variant, observations, taking
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class NormalisedFeatures(BaseFeaturesExtractor):
    """A layer that the user froze, then BatchNorm."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 4)
        self.frozen = nn.Linear(observation_space.shape[0], 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        out: th.Tensor = self.norm(self.frozen(observations))
        return out


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_frozen_features_extractor_stays_frozen_and_unchanged(name: str) -> None:
    model = make_variant(name, net={"features_extractor_class": NormalisedFeatures}, sac_flow={"policy_delay": 1})
    extractors = [net.features_extractor.frozen for net in (model.actor, model.critic)]
    if hasattr(model.actor, "one_step_extractor"):
        extractors.append(model.actor.one_step_extractor.frozen)
    before = [extractor.weight.clone() for extractor in extractors]
    model.learn(LEARNING_STARTS + 4)
    for extractor, weight in zip(extractors, before, strict=True):
        assert not extractor.weight.requires_grad
        assert th.equal(extractor.weight, weight)


@pytest.mark.parametrize("policy_delay", [1, 2])
def test_updates_leave_the_nets_in_evaluation_mode(policy_delay: int) -> None:
    model = make_model(policy_delay=policy_delay).learn(LEARNING_STARTS + 4)
    assert not any(module.training for module in model.policy.modules())
    before = {name: buffer.clone() for name, buffer in model.policy.named_buffers()}
    one = th.as_tensor(observations(model, 1))
    action = model.policy(one, deterministic=True)
    assert th.isfinite(action).all()
    assert all(th.equal(before[name], buffer) for name, buffer in model.policy.named_buffers())


@pytest.mark.parametrize("name", GUESTS)
def test_updates_of_guests_leave_the_nets_in_evaluation_mode(name: str) -> None:
    model = make_variant(name, net={"features_extractor_class": NormalisedFeatures}).learn(LEARNING_STARTS + 4)
    assert not any(module.training for module in model.policy.modules())
    before = {key: buffer.clone() for key, buffer in model.policy.named_buffers()}
    assert th.isfinite(model.policy(th.as_tensor(observations(model, 1)), deterministic=True)).all()
    assert all(th.equal(before[key], buffer) for key, buffer in model.policy.named_buffers())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_interrupt_in_the_actor_update_leaves_a_model_that_trains_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_variant(name, sac_flow={"policy_delay": 1})
    model.learn(LEARNING_STARTS + 2)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, "_actor_loss_fn", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.train(1, 8)
    model.train(1, 8)
    assert all(parameter.requires_grad for parameter in model.critic.parameters())


@pytest.mark.parametrize("name", taking("tau", ONE_OF_EACH))
def test_the_target_critic_has_the_running_statistics_of_the_critic(name: str) -> None:
    model = make_variant(name, critic="target", net={"features_extractor_class": NormalisedFeatures})
    model.learn(LEARNING_STARTS + 5)
    assert model.critic_target is not None
    online, target = (net.features_extractor.norm for net in (model.critic, model.critic_target))
    assert not th.equal(online.running_var, th.ones(4))
    assert th.equal(online.running_var, target.running_var)
    assert th.equal(online.running_mean, target.running_mean)
