"""What one update may touch, and what it must leave alone; its gradient."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch as th
from gymnasium import spaces
from helpers import GUESTS, LEARNING_STARTS, ONE_OF_EACH, make_model, make_variant, observations, taking
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_flow.common.guard import Guard, Statistics
from sb3_flow.common.updates import Differentiated, differentiate, set_gradient


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


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_loss_gives_a_gradient_to_the_net_that_it_trains_and_to_no_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_variant(name, sac_flow={"policy_delay": 1}).learn(LEARNING_STARTS + 1)
    seen: list[list[str]] = []

    def step(optimizer: th.optim.Optimizer) -> None:
        nets = model._nets.items()
        seen.append([key for key, net in nets if any(p.grad is not None for p in net.parameters())])
        model.policy.zero_grad()

    model.policy.zero_grad()
    monkeypatch.setattr(model._guard, "step", step)
    model.train(1, 8)
    trained = [names for names in seen if names]  # the temperature is no net
    assert sorted(trained) == [[key] for key in sorted(model._nets)]


def test_the_gradient_is_that_of_autograd_but_for_what_is_frozen_or_unused() -> None:
    used, frozen, unused = (th.arange(1.0, 4.0).requires_grad_(grad) for grad in (True, False, True))
    gradient, norm = differentiate((used**2 * frozen).sum(), [used, frozen, unused])
    assert gradient[0].tolist() == [2, 8, 18]  # type: ignore[union-attr]
    assert gradient[1:] == [None, None]
    assert norm.item() == pytest.approx(392**0.5)


def test_a_large_gradient_is_cut_off_and_its_norm_is_not() -> None:
    x = th.tensor([3.0, -4.0], requires_grad=True)
    gradient, norm = differentiate((x**2).sum() / 2, [x], max_gradient=3.5)
    assert gradient[0].tolist() == [3, -3.5]  # type: ignore[union-attr]
    assert norm.item() == 5


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_does_not_depend_on_the_order_of_a_gradients_numbers_in_memory(fused: bool) -> None:
    def stepped(descend: Callable[[th.Tensor, th.Tensor], None]) -> th.Tensor:
        weight = nn.Parameter(th.arange(12.0).reshape(4, 3))
        optimizer = th.optim.Adam([weight], lr=0.1, fused=fused)
        descend((th.einsum("bi,oi->bo", x, weight) * y).sum(), weight)
        optimizer.step()
        return weight.detach()

    def ours(loss: th.Tensor, weight: th.Tensor) -> None:
        gradient, _ = differentiate(loss, [weight])
        assert gradient[0].stride() != weight.stride()  # type: ignore[union-attr]
        set_gradient([weight], gradient)

    x, y = (th.randn(5, n, generator=th.Generator().manual_seed(n)) for n in (3, 4))
    assert stepped(ours).equal(stepped(lambda loss, _: loss.backward()))


def test_what_is_frozen_as_a_whole_has_no_gradient_of_norm_0() -> None:
    x = th.ones(2)
    gradient, norm = differentiate((x**2).sum(), [x])
    assert (list(gradient), norm.item()) == ([None], 0)


def test_what_a_loss_does_not_use_has_no_gradient_of_norm_0() -> None:
    x, unused = (th.ones(2, requires_grad=True) for _ in range(2))
    gradient, norm = differentiate((x**2).sum(), [unused])
    assert (list(gradient), norm.item()) == ([None], 0)


def test_an_old_gradient_goes_where_there_is_no_new_one() -> None:
    frozen = nn.Parameter(th.ones(2))
    frozen.grad = th.ones(2)
    set_gradient([frozen], [None])
    assert frozen.grad is None


class Square(NamedTuple):
    """A loss."""

    loss: th.Tensor
    x: th.Tensor

    @property
    def made_of(self) -> dict[str, th.Tensor]:
        return {"x": self.x}

    @property
    def logged(self) -> dict[str, th.Tensor]:
        return {"square": self.loss, "x": self.x}


def test_a_loss_comes_with_its_figures_and_nothing_that_can_be_differentiated_again() -> None:
    weight = th.tensor(2.0, requires_grad=True)
    norm = nn.BatchNorm1d(1)

    def square(x: th.Tensor) -> Square:
        norm(x.unsqueeze(1))
        return Square((weight * x).square().sum(), weight * x)

    guard, statistics = Guard(weight.device), Statistics(norm)
    differentiated = Differentiated(square, lambda x: x + 1, nullcontext, guard, statistics)
    loss, figures, gradient = differentiated.descend([weight], float("inf"), th.tensor([0.0, 1.0, th.inf]))
    assert not any(tensor.requires_grad for tensor in loss)
    assert figures.logged == ("square", "x")
    assert figures.bad.tolist() == [1, 1, 1]  # of x, of the loss, of the norm
    assert (norm.running_mean, norm.num_batches_tracked) == (0, 0)
    guard.begin()
    loss, figures, gradient = differentiated.descend([weight], float("inf"), th.tensor([0.0, 1.0]))
    assert figures.means.tolist() == [20, 3]
    assert figures.bad.tolist() == [0, 0, 0]
    assert gradient[0] == 20
    assert norm.running_mean == pytest.approx(0.1 * 1.5)
