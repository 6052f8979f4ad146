"""What a session can be told, and what it tells: traces, events, logs, statistics."""
import json
import logging
import pathlib
import signal
import os
import subprocess
import sys
import time

import dpinfer
import numpy as np
import pytest

MODEL = "input x float32 N 8\noutput y float32 N 4\n"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "m.sim"
    file.write_text(MODEL)
    return file


def rows(count):
    return np.arange(count * 8, dtype=np.float32).reshape(count, 8)


def test_a_trace_is_written(path, tmp_path):
    trace = tmp_path / "trace.json"
    with dpinfer.Session(path, devices="sim:0*2", trace_path=trace) as session:
        session.forward(rows(100))
    assert json.loads(trace.read_text())


def test_events_and_statistics_of_a_death(path):
    events = []
    with dpinfer.Session(path, devices="sim:0*2", event=events.append) as session:
        before = session.forward(rows(100))[0]
        victim = session.describe().workers[1]
        assert victim.device == "sim:0" and victim.generation == 1 and victim.pid > 0
        os.kill(victim.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while session.stats().worker_starts < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        np.testing.assert_array_equal(session.forward(rows(100))[0], before)
        stats, now = session.stats(), session.describe()
    assert [e["event"] for e in events if e["event"] in ("started", "died")].count("died") == 1
    died = next(e for e in events if e["event"] == "died")
    assert died["worker"] == 1 and died["pid"] == victim.pid and died["signal"] == signal.SIGKILL
    assert (stats.batches, stats.rows, stats.deaths, stats.worker_starts) == (2, 200, 1, 3)
    assert len(stats.workers) == 2 and sum(w.rows for w in stats.workers) == 200 and stats.slice_p50_ms > 0
    assert now.bit_identical and now.workers[1].fingerprint == now.workers[0].fingerprint == victim.fingerprint
    with pytest.raises(dpinfer.ClosedError):
        session.stats()


def test_bad_rows_are_told(path):
    path.write_text(MODEL + "poison 136\npoison_how fail\n")  # row 17 begins with it
    told = []
    with dpinfer.Session(path, devices="sim:0*2", on_bad_row="skip", bad_row=lambda *row: told.append(row)) as session:
        with pytest.raises(dpinfer.BadRows):
            session.forward(rows(40))
        assert session.stats().bad_rows == 1
    assert [row for row, _ in told] == [17] and told[0][1]


def test_lines_go_to_a_logger(path, caplog):
    logger = logging.getLogger("dpinfer-test")
    with caplog.at_level(logging.DEBUG, "dpinfer-test"):
        with dpinfer.Session(path, devices="sim:0", log=logger) as session:
            session.forward(rows(4))
    assert caplog.records and all(r.name == "dpinfer-test" for r in caplog.records)
    caplog.clear()
    with caplog.at_level(logging.ERROR, "dpinfer-test"):
        with dpinfer.Session(path, devices="sim:0", log=logger) as session:
            session.forward(rows(4))
    assert not caplog.records


def test_what_a_function_raises_is_printed_only(path):
    code = f"""
import dpinfer, numpy as np
def event(what): raise KeyError("the event's own")
session = dpinfer.Session({str(path)!r}, devices="sim:0*2", event=event)
print(session.forward(np.zeros((4, 8), np.float32))[0].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)  # it does not close either
    assert done.returncode == 0 and done.stdout == "(4, 4)\n" and "the event's own" in done.stderr


def test_every_isolation_gives_the_same(tmp_path):
    path = tmp_path / "one.sim"
    path.write_text("input x float32 N 8\noutput y float32 N 4\n")
    results = []
    for isolation in ("process", "thread", "strict"):
        with dpinfer.Session(path, devices="sim:0", isolation=isolation) as session:
            results.append(session.forward(rows(40))[0].copy())
    assert all((one == results[0]).all() for one in results)


def test_outputs_and_inputs_for_all_rows(tmp_path):
    path = tmp_path / "two.sim"
    path.write_text("input x float32 N 8\ninput k float32 broadcast 3\noutput y float32 N 4\noutput z float32 N 2\n")
    k = np.array([1, 2, 3], np.float32)
    with dpinfer.Session(path, devices="sim:0", broadcast={"k": k}, output_names=["z"]) as session:
        assert session.input_names == ("x",) and session.output_names == ("z",)
        first = session.forward(rows(4))[0]
    assert first.shape == (4, 2)


@pytest.mark.parametrize("wrong, word", [
    ({"precision": "fp8"}, "precision"), ({"isolation": "none"}, "isolation"), ({"wait_mode": "sleep"}, "wait_mode"),
    ({"on_bad_row": "drop"}, "on_bad_row"),
])  # fmt: skip
def test_wrong_words_are_refused(path, wrong, word):
    with pytest.raises(ValueError, match=f"{word} is .*; give "):
        dpinfer.Session(path, devices="sim:0", **wrong)


def test_numbers_reach_the_library(path, tmp_path):
    with dpinfer.Session(path, devices="sim:0*2", queue_depth=1, slice_timeout=30, compile_timeout=60, max_deaths=2, sandbox=False,
                         core_dumps=True, worker_memory_bytes=1 << 30, wait_mode="block", max_bad_rows=3,
                         arena_max_bytes=1 << 24, cache_dir="", cache_max_bytes=1 << 20, library=None) as session:  # fmt: skip
        assert session.forward(rows(10))[0].shape == (10, 4)
        with pytest.raises(dpinfer.Error, match="arena"):
            session.empty((1 << 23, 8))
    with pytest.raises(dpinfer.Error, match="absent-worker"):
        dpinfer.Session(path, devices="sim:0", worker_path=pathlib.Path("/absent-worker"))
