"""What FQL's own arguments may be, alone and when a saved model is loaded, and what is said of the rest."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import FQLS, SAC_FLOWS, RandomEnv, differences, make_variant, snapshot
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.sac.policies import SACPolicy

from sb3_flow import FQL, QSM, FlowRL, FlowTPolicy, SACFlow
from sb3_flow.fql.policies import FQLPolicy


def test_the_default_weight_is_ten_and_none_where_nothing_is_distilled() -> None:
    for given, weight in ((None, 10.0), (0.0, 0.0), (3.0, 3.0)):
        schedules = make_variant("fql", bc_coef=given).bc_schedules
        assert schedules.offline(0.5) == schedules.online(0.5) == weight
    assert make_variant("qc").bc_coef is None


def assert_refused(message: str, name: str, **kwargs: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make_variant(name, **kwargs)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "4"])
def test_best_of_n_is_a_number_of_samples(value: Any) -> None:
    message = rf"best_of_n={value!r} .*an integer >= 1"
    assert_refused(message, "fql", best_of_n=value)
    with pytest.raises(ValueError, match=message):
        FQLPolicy(RandomEnv().observation_space, RandomEnv().action_space, lambda _: 3e-4, best_of_n=value)


def test_whether_q_is_normalised_is_yes_or_no() -> None:
    assert_refused(r"normalize_q_loss='yes' .*choose one of False, True", "fql", normalize_q_loss="yes")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bc_coef": 3.0}, r"bc_coef=3.0 .*no one-step policy.*leave it at None"),
        ({"bc_coef": 0.0}, r"bc_coef=0.0 .*no one-step policy.*leave it at None"),
        ({"normalize_q_loss": True}, r"normalize_q_loss=True .*no one-step policy.*leave it at False"),
    ],
)
def test_what_concerns_the_one_step_policy_is_refused_where_there_is_none(kwargs: dict[str, Any], message: str) -> None:
    assert_refused(message, "qc", **kwargs)
    make_variant("fql", **kwargs)


def test_best_of_n_is_the_algorithms_and_not_the_policys() -> None:
    assert_refused(r"best_of_n=None .*policy_kwargs say 4; set it in FQL", "fql", net={"best_of_n": 4})


@pytest.mark.parametrize(("saved", "asked"), [("fql", 4), ("qc_fql", 4), ("qc", None)])
def test_a_saved_policy_cannot_be_loaded_as_one_of_another_kind(saved: str, asked: Any, tmp_path: Path) -> None:
    make_variant(saved).save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"best_of_n={asked} .*with a one-step policy keeps it.*but not None"):
        FQL.load(tmp_path / "model", best_of_n=asked)


def test_a_saved_policy_can_be_loaded_with_more_samples(tmp_path: Path) -> None:
    model = make_variant("qc", horizon_length=1, best_of_n=4).learn(15)
    model.save(tmp_path / "model")
    loaded = FQL.load(tmp_path / "model", env=RandomEnv(), device="cpu", best_of_n=8)
    assert not differences(snapshot(model), snapshot(loaded))
    assert loaded.actor.sample_noise(3).shape == loaded.actor.fixed_noise(3).shape == (8, 3, 2)
    loaded.learn(15)
    loaded.save(tmp_path / "again")
    again = FQL.load(tmp_path / "again", device="cpu")
    assert again.best_of_n == again.policy.best_of_n == 8


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("flow_steps", 0, "an integer >= 1"),
        ("flow_steps", 2.5, "an integer >= 1"),
        ("n_critics", 0, "an integer >= 1"),
        ("net_arch", [], "at least one hidden layer"),
        ("net_arch", {"pi": []}, "at least one hidden layer"),
        ("net_arch", 256, "integer >= 1"),
        ("net_arch", {"qf": [16, 0]}, "integer >= 1"),
        ("net_arch", {"pi": [16.5]}, "integer >= 1"),
        ("net_arch", {"actor": [16]}, "'pi' and 'qf'"),
    ],
)
@pytest.mark.parametrize("algorithm", FQLS)
def test_policy_arguments_are_checked(algorithm: str, name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=name) as error:
        make_variant(algorithm, net={name: value})
    assert f"{name}={value!r}" in str(error.value)
    assert allowed in str(error.value)


@pytest.mark.parametrize("policy", ["FlowTPolicy", "fqlpolicy", ""])
def test_names_of_other_policies_are_refused(policy: str) -> None:
    assert_refused(
        f"policy={policy!r} .*'FQLPolicy', 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy'", "fql", policy=policy
    )


@pytest.mark.parametrize("policy", [FlowTPolicy, SACPolicy])
def test_policies_of_other_algorithms_are_refused(policy: Any) -> None:
    with pytest.raises(ValueError, match=rf"policy=.*{policy.__name__}.*subclass of FQLPolicy"):
        FQL(policy, RandomEnv())


def test_its_policies_are_refused_by_other_algorithms() -> None:
    with pytest.raises(ValueError, match=r"policy='FQLPolicy' .*'FlowTPolicy'"):
        SACFlow("FQLPolicy", RandomEnv())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"policy=.*FQLPolicy.*subclass of FlowPolicy"):
        SACFlow(FQLPolicy, RandomEnv())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("saved", "loads"),
    [
        *((name, FQL) for name in SAC_FLOWS),
        *((name, SACFlow) for name in FQLS),
        ("flow_rl", QSM),
        ("qsm", FQL),
        ("fql", FlowRL),
    ],
)
def test_models_of_other_algorithms_are_refused(saved: str, loads: Any, tmp_path: Path) -> None:
    make_variant(saved).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"policy=.*Policy.*saved model of another algorithm"):
        loads.load(tmp_path / "model")


@pytest.mark.parametrize("name", ["qc_fql", "qc"])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_steps": 2}, r"n_steps=2 .*return of a chunk is that of horizon_length=3 steps"),
        (
            {"env": BitFlippingEnv(3, continuous=True), "replay_buffer_class": HerReplayBuffer},
            r"horizon_length=3 .*HerReplayBuffer relabels single steps",
        ),
        ({"action_noise": NormalActionNoise(np.zeros(2), np.ones(2))}, r"action_noise=.*executed as it was decided"),
        ({"horizon_length": 2.5}, r"horizon_length=2.5 .*an integer >= 1"),
        ({"net": {"horizon_length": 5}}, r"horizon_length=3 .*policy's is 5; set it in FQL"),
    ],
    ids=["n_steps", "HER", "noise", "fraction", "policy's"],
)
def test_what_chunks_do_not_go_with_is_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    assert_refused(message, name, **kwargs)
