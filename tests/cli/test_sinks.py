"""Archives and text as results: what other programs read of them is what .npy files hold."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

try:
    import numpy as np
except ImportError:
    sys.exit(77)

DPINFER = os.environ["DPINFER"]
work = pathlib.Path(tempfile.mkdtemp(prefix="dpinfer-sinks-"))
failures = []


def run(*words, code=0, says=""):
    done = subprocess.run([DPINFER, "run", *map(str, words)], capture_output=True, text=True, timeout=60, cwd=work)
    text = done.stdout + done.stderr
    if done.returncode != code or says not in text or "Sanitizer" in text:
        failures.append(f"dpinfer run {' '.join(map(str, words))}: exit code {done.returncode}\n    {text.strip()[:1500]}")
    return text


def check(good, text):
    if not good:
        failures.append(text)


(work / "m.sim").write_text("input x float32 N 8\noutput y float32 N 4\noutput z float32 N 2 3\noutput w float32 N 1\n")
np.save(work / "x.npy", np.random.default_rng(3).standard_normal((5000, 8)).astype(np.float32))
run("m.sim", "--input", "x.npy", "--output", "y.npy", "--output", "z.npy", "--output", "w.npy")
whole = {name: np.load(work / f"{name}.npy") for name in "yzw"}

# One archive of all outputs, of some, of one; from three workers
for words, members in ((["--output", "all.npz"], "yzw"), (["--output", "y=all.npz", "--output", "z=all.npz"], "yz"),
                       (["--output", "y=all.npz", "--output", "z=other.npy"], "y"),
                       (["--output", "z=z2.npy", "--output", "all.npz"], "yw")):
    run("m.sim", "--input", "x.npy", *words, "--devices", "sim:0*3", "--batch", "16")
    with zipfile.ZipFile(work / "all.npz") as archive:
        check(archive.testzip() is None, f"{words}: a checksum is wrong")
        check({n.filename for n in archive.infolist()} == {f"{m}.npy" for m in members}, f"{words}: {archive.namelist()}")
    with np.load(work / "all.npz") as archive:
        for name in archive.files:
            check(np.array_equal(archive[name], whole[name]), f"{words}: {name} differs")
    (work / "all.npz").unlink()
# As many outputs as there can be: each goes to the workers with a descriptor
many = work / "many.sim"
many.write_text("input x float32 N 8\n" + "".join(f"output o{i} float32 N\n" for i in range(64)))
run("many.sim", "--input", "x.npy", "--output", "many.npz", "--devices", "sim:0*2")
with np.load(work / "many.npz") as archive:
    check(len(archive.files) == 64 and all(np.abs(archive[name]).max() > 0 for name in archive.files), "an output was not written")
run("m.sim", "--input", "x.npy", "--output", "all.npz", "--rows", "7:7")
check(np.load(work / "all.npz")["z"].shape == (0, 2, 3), "no rows")
run("m.sim", "--input", "x.npy", "--output", "y=a.npy", "--output", "z=a.npy", code=2, says="two outputs")
run("m.sim", "--input", "x.npy", "--output", "all.npz", "--no-overwrite", code=2, says="exists already")
run("m.sim", "--input", "all.npz", "--output", "y=all.npz", code=2)
np.savez(work / "in.npz", x=np.load(work / "x.npy"))
run("m.sim", "--input", "in.npz", "--output", "y=in.npz", code=2, says="is a source of this run")

# JSON lines and CSV tell the same
(work / "labels").write_text("\n".join(["a", "b, c", 'd "e"', "é"]))
run("m.sim", "--input", "x.npy", "--output", "y=y.jsonl", "--top", "2", "--labels", "labels")
lines = [json.loads(line) for line in (work / "y.jsonl").read_text().splitlines()]
best = np.argsort(-whole["y"], axis=1, kind="stable")[:, :2]
check([line["row"] for line in lines] == list(range(5000)), "rows out of order")
check(all([t["class"] for t in line["top"]] == list(b) for line, b in zip(lines, best)), "other classes")
check(all(np.float32(t["score"]) == y[t["class"]] for line, y in zip(lines, whole["y"]) for t in line["top"]), "other scores")
check({t["label"] for line in lines for t in line["top"]} <= {"a", "b, c", 'd "e"', "é"}, "other labels")
np.save(work / "truth.npy", best[:, 0])
for output in ("y=y.jsonl", "y=y.csv", "y=y.npz", "y=y.npy"):
    run("m.sim", "--input", "x.npy", "--output", output, "--accuracy", "truth.npy", says="accuracy: 100.00 % of 5000 rows")

for failure in failures:
    print(failure)
subprocess.run(["rm", "-rf", work], check=False)
sys.exit(bool(failures))
