#!/usr/bin/env python3
"""Checks the layers (docs/architecture.md): each folder includes only from those before it. Exits 1 with what does not."""
import pathlib
import re
import sys

LAYERS = ["base", "ipc", "backend", "data", "runtime", "api", "cli"]
root = pathlib.Path(__file__).resolve().parent.parent
folders = {path.name for path in (root / "src").iterdir() if path.is_dir()}
bad = [f"src/{name}: a folder that is no layer" for name in sorted(folders - set(LAYERS))]
sources = [*(root / "src").rglob("*.[ch]"), *(root / "src").rglob("*.cc")]
for path in sorted([*sources, *(root / "include").rglob("*.h"), *(root / "examples").glob("*.c")]):
    inside = path.relative_to(root).parts
    layer = LAYERS.index(inside[1]) if inside[0] == "src" and inside[1] in LAYERS else -1
    for number, line in enumerate(path.read_text().splitlines(), 1):
        found = re.match(r'\s*#\s*include\s+(["<])([^">/]+)/', line)
        if not found:
            continue
        ours = found[2] in LAYERS
        if (ours and LAYERS.index(found[2]) > layer) or (found[1] == '"' and not ours):
            bad.append(f"{path.relative_to(root)}:{number}: {line.strip()}")
if not sources:
    bad.append("no sources were found")
if bad:
    print("These go against the layers:", *bad, sep="\n  ")
sys.exit(bool(bad))
