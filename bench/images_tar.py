"""100,000 small images in tars, one of them cut short: memory over time, and whether every result stands at its key.
usage: bench/images_tar.py [--images N] [--dpinfer build/dpinfer]"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy
import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/cli"))
from image_files import png, tar  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--images", type=int, default=100_000)
parser.add_argument("--tars", type=int, default=10)
parser.add_argument("--dpinfer", default="build/dpinfer")
arguments = parser.parse_args()
per_tar = arguments.images // arguments.tars


def picture(i):
    """32 x 32 pixels of one colour that tells which it is."""
    colour = numpy.array([i % 251, i // 251 % 251, i // 63001], numpy.uint8)
    return png(numpy.broadcast_to(colour, (32, 32, 3)).copy())


def resident(pid):
    """KiB of own memory (without shared and mapped files) of a process and its children."""
    total = {}
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    for p in [pid, *(int(child) for task in tasks for child in (task / "children").read_text().split())]:
        for line in pathlib.Path(f"/proc/{p}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total[p] = int(line.split()[1])
    return total


with tempfile.TemporaryDirectory(prefix="dpinfer-tars-") as name:
    folder = pathlib.Path(name)
    for t in range(arguments.tars):
        data = tar((f"{t:02}/{i:06}.png", picture(i)) for i in range(t * per_tar, (t + 1) * per_tar))
        cut = len(data) // 2 if t == arguments.tars // 2 else len(data)
        (folder / f"s-{t:02}.tar").write_bytes(data[:cut])
    x, y = (helper.make_tensor_value_info(n, TensorProto.UINT8, ["N", 4, 4, 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "m.onnx")
    began = time.monotonic()
    process = subprocess.Popen([arguments.dpinfer, "run", folder / "m.onnx", "--input",
                                f"{folder}/s-{{00..{arguments.tars - 1:02}}}.tar", "--output", folder / "y.npy", "--events",
                                folder / "events", "--json", "--batch", "64"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = []
    while process.poll() is None:
        try:
            seen.append((time.monotonic() - began, resident(process.pid)))
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.2)
    out, text = process.communicate()
    print(text.strip())
    done = json.loads(out)
    print(f"exit code {process.returncode}, {done['rows']} rows in {done['seconds']:.1f} s, {done['rows_per_s']:.0f} rows/s")
    for share in (0.2, 0.4, 0.6, 0.8, 1):
        at, each = seen[int(share * (len(seen) - 1))]
        print(f"after {at:5.1f} s: {', '.join(f'{kib / 1024:.1f} MiB' for kib in each.values())} (caller, workers)")
    rows = numpy.load(folder / "y.npy")[:, 0, 0].astype(int)
    found = rows[:, 0] + 251 * rows[:, 1] + 63001 * rows[:, 2]
    bad = sorted(e["row"] for e in map(json.loads, (folder / "events").read_text().splitlines()) if e["event"] == "bad_row")
    lost = arguments.images - len(found)  # of the tar that was cut short, but for the one within which it was
    first = bad[0]
    want = numpy.concatenate([numpy.arange(first), [0], numpy.arange(first + 1, len(found)) + lost])
    print(f"{len(bad)} bad row ({bad}), {lost} rows behind the cut; every other one at its key: {bool((found == want).all())}")
    sys.exit(not (found == want).all())
