"""rl_zoo3.push_to_hub, which asks huggingface_sb3 for a function that version 3.2 of it has under another name.

python -m sb3_flow.zoo.push_to_hub --algo sac_flow --env Pendulum-v1 -f logs -orga YOUR_NAME
"""

import importlib
import runpy
from typing import Any

from sb3_flow.zoo.registration import register


def main() -> None:
    """Run the zoo's command with the arguments of this one."""
    hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(hub, "generate_metadata"):
        hub.generate_metadata = lambda *args: hub._generate_metadata(*args).to_dict()
    register()
    runpy.run_module("rl_zoo3.push_to_hub", run_name="__main__")


if __name__ == "__main__":
    main()
