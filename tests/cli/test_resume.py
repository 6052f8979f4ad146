"""Runs that are stopped: the same command goes on, gives the same bytes, and leaves nothing."""
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

DPINFER = os.environ["DPINFER"]
seed = int(os.environ.get("DPI_SEED", random.randrange(1 << 32)))
print("DPI_SEED =", seed)
chance = random.Random(seed)
failures = []


def check(good, text):
    if not good:
        failures.append(text)


def command(work, output, *more, model="m.sim", rows=6000, devices="sim:0*2"):
    return [DPINFER, "run", model, "--input", f"random:8:float32:{rows}", "--output", output, "--batch", "4", "--devices",
            devices, "--journal-every", "0.05", *more]


def run(work, *words, **more):
    return subprocess.run(command(work, *words, **more), cwd=work, capture_output=True, text=True, timeout=60)


def recording(process, journal, before=None):
    """Waits until the run keeps a journal (another than one that was changed at `before`), or has ended."""
    while process.poll() is None:
        try:
            if journal.stat().st_mtime_ns != before:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.002)


def stopped(work, after, number, output, *words, **more):
    """Stops a run `after` seconds, or once it keeps a journal where that is None."""
    process = subprocess.Popen(command(work, output, *words, **more), cwd=work, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    if after is None:
        recording(process, work / f"{output}.journal")
    else:
        time.sleep(after)
    process.send_signal(number)
    return process.wait(30), process.stderr.read()


with tempfile.TemporaryDirectory(prefix="dpinfer-resume-") as folder:
    work = pathlib.Path(folder)
    (work / "m.sim").write_text("input x float32 N 8\noutput y float32 N 4\nfixed_us 1000\n")
    for end in ("npy", "csv", "npz", "jsonl"):
        whole, out = work / f"whole.{end}", work / f"out.{end}"
        check(run(work, whole.name).returncode == 0, "the undisturbed run failed")
        for turn in range(3):
            for kills in range(30):
                code, text = stopped(work, chance.uniform(0.05, 0.6), signal.SIGKILL, out.name)
                if code == 0:
                    break
                left = {p.name for p in work.iterdir() if p.suffix in (".part", ".journal")}
                check(left <= {f"out.{end}.part", f"out.{end}.journal"}, f"left behind: {left}")
            done = run(work, out.name)
            check(done.returncode == 0, f"the last run: {done.stderr}")
            check(out.read_bytes() == whole.read_bytes(), f"{end}: another result after {kills} kills")
            check(not list(work.glob("*.part")) and not list(work.glob("*.journal")), "not tidied up")
            out.unlink()
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            got, text = stopped(work, None, number, out.name)
            check(got == code, f"{signal.Signals(number).name} ended with {got}: {text}")
            check("goes on" in text, f"{text!r} does not say that the same command goes on")
            refused = {("--rows", "0:5000"): "--rows", ("--batch", "5"): "--batch"}
            for words, says in refused.items():
                other = run(work, out.name, *words)
                check(other.returncode == 2 and says in other.stderr, f"{words}: {other.returncode} {other.stderr}")
            (work / "other.sim").write_text("input x float32 N 8\noutput y float32 N 4\nfixed_us 999\ntouch ends\n")
            other = run(work, out.name, model="other.sim")
            check(other.returncode == 2 and "model" in other.stderr, f"model: {other.returncode} {other.stderr}")
            other = run(work, out.name, rows=7000)
            check(other.returncode == 2 and "source" in other.stderr, f"source: {other.returncode} {other.stderr}")
            (work / "other.sim").unlink()
            done = run(work, out.name)
            check(done.returncode == 0 and f"resuming out.{end}" in done.stderr, f"going on: {done.stderr}")
            check(out.read_bytes() == whole.read_bytes(), "another result")
            out.unlink()

    # What a link leads to counts, not the link; another run meanwhile; beginning anew.
    whole, out = work / "whole.csv", work / "out.csv"
    (work / "names").write_text("a\nb\nc\nd\n")
    (work / "link").symlink_to("names")
    labels = ("--labels", "link")
    check(run(work, whole.name, *labels, rows=15000).returncode == 0, "the run with labels failed")
    stopped(work, None, signal.SIGINT, out.name, *labels, rows=15000)
    (work / "names").write_text("a\nb\nc\nother\n")
    other = run(work, out.name, *labels, rows=15000)
    check(other.returncode == 2 and "--labels" in other.stderr, f"labels behind a link: {other.returncode} {other.stderr}")
    other = run(work, out.name, *labels, "--no-journal", rows=15000)
    check(other.returncode == 2 and "--restart" in other.stderr, f"--no-journal: {other.returncode} {other.stderr}")
    (work / "names").write_text("a\nb\nc\nd\n")
    journal = work / "out.csv.journal"
    before = journal.stat().st_mtime_ns
    first = subprocess.Popen(command(work, out.name, *labels, "--restart", rows=15000), cwd=work, stderr=subprocess.DEVNULL)
    recording(first, journal, before)
    second = run(work, out.name, *labels, rows=15000)
    check(second.returncode == 2 and "another run" in second.stderr, f"a second run: {second.returncode} {second.stderr}")
    check(first.wait(60) == 0, "the first run suffered from the second")
    check(out.read_bytes() == whole.read_bytes(), "--restart: another result")

for failure in failures[:20]:
    print(failure)
sys.exit(bool(failures))
