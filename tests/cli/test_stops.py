"""A stop at every system call on the files of a run: it fails, transfers one byte, or the process is killed there.

After each: nothing half-written under a final name, a message that names file and reason, and the same command finishes
with the bytes of an undisturbed run. In `make test` a part of the stops, drawn from a printed seed; DPI_STOPS=all: all.
"""
import collections
import concurrent.futures
import errno
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile

DPINFER = os.environ["DPINFER"]
SHIM = pathlib.Path(os.environ["DPI_BUILD"]) / "stop_at_call.so"
ALL = os.environ.get("DPI_STOPS") == "all"
seed = int(os.environ.get("DPI_SEED", random.randrange(1 << 32)))
print("DPI_SEED =", seed)
chance = random.Random(seed)

ONE = "input x float32 N 8\noutput y float32 N 4\n"
THREE = "input x float32 N 8\noutput y float32 N 4\noutput z float32 N 2\noutput c float32 N 3\n"
# name: model, outputs, more words, rows (more than 4096 are two chunks, so that there is a record before the end)
RUNS = {
    "npy": (ONE, ["out.npy"], [], 4500),
    "csv": (ONE, ["out.csv"], [], 4500),
    "jsonl": (ONE, ["out.jsonl"], [], 4500),
    "npz": (THREE, ["out.npz"], [], 4500),
    "three": (THREE, ["out-y.npy", "out-z.npy", "out-c.csv"], [], 4500),
    "short": (ONE, ["out.npy"], [], 50),
    "no-overwrite": (ONE, ["out.npy"], ["--no-overwrite"], 4500),
}
# name: run, and where an earlier run was killed: the stops are in the run that goes on
GOING_ON = {
    "npy goes on": ("npy", "fdatasync out.npy.journal 2"),
    "csv goes on": ("csv", "fdatasync out.csv.journal 2"),
    "jsonl goes on": ("jsonl", "fdatasync out.jsonl.journal 2"),
    "npz goes on": ("npz", "fdatasync out.npz.journal 2"),
    "npz has its checksums": ("npz", "fsync out.npz.part 1"),
    "three go on": ("three", "fdatasync out-y.npy.journal 2"),
    "three are renamed": ("three", "rename out-y.npy.part 1"),
    "one is renamed": ("npy", "rename out.npy.part 1"),
    "one is to be renamed": ("no-overwrite", "fsync out.npy.part 1"),
}
E = errno
KILLS = ["before", "after"]
HOWS = {
    "open": [E.EIO, E.EINTR, f"{E.EIO}+", *KILLS],
    "pwrite": [E.EIO, E.ENOSPC, E.EINTR, f"{E.ENOSPC}+", "short", *KILLS],
    "pread": [E.EIO, E.EINTR, "short"],
    "fsync": [E.EIO, E.EINTR, f"{E.EIO}+", *KILLS],
    "fdatasync": [E.EIO, E.EINTR, f"{E.EIO}+", *KILLS],
    "ftruncate": [E.EIO, E.EINTR, *KILLS],
    "fallocate": [E.ENOSPC, E.EINTR, f"{E.ENOSPC}+", *KILLS],
    "rename": [E.EIO, f"{E.EIO}+", *KILLS],
    "renameat2": [E.EIO, E.EINVAL, E.EEXIST, f"{E.EIO}+", *KILLS],
    "link": [E.EIO, *KILLS],
    "unlink": [E.EIO, f"{E.EACCES}+", *KILLS],
    "flock": [E.EINTR, E.ENOLCK, *KILLS],
    "sync_file_range": [E.EIO],
    "close": [E.EIO, E.EINTR],
    "stat": [E.EIO],
    "lstat": [E.EIO],
    "fstat": [E.EIO],
}
tried, refused = collections.Counter(), collections.Counter()
resumed = 0
failures = []


def name_of(how):
    digits = str(how).rstrip("+")
    return errno.errorcode[int(digits)] + str(how)[len(digits):] if digits.isdigit() else str(how)


class Trial:
    """A folder of its own, and the runs in it."""

    def __init__(self, run):
        model, self.outputs, self.more, self.rows = RUNS[run]
        self.temporary = tempfile.TemporaryDirectory(prefix="dpinfer-stops-")
        self.folder = pathlib.Path(self.temporary.name).resolve()
        (self.folder / "m.sim").write_text(model)

    def run(self, at="", how="", program="dpinfer", more=()):
        words = [DPINFER, "run", "m.sim", "--input", f"random:8:float32:{self.rows}", "--batch", "1", "--devices", "sim:0",
                 "--journal-every", "0.001", *self.more, *more]
        for output in self.outputs:
            words += ["--output", output]
        env = dict(os.environ, LD_PRELOAD=str(SHIM), DPI_STOP_FILES=str(self.folder / "out"),
                   DPI_STOP_FOLDER=str(self.folder), DPI_STOP_LOG=str(self.folder / "log"), DPI_STOP_IN=program,
                   DPI_STOP_AT=at, DPI_STOP_HOW=str(how))
        env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
        (self.folder / "log").unlink(missing_ok=True)
        return subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, timeout=120)

    def log(self):
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def read(self, output):
        path = self.folder / output
        return path.read_bytes() if path.exists() else None

    def left(self):
        return sorted(p.name for p in self.folder.glob("out*") if p.name not in self.outputs)


def undisturbed(run):
    trial = Trial(run)
    with trial.temporary:
        done = trial.run()
        if done.returncode or trial.left():
            sys.exit(f"{run}: the undisturbed run failed: {done.stderr} {trial.left()}")
        return {o: trial.read(o) for o in trial.outputs}, trial.log()


def judge_stopped(trial, whole, done, call, how, earlier):
    """What must hold right after the stop. Yields what does not."""
    kills = how in KILLS
    for output in trial.outputs:
        if trial.read(output) not in (None, whole[output]):
            yield f"{output} is half-written"
    if kills:
        if done.returncode not in (-9, 0):
            yield f"killed, and ended with {done.returncode}"
        return
    if done.returncode == 0:
        if any(trial.read(o) != whole[o] for o in trial.outputs):
            yield "ended with 0 without all results"
        if trial.left() and call != "unlink":
            yield f"ended with 0 and left {trial.left()}"
        return
    if done.returncode != 1:
        yield f"ended with {done.returncode}: {done.stderr}"
    digits = str(how).rstrip("+")
    reason = "exists already" if how == E.EEXIST else os.strerror(int(digits)) if digits.isdigit() else "?"
    if reason not in done.stderr or not any(o in done.stderr for o in trial.outputs):
        yield f"a message without file or reason: {done.stderr}"
    kept = "goes on with them" in done.stderr
    journals = [name for name in trial.left() if name.endswith(".journal")]
    if kept and not journals:
        yield "rows are said to be kept and there is no journal"
    if not kept and not earlier and trial.left() and not str(how).endswith("+") and call != "unlink":
        yield f"nothing is said to be kept, and there is {trial.left()}: {done.stderr}"


def judge_after(trial, whole, stopped, earlier):
    """The same command again. Yields what does not hold."""
    done = trial.run()
    said = re.search(r"([\d,]+) of [\d,]+ rows are kept", stopped.stderr)
    again = re.search(r"resuming \S+: ([\d,]+) of", done.stderr)
    if earlier and stopped.returncode == 1 and not again:
        yield f"what an earlier run had finished is lost: {stopped.stderr} {done.stderr}"
    if said and (not again or int(said[1].replace(",", "")) > int(again[1].replace(",", ""))):
        yield f"said that rows are kept: {stopped.stderr}, and then: {done.stderr}"
    global resumed
    resumed += again is not None
    finished = all(trial.read(o) == whole[o] for o in trial.outputs)
    if "--no-overwrite" in trial.more and done.returncode == 2 and "exists already" in done.stderr and finished:
        return
    if done.returncode == 2 and "--restart" in done.stderr:
        refused[done.stderr] += 1
        done = trial.run(more=["--restart"])
        finished = all(trial.read(o) == whole[o] for o in trial.outputs)
    if done.returncode or not finished:
        yield f"the same command afterwards: {done.returncode} {done.stderr}, finished: {finished}"
    if trial.left():
        yield f"left behind: {trial.left()}"


def try_stop(name, run, earlier, whole, at, how, program="dpinfer"):
    trial = Trial(run)
    call = at.split()[0]
    with trial.temporary:
        if earlier:
            trial.run(earlier, "after")
        done = trial.run(at, how, program)
        if at not in trial.log():
            tried["(not reached)"] += 1
        else:
            tried[call, name_of(how), program] += 1
        wrong = []
        if program == "dpinfer":
            wrong += judge_stopped(trial, whole, done, call, how, earlier)
        elif how in KILLS or how in (E.EINTR, "short"):
            wrong += [] if done.returncode == 0 else [f"a stop in the worker: {done.returncode} {done.stderr}"]
        else:
            wrong += judge_stopped(trial, whole, done, call, how, earlier)
        wrong += judge_after(trial, whole, done, earlier)
        failures.extend(f"{name}: {at} {name_of(how)}: {one}" for one in wrong)


def plan():
    """All stops: those of the caller at every call, those of the worker at some of its many writes."""
    for run in RUNS:
        whole, log = undisturbed(run)
        for at in log:
            for how in HOWS[at.split()[0]]:
                yield run, run, None, whole, at, how
        for name, (of, earlier) in GOING_ON.items():
            if of != run:
                continue
            trial = Trial(run)
            with trial.temporary:
                trial.run(earlier, "after")
                trial.run()
                log = trial.log()
            for at in log:
                for how in HOWS[at.split()[0]]:
                    yield name, run, earlier, whole, at, how
        if run in ("npy", "npz", "three"):
            for number in (1, 2, 1000):
                for how in HOWS["pwrite"]:
                    yield run, run, None, whole, f"pwrite {RUNS[run][1][0]}.part {number}", how, "dpinfer-worker"


def nothing_to_protect():
    """Killed while the journals are made, before any of them tells of a row: another command is not refused."""
    for at in ("open out-z.npy.journal 2", "fdatasync out-z.npy.journal 1", "pwrite out-c.csv.journal 2",
               "fsync . 3", "pwrite out-y.npy.journal 3"):
        trial = Trial("three")
        with trial.temporary:
            trial.run(at, "before")
            if not any(name.endswith(".journal") for name in trial.left()):
                failures.append(f"{at}: there is no journal")
            done = trial.run(more=["--rows", "0:100"])
            if done.returncode or trial.left():
                failures.append(f"another command after a kill at {at}: {done.returncode} {done.stderr} {trial.left()}")


nothing_to_protect()
stops = list(plan())
count = len(stops)
if not ALL:
    stops = chance.sample(stops, min(count, 250))
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    for future in [pool.submit(try_stop, *stop) for stop in stops]:
        future.result()
print(f"{len(stops)} of {count} stops, {resumed} of the runs afterwards went on with finished rows, "
      f"{sum(refused.values())} were refused until --restart")
for key, number in sorted(tried.items(), key=str):
    print(f"{number:5} {' '.join(key) if isinstance(key, tuple) else key}")
for text, number in refused.items():
    print(f"refused {number} times: {text}")
for failure in failures[:40]:
    print(failure)
sys.exit(bool(failures))
