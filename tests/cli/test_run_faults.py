"""Runs that meet with a full disk, a file in their way, a source that changes, signals, rows that cannot be computed."""
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

DPINFER = os.environ["DPINFER"]
seed = int(os.environ.get("DPI_SEED", random.randrange(1 << 32)))
print("DPI_SEED =", seed)
chance = random.Random(seed)
failures = []
SLOW = "input x float32 N 8\noutput y float32 N 4\nfixed_us 1000\n"
POISON = 77777


def check(good, text):
    if not good:
        failures.append(text)


class Place:
    """A folder, and runs of the command there."""

    def __init__(self, folder, model=SLOW):
        self.folder = pathlib.Path(folder)
        self.model(model)

    def model(self, text):
        (self.folder / "m.sim").write_text(text)

    def command(self, *words, source="random:8:float32:6000", output="out.npy", devices="sim:0*2", batch="4"):
        return [DPINFER, "run", "m.sim", "--input", source, "--output", output, "--batch", batch, "--devices", devices,
                "--journal-every", "0.05", *words]

    def run(self, *words, **more):
        return subprocess.run(self.command(*words, **more), cwd=self.folder, capture_output=True, text=True, timeout=120)

    def start(self, *words, **more):
        return subprocess.Popen(self.command(*words, **more), cwd=self.folder, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True)

    def left(self):
        return sorted(p.name for p in self.folder.iterdir() if p.name.endswith((".part", ".journal")))

    def read(self, name="out.npy"):
        path = self.folder / name
        return path.read_bytes() if path.exists() else None


@contextlib.contextmanager
def place(model=SLOW):
    with tempfile.TemporaryDirectory(prefix="dpinfer-faults-") as folder:
        yield Place(folder, model)


def until(process, condition):
    """Waits until it holds, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.002)


def recorded(p, output="out.npy"):
    """Whether the journal tells of rows: its second record is there (data/journal.c)."""

    def look():
        data = p.read(f"{output}.journal") or b""
        begin_bytes = int.from_bytes(data[20:24], "little") if len(data) > 24 else 0
        return begin_bytes and len(data) > 16 + 16 + begin_bytes + 16 + 40

    return look


def bad_rows_of_an_earlier_run():
    rows = np.random.default_rng(1).standard_normal((6000, 8)).astype(np.float32)
    bad = [5, 6, 700, 5990]
    rows[bad, 0] = POISON
    words = ("--on-bad-row", "skip", "--events", "events")

    def events(p, kind):
        lines = [json.loads(line) for line in (p.read("events") or b"").decode().splitlines()]
        return sorted(e["row"] for e in lines if e["event"] == kind) if kind == "bad_row" else \
            [e for e in lines if e["event"] == kind]

    for end in ("npy", "csv"):
        with place(SLOW + f"poison {POISON}\npoison_how fail\n") as p:
            np.save(p.folder / "in.npy", rows)
            same = {"source": "in.npy", "output": f"out.{end}"}
            done = p.run(*words, **{**same, "output": f"whole.{end}"})
            check(done.returncode == 3 and events(p, "bad_row") == bad, f"undisturbed: {done.returncode} {done.stderr}")
            (p.folder / "events").unlink()
            first = p.start(*words, **same)
            until(first, lambda: len((p.read("events") or b"").split(b"bad_row")) > 2)
            until(first, recorded(p, f"out.{end}"))
            first.send_signal(signal.SIGINT)
            said = first.communicate(timeout=60)[1]
            check(first.returncode == 130 and "goes on" in said, f"stopped: {first.returncode} {said}")
            check("row 5 is left out" in said, f"the first run: {said}")
            for other in (("--on-bad-row", "fail"), ("--on-bad-row", "skip", "--max-bad-rows", "1")):
                refused = p.run(*other, **same)
                check(refused.returncode == 2 and "row 5 first" in refused.stderr and "--restart" in refused.stderr,
                      f"{other}: {refused.returncode} {refused.stderr}")
            done = p.run(*words, **same)
            check(done.returncode == 3 and "4 rows could not" in done.stderr and "row 5 is left out" in done.stderr,
                  f"going on: {done.returncode} {done.stderr}")
            check(events(p, "bad_row") == bad, f"events of the run that went on: {events(p, 'bad_row')}")
            check(len(events(p, "resumed")) == 1, "no event says that the run went on")
            check(p.read(f"out.{end}") == p.read(f"whole.{end}"), f"{end} with rows left out: another result")
            check(not p.left(), f"left: {p.left()}")


def text_behind_a_chunk_that_failed():
    """Row 0 fails and the second chunk, of one row, does not: no row of the text is finished."""
    rows = np.zeros((4097, 8), np.float32)
    rows[0, 0] = POISON
    model = f"input x float32 N 8\noutput y float32 N 4\npoison {POISON}\npoison_how fail\n"
    with place(model) as p:
        np.save(p.folder / "in.npy", rows)
        for _ in range(20):
            done = p.run(source="in.npy", output="out.csv", batch="1")
            check(done.returncode == 1 and "kept" not in done.stderr and not p.left(),
                  f"text behind a failed chunk: {done.returncode} {done.stderr} {p.left()}")


def a_file_that_appears():
    with place() as p:
        check(p.run(output="whole.npy").returncode == 0, "the undisturbed run failed")
        run = p.start("--no-overwrite")
        until(run, recorded(p))
        (p.folder / "out.npy").write_text("somebody else's")
        said = run.communicate(timeout=60)[1]
        check(run.returncode == 1 and "out.npy exists already" in said and "6000 of 6000 rows are kept" in said,
              f"a file that appears: {run.returncode} {said}")
        check(p.read() == b"somebody else's", "a file that appears is overwritten")
        (p.folder / "out.npy").unlink()
        done = p.run("--no-overwrite")
        check(done.returncode == 0 and p.read() == p.read("whole.npy") and not p.left(), f"moved away: {done.stderr}")


def a_source_that_shrinks():
    with place(SLOW.replace("8", "1024")) as p:
        np.save(p.folder / "in.npy", np.zeros((6000, 1024), np.float32))
        run = p.start(source="in.npy")
        until(run, recorded(p))
        os.truncate(p.folder / "in.npy", 4096)
        said = run.communicate(timeout=60)[1]
        check(run.returncode == 1 and "in.npy shrank" in said, f"a source that shrinks: {run.returncode} {said}")
        check("no rows are kept, for the source of x has changed" in said, f"a source that shrinks: {said}")
        check(not p.left() and p.read() is None, f"a source that shrinks: {p.left()}")


def mount(*words):
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0


def disks():
    """On a file system of its own: too small, then larger, then read-only."""
    with tempfile.TemporaryDirectory(prefix="dpinfer-disk-") as folder:
        if os.geteuid() or not mount("-t", "tmpfs", "-o", "size=160k", "none", folder):
            print("no file system may be mounted here: full disks and read-only folders are left out")
            return
        try:
            p = Place(folder)
            for end in ("npy", "csv"):
                same = {"source": "random:8:float32:12000", "output": f"out.{end}"}
                done = p.run(**same)
                check(done.returncode == 1 and f"out.{end}" in done.stderr and "No space left" in done.stderr,
                      f"a full disk: {done.returncode} {done.stderr}")
                check(p.read(same["output"]) is None, "a full disk left a result")
                check(bool(p.left()) == ("goes on" in done.stderr), f"a full disk: {p.left()} {done.stderr}")
                check(end == "npy" or "goes on" in done.stderr, f"a full disk loses finished rows: {done.stderr}")
                check(mount("-o", "remount,size=16m", folder), "cannot make room")
                done = p.run(**same)
                check(done.returncode == 0 and (end == "npy" or "resuming" in done.stderr), f"with room: {done.stderr}")
                check(p.run(**{**same, "output": f"whole.{end}"}).returncode == 0, "the undisturbed run failed")
                check(p.read(f"out.{end}") == p.read(f"whole.{end}"), f"{end} on a full disk: another result")
                for name in (f"out.{end}", f"whole.{end}"):
                    (p.folder / name).unlink()
                check(mount("-o", "remount,size=160k", folder), "cannot take the room away")
            check(mount("-o", "remount,ro", folder), "cannot make it read-only")
            done = p.run()
            check(done.returncode == 2 and "out.npy" in done.stderr and "Read-only" in done.stderr,
                  f"a read-only folder: {done.returncode} {done.stderr}")
        finally:
            subprocess.run(["umount", "-l", folder])


def slices_of(pid):
    """How many slices each device of a running session has computed."""
    look = subprocess.run([DPINFER, "top", str(pid), "--json"], capture_output=True, text=True, timeout=60).stdout
    return [d["slices"] for s in json.loads(look or '{"sessions": []}')["sessions"] for d in s["devices"]]


def is_pending(pid, number):
    """Whether a signal has been sent that no handler was called for."""
    with contextlib.suppress(OSError):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
        return any(mask >> (number - 1) & 1 for mask in masks)
    return False


def signals():
    with place() as p:
        check(p.run(output="whole.npy").returncode == 0, "the undisturbed run failed")
        for turn in range(10):
            number = signal.SIGINT if turn % 2 else signal.SIGTERM
            run = p.start()
            time.sleep(chance.uniform(0, 0.9))
            run.send_signal(number)
            said = run.communicate(timeout=60)[1]
            # The program may have ended before the signal, or not have got as far as to hear it.
            check(run.returncode in (0, 128 + number, -number), f"{number} ended with {run.returncode}: {said}")
            check(("goes on" in said) == bool(p.left()) or run.returncode < 0, f"{number}: {said} and {p.left()}")
            if run.returncode == 0:
                check(p.read() == p.read("whole.npy") and not p.left(), "another result")
                (p.folder / "out.npy").unlink()
        check(p.run().returncode == 0 and p.read() == p.read("whole.npy") and not p.left(), "another result at last")
    with place(SLOW + "hang_at_slice 100\n") as p:
        for second in (signal.SIGINT, signal.SIGTERM):
            run = p.start("--restart", "--slice-timeout", "100")
            until(run, recorded(p))
            until(run, lambda: slices_of(run.pid) == [99, 99])  # and their hundredth hangs
            run.send_signal(signal.SIGINT)
            until(run, lambda: not is_pending(run.pid, signal.SIGINT))
            run.send_signal(second)
            said = run.communicate(timeout=60)[1]
            check(run.returncode == -second, f"a second signal ended with {run.returncode}: {said}")
            (p.folder / "out.npy.journal").unlink()


def sparse_npy(path, rows, columns):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    header += " " * (117 - len(header)) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    os.truncate(path, 10 + len(header) + rows * columns * 4)


def own_memory(pid):
    """Memory of a process and its children that is no file's, in KiB."""
    kib = 0
    children = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    with contextlib.suppress(OSError):
        pids = [pid, *(word for c in children for word in c.read_text().split())]
        for one in pids:
            for line in pathlib.Path(f"/proc/{one}/status").read_text().splitlines():
                kib += int(line.split()[1]) if line.startswith("RssAnon") else 0
    return kib


@contextlib.contextmanager
def little_memory(mib):
    """The folder of a control group with so much memory, None where none can be made."""
    for top, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = pathlib.Path(top) / f"dpinfer-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(mib << 20))
            yield group
            return
        except (FileNotFoundError, PermissionError):
            continue
        finally:
            for _ in range(100):  # until the last process in it is gone
                with contextlib.suppress(OSError):
                    group.rmdir()
                if not group.exists():
                    break
                time.sleep(0.05)
    yield None


def a_source_larger_than_memory():
    """Than the machine's only with DPI_STOPS=all, for that empties its page cache."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    columns = 1 << 22
    if os.environ.get("DPI_STOPS") == "all":
        with place(f"input x float32 N {columns}\noutput y float32 N 4\n") as p:
            sparse_npy(p.folder / "in.npy", memory // (4 * columns) + 10, columns)
            done = p.run(source="in.npy", batch="1")
            check(done.returncode == 0, f"a source larger than memory: {done.returncode} {done.stderr}")
    with place("input x float32 N 65536\noutput y float32 N 4\nfixed_us 1000\n") as p:
        sparse_npy(p.folder / "in.npy", 2048, 65536)  # 512 MiB, all of it read
        with little_memory(128) as group:
            if group:
                enter = ["sh", "-c", f"echo $$ > {group}/cgroup.procs && exec \"$@\"", "sh"]
                done = subprocess.run([*enter, *p.command(source="in.npy")], cwd=p.folder, capture_output=True, text=True)
                check(done.returncode == 0, f"512 MiB in 128 MiB of memory: {done.returncode} {done.stderr}")
            else:
                print("no control group may be made here: a limit of memory is left out")
        run, most = p.start(source="in.npy"), 0
        while run.poll() is None:
            most = max(most, own_memory(run.pid))
            time.sleep(0.01)
        check(run.returncode == 0, f"a large source: {run.stderr.read()}")
        sanitized = bool(os.environ.get("DPI_SANITIZE"))
        check(0 < most < 128 * 1024 or sanitized, f"{most} KiB of memory for a source of 512 MiB that is read in place")


bad_rows_of_an_earlier_run()
text_behind_a_chunk_that_failed()
a_file_that_appears()
a_source_that_shrinks()
disks()
signals()
a_source_larger_than_memory()
for failure in failures[:20]:
    print(failure)
sys.exit(bool(failures))
