#!/usr/bin/env python3
"""Checks sizes: no function over 80 lines, no file over 800. Exits 1 with those that are."""
import pathlib
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parent.parent
names = subprocess.run(["git", "ls-files", "*.c", "*.h", "*.py"], cwd=root, capture_output=True, text=True).stdout.split()
names = names or [str(p.relative_to(root)) for top in ("src", "include", "tests", "tools") for p in (root / top).rglob("*.[ch]")]
bad = []
for name in names:
    lines = (root / name).read_text().splitlines()
    if len(lines) > 800:
        bad.append(f"{name}: {len(lines)} lines")
    begin = None
    for number, line in enumerate(lines, 1):
        if name.endswith(".c") and line == "{":
            begin = number
        if name.endswith(".c") and line == "}" and begin:
            if number - begin > 80:
                bad.append(f"{name}:{begin}: a function of {number - begin} lines")
            begin = None
if bad:
    print("Too long:", *bad, sep="\n  ")
sys.exit(bool(bad))
