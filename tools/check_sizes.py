#!/usr/bin/env python3
"""Checks sizes: no function over 80 lines, no file over 800. Exits 1 with those that are."""
import pathlib
import sys

root = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("src", "include", "tests", "tools", "bench", "examples", "python")
ENDS = (".c", ".cc", ".h", ".py", ".sh")
paths = sorted(p for top in FOLDERS for p in (root / top).rglob("*") if p.suffix in ENDS and p.is_file())
bad = [] if paths else ["no files were found"]
for path in paths:
    name = path.relative_to(root)
    lines = path.read_text().splitlines()
    if len(lines) > 800:
        bad.append(f"{name}: {len(lines)} lines")
    begin = None
    for number, line in enumerate(lines, 1):
        if path.suffix in (".c", ".cc") and line == "{":
            begin = number
        if path.suffix in (".c", ".cc") and line == "}" and begin:
            if number - begin > 80:
                bad.append(f"{name}:{begin}: a function of {number - begin} lines")
            begin = None
if bad:
    print("Too long:", *bad, sep="\n  ")
sys.exit(bool(bad))
