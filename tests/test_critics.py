"""How N critics are judged, by the lowest, the mean, or the mean less a multiple of their spread; their TD error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from helpers import EVERY_MODEL, make_variant, observations, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sb3_flow.common.critics import critic_loss, pessimistic

Q = th.tensor([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]], dtype=th.float64)


def test_the_verdict_is_the_mean_less_rho_standard_deviations() -> None:
    spread = np.sqrt((9 + 1 + 16) / 3)
    assert_close(pessimistic(Q, 0.5), th.tensor([4 - 0.5 * spread, 5.0], dtype=th.float64))
    assert_close(pessimistic(Q, 0.0), Q.mean(dim=0))


def test_of_two_critics_rho_1_is_the_lower_one() -> None:
    q = randn(2, 100)
    assert_close(pessimistic(q, 1.0), q.amin(dim=0))


def test_critics_that_agree_have_a_finite_gradient() -> None:
    q = th.full((3, 4), 2.0, requires_grad=True)
    pessimistic(q, 0.5).sum().backward()
    assert_close(q.grad, th.full((3, 4), 1 / 3))


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_every_algorithm_trains_many_critics_with_pessimism_and_keeps_it(
    name: str, critic: Any, tmp_path: Path
) -> None:
    model = make_variant(name, critic=critic, net={"n_critics": 5, "critic_pessimism": 0.5})
    model.learn(20)
    assert model._n_updates > 0
    obs, _ = model.policy.obs_to_tensor(observations(model, 6))
    q = model.critic(obs, th.zeros(6, model.policy.chunk_dim))
    assert q.shape == (5, 6)
    assert_close(model.critic.reduce(q), q.mean(dim=0) - 0.5 * q.std(dim=0, correction=0))
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", device="cpu")
    assert_close(loaded.critic.reduce(q), model.critic.reduce(q), rtol=0, atol=0)
    targets = [net for net in (loaded.critic, loaded.critic_target) if net is not None]
    assert {net.pessimism for net in targets} == {0.5}


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
def test_target_and_actor_go_by_the_verdict(name: str, critic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_variant(name, critic=critic, net={"n_critics": 3, "critic_pessimism": 0.5})
    model.learn(20)
    judged = []
    for net in {model.critic, model.critic_target} - {None}:
        reduce = net.reduce
        monkeypatch.setattr(net, "reduce", lambda q, reduce=reduce: (judged.append(q.requires_grad), reduce(q))[1])
    delay = getattr(model, "policy_delay", 1)
    model._n_updates = delay - 1
    model.train(1, 8)
    # Of the next actions in the target, and with a gradient of the actor's; QC's actor has no Q and its choice no
    # gradient, QSM's follows the mean, and with one forward pass for s and s' it reaches the verdict on s', but not the
    # loss
    one_pass = model.critic.kind.joint and model.critic_target is None
    assert judged.count(True) == (0 if name in ("qc", "qsm") else 1) + one_pass
    assert len(judged) == (1 if name == "qsm" else 2)


@pytest.mark.parametrize("name", ["flow_t", "fql"])
@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf"), "0.5", True])
def test_a_pessimism_below_0_is_refused(name: str, rho: Any) -> None:
    with pytest.raises(ValueError, match=r"critic_pessimism=.*a number >= 0, or None"):
        make_variant(name, net={"critic_pessimism": rho})


@settings(deadline=None, max_examples=50)
@given(
    critics=st.integers(1, 5), batch=st.integers(1, 5), seed=st.integers(0, 2**30), masked=st.booleans(), data=st.data()
)
def test_critic_loss_is_the_squared_td_error_summed_over_critics(
    critics: int, batch: int, seed: int, masked: bool, data: st.DataObject
) -> None:
    q, rewards, next_q = (
        randn(*shape, seed=seed + i) for i, shape in enumerate([(critics, batch), (batch,), (batch,)])
    )
    bits = st.lists(st.sampled_from([0.0, 1.0]), min_size=batch, max_size=batch)
    dones = th.tensor(data.draw(bits), dtype=th.float64)
    valid = th.tensor(data.draw(bits), dtype=th.float64) if masked else None
    q.requires_grad_(True)
    result = critic_loss(q, rewards, dones, 0.9, next_q.requires_grad_(True), valid)
    counted = [b for b in range(batch) if valid is None or valid[b]]
    targets = [rewards[b].item() + (0 if dones[b] else 0.9 * next_q[b].item()) for b in range(batch)]
    total = sum((q[n, b].item() - targets[b]) ** 2 for n in range(critics) for b in counted)
    assert result.loss.item() == pytest.approx(total / max(len(counted), 1))
    assert result.target_q.tolist() == pytest.approx(targets)
    assert result.q.item() == pytest.approx(q.mean().item())
    assert th.autograd.grad(result.loss, [q, next_q], allow_unused=True)[1] is None
