"""What every algorithm here is, off-policy or on-policy: its names, its environment, its nets, compiled code."""

import inspect
from collections.abc import Callable
from numbers import Real
from types import MethodType
from typing import Any, ClassVar

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_flow.common.checks import check_spaces, require, require_choice
from sb3_flow.common.compile import Compiled, CompileMode, maybe_compile
from sb3_flow.common.hints import check_known
from sb3_flow.common.persistence import PersistentAlgorithm


class FlowAlgorithm(PersistentAlgorithm):
    """Mixed in before one of SB3's algorithms; a subclass names its policies and its nets."""

    policy_type: ClassVar[type[Any]]  # whose subclasses can be trained
    compile: CompileMode

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_known(cls, kwargs)
        return super().__new__(cls)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        env = maybe_make_env(env, verbose)  # SB3's `load` and `set_env` take no ids
        is_gymnasiums = isinstance(env, gym.vector.VectorEnv)
        advice = (
            "it is vectorised by Gymnasium; use stable_baselines3.common.env_util.make_vec_env, or one of SB3's VecEnvs"
        )
        require(not is_gymnasiums, "env", env, advice)
        check_spaces(env.observation_space, env.action_space)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    @classmethod
    def _get_policy_from_name(cls, policy_name: str) -> type[BasePolicy]:
        require_choice("policy", policy_name, tuple(cls.policy_aliases))
        return cls.policy_aliases[policy_name]

    def _check_policy_class(self) -> None:
        known = isinstance(self.policy_class, type) and issubclass(self.policy_class, self.policy_type)
        require(
            known and not inspect.isabstract(self.policy_class),
            "policy",
            self.policy_class,
            f"it must be a subclass of {self.policy_type.__name__}; a saved model of another algorithm is loaded with "
            "that algorithm",
        )

    def _check_learning_rate(self, name: str, allow_none: bool = False) -> None:
        value = getattr(self, name)
        number = callable(value) or isinstance(value, Real) or (value is None and allow_none)
        require(number, name, value, "a number or a schedule; in YAML write 0.001 or !!float 1e-3")
        if isinstance(value, Real):
            setattr(self, name, float(value))  # SB3's schedules refuse NumPy's numbers

    def _compiled(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of the model, compiled if the user wants it; an attribute that holds it is not saved."""
        return maybe_compile(method, self.compile, self.device, self.verbose)

    @property
    def _nets(self) -> dict[str, BaseModel]:
        """The nets that losses train, by the names that errors have; each has an `optimizer`."""
        raise NotImplementedError

    def _excluded_save_params(self) -> list[str]:
        methods = [name for name, value in self.__dict__.items() if isinstance(value, (Compiled, MethodType))]
        return [*super()._excluded_save_params(), "actor", "critic", *methods]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"{name}.optimizer" for name in self._nets)], []
