"""Sources as a user has them: archives, raw files and pipes give the rows that .npy files give."""
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time

try:
    import numpy as np
except ImportError:
    sys.exit(77)

DPINFER = os.environ["DPINFER"]
work = pathlib.Path(tempfile.mkdtemp(prefix="dpinfer-sources-"))
failures = []


def run(*words, code=0, says=(), stdin=None, model="two.sim", env=None):
    done = subprocess.run([DPINFER, "run", model, *map(str, words)], capture_output=True, timeout=60, input=stdin, cwd=work,
                          env={**os.environ, **(env or {})})
    text = done.stderr.decode() + done.stdout.decode()
    problems = [f"exit code {done.returncode}, expected {code}"] if done.returncode != code else []
    problems += [f"does not say {word!r}" for word in ([says] if isinstance(says, str) else says) if word not in text]
    if problems or "Sanitizer" in text:
        failures.append(f"dpinfer run {' '.join(map(str, words))}: {'; '.join(problems)}\n    {text.strip()[:1500]}")
    return text


def same(*words, to="whole.npy", **more):
    run(*words, "--output", "got.npy", **more)
    if not (work / "got.npy").exists() or (work / "got.npy").read_bytes() != (work / to).read_bytes():
        failures.append(f"{words}: another result than {to}")
    (work / "got.npy").unlink(missing_ok=True)


(work / "two.sim").write_text("input ids int64 N 5\ninput x float32 N 3 4\noutput y float32 N 6\n")
(work / "one.sim").write_text("input x float32 N 3 4\noutput y float32 N 6\n")
random = np.random.default_rng(7)
ids, x = random.integers(0, 9, (900, 5)), random.standard_normal((900, 3, 4)).astype(np.float32)
np.save(work / "ids.npy", ids)
np.save(work / "x.npy", x)
np.savez(work / "stored.npz", x=x, ids=ids, other=x[:3])
np.savez_compressed(work / "packed.npz", other=x[:3], x=x, ids=ids)
np.savez(work / "only.npz", anything=x)
np.savez_compressed(work / "tiny.npz", none=x[:0])
run("--input", "ids.npy", "--input", "x.npy", "--output", "whole.npy")
run("--input", "x.npy", "--output", "one.npy", model="one.sim")

for archive in ("stored.npz", "packed.npz"):
    for more in ((), ("--isolation", "thread"), ("--isolation", "strict"), ("--batch", 7, "--devices", "sim:0*3")):
        same("--input", archive, *more)
    same("--input", f"x={archive}", "--input", "ids.npy")
    same("--input", f"ids={archive}:ids", "--input", f"x={archive}:x.npy")
    same("--input", archive, model="one.sim", to="one.npy")
    run("--input", f"x={archive}:nothing", "--input", "ids.npy", code=2, says=["nothing", "x, ids"])
same("--input", "only.npz", model="one.sim", to="one.npy")
same("--input", "x=only.npz", "--input", "ids.npy")
run("--input", "only.npz", code=2, says="ids expects")
run("--input", "x=only.npz", code=2, says="2 inputs and 1 source")
run("--input", "tiny.npz", model="one.sim", says="0 rows")
run("--input", "stored.npz", "--dry-run", says=["ids", "int64 [900,5]"])
run("--input", "stored.npz", "--output", "stored.npz.npy", "--rows", "10:20", says="10 rows")

# What is no archive, or not all of one
whole = (work / "packed.npz").read_bytes()
(work / "bad.npz").write_bytes(whole[:-30])
run("--input", "bad.npz", code=2, says="bad.npz")
(work / "bad.npz").write_bytes(whole[:len(whole) // 2] + bytes(50) + whole[len(whole) // 2 + 50:])
run("--input", "bad.npz", code=2, says="bad.npz")
(work / "bad.npz").write_bytes(b"")
run("--input", "bad.npz", code=2, says="bad.npz")
at = whole.rindex(b"PK\x01\x02") # the last member claims more than any memory
(work / "bad.npz").write_bytes(whole[:at + 24] + struct.pack("<I", 0xfffffffe) + whole[at + 28:])
run("--input", "bad.npz", code=2, says="bad.npz")

# The checksum of a stored member: whoever reads all of it hears of damage, and nothing gets its name
whole = (work / "stored.npz").read_bytes()
at = whole.index(x.tobytes()[:64]) + x.nbytes // 2
(work / "bad.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
for more in ((), ("--isolation", "thread"), ("--batch", 7, "--devices", "sim:0*3")):
    run("--input", "bad.npz", "--output", "damaged.npy", "--restart", *more, code=2, says=["bad.npz:x", "is damaged"])
    run("--input", "bad.npz", "--output", "damaged.csv", "--restart", *more, code=2, says=["bad.npz:x", "is damaged"])
if list(work.glob("damaged.*")):
    failures.append(f"a damaged member left something: {list(work.glob('damaged.*'))}")
run("--input", "bad.npz", "--output", "damaged.npy", "--batch", 7, "--devices", "sim:0*3", code=2, says="is damaged") # also where all rows are kept already
same("--input", "ids=bad.npz:ids", "--input", "x=stored.npz:x")
run("--input", "bad.npz", "--output", "part.npy", "--rows", "0:10", says="10 rows")
long = np.arange(6_000_000, dtype=np.float32).reshape(-1, 3, 4) # several pieces, the last one not whole
np.savez(work / "long.npz", x=long)
np.save(work / "long.npy", long)
run("--input", "long.npy", "--output", "long.out.npy", model="one.sim")
same("--input", "long.npz", model="one.sim", to="long.out.npy")
data = bytearray((work / "long.npz").read_bytes())
data[-500] ^= 128
(work / "long.npz").write_bytes(data)
run("--input", "long.npz", "--output", "spoilt.npy", model="one.sim", code=2, says=["long.npz", "is damaged"])

# Raw files
(work / "x.bin").write_bytes(x.tobytes())
same("--input", "raw:3x4:float32:x.bin", model="one.sim", to="one.npy")
same("--input", "x=raw:3x4:float32:x.bin", "--input", "ids.npy")
run("--input", "raw:3x7:float32:x.bin", model="one.sim", code=2, says=["x.bin", "left over"])
run("--input", "raw:3x4:float99:x.bin", model="one.sim", code=2, says="float99")
run("--input", "raw:3x4:float32", model="one.sim", code=2, says="raw:SHAPE:DTYPE:FILE")
run("--input", "raw@0,900:3x4:float32:x.bin", model="one.sim", code=2)
run("--input", "raw:12:float32:x.bin", model="one.sim", code=2, says="[N,3,4]")

# Standard input: a pipe and a file
same("--input", "-", model="one.sim", to="one.npy", stdin=(work / "x.npy").read_bytes())
same("--input", "raw:3x4:float32:-", model="one.sim", to="one.npy", stdin=x.tobytes())
same("--input", "x=-", "--input", "ids.npy", stdin=(work / "x.npy").read_bytes())
with open(work / "x.npy", "rb") as file:
    done = subprocess.run([DPINFER, "run", "one.sim", "--input", "-", "--output", "got.npy"], stdin=file, cwd=work)
    if done.returncode or (work / "got.npy").read_bytes() != (work / "one.npy").read_bytes():
        failures.append("standard input that is a file: another result")
run("--input", "x=-", "--input", "ids=-", code=2, says="one input only", stdin=(work / "x.npy").read_bytes())
run("--input", "-", model="one.sim", code=2, says="standard input", stdin=b"")
run("--input", "-", model="one.sim", code=2, says="cut short", stdin=(work / "x.npy").read_bytes()[:-1])
run("--input", "-", model="one.sim", code=1, says="TMPDIR", stdin=(work / "x.npy").read_bytes(),
    env={"TMPDIR": "/nonexistent"})

# At most so much of a pipe is kept
size = (work / "x.npy").stat().st_size
same("--input", "-", "--spool-max", size, model="one.sim", to="one.npy", stdin=(work / "x.npy").read_bytes())
run("--input", "-", "--spool-max", size - 1, model="one.sim", code=2, says=["standard input", f"{size - 1} bytes", "--spool-max"],
    stdin=(work / "x.npy").read_bytes())
run("--input", "x.npy", "--spool-max", "1", model="one.sim")
for wrong in ("0", "x", "-1", "1Q", "99999999999T", ""):
    run("--input", "-", "--spool-max", wrong, model="one.sim", code=2, says="--spool-max takes", stdin=b"")

# A signal while a pipe is silent
for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
    silent = subprocess.Popen([DPINFER, "run", "one.sim", "--input", "-", "--output", "never.npy"], stdin=subprocess.PIPE,
                              stderr=subprocess.PIPE, cwd=work)
    silent.stdin.write(b"\x93NUMPY")
    silent.stdin.flush()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline: # until it has taken what there was: then it waits for more
        links = [os.readlink(f.path) for f in os.scandir(f"/proc/{silent.pid}/fd") if f.is_symlink() and os.path.lexists(f.path)]
        if any("(deleted)" in link and "memfd" not in link for link in links):
            break
        time.sleep(0.01)
    silent.send_signal(number)
    silent.wait(20)
    text = silent.communicate()[1].decode()
    if silent.returncode != code or list(work.glob("never*")):
        failures.append(f"signal {number} while a pipe is silent: exit code {silent.returncode}: {text}")

# A run from a pipe goes on when the same bytes come again, and only then
slow = ("--output", "resumed.csv", "--journal-every", "0.02", "--batch", "4", "--devices", "sim:0")
(work / "slow.sim").write_text((work / "one.sim").read_text() + "fixed_us 4000\n")
run("--input", "x.npy", "--output", "calm.csv", "--batch", "4", model="slow.sim")
stopped = subprocess.Popen([DPINFER, "run", "slow.sim", "--input", "-", *slow], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
                           cwd=work)
stopped.stdin.write((work / "x.npy").read_bytes())
stopped.stdin.close()
deadline = time.monotonic() + 20
states = set()
while len(states) < 3 and stopped.poll() is None and time.monotonic() < deadline: # until it has recorded rows
    if (work / "resumed.csv.journal").exists():
        states.add((work / "resumed.csv.journal").stat().st_size)
    time.sleep(0.002)
stopped.kill()
stopped.wait(20)
if (work / "resumed.csv.journal").exists():
    other = x.copy()
    other[5] += 1
    np.save(work / "other.npy", other)
    run("--input", "-", *slow, model="slow.sim", code=2, says="has changed", stdin=(work / "other.npy").read_bytes())
    run("--input", "-", *slow, model="slow.sim", says="resuming", stdin=(work / "x.npy").read_bytes())
    if (work / "resumed.csv").read_bytes() != (work / "calm.csv").read_bytes():
        failures.append("a resumed run from a pipe gives another result")

for failure in failures:
    print(failure)
subprocess.run(["rm", "-rf", work], check=False)
sys.exit(bool(failures))
