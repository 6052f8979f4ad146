"""The program as a user meets it: exit codes, one clear sentence for each mistake, nothing half-written."""
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time

DPINFER = os.environ["DPINFER"]
work = pathlib.Path(tempfile.mkdtemp(prefix="dpinfer-cli-"))
failures = []


def run(*words, code=0, says=(), env=None, timeout=60):
    done = subprocess.run([DPINFER, *map(str, words)], capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})})
    text = done.stdout + done.stderr
    problems = [f"exit code {done.returncode}, expected {code}"] if done.returncode != code else []
    problems += [f"does not say {word!r}" for word in ([says] if isinstance(says, str) else says) if word not in text]
    sentences = [line for line in done.stderr.strip().splitlines() if not line.startswith("dpinfer: warning: ")]
    if code == 2 and len(sentences) != 1: # a warning may stand before it: another test uses the same cores
        problems.append("is not one sentence")
    if "Sanitizer" in text:
        problems.append("a sanitizer spoke")
    if problems:
        failures.append(f"dpinfer {' '.join(map(str, words))}: {'; '.join(problems)}\n    {text.strip()[:1500]}")
    return done


def npy(path, shape, descr="<f4", order="False", data=None, version=(1, 0), header=None):
    head = header or f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"
    head = head.encode() + b" " * ((-len(head) - 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(head)) + head + (data or b""))
    return path


model = work / "m.sim"
model.write_text("input x float32 N 8\noutput y float32 N 4\nfixed_us 50\n")
good = npy(work / "good.npy", "(100, 8)", data=os.urandom(3200))
out = work / "out.npy"

# What works
run("--help", says="dpinfer run MODEL")
run("--version", says="dpinfer 0.")
for command in ("run", "bench", "devices", "inspect", "compile", "cache", "report", "top"):
    run(command, "--help", says="dpinfer " + command)
run("run", model, "--input", good, "--output", out, says="100 rows")
assert out.stat().st_size > 1600
whole = out.read_bytes()
run("run", model, "--input", f"x={good}", "--output", f"y={out}", "--rows", "10:30", "--devices", "sim:0*3", says="20 rows")
assert out.read_bytes()[-320:] == whole[-1600 + 160:-1600 + 480], "rows 10:30 are those of the whole run"
run("run", model, "--input", good, "--output", work / "top.csv", "--top", 2)
assert (work / "top.csv").read_text().startswith("row,class1,score1,class2,score2\n0,")
run("run", model, "--input", good, "--rows", "5:5", "--output", out, says="0 rows")
run("run", model, "--input", good, "--dry-run", says=["input  x", "sim:0"])
facts = json.loads(run("inspect", model, "--json").stdout)
assert facts["inputs"][0] == {"name": "x", "dtype": "float32", "shape": [-1, 8]}, facts
facts = json.loads(run("devices", "--json").stdout)
assert {b["backend"] for b in facts["backends"]} >= {"openvino", "onnxruntime", "sim"}
facts = json.loads(run("run", model, "--input", good, "--json").stdout)
assert facts["rows"] == 100 and facts["session"]["bit_identical"] is True
table = json.loads(run("bench", model, "--batch", "4,8", "--rows", "64", "--repeats", "2", "--seconds", "0.05", "--json",
                       "--devices", "sim:0,sim:1").stdout)
assert set(table) == {"machine", "command", "model", "backend", "engine_alone", "rows"}, set(table)
assert [r["mode"] for r in table["rows"]] == ["single", "split", "split-blocking", "shard"] * 2
assert all(r["rows_per_s"] > 0 and 0 <= r["loss"]["compute"] <= 1.5 for r in table["rows"]), table["rows"]
run("bench", model, "--batch", "4", "--rows", "64", "--repeats", "1", "--seconds", "0.05", says=["engine alone", "speed-up"])
# The engine alone on a device with memory of its own: no rows travel. 64 rows in 2 ms by the model, on two devices.
(work / "gpu.sim").write_text("input x float32 N 3 16 16\noutput y float32 N 10\ntouch none\ndepth 3\nfixed_us 2000\n"
                              "copy_in_mb_s 1000\ncopy_out_mb_s 1000\n")
table = json.loads(run("bench", work / "gpu.sim", "--devices", "sim:0,sim:1", "--batch", "64", "--rows", "256", "--mode",
                       "shard", "--repeats", "1", "--seconds", "0.05", "--json").stdout)
assert abs(table["engine_alone"][0]["rows_per_s"] - 64000) < 64, table
assert table["rows"][0]["speedup"] is None, table
assert " - " in run("bench", work / "gpu.sim", "--devices", "sim:0", "--batch", "64", "--rows", "256", "--mode", "shard",
                    "--repeats", "1", "--seconds", "0.05").stdout
# The curve: the first devices against each engine by itself, of which the second here is four times as slow.
words = [work / "gpu.sim", "--devices", "sim:0,sim:1,sim:2", "--backend-option", "1.fixed_us=8000", "--batch", "64", "--rows", "384",
         "--repeats", "2", "--seconds", "0.05", "--scaling"]
table = json.loads(run("bench", *words, "--json").stdout)
assert [r["mode"] for r in table["rows"]] == ["single", "split", "split-blocking", "shard"], table["rows"]
assert [(p["mode"], p["devices"]) for p in table["scaling"]] == [(m, n) for m in ("split", "shard") for n in (1, 2, 3)], table["scaling"]
for point in table["scaling"]:
    ideal = {1: 32000, 2: 40000, 3: 72000}[point["devices"]]
    assert abs(point["ideal_rows_per_s"] - ideal) < 0.002 * ideal and abs(point["at_once_rows_per_s"] - ideal) < 0.002 * ideal, point
    assert 0 < point["efficiency_interval"][0] <= point["efficiency"] <= point["efficiency_interval"][1], point
    assert point["repeats"] == 2 and point["batch_per_device"] == 64, point
text = run("bench", *words, "--mode", "shard").stdout
assert re.search(r"^scaling .*\n.*\nshard +1 +64 .*\nshard +2 +64 .*\nshard +3 +64 ", text, re.M), text
run("bench", *words, "--mode", "single,split-blocking", code=2, says="--scaling")
run("run", model, "--scaling", code=2, says="--scaling")
many = json.loads(run("bench", model, "--devices", "sim:0*64", "--batch", "4", "--rows", "1024", "--mode", "split,shard", "--repeats",
                      "1", "--seconds", "0.02", "--scaling", "--json").stdout)
assert [p["devices"] for p in many["scaling"]] == [1, 2, 4, 8, 16, 32, 64] * 2, many["scaling"]
run("bench", work / "gpu.sim", "--batch", "64", "--isolation", "thread", "--devices", "sim:0", "--rows", "128", "--mode",
    "split", "--repeats", "1", "--seconds", "0.05", says="engine alone")
run("cache", "list", "--cache-dir", work / "cache", says="0 engines")
run("compile", model, "--cache-dir", work / "cache", says="compiled")
run("compile", model, "--cache-dir", work / "cache", says="from the cache")
run("cache", "clear", "--cache-dir", work / "cache", says="removed")

# Workers are confined unless told otherwise
assert "sandbox: " in run("run", model, "--input", good, "-v").stderr
assert "sandbox: " not in run("run", model, "--input", good, "-v", "--no-sandbox", "--core-dumps").stderr
run("run", model, "--input", good, "--backend-option", "escape_at_slice=1",
    "--no-sandbox", code=1, says="not refused: a program a process a socket a signal a file")
if not os.environ.get("DPI_SANITIZE"): # its shadow memory is beyond any limit
    run("run", model, "--input", good, "--worker-memory", "1GiB", says="100 rows")
    wide = work / "wide.sim"
    wide.write_text("input x float32 N 8\noutput y float32 N 4000000\ntouch none\n")
    run("run", wide, "--input", good, "--worker-memory", "100M", code=1, says="(--worker-memory)")

# The user's mistakes: one sentence, exit code 2
run("frobnicate", code=2, says="frobnicate")
run("run", code=2, says="MODEL")
run("run", model, code=2, says="--input")
run("run", model, "--input", good, "--frob", code=2, says="--frob")
run("run", work / "none.onnx", "--input", good, code=2, says="none.onnx")
run("run", work, "--input", good, code=2, says="not a regular file")
run("run", model, "--input", work / "none.npy", code=2, says="none.npy")
run("run", model, "--input", work, code=2)
run("run", model, "--input", good, "--output", work / "no" / "folder.npy", code=2, says="folder.npy")
run("run", model, "--input", good, "--output", "out.txt", code=2, says="out.txt")
run("run", model, "--input", good, "--devices", "sim:x", code=2, says="sim:x")
run("run", model, "--input", good, "--devices", "cpu:0", code=2, says="cpu:0")
run("run", model, "--input", good, "--backend", "none", code=2, says="none")
run("run", model, "--input", good, "--batch", "0", code=2, says="--batch")
run("run", model, "--input", good, "--batch", "1,2", code=2, says="--batch")
run("run", model, "--input", good, "--rows", "50:200", code=2, says="50:200")
run("run", model, "--input", good, "--precision", "bf16", code=2, says="fp32")
run("run", model, "--input", good, "--backend-option", "frob=1", code=2, says="frob")
run("run", model, "--input", good, "--split", "1,2,3", code=2, says="3 shares")
run("run", model, "--input", good, "--output", "z=" + str(out), code=2, says="z")
run("run", model, "--input", "random:8:float99:10", code=2, says="float99")
run("run", model, "--input", "random:9:float32:10", code=2, says=["[N,8]", "[10,9]"])
run("run", model, "--input", "random:8:int32:10", code=2, says=["float32", "int32"])
run("run", model, "--input", good, "--worker", "/nonexistent", code=2, says="/nonexistent")
for size in ("0", "x", "4GB", "5iB", "iB", "-1", "99999999999G"):
    run("run", model, "--input", good, "--worker-memory", size, code=2, says="--worker-memory")
run("cache", "frob", code=2, says="frob")
bad_model = work / "bad.sim"
bad_model.write_text("input x float32 N 8\nnonsense\n")
run("run", bad_model, "--input", good, code=2, says=["bad.sim", "line 2"])

hostile = {
    "short": dict(shape="(100, 8)", data=b"\0" * 100), "negative": dict(shape="(-1, 8)"),
    "overflow": dict(shape="(9223372036854775807, 8)"), "object": dict(shape="(1,)", descr="|O"),
    "endian": dict(shape="(100, 8)", descr=">f4", data=b"\0" * 3200),
    "fortran": dict(shape="(100, 8)", order="True", data=b"\0" * 3200), "version": dict(shape="(1, 8)", version=(9, 0)),
    "scalar": dict(shape="()", data=b"\0" * 4), "garbage": dict(shape="", header="not a dict"),
}
for name, what in hostile.items():
    run("run", model, "--input", npy(work / f"{name}.npy", **what), "--output", work / "never.npy", code=2, says=f"{name}.npy")
(work / "empty.npy").write_bytes(b"")
run("run", model, "--input", work / "empty.npy", code=2, says="empty.npy")
os.mkfifo(work / "fifo.npy")
run("run", model, "--input", work / "fifo.npy", code=2, says="fifo.npy")
before = good.read_bytes()
run("run", model, "--input", good, "--output", good, code=2, says="is a source of this run")
assert good.read_bytes() == before and not list(work.glob("*.part")), "a refused run touched its source"
assert not list(work.glob("never*")), "a failed run left files"

# Libraries that are none
not_library = work / "lib.so"
not_library.write_text("text")
onnx = pathlib.Path(os.environ["DPI_SRC"]) / "models" / "digits.onnx"
digits = pathlib.Path(os.environ["DPI_SRC"]) / "data" / "digits" / "images.npy"
for backend, variable in (("openvino", "DPINFER_OPENVINO_LIBRARY"), ("onnxruntime", "DPINFER_ONNXRUNTIME_LIBRARY")):
    run("run", onnx, "--input", digits, "--backend", backend, code=2, says="lib.so", env={variable: str(not_library)})
    run("run", onnx, "--input", digits, "--backend", backend, "--library", "/lib/x86_64-linux-gnu/libm.so.6", code=2)

# OpenVINO IR gives what the ONNX file gives; the two libraries agree; accuracy is counted
if not os.environ.get("DPI_SANITIZE"):
    import numpy as np
    import openvino
    openvino.save_model(openvino.Core().read_model(onnx), work / "digits.xml", compress_to_fp16=False)
    scores = {}
    for name, file, backend in (("onnx", onnx, "openvino"), ("ir", work / "digits.xml", "openvino"), ("ort", onnx, "onnxruntime")):
        run("run", file, "--input", digits, "--backend", backend, "--output", work / f"{name}.npy", "--accuracy",
            digits.parent / "labels.npy", says="accuracy: 99.")
        scores[name] = np.load(work / f"{name}.npy")
    assert np.array_equal(scores["onnx"], scores["ir"]), "IR and ONNX differ"
    assert np.abs(scores["onnx"] - scores["ort"]).max() < 1e-3 * np.abs(scores["ort"]).max(), "the libraries differ"
    # A model that names a file elsewhere for its weights would have it read: the oldest library does not look
    import onnx as onnx_package
    oldest = list(pathlib.Path(os.environ["DPI_SRC"]).glob(".deps/oldest/onnxruntime/capi/libonnxruntime.so.*"))
    confined = "sandbox: files by Landlock" in run("run", model, "--input", good, "-v").stderr
    (work / "secret").write_bytes(bytes(1 << 20))
    spy = onnx_package.load(onnx)
    for tensor in [t for t in spy.graph.initializer if len(t.raw_data) > 1000]:
        length = len(tensor.raw_data)
        onnx_package.external_data_helper.set_external_data(tensor, "../secret", offset=0, length=length)
        tensor.ClearField("raw_data")
    (work / "models").mkdir()
    (work / "models" / "spy.onnx").write_bytes(spy.SerializeToString())
    for library in oldest if confined else []:
        words = ("run", work / "models" / "spy.onnx", "--input", digits, "--backend", "onnxruntime", "--library", library,
                 "--output", "none")
        run(*words, "--no-sandbox", says="1,797 rows")
        run(*words, code=2, says=["spy.onnx", "--no-sandbox"])
    run("run", onnx, "--input", digits, "--output", "typo=" + str(work / "never.npy"), code=2, says="typo")

# Workers that die or hang are replaced, and the results are those of a run without faults
run("run", model, "--input", "random:8:float32:20000", "--output", work / "calm.npy")
for fault, says in (("die_at_slice=100", "signal 9"), ("hang_at_slice=200", "hung")):
    run("run", model, "--input", "random:8:float32:20000", "--output", work / "stormy.npy", "--backend-option", fault,
        "--slice-timeout", "0.3", says=[says, "sim:0", "20,000 rows"], timeout=60)
    assert (work / "stormy.npy").read_bytes() == (work / "calm.npy").read_bytes(), fault

# A row that kills is left out, named and counted: exit code 3; the events tell of it
import json
import numpy as np
rows = np.random.default_rng(1).standard_normal((500, 8)).astype(np.float32)
rows[321, 0] = 777
np.save(work / "poisoned.npy", rows)
run("run", model, "--input", work / "poisoned.npy", "--output", work / "y.npy", "--on-bad-row", "skip", "--events",
    work / "events", "--backend-option", "poison=777", code=3, says=["row 321 is left out", "500 rows"], timeout=60)
assert not list(work.glob("y.npy.*")), "a run that is done left files to go on with"
bad = np.isnan(np.load(work / "y.npy")).reshape(500, -1).all(axis=1)
assert bad[321] and bad.sum() == 1, "another row is left out"
kinds = {json.loads(line)["event"] for line in (work / "events").read_text().splitlines()}
assert kinds >= {"started", "died", "bad_row"}, kinds
run("run", model, "--input", work / "poisoned.npy", "--output", work / "z.npy", "--no-journal", "--backend-option",
    "poison=777", code=1, says="row 321 cannot be computed", timeout=60)

# Failures at run time: exit code 1; without a journal nothing is left
run("run", model, "--input", "random:8:float32:100000", "--output", work / "never.npy", "--no-journal", "--backend-option",
    "fail_at_slice=300", code=1, says="as planned")
assert not list(work.glob("never*")), "a failed run left files"
run("run", model, "--input", good, "--cache-dir", "/proc/none", says=["100 rows", "without the engine cache"])

# SIGINT ends cleanly
for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
    slow = subprocess.Popen([DPINFER, "run", model, "--input", "random:8:float32:100000000", "--output", work / "never.npy", "--no-journal"],
                            stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not list(work.glob("never*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    slow.send_signal(number)
    slow.wait(20)
    if slow.returncode != code or list(work.glob("never*")):
        failures.append(f"signal {number}: exit code {slow.returncode}, left {list(work.glob('never*'))}")

for failure in failures:
    print(failure)
subprocess.run(["rm", "-rf", work], check=False)
sys.exit(bool(failures))
