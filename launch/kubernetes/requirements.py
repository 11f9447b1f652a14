"""Prints the requirements in setup.py, for the Dockerfile layer that is built before Convoy's code is copied.

python3 requirements.py '[cuda]'     # in the folder of setup.py
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def requirements(about: dict[str, Any], extras: str) -> list[str]:
    """Returns the requirements of a distribution.

    Args:
      about: arguments of `setuptools.setup`.
      extras: such as `[cuda]` or `[cuda,onnx]`; may be empty.
    """
    names = filter(None, extras.strip("[]").split(","))
    return [*about["install_requires"], *(line for name in names for line in about["extras_require"][name.strip()])]


if __name__ == "__main__":
    setuptools = ModuleType("setuptools")  # a stand-in: Python images need not have the real one
    vars(setuptools)["setup"] = lambda **about: print("\n".join(requirements(about, sys.argv[1])))
    sys.modules["setuptools"] = setuptools
    Path("README.md").touch()  # setup.py reads it; copying the real one would rebuild this layer at every edit
    runpy.run_path("setup.py")
