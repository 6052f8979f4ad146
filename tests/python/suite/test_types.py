"""The package is typed, strictly."""
import importlib.util
import pathlib
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed (tools/deps.sh test)")
def test_mypy_strict(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path], cwd=SOURCE, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
