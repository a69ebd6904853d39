"""Everything that is to be known of a CUDA device, in one command of under eight minutes: is it right, is it fast.

    python benchmarks/on_cuda.py                               # writes benchmarks/results/cuda/<device>.json and .md
    python benchmarks/on_cuda.py --reference ../SAC-FLOW       # with the authors' JAX code beside it
    python benchmarks/on_cuda.py --device cpu --smoke          # seconds, to see that the command itself works

Parts: the tests marked `cuda`; the train step (eager, compiled, with CUDA graphs, in bf16, over flow steps and batch
sizes) and `learn` in steps of the environment a second; the time line of one cycle; a step of `learn` taken apart.
Each runs in processes of its own with a limit of time, and one that fails or is cut off leaves the others alone.
docs/cuda.md says how it travels to a machine without a network.
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch as th
from arguments import positive
from children import Child, measure_in_turn
from contenders import Size
from end_to_end import learn
from records import commit, machine
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from train_step import REFERENCE, UPDATES, cycles, make_filled, make_learner

from sb3_flow.common import graphs
from sb3_flow.common.off_policy import OffPolicyFlowAlgorithm

Row = dict[str, Any]
PAPER = Size()  # batch 512, critics 1024-1024, four flow steps
SMOKE = Size(batch=8, width=16)
FLOW_STEPS = (1, 16)
BATCHES = (256, 4096)
# Behind the name of a contender: no CUDA graphs of updates; float32 products by TF32, as JAX makes them; environments
NO_GRAPHS, TF32, ENVS = "-graphs", "+tf32", "@"
CONTENDERS = (
    *("sac", "crossq", "flow_t", "flow_t+compiled", f"flow_t+compiled{TF32}", "flow_t+compiled+bf16"),
    *(f"flow_t+compiled{NO_GRAPHS}", f"flow_t+compiled{TF32}{ENVS}16", "flow_g+compiled", f"flow_g+compiled{TF32}"),
    *("fql+compiled", "flow_rl+compiled", "qsm+compiled", "dime+compiled"),
)
# Of a step of `learn`
METHODS = ["train", "_guarded_sample", "_update", "_update_temperature", "_stop_if_bad", "collect_rollouts"]
METHODS += ["_sample_action", "predict", "_store_transition"]
TO_STOP = 25  # seconds of the time of the tests, in which they stop: pytest-xdist waits for its workers, at most ten


class Part(NamedTuple):
    """One of the questions."""

    run: Callable[[argparse.Namespace], list[Row]]
    limit: int  # seconds


def run_tests(args: argparse.Namespace) -> list[Row]:
    """How many of the tests marked `cuda` pass, and which do not."""
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py", "-m", "cuda", "-vv", "--dist", "load"]
    command += ["--maxprocesses=16"]
    log = args.out / "tests.log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored behind a shell's `&`
        ) as process,
    ):
        try:
            process.wait(PARTS["tests"].limit - TO_STOP)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it says then what failed until now, and why
            try:
                process.wait(TO_STOP - 5)
            except subprocess.TimeoutExpired:
                process.kill()
    output = log.read_text()
    outcomes = [line for line in output.splitlines() if re.match(r"\[gw\d+\]", line)]
    rows: list[Row] = [{"tests": sum(word in line for line in outcomes), "are": word} for word in ("PASSED", "FAILED")]
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
    return rows + [{"tests": "", "are": line[:300]} for line in failed or output.splitlines()[-3:]]


def configurations(args: argparse.Namespace) -> Iterator[tuple[str, Size]]:
    """What is timed."""
    if args.smoke:
        yield "flow_t", SMOKE
        return
    yield from ((name, PAPER) for name in args.contenders or CONTENDERS)
    if args.reference is not None:
        yield f"{REFERENCE}flow_t", PAPER
    if args.contenders:
        return
    for name in ("flow_t", "flow_t+compiled"):
        yield from ((name, dataclasses.replace(PAPER, flow_steps=steps)) for steps in FLOW_STEPS)
        yield from ((name, dataclasses.replace(PAPER, batch=batch)) for batch in BATCHES)


def learns(name: str, size: Size) -> bool:
    """Whether `learn` is timed, too."""
    return size in (PAPER, SMOKE) and not name.startswith(REFERENCE)


def time_contenders(args: argparse.Namespace) -> list[Row]:
    """Every configuration in a process of its own: all compile at once, and are timed one after the other."""
    configured = list(configurations(args))
    if args.smoke:
        return [row(name, size, ready(name, size, args)()) for name, size in configured]
    command = [sys.executable, __file__, *forwarded(args), "--child"]
    # The default is a pool of processes for each
    threads = max(1, (os.cpu_count() or 1) // len(configured))
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
    children = [Child([*command, name, json.dumps(dataclasses.asdict(size))], environment) for name, size in configured]
    outcomes = measure_in_turn(children, compile_seconds=args.compile_seconds, measure_seconds=30)
    return [
        outcome if outcome is not None else row(name, size, {"failed": child.error})
        for (name, size), child, outcome in zip(configured, children, outcomes, strict=True)
    ]


def row(name: str, size: Size, values: Row) -> Row:
    sizes = {"batch": size.batch, "width": size.width, "flow_steps": size.flow_steps}
    return {"contender": name, **sizes, **values}


def plain(name: str) -> str:
    """The contender without what is set for this process, which is set."""
    if NO_GRAPHS in name:
        graphs.takes_found_inf = lambda optimizer: False
    if TF32 in name:
        th.set_float32_matmul_precision("high")
    return name.replace(NO_GRAPHS, "").replace(TF32, "")


def ready(name: str, size: Size, args: argparse.Namespace) -> Callable[[], Row]:
    """What times a contender, which has compiled: a cycle of updates, and `learn` with all that belongs to it."""
    name, _, n_envs = name.partition(ENVS)
    model = make_learner(plain(name), size, args, int(n_envs or 1))
    run = cycles(model, size.batch, 1)
    for _ in range(3):  # a CUDA graph is recorded in the third
        run()
    if not learns(name, size):
        return lambda: cycle_times(run, args.rounds)
    assert isinstance(model, OffPolicyAlgorithm)
    steps = 20 if args.smoke else 512
    model.learning_starts = 0  # the buffer is full
    learn(model, 32)

    def measure() -> Row:
        values = cycle_times(run, args.rounds)
        start = time.perf_counter()
        learn(model, steps)
        return {**values, "env_steps_per_s": round(steps / (time.perf_counter() - start), 1)}

    return measure


def cycle_times(run: Callable[[], None], rounds: int) -> Row:
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
    measure = ready(name, size, args)
    first = round(time.perf_counter() - start, 1)
    print(Child.READY, flush=True)
    if not sys.stdin.readline():
        return  # who would have given the turn is gone
    if args.device == "cuda":
        th.cuda.reset_peak_memory_stats()
    values = {**measure(), "first_s": first}
    if args.device == "cuda":
        values["peak_MiB"] = round(th.cuda.max_memory_allocated() / 2**20)
    print(Child.RESULT + json.dumps(row(name, size, values)), flush=True)


def make_shown(args: argparse.Namespace) -> OffPolicyFlowAlgorithm:
    """What is looked into; its `batch_size` is that of its cycles."""
    shown = ("flow_t", SMOKE) if args.smoke else ("flow_t+compiled", PAPER)
    model = make_filled(*shown, args)
    assert isinstance(model, OffPolicyFlowAlgorithm)
    return model


def draw_time_line(args: argparse.Namespace) -> list[Row]:
    """Where the time of a cycle goes: kernels and waits, the longest first."""
    model = make_shown(args)
    run = cycles(model, model.batch_size, 1)
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

    def own_ms(event: Any, device: str = args.device) -> float:
        return float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1000

    def line(what: str, events: Sequence[Any]) -> Row:
        cpu = sum(own_ms(event, "cpu") for event in events)
        ms = sum(map(own_ms, events))
        return {"what": what, "ms": round(ms, 3), "cpu_ms": round(cpu, 3), "times": sum(e.count for e in events)}

    waits = sum(event.count for event in averages if "Synchronize" in event.key)
    rows: list[Row] = [
        {"what": "one cycle, by the clock", "ms": round(1000 * wall, 2), "cpu_ms": "", "times": 1},
        line("all of these", averages),
        {"what": "waits for the device", "ms": "", "cpu_ms": "", "times": waits},
    ]
    longest = sorted(averages, key=own_ms, reverse=True)[:15]
    on_cpu = sorted(averages, key=lambda event: own_ms(event, "cpu"), reverse=True)[:25]
    return rows + [line(e.key[:80], [e]) for e in dict.fromkeys([*longest, *on_cpu])]


def take_apart(args: argparse.Namespace) -> list[Row]:
    """Where the time of a step of `learn` goes: the time in each method, with waits and what it calls."""
    model, steps = make_shown(args), 20 if args.smoke else 500
    model.learning_starts = 0  # the buffer is full
    learn(model, 30)
    spent: dict[str, list[float]] = {}
    with ExitStack() as stack:
        for owner, names in ((model, METHODS), (model.env, ["step"]), (model.replay_buffer, ["sample"])):
            for name in names:
                label = name if owner is model else f"{type(owner).__name__}.{name}"
                times = spent.setdefault(label, [])
                stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), times)))
        start = time.perf_counter()
        learn(model, steps)
        wall = time.perf_counter() - start
    rows: list[Row] = [{"what": "a step, by the clock", "ms": round(1000 * wall / steps, 3), "times": 1}]
    longest = sorted(spent.items(), key=lambda item: -sum(item[1]))
    return rows + [
        {"what": label, "ms": round(1000 * sum(times) / steps, 3), "times": round(len(times) / steps, 2)}
        for label, times in longest
    ]


def timed(method: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """The method, which notes the seconds that it took."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            times.append(time.perf_counter() - start)

    return call


PARTS = {
    "tests": Part(run_tests, 170),
    "speed": Part(time_contenders, 210),
    "time_line": Part(draw_time_line, 50),
    "step": Part(take_apart, 50),
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
    if args.contenders:
        options += ["--contenders", *args.contenders]
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
    parser.add_argument("--contenders", nargs="+", help="at the paper's size only")
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--reference", type=Path, help="a checkout of the authors' code, see reference.py")
    parser.add_argument("--minutes", type=positive, default=8, help="for all of it")
    parser.add_argument(
        "--compile-seconds", type=positive, default=130, help="for the train step's contenders to begin"
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
