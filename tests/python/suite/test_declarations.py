"""The declarations in Python are those of the header, all of them: structures, their fields in their order, sizes and offsets
as a C compiler sees them; and what the header's options can say, a session's arguments can."""
import ctypes
import dataclasses
import inspect
import os
import pathlib
import re
import subprocess

import dpinfer
from dpinfer import _c, facts

SOURCE = pathlib.Path(os.environ.get("DPI_SRC", pathlib.Path(__file__).resolve().parents[3]))


def header_structures():
    """Name of each structure of the header -> names of its fields."""
    text = (SOURCE / "include/dpinfer/dpinfer.h").read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    found = {}
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", text, flags=re.S):
        declarations = [d.split(",") for d in body.split(";") if d.strip()]
        found[name] = [re.search(r"(\w+)\s*(?:\[\w+\]\s*)*$", one).group(1) for d in declarations for one in d]
    return found


def names(kind):
    return [field[0] for field in kind._fields_]


def test_every_structure_and_field_of_the_header_is_there():
    header = header_structures()
    assert header["dpi_tensor"] == ["name", "dtype", "rank", "shape", "data"]
    assert header["dpi_preprocess"][2:6] == ["resize", "crop", "mean", "std"]
    assert header == {name: names(kind) for name, kind in _c.STRUCTURES.items()}


def arguments_of(function):
    return set(inspect.signature(function).parameters) - {"self"}


def test_a_session_has_every_option():
    other_names = {
        "model_path": "model", "no_sandbox": "sandbox", "compile_timeout_ms": "compile_timeout",
        "slice_timeout_ms": "slice_timeout",
    }  # fmt: skip
    elsewhere = {"struct_size", "model_data", "model_bytes", "model_format", "log_level"}  # a file; the logger's own level
    implied = {f for f in names(_c.COptions) if f.endswith(("_count", "_context"))}
    options = set(names(_c.COptions)) - elsewhere - implied
    assert {other_names.get(o, o) for o in options} == arguments_of(dpinfer.Session)


def test_statistics_and_descriptions_have_every_field():
    for kind, made in (
        (_c.CStats, facts.Stats), (_c.CWorkerStats, facts.WorkerStats), (_c.CWorkerInfo, facts.WorkerInfo),
        (_c.CDescription, facts.Description),
    ):  # fmt: skip
        ports = {"inputs", "input_count", "outputs", "output_count"}  # Session.inputs, input_names, output_names
        wanted = [f for f in names(kind) if f not in {"struct_size", "worker_count", *ports}]
        assert [f.name for f in dataclasses.fields(made)] == wanted


def test_structures_match_the_header(tmp_path):
    lines = ["#include <dpinfer/dpinfer.h>", "#include <stdio.h>", "int main(void) {"]
    for name, kind in _c.STRUCTURES.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        lines += [f'printf("{name}.{field[0]} %zu\\n", offsetof({name}, {field[0]}));' for field in kind._fields_]
    source = tmp_path / "sizes.c"
    source.write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run(["cc", f"-I{SOURCE}/include", "-o", tmp_path / "sizes", source], check=True)
    seen = dict(line.rsplit(" ", 1) for line in subprocess.check_output([tmp_path / "sizes"], text=True).splitlines())
    for name, kind in _c.STRUCTURES.items():
        assert ctypes.sizeof(kind) == int(seen[name]), name
        for field, *_ in kind._fields_:
            assert getattr(kind, field).offset == int(seen[f"{name}.{field}"]), f"{name}.{field}"


def test_every_status_has_its_exception():
    from dpinfer.errors import KINDS

    names = {number: _c.library().dpi_status_name(number).decode() for number in range(1, 64)}
    assert {n: kind.status_name for n, kind in KINDS.items()} == {n: text for n, text in names.items() if text != "?"}
