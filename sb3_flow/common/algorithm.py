"""What every algorithm here is, off-policy or on-policy: its names, its environment, its nets, compiled code."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from numbers import Real
from types import MethodType
from typing import Any, ClassVar, ParamSpec, TypeVar

import gymnasium as gym
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch.optim import Optimizer

from sb3_flow.common.checks import check_spaces, require, require_choice
from sb3_flow.common.compile import Compiled, CompileMode
from sb3_flow.common.graphs import maybe_recorded
from sb3_flow.common.guard import Guard, Statistics
from sb3_flow.common.hints import arguments_of, check_known
from sb3_flow.common.log import Log
from sb3_flow.common.persistence import PersistentAlgorithm
from sb3_flow.common.schedules import IN_YAML, checked_schedule, is_weight, value_at
from sb3_flow.common.updates import Descent, Differentiated, L, parameters_of, set_gradient

AN_ENVIRONMENT = "an environment, its id, or a VecEnv; of several environments make_vec_env makes one"

P = ParamSpec("P")
R = TypeVar("R")


class FlowAlgorithm(PersistentAlgorithm):
    """Mixed in before one of SB3's algorithms; a subclass names its policies and its nets."""

    policy_type: ClassVar[type[Any]]  # whose subclasses can be trained
    compile: CompileMode
    actor: BaseModel
    critic: BaseModel
    _guard: Guard
    _n_updates: int
    _recorded: dict[tuple[Callable[..., Any], Optimizer], Callable[..., Any]]  # steps, by loss and what makes them
    _recorded_with: dict[str, Any] | None = None  # arguments of the algorithm

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_known(cls, kwargs)
        return super().__new__(cls)

    @staticmethod
    def _check_env(env: GymEnv | str | None) -> None:
        require(env is not None, "env", env, AN_ENVIRONMENT)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        env = maybe_make_env(env, verbose)  # SB3's `load` and `set_env` take no ids
        is_gymnasiums = isinstance(env, gym.vector.VectorEnv)
        advice = (
            "it is vectorised by Gymnasium; use stable_baselines3.common.env_util.make_vec_env, or one of SB3's VecEnvs"
        )
        require(not is_gymnasiums, "env", env, advice)
        is_env = not isinstance(env, type) and hasattr(env, "observation_space") and hasattr(env, "action_space")
        require(is_env, "env", env, AN_ENVIRONMENT)
        check_spaces(env.observation_space, env.action_space)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    @classmethod
    def _get_policy_from_name(cls, policy_name: str) -> type[BasePolicy]:
        require_choice("policy", policy_name, tuple(cls.policy_aliases))
        return cls.policy_aliases[policy_name]

    def _check_policy_class(self) -> None:
        policy = self.policy_class
        known = isinstance(policy, type) and issubclass(policy, self.policy_type)
        advice = "a saved model of another algorithm is loaded with that algorithm"
        require(known, "policy", policy, f"it must be a subclass of {self.policy_type.__name__}; {advice}")
        missing = ", ".join(sorted(getattr(policy, "__abstractmethods__", ())))
        require(not missing, "policy", policy, f"it does not define {missing}")

    def _check_learning_rate(self, name: str, allow_none: bool = False) -> None:
        value = getattr(self, name)
        if value is None and allow_none:
            return
        require(is_weight(value), name, value, f"a number or a schedule; {IN_YAML}")
        checked_schedule(name, value)
        if isinstance(value, Real):
            setattr(self, name, float(value))  # SB3's schedules refuse NumPy's numbers

    def _value_now(self, name: str, schedule: Schedule) -> float:
        """What the schedule of an argument says: the guard sees only what a bad rate leaves of the nets.

        :raises ValueError: if that is no number >= 0; nothing has changed
        """
        return value_at(name, schedule, self._current_progress_remaining)

    def _update_learning_rate(self, optimizers: list[Optimizer] | Optimizer) -> None:
        self._value_now("learning_rate", self.lr_schedule)
        super()._update_learning_rate(optimizers)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout may end behind the total: schedules would give negative rates
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        self._scheduled = self.learning_rate

    def _check_compile(self) -> None:
        built = getattr(getattr(self.actor, "action_fn", None), "mode", False)
        advice = f"it is {built!r} since the model was built; pass another one to `load`"
        require(self.compile == built, "compile", self.compile, advice)

    def _follow_learning_rate(self) -> None:
        if self.learning_rate != self._scheduled:  # users of SB3 assign lr_schedule, too
            self._setup_lr_schedule()

    def set_parameters(
        self, load_path_or_dict: str | dict[str, Any], exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        # Of another model's dict PyTorch's optimizers would take the moments themselves, and both would move them
        own = deepcopy(load_path_or_dict) if isinstance(load_path_or_dict, dict) else load_path_or_dict
        super().set_parameters(own, exact_match, device)

    def _compiled(self, method: Callable[..., Any], name: str | None = None, graphs: bool = True) -> Callable[..., Any]:
        """A method of the model, compiled if the user wants it; an attribute that holds it is not saved."""
        if not self.compile:
            return method
        return Compiled(method, self.compile, self.device, self.verbose, name, graphs)

    def _compiled_loss(self, loss_fn: Callable[..., L]) -> Callable[..., Descent[L]]:
        """What `_step` goes down: a loss, a method of the model that takes a batch first, with its gradient."""
        statistics = Statistics(self.policy)  # of all nets: a target critic that normalises by the batch has some, too
        differentiated = Differentiated(loss_fn, self._encoded, self._autocast, self._guard, statistics)
        return self._compiled(differentiated.descend, loss_fn.__name__, graphs=False)

    def _encoded(self, batch: Any) -> Any:
        """A batch as the losses take it."""
        return batch

    def _autocast(self) -> AbstractContextManager[Any]:
        """What losses are computed in."""
        return nullcontext()

    def _step(
        self,
        name: str,
        net: BaseModel,
        log: Log,
        loss_fn: Callable[..., Descent[L]],
        *args: Any,
        max_gradient: float = math.inf,
    ) -> L:
        """One step of a net on a loss, unless this or an earlier one is not finite.

        :param name: of the net in errors
        :param net: owns the optimizer
        :param log: gets what the loss says of itself
        :param loss_fn: result of `_compiled_loss`
        :param args: the loss's arguments
        :param max_gradient: largest size of one number of the gradient; larger ones are cut off
        """
        key = loss_fn, net.optimizer
        if key not in self._recorded:
            self._refuse_hooks(net)
            own = getattr(loss_fn, "__self__", None) is self
            require(not own, f"the loss of {name}", loss_fn, "make it in _setup_model, by self._compiled_loss(method)")
            step = partial(self._step_on_device, net, loss_fn)
            self._recorded[key] = maybe_recorded(step, net.optimizer, self.compile, self.device)
        result, figures, _ = self._recorded[key](max_gradient, *args)
        sizes = {part: tensor.numel() for part, tensor in result.made_of.items()} | {f"{name}_loss": 1}
        self._guard.remember(name, sizes, figures.bad)
        log.add(figures.logged, figures.means)
        return result  # type: ignore[no-any-return]

    def _recorded_step(self, step: Callable[P, R], optimizer: Optimizer) -> Callable[P, R]:
        """What changes nothing but an optimizer's parameters; on CUDA it is recorded as a graph.

        :param step: a bound method
        """
        key = step, optimizer
        if key not in self._recorded:
            self._recorded[key] = maybe_recorded(step, optimizer, self.compile, self.device)
        return self._recorded[key]

    def _refuse_hooks(self, net: BaseModel) -> None:
        """Code that is compiled calls none of those that a user has registered on a parameter."""
        hooked = [name for name, parameter in net.named_parameters() if parameter._backward_hooks]
        advice = f"{hooked[:1]} has a hook, which compiled code does not call; load the model with compile=False"
        require(not (self.compile and hooked), "compile", self.compile, advice)

    def _forget_stale_graphs(self) -> None:
        """Record steps anew if an argument was assigned: a loss may read it, and a graph keeps what was read."""
        arguments = {name: self.__dict__.get(name) for name in arguments_of(type(self))}
        plain = {name: value for name, value in arguments.items() if isinstance(value, (int, float, str, tuple))}
        if plain != self._recorded_with:
            self._recorded.clear()
        self._recorded_with = plain

    def _step_on_device(
        self, net: BaseModel, loss_fn: Callable[..., Descent[L]], max_gradient: float, *args: Any
    ) -> Descent[L]:
        """All of a step that the device does; on CUDA it is recorded as a graph."""
        net.optimizer.zero_grad()  # the memory of the last gradient is used again
        parameters = parameters_of(net.optimizer)
        descent = loss_fn(parameters, max_gradient, *args)
        trains = any(part is not None for part in descent.gradient)
        if not trains and any(parameter.requires_grad for parameter in parameters):
            raise ValueError(f"A loss has no gradient by any parameter of the {type(net).__name__} that it is to train")
        set_gradient(parameters, descent.gradient)
        self._guard.step(net.optimizer)
        return descent

    def _stop_if_bad(self) -> None:
        """Wait for the device, and raise what the guard has seen.

        :raises NonFiniteError: if a loss or a gradient was not finite; nothing has changed since
        """
        found = self._guard.error()
        if found is not None:
            self._n_updates, error = found
            raise error

    @property
    def _nets(self) -> dict[str, BaseModel]:
        """The nets that losses train, by the attributes of this model that they are; each has an `optimizer`."""
        return {"actor": self.actor, "critic": self.critic}

    def _excluded_save_params(self) -> list[str]:
        methods = [name for name, value in self.__dict__.items() if isinstance(value, (Compiled, MethodType))]
        steps = ["_guard", "_recorded", "_recorded_with", "_scheduled"]
        return [*super()._excluded_save_params(), "actor", "critic", *steps, *methods]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"{name}.optimizer" for name in self._nets)], []
