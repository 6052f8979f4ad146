#!/usr/bin/env python3
"""Checks the layers (docs/architecture.md): each folder includes only from those before it. Exits 1 with what does not."""
import pathlib
import re
import sys

LAYERS = ["base", "ipc", "backend", "data", "runtime", "api", "cli"]
root = pathlib.Path(__file__).resolve().parent.parent
bad = []
for path in sorted([*(root / "src").rglob("*.[ch]"), *(root / "include").rglob("*.h"), *(root / "examples").glob("*.c")]):
    inside = path.relative_to(root).parts
    layer = LAYERS.index(inside[1]) if inside[0] == "src" else -1
    for number, line in enumerate(path.read_text().splitlines(), 1):
        found = re.match(r'\s*#\s*include\s+"([^"/]+)/', line)
        if found and (found[1] not in LAYERS or LAYERS.index(found[1]) > layer):
            bad.append(f"{path.relative_to(root)}:{number}: {line.strip()}")
if bad:
    print("These includes go against the layers:", *bad, sep="\n  ")
sys.exit(bool(bad))
