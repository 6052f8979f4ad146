"""Kills a run by SIGKILL once its journal has rows; one that was over before begins anew. usage: kill_midway.py OUTPUT COMMAND..."""
import os
import pathlib
import subprocess
import sys
import time


def _size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


output, command = pathlib.Path(sys.argv[1]), sys.argv[2:]
journal = output.with_name(output.name + ".journal")
while True:
    run, first = subprocess.Popen(command, stdout=subprocess.DEVNULL), None
    while run.poll() is None:
        size = _size(journal)
        first = first or size  # without a record, most likely: else the next one is waited for
        if size > first > 0:
            run.kill()
            run.wait()
            sys.exit(0)
        time.sleep(0.01)
    if run.returncode:
        sys.exit(run.returncode)
    os.remove(output)
