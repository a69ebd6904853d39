"""share_features_extractor=True: one extractor, trained by the critics' loss, read by all nets, run once for them."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import (
    CRITICS,
    GUESTS,
    LEARNING_STARTS,
    RandomEnv,
    differences,
    make_any,
    make_variant,
    observations,
    random_state_kept,
    snapshot,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_flow.common.encoding import SharedFeatures
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.export import ActingPolicy

MODELS = [*(("flow_t", critic) for critic in CRITICS), *((name, None) for name in GUESTS)]


class Encoder(BaseFeaturesExtractor):
    """A layer, and how many observations went through it."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 4)
        self.layer = nn.Linear(observation_space.shape[0], 4)
        self.seen = 0

    def forward(self, observations: th.Tensor) -> th.Tensor:
        if not th.compiler.is_compiling():
            self.seen += len(observations)
        return th.tanh(self.layer(observations))


def sharing(name: str, critic: str | None = None, share: bool = True, **kwargs: Any) -> OffPolicyFlowAlgorithm:
    net = {"features_extractor_class": Encoder, "share_features_extractor": share}
    return make_variant(name, critic=critic, net=net, sac_flow={"policy_delay": 1}, **kwargs)


def encoder_of(model: OffPolicyFlowAlgorithm) -> Encoder:
    encoder = model.critic.features_extractor
    assert isinstance(encoder, Encoder)
    return encoder


@pytest.mark.parametrize("amp", [None, "bf16"])
@pytest.mark.parametrize(("name", "critic"), MODELS)
def test_the_extractor_is_trained_by_the_critics_alone(name: str, critic: str | None, amp: str | None) -> None:
    model = sharing(name, critic, amp=amp).learn(LEARNING_STARTS + 2)
    encoder = encoder_of(model)
    shared = {id(parameter) for parameter in encoder.parameters()}
    for part, net in model._nets.items():
        owned = {id(parameter) for group in net.optimizer.param_groups for parameter in group["params"]}
        assert (shared <= owned) if part == "critic" else not shared & owned
        assert part == "critic" or isinstance(net.features_extractor, SharedFeatures)
    steps: dict[str, bool] = {}
    for part, net in model._nets.items():
        step = net.optimizer.step

        def watched(part: str = part, step: Any = step) -> None:
            before = encoder.layer.weight.clone()
            step()
            steps[part] = not th.equal(before, encoder.layer.weight)

        net.optimizer.step = watched
    model.train(1, 8)
    assert steps == {part: part == "critic" for part in model._nets}
    if model.critic_target is not None:
        averaged = model.critic_target.features_extractor
        assert isinstance(averaged, Encoder)
        assert not th.equal(averaged.layer.weight, encoder.layer.weight)


@pytest.mark.parametrize(("name", "critic"), MODELS)
def test_an_update_encodes_each_observation_once(name: str, critic: str | None) -> None:
    counts = []
    for share in (True, False):
        model = sharing(name, critic, share).learn(LEARNING_STARTS + 2)
        encoders = [module for module in model.policy.modules() if isinstance(module, Encoder)]
        for encoder in encoders:
            encoder.seen = 0
        model.train(1, 8)
        counts.append(sum(encoder.seen for encoder in encoders) // 8)
        if share:
            # s and s' for the critics, s for each other net that is trained, and s' for V_beta
            assert encoder_of(model).seen // 8 == 2 + len(model._nets) - 1 + (name == "flow_rl")
    assert counts[0] < counts[1]


@pytest.mark.parametrize(("name", "critic"), MODELS)
def test_features_that_are_made_once_are_those_that_each_net_would_make(name: str, critic: str | None) -> None:
    model = sharing(name, critic).learn(LEARNING_STARTS + 2)
    encoded = model.policy.encoded
    results = []
    for encode in (encoded, lambda batch: batch):
        model._critic_loss_fn.__self__.encode = encode
        with random_state_kept():
            model.set_random_seed(0)
            model.train(1, 8)
            results.append(float(model.logger.name_to_value["train/critic_loss"]))
        model = sharing(name, critic).learn(LEARNING_STARTS + 2)
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = lambda module, inputs, **_: module.forward  # noqa: E731
    monkeypatch.setattr("sb3_flow.common.compile.th.compile", partial(th.compile, backend=backend, fullgraph=True))
    monkeypatch.setattr("sb3_flow.common.activations.compiled_for_cpu", lambda x: False)  # new ones differ in last bits
    eager, compiled = (snapshot(sharing("qc", compile=mode).learn(LEARNING_STARTS + 4)) for mode in (False, True))
    assert differences(eager, compiled) == []


@pytest.mark.parametrize("name", ["flow_t", "fql", "qc", "flow_rl"])
def test_a_saved_model_shares_as_before(name: str, tmp_path: Path) -> None:
    model = sharing(name, env=RandomEnv()).learn(LEARNING_STARTS + 4)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=RandomEnv(), device="cpu")
    obs = observations(model)
    np.testing.assert_array_equal(*(each.predict(obs, deterministic=True)[0] for each in (model, loaded)))
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        with random_state_kept():
            each.train(2, 8)
    assert not differences(snapshot(model), snapshot(loaded))
    # The actor alone, and the policy as a module of its own
    model.actor.save(tmp_path / "actor")
    with th.no_grad():
        actions = ActingPolicy(model.policy)(th.as_tensor(obs)).reshape(len(obs), -1)
        expected = model.actor(th.as_tensor(obs), deterministic=True)
    np.testing.assert_allclose(actions, expected, atol=1e-6)
    if name != "qc":  # which chooses by critics
        actor = type(model.actor).load(tmp_path / "actor", device="cpu")
        np.testing.assert_array_equal(*(each.predict(obs, deterministic=True)[0] for each in (model.actor, actor)))


def test_an_image_is_encoded_by_one_cnn() -> None:
    env = RandomEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8))
    net = {"share_features_extractor": True}
    model = make_variant("flow_t", env, policy="CnnPolicy", net=net, buffer_size=20).learn(LEARNING_STARTS + 2)
    assert len([module for module in model.policy.modules() if isinstance(module, nn.Conv2d)]) == 3


def test_reinflow_copies_the_extractor_of_a_model_that_shares_it_and_trains_the_copy() -> None:
    source = sharing("flow_t")
    model = make_any("reinflow", net={"features_extractor_class": Encoder}).start_from(source)
    theirs, ours = encoder_of(source), model.actor.features_extractor
    assert isinstance(ours, Encoder)
    assert ours is not theirs
    before = [parameter.detach().clone() for parameter in theirs.parameters()]
    assert all(map(th.equal, ours.parameters(), before))
    model.learn(20)
    assert not any(map(th.equal, ours.parameters(), before))
    assert all(map(th.equal, theirs.parameters(), before))
