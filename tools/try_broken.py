#!/usr/bin/env python3
"""Opens broken copies of a model by `dpinfer inspect`: each ends in time with one sentence that names the file.

usage: try_broken.py DPINFER MODEL.onnx [ARGUMENTS for inspect...]

Cut at random lengths, empty, noise, zeros, and single bits flipped near the start (which may leave a valid model).
A library that crashes may take its worker with it, never the program: exit codes 0 (still valid), 1 and 2 are good.
"""
import concurrent.futures
import pathlib
import random
import subprocess
import sys
import tempfile

program, model, *arguments = sys.argv[1:]
good = pathlib.Path(model).read_bytes()
draw = random.Random(1)
cases = {"empty": b"", "one byte": good[:1], "noise": draw.randbytes(5000), "zeros": bytes(5000)}
for _ in range(6):
    length = draw.randrange(len(good))
    cases[f"cut at {length}"] = good[:length]
cases["last byte missing"] = good[:-1]
for i in range(16):
    at = draw.randrange(min(len(good), 200))
    cases[f"bit {i % 8} of byte {at} flipped"] = good[:at] + bytes([good[at] ^ 1 << i % 8]) + good[at + 1 :]


def attempt(name, folder):
    """The exit code, and what is wrong with it or None."""
    path = f"{folder}/{name.replace(' ', '-')}.onnx"
    pathlib.Path(path).write_bytes(cases[name])
    try:
        ended = subprocess.run([program, "inspect", path, *arguments], capture_output=True, timeout=120)
    except subprocess.TimeoutExpired:
        return None, "no end after 120 s"
    said = ended.stderr.decode(errors="backslashreplace")
    must_fail = "flipped" not in name and not name.startswith(("cut", "last"))
    if ended.returncode not in ((1, 2) if must_fail else (0, 1, 2)) or (ended.returncode and path not in said):
        return ended.returncode, f"exit code {ended.returncode}: {said[-600:]}"
    return ended.returncode, None


with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(4) as pool:
    outcomes = dict(zip(cases, pool.map(lambda name: attempt(name, folder), cases)))
codes = [code for code, _ in outcomes.values()]
wrong = {name: problem for name, (_, problem) in outcomes.items() if problem}
for name, problem in wrong.items():
    print(f"{name}: {problem}")
print(
    f"{len(cases)} broken models: {codes.count(2)} refused, {codes.count(1)} failed, {codes.count(0)} still valid, "
    f"{len(wrong)} wrong"
)
sys.exit(bool(wrong))
