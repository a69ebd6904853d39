"""What a result was measured with: the machine and the commit."""

import platform
import subprocess
from pathlib import Path


def machine() -> str:
    """One line on the machine, for the record beside a result."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    return f"{cpu}, Python {platform.python_version()}, {platform.system()}"


def commit() -> str:
    """The commit of the working folder, "" outside a repository."""
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
