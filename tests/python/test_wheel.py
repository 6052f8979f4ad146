"""Builds the wheel, installs it into an empty environment and uses it there; skipped where what builds it is missing."""
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import venv

SKIPPED = 77
source = pathlib.Path(__file__).resolve().parents[2]
extra = source / ".deps" / "package"
sys.path.insert(0, str(extra))
if os.environ.get("DPI_SANITIZE") or not all(importlib.util.find_spec(n) for n in ("scikit_build_core", "numpy", "pip")):
    print("skipped: a sanitized build, or no scikit-build-core (tools/deps.sh test)")
    sys.exit(SKIPPED)

USE = """
import pathlib, subprocess, sys
import numpy as np, dpinfer
assert "site-packages" in dpinfer.__file__, dpinfer.__file__
path = pathlib.Path(sys.argv[1]) / "m.sim"
path.write_text("input x float32 N 8\\noutput y float32 N 4\\n")
with dpinfer.DataParallel(path, devices="sim:0*2") as model:
    assert model(np.zeros((5, 8), np.float32)).shape == (5, 4)
if __name__ == "__main__":
    rows = [np.zeros(8, np.float32)] * 9
    assert dpinfer.run(path, rows, devices="sim:0", num_workers=1, start_method="spawn").shape == (9, 4)
"""


def run(*command, **options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DPINFER", "PYTHONPATH", "VIRTUAL_ENV"))}
    subprocess.run([str(c) for c in command], check=True, env={**environment, **options.pop("env", {})}, **options)


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source]
    run(*wheel, f"-Cbuild-dir={folder}/build", env={"PYTHONPATH": str(extra)})
    (built,) = folder.glob("dpinfer-*-py3-none-*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", built)
    numpy = pathlib.Path(importlib.util.find_spec("numpy").origin).parents[1]
    (packages,) = (folder / "env").glob("lib/python3*/site-packages")
    for part in numpy.glob("numpy*"):
        (packages / part.name).symlink_to(part)  # the one dependency, without a package index
    script = folder / "use.py"
    script.write_text(USE)
    run(python, script, folder, cwd=folder)
    run(folder / "env" / "bin" / "dpinfer", "--version", cwd=folder)
print(f"{built.name}: installed and used")
