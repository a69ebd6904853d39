"""The machine a result was measured on."""

import platform
from pathlib import Path


def machine() -> str:
    """One line on the machine, for the record beside a result."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    return f"{cpu}, Python {platform.python_version()}, {platform.system()}"
