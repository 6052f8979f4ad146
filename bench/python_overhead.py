#!/usr/bin/env python3
"""What Python costs: DataParallel over dpi_forward on the same memory, over memory of numpy's own, beside the Python queue
scheme; and a data set through loader processes beside the article's second mode.

usage: python_overhead.py [--seconds 5] [--skip-datasets]          (PYTHONPATH, DPINFER_LIBRARY as for the tests)
Prints markdown. Overheads are medians of differences of pairs measured in turn; rows/s are medians over turns.
"""
import argparse
import multiprocessing as mp
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import dpinfer
import python_queue
from dpinfer import _c
from dpinfer.arrays import NUMBERS

NULL = "touch none\ninput x float32 N {}\noutput y float32 N 1\n"
ROWS, LOADERS, BATCH = 2048, 2, 32


class Images:
    """The article's data set: random images, generated when asked for."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return np.random.default_rng(i).random((3, 224, 224), np.float32)


def sim(folder, shape):
    path = pathlib.Path(folder) / "null.sim"
    path.write_text(NULL.format(shape.replace("x", " ")))
    return path


def c_call(model, x, y):
    """dpi_forward itself, its structures made beforehand."""
    tensors = []
    for a in (x, y):
        t = (_c.CTensor * 1)()
        t[0].dtype, t[0].rank, t[0].data = NUMBERS[a.dtype.name], a.ndim, a.ctypes.data
        t[0].shape[: a.ndim] = a.shape
        tensors.append(t)
    pointer, error, forward = model.session._handle.pointer, _c.CError(), _c.library().dpi_forward
    return lambda: forward(pointer, tensors[0], 1, tensors[1], 1, 0, error)


def pairs(first, second, seconds):
    """Microseconds: median of each, and median and 95 % interval of the differences."""
    a, b, until = [], [], time.perf_counter() + seconds
    first(), second()
    while time.perf_counter() < until:
        t0 = time.perf_counter()
        first()
        t1 = time.perf_counter()
        second()
        t2 = time.perf_counter()
        a.append((t1 - t0) * 1e6)
        b.append((t2 - t1) * 1e6)
    gaps = sorted(y - x for x, y in zip(a, b))
    spread = 0.98 * len(gaps) ** 0.5
    low, high = gaps[max(0, int(len(gaps) / 2 - spread))], gaps[min(len(gaps) - 1, int(len(gaps) / 2 + spread))]
    return statistics.median(a), statistics.median(b), statistics.median(gaps), low, high


def overhead(folder, seconds):
    print("| null model, rows | memory | dpi_forward us | DataParallel us | more us | 95 % interval |\n|---|---|---|---|---|---|")
    for shape, rows, options in (("64", 64, {"devices": "sim:0", "isolation": "thread"}), ("64", 64, {"devices": "sim:0*2"}),
                                 ("3x224x224", 64, {"devices": "sim:0*2"})):  # fmt: skip
        with dpinfer.DataParallel(sim(folder, shape), **options) as model:
            size = (rows, *map(int, shape.split("x")))
            x, y = model.empty(size), model.empty((rows, 1), direction="output")
            x[:] = 1
            name = f"{rows} of {shape}, {options['devices']}{', thread' if len(options) > 1 else ''}"
            for what, given, out in (("dpinfer.empty", x, y), ("numpy", np.ones(size, np.float32), np.empty((rows, 1), np.float32))):
                plain = c_call(model, given, out)
                m = pairs(plain, lambda: model(given, out=[out]), seconds)
                print(f"| {name} | {what} | {m[0]:.1f} | {m[1]:.1f} | {m[2]:.1f} | {m[3]:.1f} to {m[4]:.1f} |")


def queue_scheme(folder, seconds):
    x = np.zeros((64, 3, 224, 224), np.float32)
    scheme = python_queue.DataParallel("null", [32, 32])
    with dpinfer.DataParallel(sim(folder, "3x224x224"), devices="sim:0*2") as model:
        m = pairs(lambda: model(x), lambda: scheme(x), seconds * 2)
        print(f"\nNull model, 2 x 32 x 3x224x224 fp32 from numpy memory: dpinfer {m[0] / 1000:.2f} ms, the Python queue scheme "
              f"{m[1] / 1000:.1f} ms: {m[1] / m[0]:.1f} times as long.")  # fmt: skip
    scheme.close()


def second_mode(rank, ranks, results):
    """The article's DistSample: a process per device, a strided sampler that pads, loader workers of its own."""
    import torch
    from torch.utils.data import DataLoader, DistributedSampler

    torch.set_num_threads(1)
    sampler = DistributedSampler(Images(), num_replicas=ranks, rank=rank, shuffle=False)
    for x in DataLoader(Images(), batch_size=BATCH, sampler=sampler, num_workers=LOADERS // ranks):
        results.put(torch.zeros(len(x), 1).numpy())
    results.put(None)


def article_rate():
    context = mp.get_context("spawn")
    queues = [context.Queue() for _ in range(2)]
    processes = [context.Process(target=second_mode, args=(rank, 2, queue)) for rank, queue in enumerate(queues)]
    for process in processes:
        process.start()
    rows, began = 0, None
    ended = [False, False]
    while not all(ended):
        for i, queue in enumerate(queues):
            if ended[i]:
                continue
            y = queue.get()
            if began is None:
                began, y = time.perf_counter(), None if y is None else y  # start-up is not counted, nor the first batch
                continue
            ended[i] = y is None
            rows += 0 if y is None else len(y)
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    return rows / seconds


def dpinfer_rate(path):
    with dpinfer.DistributedSampled(path, Images(), LOADERS, batch_size=BATCH, devices="sim:0*2") as results:
        rows, began, ended = 0, None, None
        for y in results:
            ended = time.perf_counter()
            if began is None:
                began = ended
            else:
                rows += len(y)
        return rows / (ended - began)


def generator_rate(_):
    data, began = Images(), time.perf_counter()
    for i in range(ROWS // (4 * LOADERS)):
        data[i]
    return ROWS // (4 * LOADERS) / (time.perf_counter() - began)


def data_sets(folder, turns=5):
    path, rates = sim(folder, "3x224x224"), {"limit": [], "dpinfer": [], "article": []}
    for _ in range(turns):
        with mp.get_context("spawn").Pool(LOADERS) as pool:
            rates["limit"].append(sum(pool.map(generator_rate, range(LOADERS))))
        rates["dpinfer"].append(dpinfer_rate(path))
        try:
            rates["article"].append(article_rate())
        except ImportError:
            pass
    best = {name: statistics.median(seen) for name, seen in rates.items() if seen}
    print(f"\nA data set of {ROWS} random 3x224x224 images, {LOADERS} loader processes, null model, rows/s (medians of {turns}): "
          + ", ".join(f"{name} {rate:.0f}" for name, rate in best.items())
          + "; limit: the generator alone in as many processes.")  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--skip-datasets", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overhead(folder, args.seconds)
        queue_scheme(folder, args.seconds)
        if not args.skip_datasets:
            data_sets(folder)


if __name__ == "__main__":
    main()
