"""Commands of Python's, run in forks of one process that has imported what is large: they start in no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

# Nothing of rl_zoo3 or sb3_flow: what a command does when it imports them is tested
LARGE = (
    "torch._dynamo",  # which the first optimizer imports
    "torch.utils.tensorboard",
    "sb3_contrib",
    "optuna.visualization.matplotlib",
    "sqlalchemy",
    "matplotlib.pyplot",
    "seaborn",
    "huggingface_sb3",
    "mujoco",
    "dm_control.mjcf",  # for OGBench
)
# A fork leaves the loop, and ends as `python -m` would: with its exit code, or a traceback
SERVER = """
import gc, importlib, json, os, runpy, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
gc.freeze()  # or each fork would take a second to end
for line in sys.stdin:
    folder, outputs, module, arguments = json.loads(line)
    process = os.fork()
    if not process:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(folder)
for descriptor, path in enumerate([os.devnull, *outputs]):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
sys.path[0] = folder
sys.argv[1:] = arguments
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class Commands:
    """Runs `python -m`.

    :param environment: variables of the commands, beside this process's
    """

    def __init__(self, environment: dict[str, str]):
        command = [sys.executable, "-c", SERVER, *LARGE]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **environment})

    def run(self, folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What `python -m module arguments` said in a folder."""
        outputs = [folder / ".stdout", folder / ".stderr"]
        for path in outputs:
            path.unlink(missing_ok=True)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps([str(folder), [str(path) for path in outputs], module, arguments]), file=self._server.stdin)
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        stdout, stderr = (path.read_text() for path in outputs)
        return subprocess.CompletedProcess([module, *arguments], code, stdout, stderr)
