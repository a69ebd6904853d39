"""Processes that get ready at the same time, and then measure one after the other."""

import json
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any


class Child:
    """A process that prints READY, waits for a line, and prints RESULT and a row as JSON.

    :param command: its command line
    :param environment: of the process
    """

    READY = "on_cuda.py: ready"
    RESULT = "on_cuda.py: result "

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.ready = threading.Event()
        self.done = threading.Event()  # a result, or an end
        self.row: dict[str, Any] | None = None
        self.error = ""  # what it said last, or why it was stopped
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(self.READY):
                self.ready.set()
            elif line.startswith(self.RESULT):
                self.row = json.loads(line.removeprefix(self.RESULT))
                self.done.set()
            else:
                self.error = line.strip()[-300:]
        self.done.set()

    def stop(self, reason: str = "") -> None:
        """End it, for a reason if it has not measured."""
        self.error = reason or self.error
        self.process.kill()

    def measure(self, seconds: float) -> None:
        """Give it its turn, which ends after so many seconds."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            self.done.wait(seconds)
        except BrokenPipeError:
            pass


def measure_in_turn(
    children: Sequence[Child], compile_seconds: float, measure_seconds: float
) -> list[dict[str, Any] | None]:
    """The row of each child, None of one that failed or took too long.

    :param children: are getting ready
    :param compile_seconds: until the first one measures, unless all are ready before
    :param measure_seconds: for each
    """
    end = time.perf_counter() + compile_seconds
    try:
        for child in children:
            while not (child.ready.is_set() or child.done.is_set()) and time.perf_counter() < end:
                child.ready.wait(0.1)
        for child in children:  # those that are late would disturb the others
            if not child.ready.is_set():
                child.stop("not ready in time")
        for child in children:
            if child.ready.is_set() and not child.done.is_set():
                child.measure(measure_seconds)
            child.stop()
    finally:
        for child in children:
            child.stop()
    return [child.row for child in children]
