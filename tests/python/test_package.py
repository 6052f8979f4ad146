"""Runs the Python package's tests over this build; skipped where numpy or pytest is missing."""
import importlib.util
import os
import pathlib
import subprocess
import sys

SKIPPED = 77
here = pathlib.Path(__file__).resolve().parent
missing = [name for name in ("numpy", "pytest") if importlib.util.find_spec(name) is None]
if missing or os.environ.get("DPI_SANITIZE"):
    print(f"skipped: {'the sanitizer is not in the interpreter' if not missing else 'no ' + ', '.join(missing)}")
    sys.exit(SKIPPED)
source = here.parent.parent
extras = [str(folder) for folder in (source / ".deps" / "torch", source / ".deps" / "package", source / ".deps" / "arrow") if folder.is_dir()]
environment = {
    **os.environ,
    "DPINFER_LIBRARY": f"{os.environ['DPI_BUILD']}/libdpinfer.so",
    "PYTHONPATH": os.pathsep.join([str(source / "python"), *extras]),
    "PYTHONDONTWRITEBYTECODE": "1",
}
command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here / "suite")]
sys.exit(subprocess.run(command, env=environment).returncode)
