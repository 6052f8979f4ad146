"""The package is typed, strictly, and of the oldest Python that it promises."""
import ast
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


def test_every_file_is_of_the_oldest_python():
    """What pyproject.toml promises; the interpreter that runs this is newer and would take more."""
    files = sorted((SOURCE / "python/dpinfer").glob("*.py"))
    assert len(files) > 10
    for file in files:
        ast.parse(file.read_text(), str(file), feature_version=(3, 9))
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n    case 1: pass", feature_version=(3, 9))


def test_no_annotation_is_evaluated():
    """Of newer kinds, such as X | None, none then reaches the oldest Python."""
    for file in (SOURCE / "python/dpinfer").glob("*.py"):
        text = file.read_text()
        assert "from __future__ import annotations" in text or "def " not in text, file
