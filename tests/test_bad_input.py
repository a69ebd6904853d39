"""What cannot work is refused before training, and training stops at the first number that is not finite."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from gymnasium import spaces
from helpers import (
    EVERY_KIND,
    EVERY_MODEL,
    FQLS,
    GUESTS,
    ONE_OF_EACH,
    POLICIES,
    SAC_FLOWS,
    VARIANTS,
    RandomEnv,
    differences,
    make_any,
    make_model,
    make_variant,
    observations,
    policy_kwargs,
    snapshot,
    taking,
)
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from torch import nn

from sb3_flow import FQL, FlowPolicy, FlowTPolicy, SACFlow
from sb3_flow.common.checks import check_finite
from sb3_flow.common.flow import Velocity
from sb3_flow.common.log import Log
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.common.velocity import VelocityNet

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
INF = float("inf")
NAN = float("nan")


def assert_refused(name: str, value: Any, allowed: str, variant: str | None = None, **kwargs: Any) -> None:
    """It must be a ValueError that names the argument, its value and what is allowed."""
    make = make_model if variant is None else partial(make_variant, variant)
    with pytest.raises(ValueError, match=name) as error:
        make(**kwargs)
    message = str(error.value)
    assert f"{name}={value!r}" in message
    assert allowed in message


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("flow_steps", 0, "an integer >= 1"),
        ("flow_steps", -1, "an integer >= 1"),
        ("flow_steps", 2.5, "an integer >= 1"),
        ("rollout", "ode", "'sde', 'noise'"),
        ("critic", "sac", "'crossq', 'categorical', 'xqc', 'flashsac', 'target'"),
        ("noise_std", 0.0, "> 0"),
        ("noise_std", -0.1, "> 0"),
        ("noise_std", INF, "> 0"),
        ("noise_std", NAN, "> 0"),
        ("noise_std", "0.1", "> 0"),
        ("n_critics", 0, "an integer >= 1"),
        ("n_critics", 1.5, "an integer >= 1"),
        ("log_std_range", (0.0, -5.0), "lowest"),
        ("log_std_range", (-1.0, -1.0), "lowest"),
        ("log_std_range", (-5.0, 0.0, 2.0), "lowest"),
        ("log_std_range", (-INF, 0.0), "lowest"),
        ("log_std_range", (NAN, 0.0), "lowest"),
        ("log_std_range", 3, "lowest"),
        ("log_std_range", ("a", "b"), "lowest"),
        ("net_arch", 256, "integer >= 1"),
        ("net_arch", {"qf": 256}, "integer >= 1"),
        ("net_arch", {"vf": [16]}, "'qf'"),
        ("net_arch", {"qf": [16], "actor": [16]}, "'qf'"),
        ("net_arch", {"qf": [0]}, "integer >= 1"),
        ("net_arch", {"qf": [16, -1]}, "integer >= 1"),
        ("net_arch", {"qf": [16.5]}, "integer >= 1"),
    ],
)
def test_policy_arguments_are_checked(policy: str, name: str, value: Any, allowed: str) -> None:
    assert_refused(name, value, allowed, policy=policy, net={name: value})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("n_heads", 3, "must divide d_model=16"),
        ("n_heads", 0, "integer >= 1"),
        ("d_model", 15, "even number"),
        ("d_model", 0, "integer >= 1"),
        ("d_model", -16, "integer >= 1"),
        ("d_model", 16.0, "an integer >= 1"),
        ("n_heads", 2.0, "an integer >= 1"),
        ("n_layers", 0, "an integer >= 1"),
        ("n_layers", 1.5, "an integer >= 1"),
        ("state_tokens", 0, "an integer >= 1"),
        ("net_arch", {"pi": [16], "qf": [16]}, "d_model"),
    ],
)
def test_transformer_arguments_are_checked(name: str, value: Any, allowed: str) -> None:
    assert_refused(name, value, allowed, policy="FlowTPolicy", net={name: value})


@pytest.mark.parametrize("policy", ["FlowGPolicy", "FlowMLPPolicy"])
@pytest.mark.parametrize("net_arch", [{"pi": []}, []], ids=str)
def test_actors_need_a_hidden_layer(policy: str, net_arch: Any) -> None:
    with pytest.raises(ValueError, match="net_arch="):
        make_model(policy, net={"net_arch": net_arch})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("bc_coef", -1.0, ">= 0"),
        ("bc_coef", NAN, ">= 0"),
        ("bc_coef", INF, ">= 0"),
        ("ent_coef", -0.1, ">= 0"),
        ("ent_coef", NAN, ">= 0"),
        ("ent_coef", INF, ">= 0"),
        ("ent_coef", "automatic", "'auto'"),
        ("ent_coef", "auto0.1", "'auto'"),
        ("ent_coef", "auto_", "'auto'"),
        ("ent_coef", "auto_x", "'auto'"),
        ("ent_coef", "auto_0", "'auto'"),
        ("ent_coef", "auto_-1", "'auto'"),
        ("ent_coef", "auto_inf", "'auto'"),
        ("ent_coef", "", "'auto'"),
        ("target_entropy", "low", "'auto'"),
        ("target_entropy", NAN, "'auto'"),
        ("policy_delay", 0, "an integer >= 1"),
        ("policy_delay", -3, "an integer >= 1"),
        ("policy_delay", 1.5, "an integer >= 1"),
        ("batch_size", 8.5, "an integer >= 2"),
        ("n_steps", 1.5, "an integer >= 1"),
        ("gamma", 1.5, "[0, 1]"),
        ("tau", 2.0, "[0, 1]"),
        ("target_entropy", None, "'auto'"),
        ("n_steps", 0, "an integer >= 1"),
        ("use_sde", True, "noise_std"),
    ],
)
def test_algorithm_arguments_are_checked(policy: str, name: str, value: Any, allowed: str) -> None:
    assert_refused(name, value, allowed, policy=policy, **{name: value})


@pytest.mark.parametrize("variant", GUESTS)
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("batch_size", 8.5, "an integer >= 2"),
        ("batch_size", 1, "an integer >= 2"),
        ("n_steps", 1.5, "an integer >= 1"),
        ("horizon_length", 0, "an integer >= 1"),
        ("gamma", 1.5, "[0, 1]"),
        ("compile", "fast", "True, 'max'"),
        ("learning_rate", "1e-3", "a number or a schedule"),
    ],
)
def test_algorithm_arguments_of_guests_are_checked(variant: str, name: str, value: Any, allowed: str) -> None:
    assert_refused(name, value, allowed, variant=variant, **{name: value})


@pytest.mark.parametrize("name", taking("tau", GUESTS))
def test_the_share_of_the_target_is_checked(name: str) -> None:
    assert_refused("tau", NAN, "[0, 1]", variant=name, tau=NAN)


@pytest.mark.parametrize("name", [name for name in taking("bc_coef", GUESTS) if name != "qc"])
@pytest.mark.parametrize("value", [-1.0, NAN, INF])
def test_the_weight_of_the_data_is_a_number_of_at_least_zero(value: float, name: str) -> None:
    assert_refused("bc_coef", value, ">= 0", variant=name, bc_coef=value)


@pytest.mark.parametrize("name", ["learning_rate", "bc_coef", "gamma", "tau"])
def test_numpys_numbers_are_numbers_for_fql(name: str) -> None:
    make_variant("fql", **{name: np.float32(0.125)}).learn(13)


@pytest.mark.parametrize("name", ["learning_rate", "qf_learning_rate", "bc_coef", "gamma", "tau", "ent_coef"])
def test_numpys_numbers_are_numbers(name: str) -> None:
    make_model(**{name: np.float32(0.125)}).learn(13)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda progress: -1.0,
        lambda progress: progress - 0.5,
        lambda progress: 0.5 - progress,
        lambda progress: 1.0 if abs(progress - 0.5) > 0.2 else -1.0,
    ],
    ids=["always", "at the end", "at the start", "in between"],
)
@pytest.mark.parametrize("name", ["flow_t", "fql"])
def test_a_negative_bc_schedule_is_refused(schedule: Any, name: str) -> None:
    with pytest.raises(ValueError, match=r"bc_coef=-.* >= 0"):
        make_variant(name, bc_coef=schedule)


RATES = [(name, "learning_rate") for name in (*VARIANTS, "reinflow")]
RATES += [(name, "qf_learning_rate") for name in taking("qf_learning_rate", list(VARIANTS))]
RATES += [("reinflow", "vf_learning_rate"), ("reinflow", "clip_range")]


@pytest.mark.parametrize(
    "value",
    [-1e-3, NAN, INF, lambda progress: progress - 0.5],
    ids=["negative", "nan", "infinite", "falls below 0"],
)
@pytest.mark.parametrize(("variant", "name"), RATES)
def test_a_rate_is_a_number_of_at_least_zero(variant: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.*a number >= 0"):
        make_any(variant, **{name: value})
    model = make_any(variant)
    setattr(model, name, value)
    with pytest.raises(ValueError, match=f"{name}=.*a number >= 0"):
        model.learn(20)


@pytest.mark.parametrize(("variant", "name"), RATES)
def test_a_schedule_that_goes_wrong_between_the_tries_changes_nothing_more(variant: str, name: str) -> None:
    model = make_any(variant, **{name: lambda progress: NAN if 0.3 < progress < 0.45 else 1e-3})
    with pytest.raises(ValueError, match=f"{name}=nan.*a number >= 0, at every progress"):
        model.learn(60)
    assert model._n_updates > 0
    assert all(th.isfinite(tensor).all() for tensor in snapshot(model).values())


def test_a_batch_needs_two_transitions_to_be_normalized() -> None:
    assert_refused("batch_size", 1, ">= 2", batch_size=1)


@pytest.mark.parametrize("policy", ["NoSuchPolicy", "flowtpolicy", ""])
def test_an_unknown_policy_is_refused(policy: str) -> None:
    with pytest.raises(ValueError, match=f"policy={policy!r}.*'FlowTPolicy', 'FlowGPolicy', 'FlowMLPPolicy'"):
        SACFlow(policy, RandomEnv())


def test_a_policy_without_a_velocity_net_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy=.*FlowPolicy.*it does not define make_velocity"):
        SACFlow(FlowPolicy, RandomEnv())


class Net(VelocityNet):
    """A velocity net with faults."""

    def __init__(self, features_dim: int, chunk_dim: int, fault: str):
        super().__init__()
        self.fault = fault
        self.layer = nn.Linear(features_dim + chunk_dim + 1, chunk_dim + (fault == "width"))

    def forward(self, context: th.Tensor, x: th.Tensor, t: th.Tensor) -> Any:
        time = t if self.fault == "time" else t.expand(x.shape[0], 1)
        v = self.layer(th.cat([context, x, time], dim=1))
        return v if self.fault == "no log-std" else Velocity(v, th.zeros(1, 1) if self.fault == "width" else v)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("module", r"Faulty.make_velocity returned a Linear; it must be a VelocityNet"),
        ("time", r"Faulty.make_velocity: Net fails for features \(3, 3\), x \(3, 2\) and t \(1, 1\) \(RuntimeError"),
        ("no log-std", r"Net fails for .*it must return Velocity\(v, log_std\), both for x"),
        ("width", r"Net returned a velocity of shape \(3, 3\), which must be that of x"),
    ],
)
def test_a_velocity_net_that_does_not_fit_is_refused_at_once(fault: str, message: str) -> None:
    class Faulty(FlowPolicy):
        def make_velocity(self, features_dim: int) -> Any:
            return nn.Linear(3, 3) if fault == "module" else Net(features_dim, self.chunk_dim, fault)

    with pytest.raises(ValueError, match=message):
        SACFlow(Faulty, RandomEnv())


def test_an_argument_that_a_policy_of_ones_own_could_take_may_be_added_there() -> None:
    class Own(FlowTPolicy):
        pass

    with pytest.raises(ValueError, match=r"xyz is no argument of Own: leave it out, or add it to Own.__init__. It tak"):
        SACFlow(Own, RandomEnv(), policy_kwargs={"xyz": 1})


def test_a_policy_of_another_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy=.*SACPolicy.*FlowPolicy"):
        SACFlow(stable_baselines3.sac.MlpPolicy, RandomEnv())


@pytest.mark.parametrize("variant", [*SAC_FLOWS, "fql", "dime"])
@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 2]),
        spaces.MultiBinary(3),
        spaces.Box(-INF, INF, (2,), np.float32),
        spaces.Box(0.0, INF, (2,), np.float32),
        spaces.Box(np.array([-1.0, -INF], np.float32), np.ones(2, np.float32)),
        spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 0.0], np.float32)),
        spaces.Box(-1.0, 1.0, (0,), np.float32),
        spaces.Box(-10, 10, (2,), np.int32),
    ],
    ids=str,
)
def test_action_spaces_without_a_finite_range_are_refused(variant: str, action_space: spaces.Space[Any]) -> None:
    allowed = "Box"
    if isinstance(action_space, spaces.Box):
        allowed = "low must be below high" if action_space.is_bounded() else "finite"
        allowed = "float32" if action_space.dtype == np.int32 else allowed
    assert_refused("action_space", action_space, allowed, variant=variant, env=RandomEnv(action_space=action_space))


def test_a_registered_discrete_environment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"action_space=Discrete\(2\).*Box"):
        SACFlow("FlowTPolicy", "CartPole-v1")


@pytest.mark.parametrize("variant", [*SAC_FLOWS, "fql", "dime"])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple([VECTOR, VECTOR]),
        spaces.Dict({"a": VECTOR, "nested": spaces.Dict({"b": VECTOR})}),
        spaces.Dict({"a": VECTOR, "pair": spaces.Tuple([VECTOR, VECTOR])}),
        spaces.Text(5),
        spaces.Dict({}),
    ],
    ids=["tuple", "nested dict", "tuple in a dict", "text", "empty dict"],
)
def test_observations_that_sb3_cannot_preprocess_are_refused(variant: str, space: spaces.Space[Any]) -> None:
    assert_refused("observation_space", space, "FlattenObservation", variant=variant, env=RandomEnv(space))


@pytest.mark.parametrize("space", [spaces.Discrete(4, start=1), spaces.MultiDiscrete([3, 3], start=[0, 1])], ids=str)
def test_observations_that_do_not_count_from_0_are_refused(space: spaces.Space[Any]) -> None:
    for observation_space in (space, spaces.Dict({"a": VECTOR, "b": space})):
        with pytest.raises(ValueError, match=r"observation_space=.*its numbers must begin at 0; subtract `start`"):
            make_model("MultiInputPolicy", RandomEnv(observation_space))


def test_observations_without_a_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"observation_space=.*it has no numbers"):
        make_model(env=RandomEnv(spaces.Box(-1, 1, (0,))))


@pytest.mark.parametrize("name", EVERY_KIND)
def test_what_is_no_environment_is_refused(name: str) -> None:
    algorithm = type(make_any(name))
    for env in (None, RandomEnv, [RandomEnv()], lambda: RandomEnv()):
        with pytest.raises(ValueError, match=r"env=.* is not allowed: an environment, its id, or a VecEnv"):
            algorithm("MlpPolicy", env, device="cpu")


@pytest.mark.parametrize(
    "space", [spaces.Box(-1.0, 1.0, (), np.float32), spaces.MultiDiscrete(np.array([[2, 3], [2, 2]]))], ids=str
)
def test_observations_of_another_rank_are_refused(space: spaces.Space[Any]) -> None:
    assert_refused("observation_space", space, "reshape the observations", env=RandomEnv(space))
    with pytest.raises(ValueError, match="reshape the observations"):
        make_model("MultiInputPolicy", RandomEnv(spaces.Dict({"a": space})))


@pytest.mark.parametrize("name", [*SAC_FLOWS, "fql", "dime"])
def test_images_too_small_for_the_cnn_are_refused(name: str) -> None:
    space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"observation_space=Box.*NatureCNN.*features_extractor_class.*36 x 36"):
        make_variant(name, RandomEnv(space), buffer_size=10)


def test_the_cnn_is_refused_for_vectors() -> None:
    net = {"features_extractor_class": stable_baselines3.common.torch_layers.NatureCNN}
    with pytest.raises(ValueError, match=r"observation_space=Box.*cannot be encoded by NatureCNN"):
        make_model(net=net)


@pytest.mark.parametrize("name", ["flow_t", "fql"])
@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_dict_observations_want_the_multi_input_alias(policy: str, name: str) -> None:
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make_variant(name, policy=policy, env=RandomEnv(spaces.Dict({"a": VECTOR})))


@pytest.mark.parametrize("policy", ["MultiInputPolicy", "FlowGPolicy", "FlowMLPPolicy"])
def test_n_step_returns_of_dict_observations_are_refused(policy: str) -> None:
    assert_refused("n_steps", 3, "n_steps=1", policy=policy, n_steps=3, env=RandomEnv(spaces.Dict({"a": VECTOR})))


def test_n_step_returns_of_dict_observations_are_refused_by_fql() -> None:
    assert_refused("n_steps", 3, "n_steps=1", variant="fql", n_steps=3, env=RandomEnv(spaces.Dict({"a": VECTOR})))


def test_n_step_returns_of_hindsight_replay_are_refused() -> None:
    env = BitFlippingEnv(n_bits=2, continuous=True)
    assert_refused("n_steps", 2, "n_steps=1", env=env, n_steps=2, replay_buffer_class=HerReplayBuffer)


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        (stable_baselines3.SAC, "Pendulum-v1"),
        (stable_baselines3.TD3, "Pendulum-v1"),
        (stable_baselines3.PPO, "Pendulum-v1"),
        (stable_baselines3.DQN, "CartPole-v1"),
        (sb3_contrib.CrossQ, "Pendulum-v1"),
        (sb3_contrib.TQC, "Pendulum-v1"),
    ],
)
@pytest.mark.parametrize("with_env", [True, False])
@pytest.mark.parametrize("ours", [SACFlow, FQL])
def test_models_of_other_algorithms_are_refused(
    ours: Any, algorithm: Any, env: str, with_env: bool, tmp_path: Path
) -> None:
    size = {} if algorithm is stable_baselines3.PPO else {"buffer_size": 10}
    algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **size).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"policy=.*Policy.*another algorithm"):
        ours.load(tmp_path / "model", env=gym.make("Pendulum-v1") if with_env and env == "Pendulum-v1" else None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("bc_coef", -1.0), ("ent_coef", "auto_x"), ("policy_delay", 0), ("n_steps", 0), ("target_entropy", "low")],
)
def test_arguments_are_checked_when_loading_too(name: str, value: Any, tmp_path: Path) -> None:
    make_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        SACFlow.load(tmp_path / "model", device="cpu", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("bc_coef", -1.0), ("n_steps", 0), ("tau", 2.0), ("best_of_n", 0), ("horizon_length", 2)]
)
def test_arguments_of_fql_are_checked_when_loading_too(name: str, value: Any, tmp_path: Path) -> None:
    make_variant("fql").save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        FQL.load(tmp_path / "model", device="cpu", **{name: value})


@pytest.mark.parametrize("name", EVERY_KIND)
def test_checks_leave_the_users_arguments_as_they_are(name: str) -> None:
    kwargs = policy_kwargs("FlowTPolicy") if name == "flow_t" else {"net_arch": [16]}
    before = dict(kwargs)
    make_any(name, policy_kwargs=kwargs)
    assert kwargs == before


def poisoned(model: OffPolicyFlowAlgorithm, name: str, value: float) -> OffPolicyFlowAlgorithm:
    """Put a value into one number of every transition."""
    tensor = getattr(model.replay_buffer, name)
    tensor[..., 0] = value
    return model


def is_of(net: str, name: str) -> bool:
    """Whether a tensor of a `snapshot` is a net's or its optimizer's."""
    return name.startswith((f"/policy/{net}.", f"/{net}.optimizer"))


def assert_stops(model: OffPolicyFlowAlgorithm, named: str) -> None:
    """Training must name the first bad tensor, and leave everything as it was before that update."""
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=f"`{named}`"):
        model.train(1, batch_size=8)
    changed = differences(before, snapshot(model))
    # FQL's actor is updated before the critic, and that was good
    earlier = isinstance(model, FQL) and named == "critic_loss"
    assert not [name for name in changed if not (earlier and is_of("actor", name))]
    assert all(parameter.requires_grad for parameter in model.critic.parameters())


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
@pytest.mark.parametrize(
    ("buffer", "value", "named"),
    [
        ("rewards", NAN, "rewards"),
        ("rewards", INF, "rewards"),
        ("rewards", -INF, "rewards"),
        ("observations", NAN, "observations"),
        ("observations", INF, "observations"),
        ("next_observations", NAN, "next_observations"),
        ("next_observations", -INF, "next_observations"),
        ("actions", NAN, "actions"),
        # The square of the TD error is not a float32 any more
        ("rewards", 1e38, "critic_loss"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_training_stops_at_bad_replay_data(
    name: str, critic: str | None, buffer: str, value: float, named: str
) -> None:
    model = make_variant(name, critic=critic).learn(13)
    if value == 1e38 and model.critic.support is not None:
        pytest.skip("Its targets end at the support")
    kept = getattr(model.replay_buffer, buffer).copy()
    assert_stops(poisoned(model, buffer, value), named)
    # Nothing is left behind that keeps training from going on
    getattr(model.replay_buffer, buffer)[:] = kept
    model.train(2, batch_size=8)
    assert all(th.isfinite(tensor).all() for tensor in snapshot(model).values())


def test_large_but_finite_observations_are_not_called_bad() -> None:
    # Their sum overflows, and they do not; what overflows next is the normalization's variance
    model = poisoned(make_model().learn(20), "observations", 1e38)
    with pytest.raises(FloatingPointError, match="critic update"):
        model.train(1, batch_size=8)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_key_of_a_bad_dict_observation_is_named(name: str) -> None:
    env = RandomEnv(spaces.Dict({"good": VECTOR, "bad": VECTOR}))
    model = make_variant(name, env).learn(13)
    model.replay_buffer.observations["bad"][:] = NAN
    assert_stops(model, r"observations\['bad'\]")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_exploding_critic_stops_training(name: str) -> None:
    model = make_variant(name).learn(13)
    with th.no_grad():
        for parameter in model.critic.parameters():
            parameter.mul_(1e30)
    before = snapshot(model)
    # Where Q is maximised before the critic's update, it is seen there
    named = "actor update.*`q`" if name in ("fql", "qc_fql") else r"critic update.*`(next_q|target_q|critic_loss)`"
    with pytest.raises(FloatingPointError, match=named):
        model.train(1, batch_size=8)
    changed = differences(before, snapshot(model))
    assert not [each for each in changed if not (name == "qc" and is_of("actor", each))]


@pytest.mark.parametrize(("net", "named"), [("actor", "next_log_prob"), ("critic", "next_q")])
def test_the_first_bad_tensor_of_an_update_is_named(net: str, named: str) -> None:
    model = make_model().learn(20)
    with th.no_grad():
        next(iter(getattr(model, net).parameters())).fill_(NAN)
    with pytest.raises(FloatingPointError, match=f"critic update: `{named}`"):
        model.train(1, batch_size=8)


@pytest.mark.parametrize(
    ("name", "net", "named"),
    [
        ("fql", "actor.behavior", "actor update: `matching_loss`"),
        ("fql", "actor.one_step", "actor update: `bc_loss`"),
        ("fql", "critic_target", "critic update: `next_q`"),
        ("fql", "critic", "actor update: `q`"),
        ("qc", "actor.behavior", "actor update: `matching_loss`"),
        ("qc", "critic_target", "critic update: `next_q`"),
        ("qc", "critic", "critic update: `critic_loss`"),
    ],
)
def test_the_first_bad_tensor_of_an_update_of_fql_is_named(name: str, net: str, named: str) -> None:
    model = make_variant(name).learn(13)
    with th.no_grad():
        next(model.policy.get_submodule(net).parameters()).fill_(NAN)
    optimizer = getattr(model, named.split()[0]).optimizer
    before = [state["step"].item() for state in optimizer.state.values()]
    with pytest.raises(FloatingPointError, match=named):
        model.train(1, batch_size=8)
    assert [state["step"].item() for state in optimizer.state.values()] == before


@pytest.mark.parametrize(("name", "critic"), EVERY_MODEL)
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("net", ["actor", "critic"])
def test_training_stops_at_a_bad_gradient(net: str, value: float, name: str, critic: str | None) -> None:
    model = make_variant(name, critic=critic, sac_flow={"policy_delay": 1}).learn(13)
    hook = next(iter(getattr(model, net).parameters())).register_hook(lambda gradient: gradient * value)
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=f"`{net}_gradient_norm`"):
        model.train(1, batch_size=8)
    changed = differences(before, snapshot(model))
    # The update that came before it was good
    first = ("actor",) if name in FQLS else ("critic", "behavior")
    assert not [each for each in changed if net in first or not any(part in each for part in first)]
    hook.remove()
    model.train(2, batch_size=8)
    assert all(th.isfinite(tensor).all() for tensor in snapshot(model).values())


def test_training_stops_at_a_bad_gradient_of_the_temperature() -> None:
    model = make_model(policy_delay=1).learn(20)
    assert model.log_ent_coef is not None
    with th.no_grad():
        model.log_ent_coef.zero_()  # the loss is a product with it
    before = model.log_ent_coef.clone()
    model._guard.begin()
    model._update_temperature(th.full((8,), 3e38), Log())
    with pytest.raises(FloatingPointError, match="`temperature_gradient_norm`"):
        model._stop_if_bad()
    assert th.equal(model.log_ent_coef, before)


def test_a_hook_on_the_temperature_is_refused_for_nothing_would_call_it() -> None:
    model = make_model(policy_delay=1).learn(20)
    assert model.log_ent_coef is not None
    model.log_ent_coef.register_hook(lambda gradient: gradient)
    with pytest.raises(ValueError, match=r"^log_ent_coef=.*hooks"):
        model.train(1, batch_size=8)


@pytest.mark.parametrize("optimizer", [{}, {"foreach": True}], ids=["fused", "foreach"])
@pytest.mark.parametrize(("factor", "named"), [(NAN, "rewards"), (1e38, "critic_loss")])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_updates_before_the_bad_one_are_kept_and_none_after_it(
    name: str, factor: float, named: str, optimizer: dict[str, Any]
) -> None:
    good, bad = (make_variant(name, net={"optimizer_kwargs": optimizer}).learn(13) for _ in range(2))
    if named == "critic_loss" and good.critic.support is not None:
        pytest.skip("Its targets end at the support")
    good.set_random_seed(0)
    good.train(2, batch_size=8)
    sample, calls = bad.replay_buffer.sample, []

    def third_is_bad(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        batch = sample(*args, **kwargs)
        return batch._replace(rewards=batch.rewards * factor) if len(calls) == 3 else batch

    bad.replay_buffer.sample = third_is_bad
    bad.set_random_seed(0)
    with pytest.raises(FloatingPointError, match=f"`{named}`"):
        bad.train(5, batch_size=8)
    changed = differences(snapshot(good), snapshot(bad))
    # FQL's actor is updated before the critic, and that was good
    earlier = isinstance(bad, FQL) and named == "critic_loss"
    assert not [each for each in changed if not (earlier and is_of("actor", each))]
    assert bad._n_updates == good._n_updates + 1


def test_a_bad_update_is_found_before_there_are_too_many_to_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_flow.common.guard.MOST_RECORDS", 4)
    model = make_model(policy_delay=1).learn(20)
    updates = model._n_updates
    next(iter(model.critic.parameters())).register_hook(lambda gradient: gradient * NAN)
    draws = iter(range(10))
    sample = model.replay_buffer.sample
    monkeypatch.setattr(
        model.replay_buffer, "sample", lambda *args, **kwargs: (next(draws), sample(*args, **kwargs))[1]
    )
    with pytest.raises(FloatingPointError, match="`critic_gradient_norm` has 1 NaN or infinite of 1 values"):
        model.train(9, batch_size=8)
    assert model._n_updates == updates + 1
    assert next(draws) < 4


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"bad_reward": NAN}, "rewards"),
        ({"bad_reward": INF}, "rewards"),
        ({"bad_reward": -INF}, "rewards"),
        ({"bad_reward": 1e38}, "(critic|policy_gradient)_loss"),
        ({"bad_obs": NAN}, "(next_)?observations"),
        ({"bad_obs": INF}, "(next_)?observations"),
        ({"bad_obs": -INF}, "(next_)?observations"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", EVERY_KIND)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_learn_stops_at_a_bad_environment(fault: dict[str, float], named: str, name: str) -> None:
    model = make_any(name, RandomEnv(**fault), batch_size=16)
    if fault == {"bad_reward": 1e38} and getattr(model.critic, "support", None) is not None:
        pytest.skip("Its targets end at the support")
    with pytest.raises(FloatingPointError, match=f"`{named}`.*VecCheckNan"):
        model.learn(60)
    assert 15 < model.num_timesteps < 60
    assert all(th.isfinite(tensor).all() for tensor in snapshot(model).values())
    assert np.isfinite(model.predict(observations(model))[0]).all()


def test_the_message_counts_the_bad_values() -> None:
    model = poisoned(make_model().learn(20), "observations", NAN)
    with pytest.raises(FloatingPointError, match=r"replay batch: `observations` has 8 NaN or infinite of 24 values"):
        model.train(1, batch_size=8)


def test_whole_numbers_are_not_looked_at() -> None:
    images = th.zeros(2, 3, 64, 64, dtype=th.uint8, device="meta")  # which has no numbers to look at
    check_finite("replay batch", observations={"image": images})
