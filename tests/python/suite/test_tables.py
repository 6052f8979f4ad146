"""Arrow and Parquet: the values of .npy files, read back by pyarrow, pandas and polars; whole or absent, whatever happens."""
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import dpinfer
import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="requirements/arrow.txt")
pq = pytest.importorskip("pyarrow.parquet")
from dpinfer import tables  # noqa: E402

MODEL = "input x float32 N 8\noutput y float32 N 4\n"
MANY = "input x float32 N 5\noutput y float32 N 4\noutput z int64 N 2 3\noutput b bfloat16 N 2\noutput h float16 N\noutput o bool N 3\n"


@pytest.fixture
def place(tmp_path):
    """A folder with models, and the answers to 300 rows as .npy."""
    (tmp_path / "m.sim").write_text(MODEL)
    (tmp_path / "many.sim").write_text(MANY)
    with dpinfer.Session(tmp_path / "m.sim", devices="sim:0") as s:
        s.run(["random:8:float32:300:7"], [str(tmp_path / "y.npy")])
    return tmp_path


def read(path):
    return pq.read_table(path) if str(path).endswith(".parquet") else pa.ipc.open_file(path).read_all()


def values(table, name):
    """A column as a dense array."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    return column.to_numpy_ndarray() if isinstance(column, pa.ExtensionArray) else np.array(column.to_pylist())


def left(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(".part"))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_what_workers_read(place, suffix):
    out = place / f"out.{suffix}"
    for devices, batch in (("sim:0", 64), ("sim:0*3", 7)):
        with dpinfer.Session(place / "m.sim", devices=devices, batch=batch) as s:
            assert s.run(["random:8:float32:300:7"], [str(out)]) == 300
        table = read(out)
        assert table.column_names == ["row", "y"] and table["row"].to_pylist() == list(range(300))
        assert table.schema.field("y").type == pa.list_(pa.float32(), 4)
        assert (values(table, "y") == np.load(place / "y.npy")).all()
    assert not left(place)
    assert dpinfer.run(place / "m.sim", "random:8:float32:300:7", place / f"again.{suffix}", devices="sim:0") == 300
    assert read(place / f"again.{suffix}").equals(table)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_every_kind_of_output(place, suffix):
    out, model = place / f"out.{suffix}", place / "many.sim"
    files = [str(place / f"{n}.npy") for n in "yzbho"]
    with dpinfer.Session(model, devices="sim:0*2", batch=16) as s:
        s.run(["random:5:float32:300:3"], files)
        s.run(["random:5:float32:300:3"], [str(out)])
        s.run(["random:5:float32:300:3"], [f"z={place}/z.{suffix}"])
        assert s.run(["random:5:float32:0"], [f"{place}/none.{suffix}"]) == 0
    table, want = read(out), {n: np.load(f) for n, f in zip("yzbho", files)}
    assert table.column_names == ["row", *"yzbho"]
    assert table.schema.field("z").type == pa.fixed_shape_tensor(pa.int64(), [2, 3])
    assert (values(table, "z") == want["z"]).all() and (values(table, "o") == want["o"]).all()
    assert (values(table, "h") == want["h"]).all() and table.schema.field("h").type == pa.float16()
    assert table.schema.field("b").type == pa.list_(pa.float32(), 2)  # bfloat16 fits into it
    assert (values(table, "b").astype(np.float32) == (want["b"].astype(np.uint32) << 16).view(np.float32)).all()
    assert read(place / f"z.{suffix}").column_names == ["row", "z"]
    assert read(place / f"none.{suffix}").num_rows == 0 and read(place / f"none.{suffix}").column_names == ["row", *"yzbho"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_other_readers(place, suffix):
    """pandas and polars see the same numbers; a tensor is a list of its elements there."""
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    out = place / f"out.{suffix}"
    with dpinfer.Session(place / "many.sim", devices="sim:0") as s:
        s.run(["random:5:float32:50:3"], [str(out)])
    want = read(out)
    frame = pandas.read_parquet(out) if suffix == "parquet" else pandas.read_feather(out)
    other = polars.read_parquet(out) if suffix == "parquet" else polars.read_ipc(out)
    for name in "yzh":
        plain = values(want, name)
        flat = np.stack([np.ravel(np.stack(v) if isinstance(v, np.ndarray) and v.dtype == object else v) for v in frame[name]])
        assert (flat == plain.reshape(50, -1)).all(), name
        column = other[name]
        column = column.ext.storage() if hasattr(column, "ext") and "Extension" in str(column.dtype) else column
        assert (np.array(column.to_list()).reshape(50, -1) == plain.reshape(50, -1)).all(), name


def test_best_classes(place):
    (place / "labels.txt").write_text("cat\ndog\r\nowl\nbat\n")
    with dpinfer.Session(place / "m.sim", devices="sim:0*2") as s:
        s.run(["random:8:float32:300:7"], [f"{place}/top.csv"], top=3, labels=place / "labels.txt")
        s.run(["random:8:float32:300:7"], [f"{place}/top.parquet"], top=3, labels=place / "labels.txt")
        s.run(["random:8:float32:300:7"], [f"{place}/one.parquet"], top=1)
        with pytest.raises(dpinfer.DataError, match="best 5"):
            s.run(["random:8:float32:300:7"], [f"{place}/no.parquet"], top=5)
        (place / "short.txt").write_text("a\nb\n")
        with pytest.raises(dpinfer.DataError, match="2 labels"):
            s.run(["random:8:float32:300:7"], [f"{place}/no.parquet"], top=1, labels=place / "short.txt")
        with pytest.raises(ValueError, match="top"):
            s.run(["random:8:float32:300:7"], [f"{place}/no.parquet"], labels=place / "labels.txt")
    assert not left(place) and not (place / "no.parquet").exists()
    table = read(place / "top.parquet")
    assert table.column_names == ["row", *(f"{n}{i}" for i in (1, 2, 3) for n in ("class", "label", "score"))]
    rows = [line.split(",") for line in (place / "top.csv").read_text().splitlines()[1:]]
    for i in (1, 2, 3):
        assert table[f"label{i}"].to_pylist() == [r[2 * i - 1] for r in rows]
        assert np.allclose(table[f"score{i}"].to_numpy(), [float(r[2 * i]) for r in rows], rtol=0, atol=0)
    assert read(place / "one.parquet").column_names == ["row", "class", "score"]


def test_ties_and_nan():
    scores = np.array([[1, 3, 3, 2], [np.nan, 0, np.nan, -np.inf], [5, 5, 5, 5]], np.float32)
    assert tables.best_classes(scores, 2).tolist() == [[1, 2], [1, 0], [0, 1]]
    chance = np.random.default_rng(0)
    for _ in range(50):
        scores = chance.integers(0, 6, (20, 9)).astype(np.float32)
        want = np.argsort(-scores, axis=1, kind="stable")
        for top in (1, 4, 9):
            assert (tables.best_classes(scores, top) == want[:, :top]).all()


def test_names_and_bad_rows(place):
    """Keys of images are a column, and what could not be had is null."""
    if not (pathlib.Path(os.environ.get("DPI_BUILD", ".")) / "dpinfer-images.so").exists():
        pytest.skip("built without libvips")
    from test_images import png

    (place / "i.sim").write_text("input x uint8 N 8 8 3\noutput y float32 N 4\noutput z float32 N 2 2\noutput s int32 N\n")
    photos = place / "photos"
    photos.mkdir()
    for i in range(40):
        (photos / f"{i:02}.png").write_bytes(png(np.full((8, 8, 3), i, np.uint8)))
    (photos / "07.png").write_bytes(b"")
    os.rename(photos / "09.png", os.fsencode(photos) + b"/09\xff.png")
    for suffix in ("parquet", "arrow"):
        with dpinfer.Session(place / "i.sim", devices="sim:0*2", batch=4, data_folders=[photos], on_bad_row="skip") as s:
            with pytest.raises(dpinfer.BadRows):
                s.run([str(photos)], [f"{place}/out.{suffix}"], preprocess="none")
            with pytest.raises(dpinfer.BadRows):
                s.run([str(photos)], [f"y={place}/top.{suffix}"], preprocess="none", top=1)
        table = read(place / f"out.{suffix}")
        assert table.column_names == ["row", "name", "y", "z", "s"] and table.num_rows == 40
        assert [os.path.basename(n) for n in table["name"].to_pylist()][6:10] == ["06.png", "07.png", "08.png", "09\ufffd.png"]
        for column in "yzs":
            nulls = [i for i in range(40) if not table[column][i].is_valid]
            assert nulls == [7], column
        top = read(place / f"top.{suffix}")
        assert top["class"][7].as_py() is None and top["score"][7].as_py() is None and top["class"].null_count == 1
    assert not left(place)
    with dpinfer.Session(place / "i.sim", devices="sim:0", data_folders=[photos]) as s, pytest.raises(dpinfer.DataError):
        s.run([str(photos)], [f"{place}/never.parquet"], preprocess="none")
    assert not left(place) and not (place / "never.parquet").exists()


class Rows:
    def __init__(self, count, bad=-1):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i == self.bad:
            raise ValueError("no such sample")
        return np.full(8, i, np.float32)


class Stream:
    def __iter__(self):
        return (np.full(8, i, np.float32) for i in range(100))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_data_sets_of_python(place, suffix):
    out, common = place / f"out.{suffix}", {"devices": "sim:0*2", "num_workers": 1, "batch_size": 16}
    want = dpinfer.run(place / "m.sim", Rows(101), **common)
    assert dpinfer.run(place / "m.sim", Rows(101), out, **common) == 101
    table = read(out)
    assert (values(table, "y") == want).all() and table["row"].to_pylist() == list(range(101))
    assert dpinfer.run(place / "m.sim", Stream(), out, top=2, **common) == 100
    assert read(out).column_names == ["row", "class1", "score1", "class2", "score2"]
    assert dpinfer.run(place / "m.sim", Rows(0), out, **common) == 0
    assert read(out).num_rows == 0 and read(out).column_names == ["row", "y"]
    before = out.read_bytes()
    with pytest.raises(dpinfer.DataError, match="no such sample"):
        dpinfer.run(place / "m.sim", Rows(101, bad=77), out, **common)
    assert out.read_bytes() == before and not left(place)  # what was there stays
    with pytest.raises(ValueError, match="table"):
        dpinfer.run(place / "m.sim", Rows(10), [out, place / "y2.npy"], **common)
    with pytest.raises(ValueError, match="top"):
        dpinfer.run(place / "m.sim", Rows(10), place / "y2.npy", top=1, **common)


def test_groups_are_bounded(place, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 2000)
    with dpinfer.Session(place / "m.sim", devices="sim:0") as s:
        s.run(["random:8:float32:9000:7"], [f"{place}/out.parquet"])
        s.run(["random:8:float32:9000:7"], [f"{place}/out.arrow"])
    file = pq.ParquetFile(place / "out.parquet")
    assert file.num_row_groups >= 3 and max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) < 2000 + 1024
    stream = pa.ipc.open_file(place / "out.arrow")
    assert stream.num_record_batches >= 3 and stream.read_all()["row"].to_pylist() == list(range(9000))


def test_memory_is_flat(place):
    """Eight times as many rows, half a gigabyte, take the same memory."""
    script = textwrap.dedent("""
        import dpinfer, sys, pathlib, pyarrow
        folder, suffix = pathlib.Path(sys.argv[1]), sys.argv[2]
        (folder / "wide.sim").write_text("input x uint8 N 8\\noutput y float32 N 4096\\n")
        def own():
            return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) >> 10
        seen = []
        with dpinfer.Session(folder / "wide.sim", devices="sim:0*2", batch=64) as s:
            s.run([f"random:8:uint8:{int(sys.argv[3])}"], [f"{folder}/out.{suffix}"], lambda done, total: seen.append(own()))
        print(max(seen) - seen[0])
    """)
    grown = {}
    for rows in (4000, 30000):  # 64 MB and 0.5 GB
        done = subprocess.run([sys.executable, "-c", script, place, "arrow", str(rows)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        grown[rows] = int(done.stdout)
    assert grown[30000] < grown[4000] + 200, grown


def test_one_writer(place):
    with dpinfer.Session(place / "m.sim", devices="sim:0") as s:
        table = tables.Table(f"{place}/out.parquet", [("y", 12)], None, None)
        with pytest.raises(dpinfer.DataError, match="another run"):
            s.run(["random:8:float32:30"], [f"{place}/out.parquet"])
        table.drop()
        s.run(["random:8:float32:30"], [f"{place}/out.parquet"])
        with pytest.raises(dpinfer.DataError, match="cannot create"):
            s.run(["random:8:float32:30"], [f"{place}/none/out.parquet"])
        with pytest.raises(ValueError, match="alone"):
            s.run(["random:8:float32:30"], [f"{place}/out.parquet", "x.npy"])
    assert not left(place)


def test_exceptions_and_interrupts(place):
    def stop(done, total):
        raise KeyboardInterrupt

    with dpinfer.Session(place / "m.sim", devices="sim:0", batch=4) as s:
        for wrong in (KeyboardInterrupt, ZeroDivisionError):
            def stop(done, total, wrong=wrong):
                raise wrong

            with pytest.raises(wrong):
                s.run(["random:8:float32:300000"], [f"{place}/out.parquet"], stop)
        assert not left(place) and not (place / "out.parquet").exists()
        assert s.run(["random:8:float32:30"], [f"{place}/out.parquet"]) == 30


def test_a_writer_that_fails(place, monkeypatch):
    """An error in the callback ends the run and is what the caller sees."""
    calls = []

    def fail(self, *arguments):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return original(self, *arguments)

    original = tables.Table._write
    monkeypatch.setattr(tables, "GROUP_ROWS", 1000)
    monkeypatch.setattr(tables.Table, "_write", fail)
    with dpinfer.Session(place / "m.sim", devices="sim:0", batch=4) as s, pytest.raises(dpinfer.FileError, match="No space left"):
        s.run(["random:8:float32:300000"], [f"{place}/out.parquet"])
    assert not left(place) and not (place / "out.parquet").exists()


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_full_disk(place, suffix):
    """A file may have 20 MB: the rows are more. Nothing is left."""
    script = textwrap.dedent("""
        import dpinfer, resource, sys, pathlib
        folder, suffix = pathlib.Path(sys.argv[1]), sys.argv[2]
        def limit(done, total): # once the arenas have their size, which are files too
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))
        (folder / "wide.sim").write_text("input x uint8 N 8\\noutput y float32 N 4096\\n")
        with dpinfer.Session(folder / "wide.sim", devices="sim:0", batch=64) as s:
            try:
                s.run(["random:8:uint8:30000"], [f"{folder}/out.{suffix}"], limit)
            except dpinfer.FileError as error:
                print("FileError", error)
    """)
    done = subprocess.run([sys.executable, "-c", script, place, suffix], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and f"out.{suffix}.part" in done.stdout and "FileError" in done.stdout, done.stdout + done.stderr
    assert not left(place) and not (place / f"out.{suffix}").exists()


def test_kill_9(place):
    """Killed in the middle: FILE is absent or the old one; the same command then makes it anew."""
    (place / "slow.sim").write_text("input x float32 N 8\noutput y float32 N 4096\nfixed_us 3000\n")
    script = f"import dpinfer; dpinfer.run({str(place / 'slow.sim')!r}, 'random:8:float32:20000:7', {str(place / 'out.parquet')!r}, devices='sim:0', batch=4)"
    process = subprocess.Popen([sys.executable, "-c", script])
    part = place / "out.parquet.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size > 0):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "out.parquet").exists() and left(place) == ["out.parquet.part"]
    with dpinfer.Session(place / "m.sim", devices="sim:0") as s:
        assert s.run(["random:8:float32:300:7"], [f"{place}/out.parquet"]) == 300
    assert (values(read(place / "out.parquet"), "y") == np.load(place / "y.npy")).all() and not left(place)


def test_without_pyarrow(place):
    """One sentence, before a model is opened."""
    script = textwrap.dedent("""
        import sys
        sys.modules["pyarrow"] = None
        import dpinfer
        for dataset in ("random:8:float32:30", [1, 2]):
            try:
                dpinfer.run("no-such-model.sim", dataset, "out.parquet")
            except ImportError as error:
                print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=place)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("out.parquet" in line and "pip install pyarrow" in line for line in lines), done.stdout + done.stderr


def test_a_wrong_argument_leaves_nothing(place):
    """The call that is mended then finds no file of the one that was not."""
    with dpinfer.Session(place / "m.sim", devices="sim:0") as s:
        with pytest.raises(TypeError):
            s.run([None], [f"{place}/out.parquet"])
        with pytest.raises(TypeError):
            s.run(["random:8:float32:30:7"], [f"{place}/out.parquet"], spool_max_bytes="many")
        assert not left(place)
        assert s.run(["random:8:float32:30:7"], [f"{place}/out.parquet"]) == 30
