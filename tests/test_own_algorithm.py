"""An algorithm from outside of the package: that of docs/own_algorithm.md, and what one may get wrong."""

import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnxruntime
import optuna
import pytest
import torch as th
import two_modes
from dataset_files import regular_arrays, trajectories
from gymnasium import spaces
from helpers import ACTION, VECTOR, RandomEnv, blocks
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from torch import nn

from sb3_flow import FQL
from sb3_flow.common.checks import NonFiniteError
from sb3_flow.common.max_entropy import MaxEntropyAlgorithm
from sb3_flow.export import ActingPolicy, export_onnx
from sb3_flow.zoo import register_algorithm
from sb3_flow.zoo.registration import ALGORITHMS
from sb3_flow.zoo.search import QSMSearch, Unsearched

PAGE = Path(__file__).parent.parent / "docs" / "own_algorithm.md"
OBS = np.ones((3, *VECTOR.shape), np.float32)


@pytest.fixture(scope="module")
def weighted() -> Iterator[ModuleType]:
    """The page's first block, as the module that it is to be saved as, and its search space."""
    module = ModuleType("weighted")
    (code, *_, search) = blocks(PAGE, "python")
    sys.modules["weighted"] = module
    exec(compile(code + search, "weighted.py", "exec"), module.__dict__)
    yield module
    del sys.modules["weighted"]


def make(algorithm: Any, env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    tiny = {"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "seed": 0, "device": "cpu"}
    nets = {"policy_kwargs": {"net_arch": [16, 16], "flow_steps": 2}}
    return algorithm(policy, RandomEnv() if env is None else env, **(tiny | nets | kwargs))


# --- The page's ---


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*masks are 0")
def test_it_learns_the_better_of_two_modes(weighted: ModuleType) -> None:
    nets = {"net_arch": [32, 32], "flow_steps": 2}
    steps = two_modes.data(2_000)
    steps["rewards"] = (steps["actions"][:, 0] > 0).astype(np.float32)
    data = {"offline_dataset": steps, "offline_steps": 600}
    model = make(
        weighted.WeightedFlow,
        two_modes.OneState(),
        **data,
        batch_size=64,
        learning_rate=3e-3,
        spread=0.5,
        policy_kwargs=nets,
    )
    model.learn(600)
    actions, _ = model.predict(np.zeros((1_000, 1), np.float32))
    assert (actions > 0.3).mean() > 0.9


def test_it_is_saved_and_loaded_and_goes_on(weighted: ModuleType, tmp_path: Path) -> None:
    model = make(weighted.WeightedFlow, horizon_length=3, spread=0.7).learn(20)
    model.save(tmp_path / "model")
    loaded = weighted.WeightedFlow.load(tmp_path / "model", env=RandomEnv())
    assert loaded.spread == 0.7
    np.testing.assert_array_equal(*(one.predict(OBS, deterministic=True)[0] for one in (model, loaded)))
    before = [parameter.clone() for parameter in loaded.actor.parameters()]
    loaded.learn(20, reset_num_timesteps=False)
    assert any((old != new).any() for old, new in zip(before, loaded.actor.parameters(), strict=True))


@pytest.mark.slow
def test_its_onnx_file_acts_as_it_does(weighted: ModuleType, tmp_path: Path) -> None:
    model = make(weighted.WeightedFlow)
    export_onnx(model, tmp_path / "weighted.onnx")
    (acts,) = onnxruntime.InferenceSession(tmp_path / "weighted.onnx").run(["action"], {"observation": OBS})
    np.testing.assert_allclose(acts, model.predict(OBS, deterministic=True)[0], atol=1e-5)


def test_it_takes_dicts_and_chunks(weighted: ModuleType) -> None:
    env = RandomEnv(spaces.Dict({"arm": VECTOR, "goal": VECTOR}))
    model = make(weighted.WeightedFlow, env, "MultiInputPolicy", horizon_length=2, gradient_steps=2).learn(20)
    assert model._n_updates == 20
    assert model.logger.name_to_value["train/highest_weight"] > 0


def test_what_is_not_finite_stops_it_before_a_net_takes_the_step(weighted: ModuleType) -> None:
    class Broken(weighted.WeightedFlow):  # type: ignore[misc, name-defined]
        def _actor_loss(self, batch: Any, line: Any, noise: th.Tensor) -> Any:
            result = super()._actor_loss(batch, line, noise)
            nothing = th.full_like(result.weights, th.nan)
            return result._replace(weights=nothing, loss=result.loss * nothing.mean())

    model = make(Broken)
    before = deepcopy(model.actor.state_dict())
    with pytest.raises(NonFiniteError, match="weights"):
        model.learn(40)
    assert all(th.equal(value, before[name]) for name, value in model.actor.state_dict().items())


def test_its_policy_is_saved_alone(weighted: ModuleType, tmp_path: Path) -> None:
    policy = make(weighted.WeightedFlow).policy
    policy.save(tmp_path / "policy")
    loaded = weighted.WeightedPolicy.load(tmp_path / "policy", device="cpu")
    acts = (one.predict(OBS, deterministic=True)[0] for one in (policy, loaded))
    np.testing.assert_array_equal(*acts)


def test_its_own_argument_is_checked_whenever_it_is_assigned(weighted: ModuleType) -> None:
    with pytest.raises(ValueError, match="spread=-1 is not allowed"):
        make(weighted.WeightedFlow, spread=-1)
    model = make(weighted.WeightedFlow)
    model.spread = 0
    with pytest.raises(ValueError, match="spread=0 is not allowed"):
        model.learn(20)


# --- Arguments ---


@pytest.mark.parametrize("name", ["use_sde", "sde_sample_freq", "sde_support", "support_multi_env", "monitor_wrapper"])
def test_what_sb3s_bases_take_and_ours_set_is_refused(weighted: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is no argument of WeightedFlow: leave it out") as caught:
        make(weighted.WeightedFlow, **{name: True})
    assert name not in str(caught.value).partition("It takes")[2]


def test_what_is_the_policys_is_said_to_be(weighted: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"flow_steps is no argument of WeightedFlow: .*policy_kwargs={'flow_steps'"):
        make(weighted.WeightedFlow, flow_steps=3)


def test_net_arch_has_the_keys_of_nets(weighted: ModuleType) -> None:
    class Third(weighted.WeightedPolicy):  # type: ignore[misc, name-defined]
        nets = ("pi", "qf", "vf")

    policy = make(weighted.WeightedFlow).policy
    with pytest.raises(ValueError, match=r"net='vf' is not allowed: WeightedPolicy.nets has .*add it"):
        policy.arch("vf", [8])
    widths = {"policy_kwargs": {"net_arch": {"pi": [8, 8], "vf": [4]}}}
    assert make(weighted.WeightedFlow, policy=Third, **widths).policy.arch("vf", [8]) == [4]


def test_the_bases_arguments_have_defaults(weighted: ModuleType) -> None:
    model = weighted.WeightedFlow("MlpPolicy", RandomEnv())
    assert (model.horizon_length, model.bc_coef, model.compile, model.offline_dataset) == (1, 0.0, False, None)
    assert model.learning_starts == 5_000
    assert model.policy.critic_kind.has_target


# --- Nets beside actor and critic ---


def with_third(weighted: ModuleType, key: str, optimizer: bool = True, listed: bool = True) -> type[Any]:
    """The page's algorithm with a third net, which draws numbers in training mode."""

    class ThirdActor(weighted.WeightedActor):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.velocity = nn.Sequential(nn.Dropout(0.5), nn.Linear(self.features_dim, self.chunk_dim))

        def action(self, obs: Any, noise: th.Tensor) -> th.Tensor:
            features = self.extract_features(obs, self.features_extractor)
            return th.tanh(self.velocity(features) + noise)

    class ThirdPolicy(weighted.WeightedPolicy):  # type: ignore[misc, name-defined]
        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            arguments = {"chunk_dim": self.chunk_dim, "net_arch": [8, 8], "flow_steps": 1}
            self.third = ThirdActor(**self.net_arguments(), **arguments)
            self.third_target = deepcopy(self.third)
            self.actor._third = (self.third,)  # asked, not owned
            if optimizer:
                self.third.optimizer = self._make_optimizer(self.third, lr_schedule)

    class Third(weighted.WeightedFlow):  # type: ignore[misc, name-defined]
        policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": ThirdPolicy}

        @property
        def third(self) -> Any:
            return self.policy.third

        @property
        def _nets(self) -> dict[str, Any]:
            return {**super()._nets, **({key: self.third} if listed else {})}

    return Third


def test_a_third_net_is_saved_and_acts_in_evaluation_mode(weighted: ModuleType, tmp_path: Path) -> None:
    model = make(with_third(weighted, "third"))
    model.policy.set_training_mode(True)
    assert model.third.training
    target = model.policy.third_target.train(True)
    model.predict(OBS)
    assert not model.third.training
    assert target.training  # a target's own
    model.save(tmp_path / "model")
    assert "third.optimizer" in model.get_parameters()


def test_a_net_that_the_actor_asks_moves_with_what_is_exported(weighted: ModuleType) -> None:
    acting = deepcopy(ActingPolicy(make(with_third(weighted, "third")).policy)).to("meta")
    (asked,) = acting.actor._third
    assert all(tensor.is_meta for tensor in asked.state_dict().values())
    assert not asked.training


def test_a_net_that_nothing_trains_is_asked_in_evaluation_mode_from_the_first_update_on(weighted: ModuleType) -> None:
    seen = []

    class Watched(with_third(weighted, "third", optimizer=False, listed=False)):  # type: ignore[misc]
        def _critic_loss(self, batch: Any, noise: th.Tensor) -> Any:
            seen.append(self.third.training)
            return super()._critic_loss(batch, noise)

    data = {"offline_dataset": regular_arrays(trajectories([20])), "offline_steps": 3}
    make(Watched, **data).learn(3)
    assert seen == [False] * 3


def test_a_net_that_could_not_be_saved_is_refused_before_training(weighted: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"Third._nets key='flow' is not allowed: Third.flow has to be that net"):
        make(with_third(weighted, "flow"))
    with pytest.raises(ValueError, match=r"Third.third='ThirdActor' is not allowed: it has no optimizer; .*_build"):
        make(with_third(weighted, "third", optimizer=False))

    class Plain(weighted.WeightedFlow):  # type: ignore[misc, name-defined]
        _nets = property(lambda self: {**super()._nets, "velocity": self.actor.velocity})

    with pytest.raises(ValueError, match=r"Plain.velocity='ODEVelocity' is not allowed: its nets have to be SB3's"):
        make(Plain)


def test_an_update_of_a_net_that_is_not_listed_says_so(weighted: ModuleType) -> None:
    class Unlisted(with_third(weighted, "third", listed=False)):  # type: ignore[misc]
        def train(self, gradient_steps: int, batch_size: int = 8) -> None:
            for batch, log in self._batches(gradient_steps, batch_size):
                self._update(self.third, log, self._critic_loss_fn, batch, self.actor.sample_noise(8))

    with pytest.raises(ValueError, match=r"Unlisted updates a ThirdActor that is none of its _nets, actor, critic"):
        make(Unlisted).learn(12)


# --- Losses ---


class Bare(NamedTuple):
    """A result that says nothing of itself."""

    loss: th.Tensor
    made_of: dict[str, th.Tensor] = {}  # noqa: RUF012
    logged: dict[str, th.Tensor] = {}  # noqa: RUF012


def with_loss(weighted: ModuleType, result: Any, **kwargs: Any) -> Any:
    class Other(weighted.WeightedFlow):  # type: ignore[misc, name-defined]
        def _actor_loss(self, batch: Any, line: Any, noise: th.Tensor) -> Any:
            return result(self.actor.action(batch.observations, noise).square().mean())

    return make(Other, **kwargs)


def swapped(weighted: ModuleType, **kwargs: Any) -> Any:
    class Swapped(weighted.WeightedFlow):  # type: ignore[misc, name-defined]
        def train(self, gradient_steps: int, batch_size: int = 8) -> None:
            for batch, log in self._batches(gradient_steps, batch_size):
                self._update(self.actor, log, self._critic_loss_fn, batch, self.actor.sample_noise(batch_size))

    return make(Swapped, **kwargs)


def test_a_loss_that_does_not_depend_on_its_net_is_no_training(weighted: ModuleType) -> None:
    with pytest.raises(ValueError, match="no gradient by any parameter of the WeightedActor that it is to train"):
        swapped(weighted).learn(14)
    frozen = swapped(weighted)
    frozen.actor.requires_grad_(False)
    frozen.learn(14)  # by the user


def test_a_loss_that_was_not_prepared_says_how(weighted: ModuleType) -> None:
    class Unprepared(weighted.WeightedFlow):  # type: ignore[misc, name-defined]
        def _compiled_loss(self, loss_fn: Any) -> Any:
            return loss_fn

    with pytest.raises(ValueError, match=r"the loss of critic=.*make it in _setup_model, by self._compiled_loss"):
        make(Unprepared).learn(14)


def test_encoded_observations_say_that_they_are(weighted: ModuleType) -> None:
    class Repeats(weighted.WeightedFlow):  # type: ignore[misc, name-defined]
        def _actor_loss(self, batch: Any, line: Any, noise: th.Tensor) -> Any:
            batch.observations.repeat(2, 1)

    shared = {"policy_kwargs": {"net_arch": [8, 8], "share_features_extractor": True}}
    with pytest.raises(AttributeError, match=r"encoded already .* have no repeat: .*extract_features"):
        make(Repeats, **shared).learn(14)


def test_an_onnx_file_with_noise_needs_its_rows_on_an_axis(weighted: ModuleType, tmp_path: Path) -> None:
    model = make(weighted.WeightedFlow)
    model.actor.noise_shape = lambda batch_size: (3 * batch_size, model.actor.chunk_dim)
    with pytest.raises(
        ValueError, match=r"WeightedActor.noise_shape\(B=2\)=\(6, 2\) is not allowed: B has to be an axis"
    ):
        export_onnx(model, tmp_path / "weighted.onnx", deterministic=False)


def test_a_loss_may_log_nothing(weighted: ModuleType) -> None:
    model = with_loss(weighted, Bare)
    before = [parameter.clone() for parameter in model.actor.parameters()]
    model.learn(14)
    assert any((old != new).any() for old, new in zip(before, model.actor.parameters(), strict=True))
    assert "train/actor_loss" not in model.logger.name_to_value


@pytest.mark.parametrize(
    "result",
    [lambda loss: loss, lambda loss: (loss,), lambda loss: Bare(loss, logged={"actor_loss": float(loss.detach())})],
    ids=["tensor", "tuple", "number"],
)
def test_a_loss_that_returns_something_else_says_what_it_has_to_be(weighted: ModuleType, result: Any) -> None:
    with pytest.raises(ValueError, match=r"what _actor_loss returns=.*a NamedTuple with the tensor `loss`"):
        with_loss(weighted, result).learn(14)


# --- With an entropy term ---


def entropic(weighted: ModuleType) -> type[Any]:
    class Entropic(MaxEntropyAlgorithm):
        policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": weighted.WeightedPolicy}

        def _setup_model(self) -> None:
            super()._setup_model()
            self.actor_updates = 0

        def train(self, gradient_steps: int, batch_size: int = 8) -> None:
            for batch, log in self._batches(gradient_steps, batch_size):
                if self._updates_actor:
                    self.actor_updates += 1
                    self._update_temperature(th.zeros(len(batch.actions)), log)

    return Entropic


def test_a_temperature_needs_nothing_of_the_subclass(weighted: ModuleType, tmp_path: Path) -> None:
    model = make(entropic(weighted), policy_delay=2)
    assert model.target_entropy == -float(np.prod(ACTION.shape))  # SAC's
    assert float(model.temperature.value) == 1.0
    model.learn(20)
    assert model.actor_updates == 5
    # The entropy, 0, is higher than its target
    assert float(model.temperature.value) < 1.0
    model.save(tmp_path / "model")
    loaded = entropic(weighted).load(tmp_path / "model")
    assert loaded.temperature.value == model.temperature.value
    assert make(entropic(weighted), ent_coef=0.2, target_entropy=-3).target_entropy == -3.0


def test_alpha_follows_the_critics_rate(weighted: ModuleType) -> None:
    model = make(entropic(weighted), qf_learning_rate=lambda left: 1e-2 * left).learn(20)
    assert model.ent_coef_optimizer.param_groups[0]["lr"] == model.critic.optimizer.param_groups[0]["lr"] < 1e-3


@pytest.mark.parametrize("name", ["ent_coef", "qf_learning_rate", "policy_delay"])
def test_none_is_no_default_where_nobody_knows_one(weighted: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=None is not allowed: leave it out for the default"):
        make(entropic(weighted), **{name: None})


# --- rl-zoo3 ---


@pytest.fixture
def unregistered() -> Iterator[None]:
    tables = (ALGORITHMS, ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER)
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


@pytest.mark.usefixtures("unregistered")
def test_the_zoo_takes_its_yaml_and_its_class(
    weighted: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weighted.yml").write_text("default:\n  n_timesteps: !!float 30\n  policy: MlpPolicy\n  learning_starts: 5\n")
    register_algorithm("weighted", weighted.WeightedFlow, "weighted.yml")
    register_algorithm("weighted", weighted.WeightedFlow, "weighted.yml")  # again, as two imports would
    assert isinstance(ALGORITHMS["weighted"].search, Unsearched)
    monkeypatch.chdir("/")
    arguments = type("Arguments", (), {})()
    manager = ExperimentManager(
        arguments, "weighted", "Pendulum-v1", str(tmp_path / "logs"), hyperparams={"spread": 0.5}, device="cpu", seed=1
    )
    model, _ = manager.setup_experiment()
    assert isinstance(model, weighted.WeightedFlow)
    assert (model.spread, model.learning_starts) == (0.5, 5)
    model.get_env().close()


def test_its_search_space_draws_its_own_and_the_policys(weighted: ModuleType) -> None:
    study = optuna.create_study()
    for name, value in {"n_timesteps": "100", "policy_kwargs": "{}"}.items():
        study.set_user_attr(name, value)
    drawn = weighted.WeightedSearch().sample(study.ask(), 1, 1, {})
    model = make(weighted.WeightedFlow, **{name: drawn[name] for name in ("spread", "gamma", "policy_kwargs")})
    assert model.spread == drawn["spread"]
    assert model.actor.flow_steps == drawn["policy_kwargs"]["flow_steps"]


@pytest.mark.usefixtures("unregistered")
def test_what_the_zoo_could_not_use_is_refused(weighted: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "weighted.yml"
    with pytest.raises(ValueError, match=r"config=.*weighted.yml' is not allowed: there is no such file"):
        register_algorithm("weighted", weighted.WeightedFlow, config)
    config.write_text("default: {}\n")
    with pytest.raises(ValueError, match=r"name='fql' is not allowed: rl-zoo3 has .*FQL.* choose another"):
        register_algorithm("fql", weighted.WeightedFlow, config)
    with pytest.raises(ValueError, match="name='sac' is not allowed"):
        register_algorithm("sac", weighted.WeightedFlow, config)
    with pytest.raises(ValueError, match="algorithm=<class 'dict'> is not allowed: a subclass of"):
        register_algorithm("weighted", dict, config)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"name='fql' is"):  # what we say of ours would be lost
        register_algorithm("fql", FQL, config)
    with pytest.raises(ValueError, match=r"search=<class .*an instance of a subclass"):
        register_algorithm("weighted", weighted.WeightedFlow, config, QSMSearch)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="register_algorithm"):
        Unsearched().space({}, 1)


@pytest.mark.slow
def test_ours_are_known_where_a_custom_envs_of_ones_own_shadows_ours(tmp_path: Path) -> None:
    lines = (
        "from sb3_flow import FQL",
        "from sb3_flow.zoo import register_algorithm as add",
        "add('fql', FQL, __file__)",
    )
    (tmp_path / "custom_envs.py").write_text("\n".join(lines))
    ran = subprocess.run([sys.executable, "-c", "import custom_envs"], cwd=tmp_path, capture_output=True, text=True)
    assert "name='fql' is not allowed: rl-zoo3 has" in ran.stderr
