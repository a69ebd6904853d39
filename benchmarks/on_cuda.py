"""Everything that is to be known of a CUDA device, in one command of under eight minutes: is it right, is it fast.

    python benchmarks/on_cuda.py                               # writes benchmarks/results/cuda/<device>.json and .md
    python benchmarks/on_cuda.py --reference ../SAC-FLOW       # with the authors' JAX code beside it
    python benchmarks/on_cuda.py --device cpu --smoke          # seconds, to see that the command itself works

Parts: the tests marked `cuda`; the train step (eager, compiled, with CUDA graphs, in bf16, over flow steps and batch
sizes); `learn` in steps of the environment a second; the time line of one cycle. Each runs in processes of its own with
a limit of time, and one that fails or is cut off leaves the others alone. docs/cuda.md says how it travels to a machine
without a network.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from arguments import positive
from children import Child, measure_in_turn
from contenders import Size, make_model
from records import commit, machine
from train_step import REFERENCE, UPDATES, cycles, make_filled, make_learner

from sb3_flow.common import compile as compilation
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

Row = dict[str, Any]
PAPER = Size()  # batch 512, critics 1024-1024, four flow steps
SMOKE = Size(batch=8, width=16)
FLOW_STEPS = (1, 2, 8, 16)
BATCHES = (256, 1024, 4096)
NO_GRAPHS = "-graphs"  # behind the name of a compiled contender
MODES = ("flow_t", f"flow_t+compiled{NO_GRAPHS}", "flow_t+compiled", "flow_t+compiled+bf16")
OTHERS = ("crossq", "flow_g+compiled", "fql+compiled", "flow_rl+compiled", "qsm+compiled", "dime+compiled")
LEARNERS = ("sac", "crossq", "flow_t", "flow_t+compiled", "flow_t+compiled+bf16", "flow_g+compiled")
TIMELINE = "flow_t+compiled"


class Part(NamedTuple):
    """One of the questions."""

    run: Callable[[argparse.Namespace], list[Row]]
    limit: int  # seconds


def run_tests(args: argparse.Namespace) -> list[Row]:
    """How many of the tests marked `cuda` pass, and which do not."""
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py", "-m", "cuda", "-v", "--dist", "load"]
    try:
        limit = PARTS["tests"].limit - 10
        output = subprocess.run([*command, "--maxprocesses=8"], capture_output=True, text=True, timeout=limit).stdout
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode()
    outcomes = [line for line in output.splitlines() if re.match(r"\[gw\d+\]", line)]
    rows: list[Row] = [{"tests": sum(word in line for line in outcomes), "are": word} for word in ("PASSED", "FAILED")]
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
    return rows + [{"tests": "", "are": line[:300]} for line in failed or output.splitlines()[-3:]]


def configurations(args: argparse.Namespace) -> Iterator[tuple[str, Size]]:
    """What the train step is timed with."""
    if args.smoke:
        yield "flow_t", SMOKE
        return
    yield from ((name, PAPER) for name in (*MODES, *OTHERS))
    for name in ("flow_t", "flow_t+compiled"):
        yield from ((name, dataclasses.replace(PAPER, flow_steps=steps)) for steps in FLOW_STEPS)
        yield from ((name, dataclasses.replace(PAPER, batch=batch)) for batch in BATCHES)
    if args.reference is not None:
        yield f"{REFERENCE}flow_t", PAPER


def time_train_steps(args: argparse.Namespace) -> list[Row]:
    """Every configuration in a process of its own: all compile at once, and are timed one after the other."""
    configured = list(configurations(args))
    if args.smoke:
        return [step_row(name, size, args, timed(cycle_of(name, size, args), args.rounds)) for name, size in configured]
    children = [
        Child([sys.executable, __file__, *forwarded(args), "--child", name, json.dumps(dataclasses.asdict(size))])
        for name, size in configured
    ]
    outcomes = measure_in_turn(children, compile_seconds=args.compile_seconds, measure_seconds=30)
    return [
        outcome if outcome is not None else step_row(name, size, args, {"failed": child.error})
        for (name, size), child, outcome in zip(configured, children, outcomes, strict=True)
    ]


def step_row(name: str, size: Size, args: argparse.Namespace, values: Row) -> Row:
    sizes = {"batch": size.batch, "width": size.width, "flow_steps": size.flow_steps}
    return {"contender": name, **sizes, **values}


def cycle_of(name: str, size: Size, args: argparse.Namespace) -> Callable[[], None]:
    """A cycle of updates of a contender, which has compiled."""
    if name.endswith(NO_GRAPHS):
        compilation._options = lambda mode, device: {}  # for the rest of this process
    model = make_learner(name.removesuffix(NO_GRAPHS), size, args)
    run = cycles(model, size.batch, 1)
    run()
    return run


def timed(run: Callable[[], None], rounds: int) -> Row:
    """Milliseconds a cycle, and updates of the critics a second."""
    times = []
    for round_ in range(rounds + 3):
        start = time.perf_counter()
        run()
        if round_ >= 3:
            times.append(time.perf_counter() - start)
    median, q1, q3 = (1000 * np.percentile(times, [50, 25, 75])).tolist()
    rounded = {"ms": round(median, 2), "q1": round(q1, 2), "q3": round(q3, 2)}
    return {**rounded, "updates_per_s": round(1000 * UPDATES / median)}


def be_a_child(args: argparse.Namespace) -> None:
    """One configuration: compile, say so, wait for a turn, time it, say the result."""
    name, text = args.child
    size = Size(**json.loads(text))
    start = time.perf_counter()
    run = cycle_of(name, size, args)
    first = round(time.perf_counter() - start, 1)
    print(Child.READY, flush=True)
    if not sys.stdin.readline():
        return  # who would have given the turn is gone
    memory = {}
    if args.device == "cuda":
        th.cuda.reset_peak_memory_stats()
        timing = timed(run, args.rounds)
        memory = {"peak_MiB": round(th.cuda.max_memory_allocated() / 2**20)}
    else:
        timing = timed(run, args.rounds)
    print(Child.RESULT + json.dumps(step_row(name, size, args, {**timing, "first_s": first, **memory})), flush=True)


def time_learning(args: argparse.Namespace) -> list[Row]:
    """Steps of the environment a second at one update a step, acting and everything else included."""
    rows = []
    size, steps = (SMOKE, 20) if args.smoke else (PAPER, 500)
    for name in ["flow_t"] if args.smoke else LEARNERS:
        model = make_model(name, gym.make(args.env), size, args.device, learning_starts=20, buffer_size=10_000)
        model.learn(40 if args.smoke else 200, log_interval=10**9)
        start = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False, log_interval=10**9)
        rows.append({"contender": name, "steps_per_s": round(steps / (time.perf_counter() - start), 1)})
        print(rows[-1], flush=True)
    return rows


def draw_time_line(args: argparse.Namespace) -> list[Row]:
    """Where the time of a cycle goes: kernels and waits, the longest first."""
    size = SMOKE if args.smoke else PAPER
    model = make_filled(TIMELINE.partition("+")[0] if args.smoke else TIMELINE, size, args)
    assert isinstance(model, OffPolicyFlowAlgorithm)
    run = cycles(model, size.batch, 1)
    for _ in range(3):
        run()
    activities = [th.profiler.ProfilerActivity.CPU]
    if args.device == "cuda":
        activities.append(th.profiler.ProfilerActivity.CUDA)
    with th.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        run()
        wall = time.perf_counter() - start
    averages = profile.key_averages()
    on_device = args.device == "cuda"

    def own_ms(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total) / 1000

    waits = sum(event.count for event in averages if "Synchronize" in event.key)
    rows: list[Row] = [
        {"what": "one cycle, by the clock", "ms": round(1000 * wall, 2), "times": 1},
        {"what": "all kernels", "ms": round(sum(map(own_ms, averages)), 2), "times": sum(e.count for e in averages)},
        {"what": "waits for the device", "ms": "", "times": waits},
    ]
    longest = sorted(averages, key=own_ms, reverse=True)[:15]
    return rows + [{"what": e.key[:80], "ms": round(own_ms(e), 3), "times": e.count} for e in longest]


PARTS = {
    "tests": Part(run_tests, 190),
    "train_step": Part(time_train_steps, 250),
    "learn": Part(time_learning, 100),
    "time_line": Part(draw_time_line, 40),
}


def answers(args: argparse.Namespace) -> dict[str, Any]:
    """Every part, each as far as the time reaches; what is known is written down after each."""
    device = th.cuda.get_device_name() if args.device == "cuda" else "cpu"
    settings = {"device": device, "torch": th.__version__, "machine": machine(), "commit": commit()}
    result: dict[str, Any] = {**settings, "smoke": args.smoke, "parts": {}}
    path = args.out / device.lower().replace(" ", "-")
    end = time.perf_counter() + 60 * args.minutes
    for name in args.parts:
        part, start = PARTS[name], time.perf_counter()
        limit = min(part.limit, end - start)
        print(f"{name}: at most {limit:.0f} s", flush=True)
        rows, error = here(part, args) if args.smoke else in_a_process(name, limit, args)
        seconds = round(time.perf_counter() - start, 1)
        result["parts"][name] = {"rows": rows, "error": error, "seconds": seconds}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(result))
    print(path.with_suffix(".md").read_text())
    return result


def here(part: Part, args: argparse.Namespace) -> tuple[list[Row], str]:
    try:
        return part.run(args), ""
    except Exception:
        return [], traceback.format_exc()


def in_a_process(name: str, limit: float, args: argparse.Namespace) -> tuple[list[Row], str]:
    """A part's rows, and what went wrong."""
    if limit < 10:
        return [], "no time was left"
    path = args.out / f"{name}.part.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, *forwarded(args), "--part", name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, stderr = process.communicate(timeout=limit)
            error = stderr[-2000:] if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.terminate()
            error = f"cut off after {limit:.0f} s"
    rows = json.loads(path.read_text()) if path.exists() else []
    path.unlink(missing_ok=True)
    return rows, error


def forwarded(args: argparse.Namespace) -> list[str]:
    """What a process of ours is told."""
    options = ["--device", args.device, "--env", args.env, "--out", str(args.out), "--rounds", str(args.rounds)]
    options += ["--compile-seconds", str(args.compile_seconds)]
    return options if args.reference is None else [*options, "--reference", str(args.reference)]


def markdown(result: dict[str, Any]) -> str:
    """The answers as tables."""
    lines = [f"# {result['device']}", "", f"PyTorch {result['torch']}, {result['machine']}, {result['commit']}.", ""]
    for name, part in result["parts"].items():
        lines += [f"## {name} ({part['seconds']} s)", ""]
        if part["error"]:
            lines += ["```", part["error"].strip(), "```", ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if columns:
            lines += [" | ".join(["", *columns, ""]).strip(), "|" + "---|" * len(columns)]
            cells = [[str(row.get(key, "")).replace("|", "/") for key in columns] for row in part["rows"]]
            lines += [f"| {' | '.join(row)} |" for row in cells] + [""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--smoke", action="store_true", help="tiny nets, in this process")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=None, help="the default is all; on CPU no tests")
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--reference", type=Path, help="a checkout of the authors' code, see reference.py")
    parser.add_argument("--minutes", type=positive, default=8, help="for all of it")
    parser.add_argument(
        "--compile-seconds", type=positive, default=170, help="for the train step's contenders to begin"
    )
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cuda"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.parts is None:
        args.parts = [name for name in PARTS if args.device == "cuda" or name != "tests"]
    if args.child is not None:
        be_a_child(args)
    elif args.part is not None:
        rows = PARTS[args.part].run(args)
        (args.out / f"{args.part}.part.json").write_text(json.dumps(rows))
    else:
        if args.device == "cuda" and not th.cuda.is_available():
            parser.error("there is no CUDA device; --device cpu --smoke shows that the command works")
        args.out.mkdir(parents=True, exist_ok=True)
        return answers(args)
    return None


if __name__ == "__main__":
    main()
