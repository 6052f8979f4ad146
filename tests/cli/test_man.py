"""The manual pages say what --help says: they are written from it, by tools/make_man.py."""
import os
import pathlib
import subprocess
import sys
import tempfile

source = pathlib.Path(os.environ["DPI_SRC"])
with tempfile.TemporaryDirectory() as name:
    subprocess.run([sys.executable, source / "tools" / "make_man.py", os.environ["DPINFER"], name], check=True)
    fresh, kept = ({page.name: page.read_text() for page in pathlib.Path(folder).glob("*.1")} for folder in (name, source / "man"))
stale = sorted(page for page in fresh.keys() | kept.keys() if fresh.get(page) != kept.get(page))
if stale:
    sys.exit(f"{', '.join(stale)}: not what --help says now; run tools/make_man.py build/dpinfer")
print(f"{len(fresh)} pages")
