"""Whether what a backend needs is installed, asked before any work."""

from __future__ import annotations

from importlib.util import find_spec

from sdecontrol.errors import check

EXTRAS = {"diffusers": "sd", "transformers": "sd", "peft": "sd", "accelerate": "sd", "PIL": "sd", "sklearn": "data"}


def require(what: str, *modules: str) -> None:
    """Raise BadInput naming the extra to install when one of the modules is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    extras = ",".join(sorted({EXTRAS[module] for module in missing}))
    check(not missing, f"no {', '.join(missing)}", f"them for {what}", f"Run: pip install 'sdecontrol[{extras}]'")
