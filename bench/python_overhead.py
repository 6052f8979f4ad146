#!/usr/bin/env python3
"""What Python costs: DataParallel over dpi_forward on the same memory, over memory of numpy's own, beside the Python queue
scheme; and a data set through loader processes beside the article's second mode.

usage: python_overhead.py [--seconds 5] [--turns 5] [--skip-datasets | --only-datasets]
                                                       (PYTHONPATH, DPINFER_LIBRARY as for the tests)
Prints markdown. Overheads are medians of differences of pairs measured in turn; rows/s are medians over turns.

The limit of a data set is the generator alone in as many processes as there are loaders: rows of its own new arrays, whose
memory the allocator has from the row before, dropped at once. "One copy" puts each into the next place of a ring as large
as the feed's, touched before, where a data set that returns samples must have them; "into a ring" generates it there.
"""
import argparse
import mmap
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
SHAPE = (3, 224, 224)
ROWS, LOADERS, BATCH = 10240, 2, 32
ARTICLE_ROWS = 2048  # it is slow
RING = (2 * 2 + 2 * LOADERS + 1) * BATCH  # rows, of DistributedSampled on two devices


class Images:
    """The article's data set: random images, generated when asked for."""

    def __init__(self, rows=ROWS):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, i):
        return np.random.default_rng(i).random(SHAPE, np.float32)


class ImagesInPlace(Images):
    """The same, for loaders that let it write where workers read."""

    def load_into(self, i, row):
        np.random.default_rng(i).random(out=row, dtype=np.float32)


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
    sampler = DistributedSampler(Images(ARTICLE_ROWS), num_replicas=ranks, rank=rank, shuffle=False)
    for x in DataLoader(Images(ARTICLE_ROWS), batch_size=BATCH, sampler=sampler, num_workers=LOADERS // ranks):
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


def dpinfer_rate(path, data):
    with dpinfer.DistributedSampled(path, data, LOADERS, batch_size=BATCH, devices="sim:0*2") as results:
        rows, began, ended = 0, None, None
        for y in results:
            ended = time.perf_counter()
            if began is None:
                began = ended
            else:
                rows += len(y)
        return rows / (ended - began)


def generate(data, first, rows):
    for i in range(first, first + rows):
        data[i]


def generate_and_copy(data, first, rows, ring):
    for i in range(first, first + rows):
        ring[i % len(ring)] = data[i]


def generate_in_place(data, first, rows, ring):
    for i in range(first, first + rows):
        data.load_into(i, ring[i % len(ring)])


def generator_rate(work, start):
    """Of one process: rows/s behind a few to begin with, from the moment when all of them are that far."""
    data, rows, more = ImagesInPlace(), ROWS // LOADERS, ()
    if work is not generate:
        more = (np.frombuffer(mmap.mmap(-1, RING * int(np.prod(SHAPE)) * 4), np.float32).reshape(RING, *SHAPE),)
        more[0][:] = 0
    work(data, 0, 16, *more)
    start.wait()
    began = time.perf_counter()
    work(data, 16, rows, *more)
    return rows / (time.perf_counter() - began)


def bare_process(work, start, results):
    results.put(generator_rate(work, start))


def limit(work):
    context = mp.get_context("spawn")
    start, results = context.Barrier(LOADERS), context.Queue()
    processes = [context.Process(target=bare_process, args=(work, start, results)) for _ in range(LOADERS)]
    for process in processes:
        process.start()
    rate = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return rate


def data_sets(folder, turns):
    path = sim(folder, "3x224x224")
    ways = {
        "generator alone": lambda: limit(generate),
        "generator and one copy": lambda: limit(generate_and_copy),
        "generator into a ring": lambda: limit(generate_in_place),
        "dpinfer, samples returned": lambda: dpinfer_rate(path, Images()),
        "dpinfer, load_into": lambda: dpinfer_rate(path, ImagesInPlace()),
        "the article's second mode": article_rate,
    }
    rates = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            rates[name].append(way())
        print(*(f"{seen[-1]:.0f}" for seen in rates.values()), file=sys.stderr)
    print(f"\nA data set of {ROWS:,} random 3x224x224 images, {LOADERS} loader processes, null model; medians of {turns} turns "
          f"(least to most), and medians of the turns' ratios:\n\n| | rows/s | of the generator alone |\n|---|---|---|")  # fmt: skip
    for name, seen in rates.items():
        ratio = statistics.median(x / alone for x, alone in zip(seen, rates["generator alone"]))
        print(f"| {name} | {statistics.median(seen):,.0f} ({min(seen):,.0f} to {max(seen):,.0f}) | {ratio:.3f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--skip-datasets", action="store_true")
    parser.add_argument("--only-datasets", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.only_datasets:
            overhead(folder, args.seconds)
            queue_scheme(folder, args.seconds)
        if not args.skip_datasets:
            data_sets(folder, args.turns)


if __name__ == "__main__":
    main()
