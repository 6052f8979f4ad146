"""The declarations in Python are those of the header: sizes and offsets, as a C compiler sees them."""
import ctypes
import os
import pathlib
import subprocess

from dpinfer import _c

SOURCE = pathlib.Path(os.environ.get("DPI_SRC", pathlib.Path(__file__).resolve().parents[3]))


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
        grows = kind._fields_[0][0] == "struct_size"  # it may have grown at its end: the old size stays valid
        size = ctypes.sizeof(kind)
        assert size <= int(seen[name]) if grows else size == int(seen[name]), name
        for field, *_ in kind._fields_:
            assert getattr(kind, field).offset == int(seen[f"{name}.{field}"]), f"{name}.{field}"


def test_every_status_has_its_exception():
    from dpinfer.errors import KINDS

    names = {number: _c.library().dpi_status_name(number).decode() for number in range(1, 64)}
    assert {n: kind.status_name for n, kind in KINDS.items()} == {n: text for n, text in names.items() if text != "?"}
