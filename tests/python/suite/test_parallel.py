"""Batches through Session and DataParallel, on simulated devices."""
import asyncio
import multiprocessing
import os
import pathlib
import signal
import threading

import dpinfer
import numpy as np
import pytest

MODEL = "input x float32 N 8\noutput y float32 N 4\noutput z float32 N 2\n"
SOURCE = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "m.sim"
    file.write_text(MODEL)
    return file


@pytest.fixture
def model(path):
    with dpinfer.DataParallel(path, devices="sim:0*2") as opened:
        yield opened


@pytest.fixture
def x():
    return np.random.default_rng(1).random((100, 8), np.float32)


def test_rows_do_not_depend_on_memory_or_neighbours(model, x):
    y, z = model(x)
    assert y.shape == (100, 4) and z.shape == (100, 2) and y.dtype == np.float32
    inside = model.empty(x.shape)
    inside[:] = x
    out = [model.empty(a.shape, direction="output") for a in (y, z)]
    model(inside, out=out)
    np.testing.assert_array_equal(out[0], y)
    np.testing.assert_array_equal(model(x[::-1])[0], y[::-1])
    np.testing.assert_array_equal(model(x=x[:7])[1], z[:7])
    np.testing.assert_array_equal(model({"x": x})[1], z)
    assert model(x[:0])[0].shape == (0, 4)


def test_dict_of_outputs(path, x):
    with dpinfer.DataParallel(path, devices="sim:0", return_dict=True) as model:
        assert set(model(x)) == {"y", "z"}


@pytest.mark.parametrize("wrong", [np.zeros((4, 8)), np.zeros((4, 9), np.float32), np.zeros(8, np.float32)])
def test_wrong_arrays_are_value_errors_and_harmless(model, x, wrong):
    with pytest.raises(ValueError, match="expects float32") as caught:
        model(wrong)
    assert isinstance(caught.value, dpinfer.DataError) and caught.value.status_name == "DPI_E_DATA"
    assert model(x)[0].shape == (100, 4)


def test_wrong_types(model, path):
    with pytest.raises(TypeError, match="list"):
        model([[1.0] * 8])
    with pytest.raises(TypeError, match="int"):
        dpinfer.DataParallel(3)
    with pytest.raises(ValueError, match="not both"):
        dpinfer.DataParallel(path, [0], devices="sim:0")
    with pytest.raises(ValueError, match="precision"):
        dpinfer.DataParallel(path, precision="fp8")


def test_wrong_device_and_file(path, tmp_path):
    with pytest.raises(dpinfer.Error, match="cuda"):
        dpinfer.DataParallel(path, device_indices=[63])
    with pytest.raises(dpinfer.Error, match="absent.onnx"):
        dpinfer.DataParallel(tmp_path / "absent.onnx")


def test_closed(path, x):
    model = dpinfer.DataParallel(path, devices="sim:0")
    inside = model.empty(x.shape)
    model.close()
    model.close()
    with pytest.raises(dpinfer.ClosedError):
        model(x)
    inside[:] = x  # an array outlives its session's end
    np.testing.assert_array_equal(inside, x)


def test_engine_failure_and_dead_worker(path, x):
    with dpinfer.DataParallel(path, devices="sim:0", backend_options={"fail_at_slice": 1}) as model:
        with pytest.raises(dpinfer.EngineError, match="sim:0"):
            model(x)
    with dpinfer.DataParallel(path, devices="sim:0", backend_options={"die_at_slice": 1}) as model:
        with pytest.raises(dpinfer.WorkerError, match="sim:0"):
            model(x)


def test_devices_come_and_go(path, x):
    with dpinfer.Session(path, devices="sim:0") as session:
        y, z = session.forward(x)
        pending = [session.submit(x) for _ in range(4)]
        session.add_device("sim:7,sim:2")
        session.remove_device("sim:0", timeout=60)
        for batch in pending:
            np.testing.assert_array_equal(batch.result()[0], y)
        np.testing.assert_array_equal(session.forward(x)[1], z)
        with pytest.raises(dpinfer.DeviceError, match="no device left"):
            session.remove_device("sim:7,sim:2")
        with pytest.raises(dpinfer.DeviceError, match="no device of this session"):
            session.remove_device("sim:0")
        with pytest.raises(dpinfer.DeviceError, match="nonsense"):
            session.add_device("nonsense")
    with pytest.raises(dpinfer.ClosedError):
        session.add_device("sim:0")


def test_several_in_flight_and_threads(model, x):
    y = model(x)[0]
    flights = [model.submit(x) for _ in range(4)]
    for flight in flights:
        np.testing.assert_array_equal(flight.result()[0], y)
    bad = []
    work = lambda: bad.extend(i for i in range(20) if not np.array_equal(model(x)[0], y))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not bad


def test_timeout_goes_on(path, x):
    with dpinfer.DataParallel(path, devices="sim:0", backend_options={"fixed_us": 300000}) as model:
        flight = model.submit(x[:4])
        with pytest.raises(TimeoutError):
            flight.result(timeout=0.01)
        assert flight.result()[0].shape == (4, 4)


def test_asyncio(model, x):
    async def both():
        return await asyncio.gather(*[_awaited(model.submit(x)) for _ in range(3)])

    async def _awaited(flight):
        return await flight

    y = model(x)[0]
    for result in asyncio.run(both()):
        np.testing.assert_array_equal(result[0], y)


def test_keyboard_interrupt(path, x):
    with dpinfer.DataParallel(path, devices="sim:0", backend_options={"fixed_us": 1000000}) as model:
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            model(x)


def _in_child(path, queue):
    with dpinfer.DataParallel(path, devices="sim:0") as model:
        queue.put(model(np.zeros((3, 8), np.float32))[0].shape)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_open_in_a_child(path, start):
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(path, queue))
    child.start()
    assert queue.get(timeout=60) == (3, 4)
    child.join(60)
    assert child.exitcode == 0


def test_forked_child_is_told(model, x):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            model(x)
            os.write(writer, b"no error")
        except dpinfer.ForkedError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"spawn" in os.read(reader, 1000)
    assert model(x)[0].shape == (100, 4)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_digits(backend):
    pytest.importorskip(backend)
    images, labels = (np.load(SOURCE / "data" / "digits" / name) for name in ("images.npy", "labels.npy"))
    with dpinfer.DataParallel(SOURCE / "models" / "digits.onnx", backend=backend) as model:
        assert (model(images).argmax(1) == labels).sum() == 1794


def test_torch_in_torch_out(model, x):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    y = model(torch.from_numpy(x))[0]
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), model(x)[0])
