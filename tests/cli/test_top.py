"""dpinfer top: sees a running session from outside, its rates and restarts, and nothing of one that was killed. The live
view is looked at in a terminal (tmux) where there is one."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

DPINFER = os.environ["DPINFER"]
failures = []


def top(*words, code=0, says=""):
    done = subprocess.run([DPINFER, "top", *map(str, words)], capture_output=True, text=True, timeout=60)
    text = done.stdout + done.stderr
    if done.returncode != code or says not in text or "Sanitizer" in text:
        failures.append(f"dpinfer top {' '.join(map(str, words))}: exit code {done.returncode}\n    {text[:1500]}")
    return done.stdout


def check(good, text):
    if not good:
        failures.append(text)


def sessions(pid):
    return json.loads(top(pid, "--json", "--interval", "0.3"))["sessions"]


def until(pid, holds):
    """The first look for which it holds."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        seen = sessions(pid)
        if seen and holds(seen[0]):
            return seen[0]
    failures.append(f"{holds.__name__}: never seen, last {seen}")
    return seen[0] if seen else None


def computing(s):
    return s["rows_per_s"] > 0 and len(s["devices"]) == 3 and all(d["rows_per_s"] > 0 for d in s["devices"])


def restarted(s):
    return any(d["restarts"] > 0 and d["state"] == "computing" for d in s["devices"])


for words in (("x",), ("--frob",), ("--interval", "0"), ("--interval",), ("1", "2")):
    top(*words, code=2, says=words[-1] if words[0] != "--interval" else "--interval")
top("--help", says="dpinfer top")

with tempfile.TemporaryDirectory(prefix="dpinfer-top-") as folder:
    work = pathlib.Path(folder)
    name = "a\x1b[31mred\x1b.sim" # what would steer a terminal is not shown
    (work / name).write_text("input x float32 N 8\noutput y float32 N 4\nfixed_us 2000\n")
    run = subprocess.Popen([DPINFER, "run", name, "--input", "random:8:float32:100000000", "--output", "y.npy", "--batch", "16",
                            "--devices", "sim:0*3", "-q"], cwd=work, stderr=subprocess.DEVNULL)
    try:
        s = until(run.pid, computing)
        check(s["pid"] == run.pid and s["model"] == "a?[31mred?.sim" and s["run_rows"] == 100000000, f"{s}")
        check(0 < s["run_done"] < s["run_rows"] and s["queue"] > 0, f"{s}")
        check(all(0 < d["busy"] <= 1 and d["device"] == "sim:0" for d in s["devices"]), f"{s}")
        # Whoever looks leaves nothing and changes nothing: no more descriptors than before
        before = len(os.listdir(f"/proc/{run.pid}/fd"))
        text = top(run.pid, "--once", "--interval", "0.3", says="100,000,000 rows")
        check("\x1b" not in text and text.count("computing") >= 2 and "busy" in text, text)
        check(len(os.listdir(f"/proc/{run.pid}/fd")) == before, "the session has other descriptors now")
        workers = [int(p) for t in pathlib.Path(f"/proc/{run.pid}/task").iterdir() for p in (t / "children").read_text().split()]
        os.kill(workers[0], signal.SIGKILL)
        until(run.pid, restarted)
        check(not any(x["pid"] in workers for x in json.loads(top("--json", "--interval", "0.1"))["sessions"]), "a worker counts as a session")

        if shutil.which("tmux"):
            tmux = ["tmux", "-L", f"dpinfer-{os.getpid()}"]
            subprocess.run([*tmux, "-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "12", DPINFER, "top", str(run.pid), "--interval", "0.2"], check=True)
            try:
                seen, deadline, screen = set(), time.monotonic() + 60, ""
                while len(seen) < 4 and time.monotonic() < deadline: # a view that lives
                    screen = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True).stdout
                    if "computing" in screen:
                        seen.add(screen)
                    time.sleep(0.1)
                check(len(seen) >= 4, f"the view does not move:\n{screen}")
                lines = screen.rstrip().splitlines()
                check(len(lines) == 5 and lines[1].split()[:3] == ["device", "state", "rows/s"], f"the view is:\n{screen}")
                subprocess.run([*tmux, "send-keys", "C-c"])
                while subprocess.run([*tmux, "has-session"], capture_output=True).returncode == 0 and time.monotonic() < deadline:
                    time.sleep(0.05)
                check(subprocess.run([*tmux, "has-session"], capture_output=True).returncode != 0, "Ctrl-C does not end it")
            finally:
                subprocess.run([*tmux, "kill-server"], capture_output=True)
    finally:
        run.kill()
        run.wait(20)
    check(sessions(run.pid) == [], "a session that was killed is still shown")
    check("no session" in top(run.pid, "--once", "--interval", "0.1"), "no session is open, and it does not say so")

for failure in failures:
    print(failure)
sys.exit(bool(failures))
