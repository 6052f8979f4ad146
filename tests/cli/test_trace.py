"""The trace: valid by the Trace Event Format (JSON object form), every slice of the run in it, spans of a track one
behind the other, deaths and replays as instants."""
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile

DPINFER = os.environ["DPINFER"]
failures = []


def run(work, *words, code=0):
    done = subprocess.run([DPINFER, "run", *map(str, words)], capture_output=True, text=True, timeout=120, cwd=work)
    if done.returncode != code or "Sanitizer" in done.stderr:
        failures.append(f"dpinfer run {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr[:1500]}")
    return done.stdout + done.stderr


def check(good, text):
    if not good:
        failures.append(text)


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read(path):
    """The events of a trace, after checking what the format asks of each."""
    trace = json.loads(path.read_text())
    check(set(trace) == {"traceEvents", "displayTimeUnit", "otherData"} and trace["displayTimeUnit"] in ("ms", "ns"), "keys")
    for e in trace["traceEvents"]:
        good = isinstance(e["name"], str) and e["ph"] in "XiM" and isinstance(e["pid"], int) and isinstance(e["tid"], int)
        if e["ph"] == "X":
            good = good and number(e["ts"]) and number(e["dur"]) and e["ts"] >= 0 and e["dur"] > 0
        elif e["ph"] == "i":
            good = good and number(e["ts"]) and e["s"] in ("g", "p", "t")
        else:
            good = good and e["name"] in ("process_name", "thread_name", "process_sort_index") and isinstance(e["args"], dict)
        check(good, f"no valid event: {e}")
    return trace


def spans(trace):
    tracks = collections.defaultdict(list)
    for e in trace["traceEvents"]:
        if e["ph"] == "X":
            tracks[e["pid"], e["tid"]].append((e["ts"], e["ts"] + e["dur"], e["name"], e["args"]["slice"]))
    for track, all_of_it in tracks.items():
        all_of_it.sort()
        late = [(a, b) for a, b in zip(all_of_it, all_of_it[1:]) if a[1] > b[0] + 0.0015] # as decimals of a microsecond
        check(not late, f"track {track}: {late[:1]} overlap")
    return tracks


with tempfile.TemporaryDirectory(prefix="dpinfer-trace-") as folder:
    work = pathlib.Path(folder)
    (work / "cpu.sim").write_text("input x float32 N 8\noutput y float32 N 4\nfixed_us 300\n")
    (work / "gpu.sim").write_text("input x float32 N 64\noutput y float32 N 64\ndepth 3\nfixed_us 300\ncopy_in_mb_s 50\n"
                                  "copy_out_mb_s 50\n")
    common = ("--batch", "16", "--output", "y.npy", "--trace", "t.json")
    for model, elements, tracks_expected in (("cpu.sim", 8, {1, 3}), ("gpu.sim", 64, {1, 2, 3, 4})):
        run(work, model, "--input", f"random:{elements}:float32:6400", "--devices", "sim:0*3", *common)
        trace = read(work / "t.json")
        tracks = spans(trace)
        check(not list(work.glob("*.part")), "a part is left")
        check({tid for _, tid in tracks} == tracks_expected, f"{model}: tracks {sorted(tracks)}")
        computed = [s for (_, tid), all_of_it in tracks.items() if tid == 3 for *_, s in all_of_it]
        check(sorted(computed) == list(range(400)), f"{model}: {len(computed)} slices of 400 are there, or one twice")
        names = {n for all_of_it in tracks.values() for _, _, n, _ in all_of_it}
        check(names >= {"wait", "load", "compute", "copy out"} | ({"copy in"} if model == "gpu.sim" else set()), f"{names}")
        claims = [e for e in trace["traceEvents"] if e["name"] in ("claim", "steal")]
        check(len(claims) == 400, f"{len(claims)} claims")
        processes = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
        check(processes == {"dpinfer", "0: sim:0", "1: sim:0", "2: sim:0"}, f"{processes}")
        check(trace["otherData"]["lost_slices"] == 0 == trace["otherData"]["left_out_events"], "something is lost")

    # A death and a replay
    run(work, "cpu.sim", "--input", "random:8:float32:6400", "--devices", "sim:0,sim:1", "--backend-option", "1.die_at_slice=20", *common)
    trace = read(work / "t.json")
    spans(trace)
    instants = collections.Counter(e["name"] for e in trace["traceEvents"] if e["ph"] == "i")
    check(instants["died"] >= 1 and instants["replayed"] >= 1 and instants["started"] >= 3, f"{instants}")
    generations = {e["args"]["generation"] for e in trace["traceEvents"] if e["name"] == "claim" and e["pid"] == 2}
    check(generations >= {1, 2}, f"generations {generations}")

    # In the caller's process, and where it cannot be written
    run(work, "cpu.sim", "--input", "random:8:float32:640", "--isolation", "thread", *common)
    check(len([e for e in read(work / "t.json")["traceEvents"] if e["name"] == "compute"]) == 40, "thread isolation")
    text = run(work, "cpu.sim", "--input", "random:8:float32:64", "--trace", "none/t.json", code=2)
    check("none/t.json" in text, text)
    run(work, "cpu.sim", "--input", "random:8:float32:64", "--trace", ".", code=2)
    (work / "t.json").unlink()
    run(work, "cpu.sim", "--input", "random:9:float32:64", *common, code=2)
    check(not list(work.glob("*.part")), "a refused run left a part of its trace")

for failure in failures:
    print(failure)
sys.exit(bool(failures))
