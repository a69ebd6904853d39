"""The benchmarks that learn from data, as far as they take no time."""

import argparse
import csv
import types
from copy import deepcopy

import contenders
import datasets  # benchmarks/datasets.py
import figures
import learning
import numpy as np
import offline_step
import offline_to_online
import pytest
import spread
import torch as th
from dataset_files import regular_arrays, trajectories
from helpers import RandomEnv, policy_kwargs
from records import append_rows

from sb3_flow.datasets import from_arrays


def test_both_contenders_make_offline_updates_of_nets_of_the_same_size():
    models = [make(2 * datasets.EPISODE) for make in (datasets.with_chunks, datasets.without_chunks)]
    sizes = []
    for model in models:
        model.train(1, batch_size=8)
        sizes.append([tuple(parameter.shape) for parameter in model.policy.parameters()])
        assert "train/matching_loss" in model.logger.name_to_value
    assert sizes[0] == sizes[1]


def test_cloning_learns_from_the_data_without_a_critic(tmp_path):
    np.savez(tmp_path / "data.npz", **regular_arrays(trajectories([30])))
    overrides = {
        "env": RandomEnv(),
        "offline_dataset": tmp_path / "data.npz",
        "offline_steps": 10**9,
        "policy_kwargs": policy_kwargs("FlowTPolicy", "target"),
    }
    model = learning.make_model(learning.Run("none", "cloning", 1, 60, 60, 1, 0, 16, 8, tmp_path, overrides))
    before = deepcopy(model.policy)
    model.learn(3)
    th.testing.assert_close(model.critic.state_dict(), before.critic.state_dict(), rtol=0, atol=0)
    assert any((a != b).any() for a, b in zip(model.actor.parameters(), before.actor.parameters(), strict=True))
    assert (model.critic(th.ones(4, 3), th.ones(4, 2)) == 0).all()


@pytest.mark.parametrize("name", offline_step.CONTENDERS)
def test_every_contender_makes_an_offline_update_with_its_papers_settings(name, monkeypatch):
    monkeypatch.setattr(offline_step, "ROWS", 2 * datasets.EPISODE)
    sizes = argparse.Namespace(width=8, layers=2, d_model=8, batch=4, compile=False, device="cpu")
    model = offline_step.make_model(name, sizes)
    assert model.is_offline
    model.train(1, 4)
    assert model._n_updates == 1
    assert model.horizon_length == (1 if name == "fql" else 5)
    assert next(model.critic.parameters()).shape[-1] == 8


def test_every_contender_has_a_name_and_a_colour_in_the_figures():
    for name in (*contenders.OURS, *learning.THEIRS):
        assert figures.label(name)
        assert figures.colors([name])[name].startswith("#")


@pytest.mark.parametrize("study", offline_to_online.STUDIES)
@pytest.mark.parametrize("variant", ["flow_t", "flow_g", "fql", "qc_fql", "qc", "reinflow"])
def test_the_variants_with_data_are_models(study, variant, tmp_path):
    np.savez(tmp_path / "data.npz", **regular_arrays(trajectories([30, 30])))
    options = argparse.Namespace(
        data=tmp_path / "data.npz", compile=False, width=8, d_model=8, eval_episodes=1, out=tmp_path
    )
    run = offline_to_online.make_run(offline_to_online.STUDIES[study], variant, 1, options)
    own = {"env": RandomEnv(), "offline_dataset": options.data}
    own |= {"buffer_size": 100} if variant != "reinflow" else {"n_envs": 1, "normalize": False}
    model = learning.make_model(learning.Run(**{**vars(run), "overrides": run.overrides | own}))
    if variant == "reinflow":
        assert (model.horizon_length, model.is_offline, model.policy.net_arch) == (5, True, [8] * 3)
        return
    wanted = {"fql": (1, None), "qc_fql": (5, None), "qc": (5, 32)}.get(variant)
    if wanted is None:
        assert (model.horizon_length, model.ent_coef) == (5, 0.0)
    else:
        assert (model.horizon_length, model.best_of_n) == wanted
        assert model.policy.net_arch == {"pi": [8] * 3, "qf": [8] * 3}


@pytest.mark.parametrize("has_data", [False, True])
def test_the_spread_of_actions_is_over_the_noise_not_the_states(has_data):
    arrays = regular_arrays(trajectories([300, 200]))
    buffer = types.SimpleNamespace(observations=arrays["observations"][:, None], size=lambda: 400)
    data = from_arrays(arrays) if has_data else None
    model = types.SimpleNamespace(
        _dataset=data,
        replay_buffer=buffer,
        predict=lambda x: (x[:, :2] + 0.3 * th.randn(len(x), 2).numpy(), None),
        get_vec_normalize_env=lambda: None,
    )
    th.manual_seed(3)
    wanted = th.randn(1)
    th.manual_seed(3)
    assert spread.action_spread(model) == pytest.approx(0.3, rel=0.03)
    assert th.equal(th.randn(1), wanted)


def test_a_file_of_results_keeps_the_columns_it_was_begun_with(tmp_path):
    row = dict.fromkeys(learning.FIELDS, 1)
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("step,deterministic_return\n5,2.0\n")
    for path in (old, new):
        append_rows(path, learning.FIELDS, [row])
        append_rows(path, learning.FIELDS, [row])
    assert old.read_text() == "step,deterministic_return\n5,2.0\n1,1\n1,1\n"
    with open(new) as f:
        assert list(csv.DictReader(f)) == [dict.fromkeys(learning.FIELDS, "1")] * 2
