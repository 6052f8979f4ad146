"""kill -9 of whoever uses dpinfer, at random instants: no worker, no shared memory and no file is left but .part and its
journal. `test_caller_kills.py N` kills N times (30)."""
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
GONE_S = 20  # workers end at once; this is for a machine that has other things to do
seed = int(os.environ.get("DPI_SEED", random.randrange(1 << 32)))
print("DPI_SEED =", seed)
chance = random.Random(seed)
caller = str(pathlib.Path(os.environ["DPI_BUILD"]) / "caller")
run = [os.environ["DPINFER"], "run", "m.sim", "--input", "random:8:float32:100000", "--output", "y=out.npy", "--output",
       "z=none", "--batch", "4", "--devices", "sim:0*3", "--journal-every", "0.02"]
ways = {"batches": [caller, "batches"], "an open": [caller, "open"], "a run": run}
failures = []
seen = {"workers": 0, "memory": 0, "files": 0}


def workers_of(pid):
    """Workers are told their caller's number."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            words = pathlib.Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0") if entry.isdigit() else []
        except OSError:
            continue
        if len(words) > 1 and words[0] == b"dpinfer-worker" and words[1] == str(pid).encode():
            found.append(int(entry))
    return found


def memfds_of(entry):
    """Inodes of dpinfer's memfds that a process holds."""
    found = set()
    try:
        for fd in os.listdir(f"/proc/{entry}/fd"):
            path = f"/proc/{entry}/fd/{fd}"
            if os.readlink(path).startswith("/memfd:dpinfer"):
                found.add(os.stat(path).st_ino)
    except OSError:
        pass
    return found


def holders(inodes):
    return [entry for entry in os.listdir("/proc") if entry.isdigit() and inodes & memfds_of(entry)]


def shared_files():
    return {name for name in os.listdir("/dev/shm") if "dpinfer" in name}


def wait_gone(look):
    until = time.monotonic() + GONE_S
    while left := look():
        if time.monotonic() > until:
            return left
        time.sleep(0.005)
    return None


def kill_once(number, work):
    """False when it had done its work before it was killed."""
    name = chance.choice(list(ways))
    before = shared_files()
    process = subprocess.Popen(ways[name], cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(chance.uniform(0, 0.4))
    inodes = memfds_of(process.pid)
    seen["workers"] += len(workers_of(process.pid))
    seen["memory"] += len(inodes)
    ended = process.poll()
    process.kill()
    process.wait()
    if ended == 0 and name == "a run":
        (work / "out.npy").unlink()
        return False
    if ended is not None:
        failures.append(f"{number}, {name}: had ended with {ended} before it was killed")
    if left := wait_gone(lambda: workers_of(process.pid)):
        failures.append(f"{number}, {name}: workers {left} live on")
    if left := wait_gone(lambda: holders(inodes) if inodes else []):
        failures.append(f"{number}, {name}: processes {left} hold its memory")
    if left := shared_files() - before:
        failures.append(f"{number}, {name}: /dev/shm has {left}")
    files = {str(p.relative_to(work)) for p in work.rglob("*") if p.is_file() and "cache" not in p.parts}
    seen["files"] += len(files) - 1
    if files - {"m.sim", "out.npy.part", "out.npy.journal"}:
        failures.append(f"{number}, {name}: left behind {files}")
    if half := [p.name for p in (work / "cache").rglob("*") if p.name.startswith(".new-")]:
        failures.append(f"{number}, {name}: half an engine in the cache: {half}")
    return True


with tempfile.TemporaryDirectory(prefix="dpinfer-kills-") as folder:
    work = pathlib.Path(folder)
    os.environ["DPINFER_CACHE"] = str(work / "cache")
    os.environ["TMPDIR"] = folder
    (work / "cache").mkdir(mode=0o700)
    (work / "m.sim").write_text("input x float32 N 8\noutput y float32 N 4\noutput z int32 N\nfixed_us 500\n")
    for number in range(KILLS):
        while not kill_once(number, work):
            pass

print(f"{KILLS} kills; there were {seen['workers']} workers, {seen['memory']} memfds, {seen['files']} files of runs")
if KILLS >= 10 and not all(seen.values()):
    failures.append(f"nothing was there to be left: {seen}")
for failure in failures[:20]:
    print(failure)
sys.exit(bool(failures))
