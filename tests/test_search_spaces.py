"""Search spaces: what is searched, and that a trial's parameters are all it takes to train it again."""

import importlib
import inspect
import math
from typing import Any

import optuna
import pytest
import yaml
from dataset_files import pendulum_arrays

from sb3_flow.common.flow import constant_entropy
from sb3_flow.zoo.registration import ALGORITHMS, config_of
from sb3_flow.zoo.search.base import GIVEN
from sb3_flow.zoo.storage import load_study, open_storage

OFFLINE = {"offline_dataset": "ogbench:x", "ent_coef": "0.0", "policy": "FlowGPolicy"}
# For each case what is fixed, what is searched and what is not
SAC_FLOW = {
    "from scratch": (
        {"net_arch": {"qf": [8]}},
        {"policy": "FlowTPolicy"},
        {"d_model", "n_layers", "highest_log_std", "target_entropy", "initial_ent_coef"},
        {"bc_coef", "noise_std"},
    ),
    "chunks": (
        {"log_std_range": [-4, -0.5]},
        {"policy": "FlowMLPPolicy", "horizon_length": "3"},
        {"highest_log_std", "target_entropy"},
        {"d_model", "n_layers", "offline_ratio"},
    ),
    "path": ({"likelihood": "path"}, {"policy": "FlowGPolicy"}, {"initial_ent_coef"}, {"target_entropy"}),
    "fixed sigma": ({"noise_std": 0.1}, {"policy": "FlowGPolicy"}, {"noise_std"}, {"target_entropy"}),
    "offline": (
        {"noise_std": 0.1, "critic": "target"},
        OFFLINE,
        {"bc_coef", "offline_ratio", "noise_std"},
        {"d_model", "initial_ent_coef", "target_entropy", "online_bc_coef"},
    ),
    "given on the command line": (
        {"noise_std": 0.1},
        {
            **OFFLINE,
            "horizon_length": "5",
            GIVEN: "batch_size bc_coef gamma horizon_length learning_rate noise_std policy_kwargs",
        },
        {"offline_ratio", "flow_steps", "qf_learning_rate", "policy_kwargs"},
        {"noise_std", "bc_coef", "one_minus_gamma", "batch_size_pow", "learning_rate"},
    ),
    "target entropy given": (
        {},
        {"policy": "FlowTPolicy", GIVEN: "d_model target_entropy"},
        {"n_layers", "highest_log_std", "initial_ent_coef"},
        {"target_entropy", "n_actions", "d_model"},
    ),
    "little room for sigma": ({"log_std_range": [-0.5, 0.0]}, {"policy": "FlowMLPPolicy"}, {"highest_log_std"}, set()),
    "two weights": ({}, {**OFFLINE, "bc_coef": "[10000.0, 1000.0]"}, {"bc_coef", "online_bc_coef"}, set()),
}
FQL_OFFLINE = {"offline_dataset": "ogbench:x", "policy": "FQLPolicy", "bc_coef": "300.0"}
BEST_OF_N = {**FQL_OFFLINE, "best_of_n": "32", "bc_coef": "None"}
FQL = {
    "from scratch": (
        {"net_arch": [8]},
        {"policy": "FQLPolicy"},
        {"bc_coef", "flow_steps", "learning_rate", "one_minus_gamma", "batch_size_pow"},
        {"best_of_n", "online_bc_coef", "offline_ratio", "qf_learning_rate", "noise_std", "n_actions"},
    ),
    "offline": ({}, FQL_OFFLINE, {"bc_coef", "offline_ratio"}, {"best_of_n", "online_bc_coef", "normalize_q_loss"}),
    "two weights": ({}, {**FQL_OFFLINE, "bc_coef": "(300.0, 10.0)"}, {"bc_coef", "online_bc_coef"}, {"best_of_n"}),
    "best of n": (
        {"net_arch": [8]},
        BEST_OF_N,
        {"best_of_n", "offline_ratio"},
        {"bc_coef", "online_bc_coef"},
    ),
    "given on the command line": (
        {"flow_steps": 4},
        {
            **BEST_OF_N,
            "horizon_length": "5",
            GIVEN: "batch_size bc_coef best_of_n flow_steps gamma horizon_length learning_rate policy_kwargs",
        },
        {"offline_ratio", "policy_kwargs"},
        {"best_of_n", "bc_coef", "flow_steps", "one_minus_gamma", "batch_size_pow", "learning_rate"},
    ),
    "alpha given": ({}, {**FQL_OFFLINE, GIVEN: "bc_coef"}, set(), {"bc_coef"}),
}
FLOW_RL = {
    "from scratch": (
        {"net_arch": [8]},
        {"policy": "FlowRLPolicy"},
        {"expectile", "policy_delay", "bc_coef", "flow_steps"},
        {"offline_ratio", "online_bc_coef", "diffusion_steps"},
    ),
    "offline, two weights": (
        {"net_arch": [8]},
        {"offline_dataset": "ogbench:x", "policy": "FlowRLPolicy", "bc_coef": "[1.0, 0.1]", GIVEN: "expectile"},
        {"bc_coef", "online_bc_coef", "offline_ratio", "policy_delay"},
        {"expectile"},
    ),
}
QSM = {
    "from scratch": (
        {"net_arch": [8]},
        {"policy": "QSMPolicy"},
        {"q_coef", "diffusion_steps", "learning_rate"},
        {"bc_coef", "offline_ratio", "flow_steps"},
    ),
    "offline": (
        {"net_arch": [8], "n_critics": 3},
        {"offline_dataset": "ogbench:x", "policy": "QSMPolicy", "normalize_gradient": "True", GIVEN: "diffusion_steps"},
        {"q_coef", "bc_coef", "offline_ratio"},
        {"diffusion_steps", "online_bc_coef"},
    ),
}
DIME = {
    "from scratch": (
        {"net_arch": {"qf": [8], "pi": [8]}},
        {"policy": "DIMEPolicy"},
        {"diffusion_steps", "qf_learning_rate", "policy_delay", "initial_ent_coef", "target_entropy"},
        {"flow_steps", "bc_coef", "offline_ratio"},
    ),
    "fixed alpha": (
        {},
        {"policy": "DIMEPolicy", "ent_coef": "0.01", GIVEN: "diffusion_steps policy_kwargs"},
        {"qf_learning_rate"},
        {"diffusion_steps", "initial_ent_coef", "target_entropy"},
    ),
}
REINFLOW = {
    "from scratch": (
        {"net_arch": [8]},
        {"policy": "ReinFlowPolicy"},
        {"clip_range", "ent_coef", "n_epochs", "vf_learning_rate", "highest_noise_std", "flow_steps"},
        {"offline_ratio", "bc_coef"},
    ),
    "offline": (
        {"net_arch": [8], "noise_std_range": [0.05, 0.2]},
        {"offline_dataset": "ogbench:x", "policy": "ReinFlowPolicy", GIVEN: "noise_std_range n_epochs"},
        {"learning_rate"},
        {"offline_ratio", "highest_noise_std", "n_epochs"},
    ),
}
CASES = {
    **{f"reinflow, {name}": ("reinflow", *case, "{}/study.log") for name, case in REINFLOW.items()},
    **{f"sac_flow, {name}": ("sac_flow", *case, "{}/study.log") for name, case in SAC_FLOW.items()},
    **{f"dime, {name}": ("dime", *case, "{}/study.log") for name, case in DIME.items()},
    **{f"fql, {name}": ("fql", *case, "{}/study.log") for name, case in FQL.items()},
    **{f"flow_rl, {name}": ("flow_rl", *case, "{}/study.log") for name, case in FLOW_RL.items()},
    **{f"qsm, {name}": ("qsm", *case, "{}/study.log") for name, case in QSM.items()},
    "database": ("sac_flow", *SAC_FLOW["offline"], "sqlite:///{}/study.db"),
}


def test_the_width_goes_with_the_heads_of_the_yaml() -> None:
    def widths(**policy_kwargs: Any) -> Any:
        space = ALGORITHMS["sac_flow"].search.space({"policy": "FlowTPolicy", "policy_kwargs": str(policy_kwargs)}, 2)
        return space["d_model"].choices if "d_model" in space else None

    assert widths() == (32, 64, 128)
    assert widths(n_heads=64) == (64, 128)
    assert widths(n_heads=3, d_model=48) is None


def test_alpha_is_searched_on_the_scale_of_the_critic() -> None:
    search = ALGORITHMS["sac_flow"].search
    ranges = {}
    for critic in ("crossq", "target", "categorical", "xqc", "flashsac"):
        alpha = search.space({"policy_kwargs": str({"critic": critic}), "ent_coef": "None"}, 2)["initial_ent_coef"]
        ranges[critic] = (alpha.low, alpha.high)
    assert ranges["crossq"] == ranges["target"] == (0.01, 1.0)
    assert ranges["categorical"] == ranges["xqc"] == ranges["flashsac"] == (0.001, 0.1)


@pytest.mark.parametrize("algo", [name for name, known in ALGORITHMS.items() if name != "reinflow"])
@pytest.mark.parametrize("rate", ["learning_rate", "qf_learning_rate"])
def test_rates_of_the_yaml_beyond_the_ranges_are_reached(algo: str, rate: str) -> None:
    space = ALGORITHMS[algo].search.space({rate: "1e-5"}, 2)
    if rate in space:
        assert space[rate].low < 1e-5
        assert ALGORITHMS[algo].search.space({rate: "1e-2"}, 2)[rate].high > 1e-2


def test_large_batches_are_searched_around_the_yamls() -> None:
    def batches(batch_size: int) -> tuple[int, int]:
        powers = ALGORITHMS["reinflow"].search.space({"batch_size": str(batch_size)}, 2)["batch_size_pow"]
        return 2**powers.low, 2**powers.high

    assert batches(256) == batches(4096) == (64, 4096)
    assert batches(100_000) == (2**15, 2**19)  # 100,000 is nearest to 2^17
    assert batches(70_000) == (2**14, 2**18)


@pytest.mark.parametrize(
    "fixed",
    [{"noise_repeat": "4"}, {"optimize_memory_usage": "True"}, {"action_noise": "NormalActionNoise(...)"}],
    ids=str,
)
@pytest.mark.parametrize("algo", ["sac_flow", "fql"])
def test_chunks_are_not_searched_beside_what_goes_with_none(algo, fixed) -> None:
    data = {"offline_dataset": "ogbench:x", "ent_coef": "0.0", "bc_coef": "1.0"}
    search = ALGORITHMS[algo].search
    assert search.space(data, 2)["horizon_length"].choices == (1, 5, 10)
    assert search.space({**data, **fixed}, 2)["horizon_length"].choices == (1,)


@pytest.mark.parametrize(
    ("algo", "kept", "yaml_values", "searched", "not_searched", "storage"), CASES.values(), ids=list(CASES)
)
def test_sampled_parameters_survive_the_study_and_keep_policy_kwargs(
    algo, kept, yaml_values, searched, not_searched, storage, tmp_path
):
    algorithm, search, _ = ALGORITHMS[algo]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage.format(tmp_path)
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), storage=open_storage(url), study_name="study"
    )
    # What rl_zoo3 does
    for key, value in {"policy_kwargs": str(kept), **yaml_values}.items():
        study.set_user_attr(key, value)
    for _ in range(3):
        trial = study.ask()
        sampled = search.sample(trial, 1, 1, {})
        params = load_study(url, "study").trials[trial.number].params
        assert sampled == search.convert(params)
        assert params.keys() >= searched
        assert not params.keys() & not_searched
        for name in kept.keys() - {"noise_std", "log_std_range", "noise_std_range"}:
            assert sampled["policy_kwargs"][name] == kept[name]
        data = {"offline_dataset": pendulum_arrays([20])} if "offline_ratio" in sampled else {}
        small = {"buffer_size": 20} if algo != "reinflow" else {}
        model = algorithm(yaml_values["policy"], "Pendulum-v1", **{**sampled, **data, **small})
        steps, choices = search.steps
        assert steps not in params or getattr(model.policy, steps) in choices
        for name, value in sampled["policy_kwargs"].items():
            kept_value = getattr(model.policy, "critic_name" if name == "critic" else name)
            assert kept_value == (tuple(value) if isinstance(kept_value, tuple) else value)
        for name in sampled.keys() - {"policy_kwargs"}:
            assert getattr(model, name) == sampled[name]
        if "target_entropy" in searched:
            target = search.space(study.user_attrs, 1)["target_entropy"]
            assert target.low <= model.target_entropy / model.policy.chunk_dim <= target.high


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_policy_kwargs_that_a_study_cannot_store_are_refused(algo):
    study = optuna.create_study()
    study.set_user_attr("policy_kwargs", str({"optimizer_class": dict}))
    with pytest.raises(ValueError, match="cannot be tuned around"):
        ALGORITHMS[algo].search.sample(study.ask(), 1, 1, {})


def test_alpha_and_n_are_searched_where_the_papers_have_them():
    search = ALGORITHMS["fql"].search
    alpha = search.space({}, 1)["bc_coef"]
    assert alpha.log
    assert (alpha.low, alpha.high) == (0.3, 3e4)
    normalized = search.space({"normalize_q_loss": "True"}, 1)["bc_coef"]
    assert normalized.low <= 0.03
    assert normalized.high >= 10
    assert search.space(BEST_OF_N, 1)["best_of_n"].choices == (4, 8, 16, 32)


@pytest.mark.parametrize("log_std_range", [None, (-5.0, -2.0), (-0.5, 0.0)])
def test_every_target_entropy_that_is_searched_is_in_reach_of_every_sigma_and_k(log_std_range):
    kwargs = {} if log_std_range is None else {"policy_kwargs": str({"log_std_range": log_std_range})}
    space = ALGORITHMS["sac_flow"].search.space(kwargs, 1)
    lowest, steps = space["highest_log_std"].low, max(space["flow_steps"].choices)
    assert space["target_entropy"].high <= constant_entropy(1, steps, lowest, "sde", "action")
    if log_std_range is None:
        assert space["target_entropy"].low < -0.5 < space["target_entropy"].high  # the default


def test_what_flow_rl_and_qsm_are_searched_for_holds_what_is_published():
    space = ALGORITHMS["flow_rl"].search.space({}, 1)
    assert space["bc_coef"].low < 0.1 < space["bc_coef"].high
    assert {0.8, 0.9} <= set(space["expectile"].choices)
    search = ALGORITHMS["qsm"].search
    for fixed in ({"normalize_gradient": "False"}, {"offline_dataset": "x"}, {"q_coef": "50.0"}):
        space = search.space(fixed, 1)
        assert space["normalize_gradient"].choices == (False,)
        assert all(space["q_coef"].low < m_q < space["q_coef"].high for m_q in (1, 3, 10, 50, 120))
    for fixed in ({}, {"normalize_gradient": "None"}, {"normalize_gradient": "True"}):
        space = search.space(fixed, 1)
        assert space["normalize_gradient"].choices == (True,)
        assert space["q_coef"].low < 2 < space["q_coef"].high < 120
    alpha = search.space({"offline_dataset": "x"}, 1)["bc_coef"]
    assert alpha.low < 1 < 30 < alpha.high


def test_version_0_1_s_names_are_sac_flow_s():
    with pytest.warns(DeprecationWarning, match="sb3_flow.zoo.sampler has moved"):
        sampler = importlib.reload(importlib.import_module("sb3_flow.zoo.sampler"))
    search = ALGORITHMS["sac_flow"].search
    trial = {"policy_kwargs": "{}", "horizon_length": 1, "n_actions": 2, "target_entropy": -1.0}
    assert sampler.convert_sac_flow_params(trial) == search.convert(trial)
    assert sampler.search_space(OFFLINE, 1) == search.space(OFFLINE, 1)


def settings_of(algo: str, row: dict[str, Any]) -> dict[str, Any]:
    """What a row of the YAML trains with, by the names of the search."""
    defaults = inspect.signature(ALGORITHMS[algo].algorithm).parameters
    settings = {name: parameter.default for name, parameter in defaults.items()} | row
    powers = {"one_minus_gamma": 1 - settings["gamma"], "batch_size_pow": math.log2(settings["batch_size"])}
    return settings | (settings["policy_kwargs"] or {}) | powers


def is_within(value: Any, distribution: Any) -> bool:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return value in distribution.choices
    return bool(distribution.low <= value <= distribution.high)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_what_a_row_of_the_yaml_has_lies_within_its_search_space(algo: str) -> None:
    searched = set()
    for task, row in yaml.safe_load(config_of(algo).read_text()).items():
        settings = settings_of(algo, row)
        for name, distribution in ALGORITHMS[algo].search.space({k: str(v) for k, v in row.items()}, 3).items():
            value = settings.get(name)
            if isinstance(value, float | int) and not isinstance(value, bool):
                searched.add(name)
                assert is_within(value, distribution), f"{task}: {name} {value:g}, {distribution}"
    assert {"learning_rate", "one_minus_gamma", "batch_size_pow", "horizon_length"} <= searched
