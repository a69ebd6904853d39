"""Microseconds of deciding on one observation: `predict` of each contender, and the ONNX files of ours.

    python benchmarks/acting.py
    python benchmarks/acting.py --horizon 5 --contenders sac flow_t flow_t+compiled

All in one process, in a new order every round. With chunks every call decides anew. Batch and critics play no part.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import onnxruntime
import torch as th
from arguments import positive
from contenders import add_arguments, apply_arguments, make_model, sizes_of
from numpy.typing import NDArray
from records import machine
from timing import interleaved, write_timings

from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm
from sb3_flow.export import export_onnx


def repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def onnx_call(model: OffPolicyFlowAlgorithm, observation: NDArray[Any]) -> Callable[[], object]:
    """The exported policy in a session with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = th.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.onnx"
        export_onnx(model, path)
        session = onnxruntime.InferenceSession(str(path), options)
    return partial(session.run, ["action"], {"observation": observation})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=30, warmup=5)
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--calls", type=positive, default=200, help="in one measurement")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/acting.csv"))
    args = parser.parse_args()
    size = apply_arguments(args)
    env = gym.make(args.env)
    observation, _ = env.reset(seed=0)
    calls: dict[str, Callable[[], object]] = {}
    columns: dict[str, dict[str, Any]] = {}
    for name in args.contenders:
        model = make_model(name, env, size, args.device, buffer_size=1000)
        calls[name] = partial(model.predict, observation, deterministic=True)
        columns[name] = sizes_of(model, size)
        if isinstance(model, OffPolicyFlowAlgorithm) and "+" not in name:
            calls[f"{name}+onnx"] = onnx_call(model, observation[None])
            columns[f"{name}+onnx"] = columns[name]
    runs: dict[str, Callable[[], None]] = {name: partial(repeat, call, args.calls) for name, call in calls.items()}
    timings = interleaved(runs, args.rounds, args.warmup, scale=1e6 / args.calls)
    settings = {"env": args.env, "threads": th.get_num_threads()}
    rows: list[dict[str, Any]] = [
        {"contender": name, **settings, **columns[name], **timing} for name, timing in timings.items()
    ]
    write_timings(rows, "horizon", "us a decision", args.out, base="sac")
    print(f"{th.get_num_threads()} threads, {machine()}")


if __name__ == "__main__":
    main()
