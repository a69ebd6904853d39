"""amp="bf16": matrix products in bfloat16; targets, densities, statistics and optimizers in float32."""

from typing import Any

import pytest
import torch as th
from helpers import CRITICS, FQLS, LEARNING_STARTS, POLICIES, VARIANTS, make_model, make_variant, snapshot
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_flow import FQL, SACFlow
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

PRODUCTS = ("aten::addmm", "aten::mm", "aten::baddbmm", "aten::bmm")


class Products(TorchDispatchMode):
    """Records in which precision matrices are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[th.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.name().partition(".")[0] in PRODUCTS:
            self.dtypes.add(out.dtype)
        return out


def losses_of(model: OffPolicyFlowAlgorithm, amp: str | None) -> tuple[Any, Any, Products]:
    """Both losses of one batch and one noise, and the products they took."""
    model.amp = amp
    model.policy.set_training_mode(False)
    model.set_random_seed(0)
    batch, noise = model._sample(64), model.actor.sample_noise(64)
    ent_coef, bc_coef = th.tensor(0.2), th.tensor(1.0)
    if isinstance(model, FQL):
        z = None if model.best_of_n is not None else model.actor.sample_noise(64)
        with Products() as products, model._autocast():
            critic = model._critic_loss(batch, model._next_actions(batch, noise))
            return critic, model._actor_loss(batch, model.actor.sample_line(64), z, bc_coef), products
    assert isinstance(model, SACFlow)
    with Products() as products, model._autocast():
        critic = model._critic_loss(batch, noise, ent_coef)
        actor = model._actor_loss(batch, noise, ent_coef, bc_coef, model.actor.sample_line(64))
    return critic, actor, products


@pytest.mark.parametrize("noise_std", [None, 0.3])
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("policy", POLICIES)
def test_products_are_in_bfloat16_and_the_losses_are_close(policy: str, critic: str, noise_std: float | None) -> None:
    model = make_model(policy, critic=critic, net={"noise_std": noise_std}).learn(LEARNING_STARTS + 12)
    exact_critic, exact_actor, exact = losses_of(model, None)
    critic_loss, actor_loss, products = losses_of(model, "bf16")
    assert exact.dtypes == {th.float32}
    assert products.dtypes == {th.bfloat16}
    for result in (critic_loss.loss, critic_loss.q, *critic_loss.target, *actor_loss):
        assert result.dtype == th.float32
    for name in ("loss", "q"):
        th.testing.assert_close(getattr(critic_loss, name), getattr(exact_critic, name), rtol=0.05, atol=0.02)
    for name in ("loss", "log_prob", "log_std", "bc_loss"):
        th.testing.assert_close(getattr(actor_loss, name), getattr(exact_actor, name), rtol=0.05, atol=0.1)
    assert not th.equal(actor_loss.loss, exact_actor.loss)


@pytest.mark.parametrize("name", FQLS)
def test_products_of_fql_are_in_bfloat16_and_the_losses_are_close(name: str) -> None:
    model = make_variant(name).learn(LEARNING_STARTS + 12)
    exact_critic, exact_actor, exact = losses_of(model, None)
    critic_loss, actor_loss, products = losses_of(model, "bf16")
    assert exact.dtypes == {th.float32}
    assert products.dtypes == {th.bfloat16}
    for result, expected in ((critic_loss, exact_critic), (actor_loss, exact_actor)):
        for key, value in result._asdict().items():
            assert (value is None) == (getattr(expected, key) is None)
            if value is not None:
                assert value.dtype == th.float32
        assert not th.equal(result.loss, expected.loss)
    for key in ("loss", "q", "next_q") if name != "qc" else ("q",):  # another sample may be the best
        th.testing.assert_close(getattr(critic_loss, key), getattr(exact_critic, key), rtol=0.05, atol=0.05)
    for key in ("loss", "matching_loss", "bc_loss", "q"):
        th.testing.assert_close(getattr(actor_loss, key), getattr(exact_actor, key), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_trained_stays_in_float32(name: str) -> None:
    model = make_variant(name, amp="bf16", sac_flow={"policy_delay": 1}).learn(LEARNING_STARTS + 5)
    assert {tensor.dtype for tensor in snapshot(model).values() if tensor.is_floating_point()} == {th.float32}
    assert model.predict(model.observation_space.sample())[0].dtype == "float32"


@pytest.mark.parametrize("name", ["flow_t", "fql", "flow_rl", "qsm"])
def test_bfloat16_goes_on_after_loading(name: str, tmp_path: Any) -> None:
    model = make_variant(name, amp="bf16").learn(LEARNING_STARTS + 3)
    model.save(tmp_path / "model")
    assert type(model).load(tmp_path / "model").amp == "bf16"


@pytest.mark.parametrize("name", ["flow_t", "fql", "flow_rl", "qsm"])
@pytest.mark.parametrize("amp", ["fp16", True])
def test_another_precision_is_refused(amp: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"amp={amp!r} .*None, 'bf16'"):
        make_variant(name, amp=amp)
