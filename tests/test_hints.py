"""What does nothing, or cannot be, is said before an hour of training has passed."""

from typing import Any

import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from helpers import ONE_OF_EACH, VARIANTS, RandomEnv, make_any, make_model, make_variant, taking, warned
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv

from sb3_flow.common.flow import auto_target_entropy, constant_entropy


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_ends_before_learning_begins_is_pointed_out_once(name: str) -> None:
    model = make_variant(name, learning_starts=20)
    (message,) = warned(lambda: model.learn(20))
    assert "learn(20) ends before learning begins: 20 steps are random" in message
    assert not warned(lambda: model.learn(1, reset_num_timesteps=False))  # as loops of short calls have it
    assert not warned(lambda: make_variant(name, learning_starts=20).learn(21))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_random_steps_of_a_loaded_model_are_pointed_out(name: str, tmp_path: Any) -> None:
    make_variant(name).learn(12).save(tmp_path / "model")

    def load(**kwargs: Any) -> Any:
        return VARIANTS[name].algorithm.load(tmp_path / "model", env=RandomEnv(), device="cpu", **kwargs)

    (message,) = warned(lambda: load().learn(11))
    assert "its first 10 steps are random, though this model has learned" in message
    assert not warned(lambda: load().learn(1, reset_num_timesteps=False))
    assert not warned(lambda: load(learning_starts=0).learn(1))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_schedule_that_jumps_because_the_run_gets_longer_is_pointed_out(name: str) -> None:
    model = make_variant(name, learning_rate=lambda progress: 1e-3 * progress)
    assert not warned(lambda: model.learn(20, callback=lambda locals_, _: locals_["self"].num_timesteps < 5))
    assert not warned(lambda: model.learn(15, reset_num_timesteps=False))  # to the end that it was made for
    (message,) = warned(lambda: model.learn(20, reset_num_timesteps=False))
    assert "learning_rate jumps from 0 to 0.0005" in message
    assert not warned(lambda: make_variant(name).learn(12).learn(1, reset_num_timesteps=False))


def test_xqcs_own_schedule_is_pointed_out() -> None:
    model = make_model(critic="xqc").learn(12)
    (message,) = warned(lambda: model.learn(12, reset_num_timesteps=False))
    assert "qf_learning_rate jumps from 3e-05 to 0.000165" in message


def test_what_concerns_the_environment_alone_is_pointed_out_if_it_is_never_stepped() -> None:
    def model(**kwargs: Any) -> Any:
        data = regular_arrays(trajectories([20, 30]))
        return make_model(critic="target", offline_dataset=data, learning_starts=0, **kwargs)

    given: dict[str, Any] = {"offline_ratio": 0.5, "bc_coef": (3.0, 1.0)}
    (message,) = warned(lambda: model(offline_steps=50, **given).learn(10))
    assert "never steps the environment" in message
    assert "offline_ratio, the second bc_coef will do nothing" in message
    assert not warned(lambda: model(offline_steps=50, bc_coef=3.0).learn(10))
    assert not warned(lambda: model(offline_steps=9, **given).learn(10))
    assert not warned(lambda: model(**given).learn_offline(10))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("sde_sample_freq", "own noise explores"),
        ("target_update_interval", "follow by tau"),
        ("learning_start", "did you mean learning_starts"),
        ("xyz", "It takes policy, env, learning_rate"),
    ],
)
def test_arguments_that_are_sb3s_or_none_are_refused_with_ours(name: str, argument: str, named: str) -> None:
    if argument == "target_update_interval" and name == "dime":
        named = "no target critics"
    algorithm = VARIANTS[name].algorithm.__name__
    with pytest.raises(ValueError, match=rf"{argument} is no argument of {algorithm}: .*{named}"):
        make_variant(name, **{argument: 1})


@pytest.mark.parametrize("name", [*VARIANTS, "reinflow"])
@pytest.mark.parametrize("policy", [None, "CnnPolicy"])
def test_arguments_of_sb3s_policies_are_refused_with_ours(name: str, policy: str | None) -> None:
    with pytest.raises(ValueError, match=r"activation_fn is no argument of .*set net_arch; .*net_arch"):
        make_any(name, net={"activation_fn": th.nn.ReLU}, policy=policy)


def test_load_refuses_arguments_that_are_none(tmp_path: Any) -> None:
    make_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="bc_coeff is no argument of SACFlow: did you mean bc_coef"):
        type(make_model()).load(tmp_path / "model", bc_coeff=3.0)


# --- The target entropy ---


@pytest.mark.parametrize("likelihood", ["action", "path"])
@pytest.mark.parametrize("kind", ["sde", "noise"])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_the_automatic_target_is_in_reach_of_a_low_bound(steps: int, kind: Any, likelihood: Any) -> None:
    reach = constant_entropy(3, steps, -3.0, kind, likelihood)
    target = auto_target_entropy(3, steps, kind, None, likelihood, highest_log_std=-3.0)
    assert target == pytest.approx(min(reach - 3, auto_target_entropy(3, steps, kind, None, likelihood)))
    assert auto_target_entropy(3, steps, kind, None, likelihood, highest_log_std=9.0) == auto_target_entropy(
        3, steps, kind, None, likelihood
    )


def test_alpha_falls_with_a_range_as_the_docs_recommend_it() -> None:
    net = {"log_std_range": (-5, -3)}
    model = make_model(net=net, qf_learning_rate=0.02, learning_rate=3e-3, policy_delay=1, ent_coef="auto_1.0").learn(
        80
    )
    assert model.log_ent_coef is not None
    assert model.log_ent_coef.exp() < 0.8


def test_a_tau_without_target_nets_is_pointed_out() -> None:
    for critic in ("crossq", "categorical"):
        (message,) = warned(lambda critic=critic: make_model(critic=critic, tau=0.05))
        assert f"tau=0.05 does nothing: '{critic}' critics have no target nets" in message
        assert not warned(lambda critic=critic: make_model(critic=critic, tau=0.005))
    for critic in ("target", "xqc"):
        assert not warned(lambda critic=critic: make_model(critic=critic, tau=0.05))


@pytest.mark.parametrize("net", [{"log_std_range": (-5, -3)}, {"noise_std": 0.01}], ids=str)
def test_a_target_that_is_out_of_reach_is_pointed_out(net: dict[str, Any]) -> None:
    (message,) = warned(lambda: make_model(net=net, target_entropy=-2.0))
    assert "target_entropy=-2 is out of reach" in message
    assert not warned(lambda: make_model(net=net, target_entropy=-2.0, ent_coef=0.1))  # nothing grows
    assert not warned(lambda: make_model(net=net))
    assert not warned(lambda: make_model(target_entropy=-2.0))


# --- Data ---


def test_data_alone_that_hold_nothing_are_pointed_out() -> None:
    def made(steps: int, bc_coef: Any) -> Any:
        data = regular_arrays(trajectories([20]))
        return make_model(offline_dataset=data, offline_steps=steps, bc_coef=bc_coef)

    for nothing in (0.0, [0.0, 3.0], lambda progress: 0.0):
        for learn in (lambda model: model.learn(5), lambda model: model.learn_offline(5)):
            (message,) = warned(lambda nothing=nothing, learn=learn: learn(made(5, nothing)))
            assert "bc_coef=0 holds the policy to nothing while it learns from data alone" in message
    for bc_coef in (3.0, [3.0, 0.0], lambda progress: progress):
        assert not warned(lambda bc_coef=bc_coef: made(5, bc_coef).learn(5))
    assert not warned(lambda: made(0, 0.0).learn(11))
    (message,) = warned(lambda: made(0, 0.0).learn_offline(1))  # which makes a phase of its own
    assert "holds the policy to nothing" in message


@pytest.mark.parametrize("name", taking("offline_steps", ONE_OF_EACH))
def test_random_steps_after_a_phase_of_data_are_pointed_out(name: str) -> None:
    def learn(learning_starts: int | None, steps: int) -> list[str]:
        data = regular_arrays(trajectories([20]))
        kwargs: dict[str, Any] = {"offline_dataset": data, "offline_steps": 5, "learning_starts": learning_starts}
        return [message for message in warned(lambda: make_variant(name, **kwargs).learn(steps)) if "random" in message]

    (message,) = learn(8, 10)
    assert "After 5 updates from data the steps up to 8 are random, and no update is made" in message
    assert "Set it to 0" in message
    assert not learn(5, 10)
    assert not learn(None, 10)
    assert not learn(8, 5)


@pytest.mark.parametrize("name", taking("offline_steps", ONE_OF_EACH))
def test_what_is_left_of_the_offline_phase_of_a_loaded_model_is_pointed_out(name: str, tmp_path: Any) -> None:
    data = regular_arrays(trajectories([20]))
    model = make_variant(name, offline_dataset=data, offline_steps=8, learning_starts=0).learn(5)
    assert not [message for message in warned(lambda: model.learn(1)) if "offline phase" in message]
    model.save(tmp_path / "model")

    def said(learn: Any, **kwargs: Any) -> list[str]:
        loaded = type(model).load(tmp_path / "model", env=RandomEnv(), device="cpu", offline_dataset=data, **kwargs)
        return [message for message in warned(lambda: learn(loaded)) if "offline phase" in message]

    (message,) = said(lambda loaded: loaded.learn(4))
    assert "learn(4) goes on with: 2 updates from data come first" in message
    (message,) = said(lambda loaded: loaded.learn(1))
    assert "learn(1) goes on with: 1 updates from data" in message
    assert not said(lambda loaded: loaded.learn(4), offline_steps=0)
    assert not said(lambda loaded: loaded.learn_offline(4))
    assert not said(lambda loaded: loaded.learn(4, reset_num_timesteps=False))


@pytest.mark.parametrize("name", taking("start_training", ONE_OF_EACH))
def test_steps_that_are_only_stored_are_pointed_out(name: str) -> None:
    data = regular_arrays(trajectories([20]))
    model = make_variant(name, offline_dataset=data, offline_steps=2, start_training=6, learning_starts=0)

    def said(steps: int) -> list[str]:
        return [message for message in warned(lambda: model.learn(steps)) if "start_training" in message]

    assert not said(2)  # from data alone
    (message,) = said(4)
    assert "learn(4) only stores its steps of the environment: start_training waits for 6 of them" in message
    assert model._n_updates == 2
    assert not said(2)  # the sixth is learned from
    assert model._n_updates == 3


def test_hindsight_without_an_end_of_an_episode_is_pointed_out() -> None:
    def model(buffer_size: int) -> Any:
        env = BitFlippingEnv(n_bits=20, continuous=True, max_steps=10**6)
        hindsight = {"replay_buffer_class": HerReplayBuffer, "buffer_size": buffer_size}
        return make_model("MultiInputPolicy", env, **hindsight)  # type: ignore[arg-type]

    (message,) = warned(lambda: model(100).learn(30))
    assert "Nothing was learned in 30 timesteps: no episode has ended" in message
    with pytest.raises(ValueError, match="buffer_size=20 is not allowed: no episode ends within it"):
        model(20).learn(30)
