"""What an update takes here and at another commit, each in a process of its own, taking turns.

    python benchmarks/against.py HEAD~1 --contenders flow_t+compiled --batch 256 --width 256 --threads 1

A cycle is that of `benchmarks/train_step.py`, which each of the two has from its own checkout.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import torch as th
from arguments import positive
from contenders import add_arguments, apply_arguments
from records import machine
from train_step import cycles, make_filled

import sb3_flow

ROOT = Path(__file__).parents[1]
HERE = "here"


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A checkout of a commit of this repository.

    :raises subprocess.CalledProcessError: if there is none
    """
    git = ["git", "-C", str(ROOT), "worktree"]
    with TemporaryDirectory() as folder:
        path = Path(folder, "checkout")
        subprocess.run([*git, "add", "--detach", str(path), commit], check=True, stdout=subprocess.DEVNULL)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


@contextmanager
def served(root: Path) -> Iterator[Callable[[str], Callable[[], None]]]:
    """What makes, of a contender's name, a function that runs some of its cycles in another process.

    :param root: of the checkout that the process has its code from
    """
    # -P: else it would find the modules beside this file first
    command = [sys.executable, "-P", __file__, *sys.argv[1:], "--root", str(root)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:

        def run(name: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            print(name, file=process.stdin, flush=True)
            if process.stdout.readline() != f"{name}\n":
                raise SystemExit(f"{root} stopped, see above")

        yield lambda name: lambda: run(name)


def serve(args: argparse.Namespace, asked: IO[str], answers: IO[str]) -> None:
    """Run a contender's cycles whenever its name is read, and write it when that is done."""
    assert Path(sb3_flow.__file__).is_relative_to(args.root), f"{sb3_flow.__file__} is not of {args.root}"
    size = apply_arguments(args)
    runs: dict[str, Callable[[], None]] = {}
    for line in asked:
        name = line.strip()
        if name not in runs:
            runs[name] = cycles(make_filled(name, size, args), size.batch, args.cycles)
        runs[name]()
        print(name, file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    add_arguments(parser, rounds=15, warmup=3)
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--cycles", type=positive, default=5, help="in one measurement")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mine/against.csv"))
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)  # of the processes that are timed
    args = parser.parse_args()
    if args.root is not None:
        with redirect_stdout(sys.stderr):  # whatever the libraries print
            serve(args, sys.stdin, sys.__stdout__ or sys.stdout)
        return
    from timing import compared, write_timings  # which another commit, whose modules the timed process has, may lack

    rows: list[dict[str, Any]] = []
    with checkout(args.commit) as there, served(there) as theirs, served(ROOT) as ours:
        for name in args.contenders:
            runs = {args.commit: theirs(name), HERE: ours(name)}
            timings = compared(runs, args.commit, args.rounds, args.warmup, scale=1000 / args.cycles)
            threads = {"threads": args.threads or th.get_num_threads()}
            rows += [{"contender": key, "algorithm": name, **threads, **timing} for key, timing in timings.items()]
    write_timings(rows, "algorithm", "ms a cycle", args.out, base=args.commit)
    print(machine())


if __name__ == "__main__":
    main()
