"""Prints what setup.py requires, for the Dockerfile's layer that is built before Convoy's code is copied.

python3 requirements.py '[cuda]'     # in the folder of setup.py
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType


def requirements(about: dict, extras: str) -> list[str]:
    """Returns the requirements of a distribution.

    Args:
      about: the arguments of `setuptools.setup`.
      extras: such as `[cuda]` or `[cuda,onnx]`, or nothing.
    """
    names = filter(None, extras.strip("[]").split(","))
    return [*about["install_requires"], *(line for name in names for line in about["extras_require"][name.strip()])]


if __name__ == "__main__":
    setuptools = ModuleType("setuptools")  # in place of the real one, which an image of Python need not have
    setuptools.setup = lambda **about: print("\n".join(requirements(about, sys.argv[1])))
    sys.modules["setuptools"] = setuptools
    Path("README.md").touch()  # setup.py reads it; copied here, every edit of it would have this layer built again
    runpy.run_path("setup.py")
