"""Data sets through loader processes: order, ends, failures, nothing left running."""
import atexit
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import dpinfer
import numpy as np
import pytest

FOLDER = tempfile.mkdtemp(prefix="dpinfer-loaders-")
atexit.register(shutil.rmtree, FOLDER, True)
MODEL = "input x float32 N 8\noutput y float32 N 4\n"


class Rows:
    """Row i is known; `raises` and `dies` name a row."""

    def __init__(self, count, raises=-1, dies=-1, seconds=0.0, wrong=-1):
        self.count, self.raises, self.dies, self.seconds, self.wrong = count, raises, dies, seconds, wrong
        self.folder = FOLDER

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        open(f"{self.folder}/{os.getpid()}", "w").close()
        if i == self.raises:
            raise KeyError("this row's own words")
        if i == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        if i == self.wrong:
            return np.zeros(9, np.float32)
        return np.arange(8, dtype=np.float32) + i, "a label"


class Once(Rows):
    """Dies at a row, but only the first loader that comes to it."""

    def __init__(self, count, dies, mark):
        super().__init__(count)
        self.dies, self.mark = dies, mark

    def __getitem__(self, i):
        if i == self.dies:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return np.arange(8, dtype=np.float32) + i


class InPlace(Rows):
    """Writes its rows itself; only the first is asked for as a sample."""

    def __getitem__(self, i):
        assert i == 0
        return super().__getitem__(i)

    def load_into(self, i, row):
        assert row.shape == (8,) and not row.flags.owndata
        if i == self.raises:
            raise KeyError("this row's own words")
        row[:] = np.arange(8, dtype=np.float32) + i


class TwoInPlace:
    """Two inputs, one of them a number a row."""

    def __len__(self):
        return 23

    def __getitem__(self, i):
        return {"x": np.full(4, i, np.float32), "k": np.int64(i)}

    def load_into(self, i, x, k):
        x[:], k[...] = i, i


class Stream:
    """Without a length: 3, 4, ... samples, the same in each loader."""

    def __iter__(self):
        return (np.full(8, i, np.float32) for i in range(11))


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "m.sim"
    file.write_text(MODEL)
    return file


@pytest.fixture
def session(path):
    with dpinfer.Session(path, devices="sim:0*2", producers=True) as opened:
        yield opened


def expected(session, rows):
    return session.forward(np.arange(8, dtype=np.float32) + np.asarray(rows, np.float32)[:, None])[0]


def loaders():
    """Processes that have loaded rows and still run."""
    return [int(name) for name in os.listdir(FOLDER) if int(name) != os.getpid() and os.path.exists(f"/proc/{name}")]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_results_in_order_without_padding(session, method):
    with dpinfer.DistributedSampled(session, Rows(103), 3, batch_size=10, start_method=method) as results:
        parts = [result for result in results if loaders()]
        assert len(results) == 11 and [len(p) for p in parts] == [10] * 10 + [3]
    np.testing.assert_array_equal(np.concatenate(parts), expected(session, range(103)))
    assert not loaders()


def test_rows_written_in_place(session, tmp_path):
    np.testing.assert_array_equal(dpinfer.run(session, InPlace(103), batch_size=10), expected(session, range(103)))
    with pytest.raises(dpinfer.DataError, match="row 37: KeyError: .*this row's own words"):
        dpinfer.run(session, InPlace(100, raises=37), batch_size=10)
    path = tmp_path / "two.sim"
    path.write_text("input x float32 N 4\ninput k int64 N\noutput y float32 N 3\n")
    with dpinfer.Session(path, devices="sim:0*2", producers=True) as two:
        i = np.arange(23)
        want = two.forward(np.repeat(i[:, None], 4, 1).astype(np.float32), i)[0]
        np.testing.assert_array_equal(dpinfer.run(two, TwoInPlace(), batch_size=5), want)


def test_lists_and_empty_data_sets(session, path):
    rows = [np.arange(8, dtype=np.float32) + i for i in range(5)]
    np.testing.assert_array_equal(dpinfer.run(session, rows, num_workers=1), expected(session, range(5)))
    assert dpinfer.run(session, [], num_workers=1).shape == (0, 4)


def test_iterables_come_in_turns(session):
    with dpinfer.DistributedSampled(session, Stream(), 2, batch_size=4) as results:
        parts = list(results)
    assert [len(p) for p in parts] == [4, 4, 4, 4, 3, 3]
    one = session.forward(np.repeat(np.arange(11, dtype=np.float32)[:, None], 8, 1))[0]
    order = [*range(4), *range(4), *range(4, 8), *range(4, 8), *range(8, 11), *range(8, 11)]
    np.testing.assert_array_equal(np.concatenate(parts), one[order])


def test_a_row_that_raises(session):
    with pytest.raises(dpinfer.DataError, match="row 37: KeyError: .*this row's own words") as caught:
        dpinfer.run(session, Rows(100, raises=37), batch_size=10)
    assert isinstance(caught.value, ValueError) and not loaders()
    with pytest.raises(dpinfer.DataError, match=r"row 5: ValueError: the input x takes float32 \[8\]"):
        dpinfer.run(session, Rows(20, wrong=5), batch_size=10)
    np.testing.assert_array_equal(dpinfer.run(session, Rows(7)), expected(session, range(7)))


def test_a_loader_that_dies_is_replaced_by_the_others(session, tmp_path):
    got = dpinfer.run(session, Once(90, 33, str(tmp_path / "mark")), num_workers=3, batch_size=10)
    np.testing.assert_array_equal(got, expected(session, range(90)))
    with pytest.raises(dpinfer.WorkerError, match="every loader"):
        dpinfer.run(session, Rows(90, dies=3), num_workers=2, batch_size=10)
    assert not loaders()


def test_interrupt_leaves_nothing_running(session):
    timer = threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        dpinfer.run(session, Rows(100000, seconds=0.01))
    timer.cancel()
    assert not loaders()
    assert session.forward(np.zeros((3, 8), np.float32))[0].shape == (3, 4)


def test_stopping_early(session):
    results = iter(dpinfer.DistributedSampled(session, Rows(1000), batch_size=10))
    next(results)
    results.close()
    assert not loaders()


def test_what_is_refused(session, path):
    with pytest.raises(ValueError, match="fork"):
        dpinfer.DistributedSampled(session, Rows(3), start_method="fork")
    with pytest.raises(ValueError, match="1 or more"):
        dpinfer.DistributedSampled(session, Rows(3), 0)
    with pytest.raises(TypeError, match="int"):
        dpinfer.DistributedSampled(session, 3)
    with pytest.raises(ValueError, match="open already"):
        dpinfer.DistributedSampled(session, Rows(3), devices="sim:0")
    with dpinfer.Session(path, devices="sim:0") as closed:
        with pytest.raises(dpinfer.ArgumentError, match="producers"):
            dpinfer.run(closed, Rows(3))


def test_files(path, tmp_path):
    x = np.random.default_rng(0).random((500, 8), np.float32)
    np.save(tmp_path / "x.npy", x)
    with dpinfer.Session(path, devices="sim:0*2") as session:
        seen = []
        assert session.run([str(tmp_path / "x.npy")], [str(tmp_path / "y.npy")], lambda done, of: seen.append((done, of))) == 500
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), session.forward(x)[0])
        assert seen[-1] == (500, 500)
        with pytest.raises(dpinfer.Error, match="absent.npy"):
            session.run([str(tmp_path / "absent.npy")], ["none"])
        with pytest.raises(RuntimeError, match="my own"):
            session.run(["random:8:float32:100"], ["none"], lambda *_: (_ for _ in ()).throw(RuntimeError("my own")))
    assert dpinfer.run(path, tmp_path / "x.npy", tmp_path / "z.npy", devices="sim:0") == 500
    assert dpinfer.run(path, Rows(20), tmp_path / "w.npy", devices="sim:0") == 20
    assert np.load(tmp_path / "w.npy").shape == (20, 4)
    assert dpinfer.run(path, Stream(), tmp_path / "w.npy", devices="sim:0", batch_size=4) == 22
    assert np.load(tmp_path / "w.npy").shape == (22, 4)
    with pytest.raises(ValueError, match="2 files"):
        dpinfer.run(path, Rows(2), [tmp_path / "a.npy", tmp_path / "b.npy"], devices="sim:0")
    with pytest.raises(ValueError, match=".npy"):
        dpinfer.run(path, Rows(2), tmp_path / "a.csv", devices="sim:0")
    with pytest.raises(dpinfer.DataError):
        dpinfer.run(path, Rows(20, raises=15), tmp_path / "v.npy", devices="sim:0", batch_size=5)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["m.sim", "w.npy", "x.npy", "y.npy", "z.npy"]


def test_a_bar_where_it_is_wanted(session, capfd):
    pytest.importorskip("tqdm")
    dpinfer.run(session, Rows(20), progress=True)
    assert "20/20" in capfd.readouterr().err
    dpinfer.run(session, Rows(20))
    assert capfd.readouterr().err == "", "no terminal, no bar"


def test_the_callers_death_ends_the_loaders(path):
    code = f"""
import os, sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import dpinfer, test_datasets
if __name__ == "__main__":
    results = iter(dpinfer.DistributedSampled({str(path)!r}, test_datasets.Rows(100000, seconds=0.01), 2, start_method="spawn", devices="sim:0"))
    next(results)
    print(*test_datasets.loaders(), flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "TMPDIR": str(path.parent)})  # fmt: skip
    pids = [int(p) for p in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{p}") for p in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{p}") for p in pids)


def test_torch_data_sets(path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from torch.utils.data import TensorDataset

    x = torch.arange(160, dtype=torch.float32).reshape(20, 8)
    with dpinfer.DataParallel(path, devices="sim:0*2", producers=True) as model:
        y = dpinfer.run(model, TensorDataset(x, torch.zeros(20)), batch_size=6)
        assert isinstance(y, torch.Tensor)
        torch.testing.assert_close(y, model(x), rtol=0, atol=0)
