"""The command-line program of the package, as the environment's own ``dpinfer``."""

from __future__ import annotations

import os
import pathlib
import sys

from . import _c


def main() -> None:
    """Becomes the program; its exit code is the user's."""
    program = pathlib.Path(__file__).parent / "lib" / "dpinfer"
    if not program.is_file():
        sys.exit(f"dpinfer: {program} is not there; install the package: pip install .")
    _c._name_engine_libraries()
    os.environ.setdefault("DPINFER_PYTHON", sys.executable)  # what `dpinfer report` draws with
    os.execv(program, [str(program), *sys.argv[1:]])
