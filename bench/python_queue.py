#!/usr/bin/env python3
"""The scheme that dpinfer started from, written faithfully: one process per device, a queue to each that carries pickled
slices and one back that carries results, slices cut by cumulative sizes, results concatenated in order, None ends a
process. The engine is ONNX Runtime with one thread, pinned to the device's core.

usage: python_queue.py null|MODEL.onnx --batch N [--devices 2] [--repeats 20] [--rows-shape 3x224x224] [--seconds 5]
Prints one JSON object: median ms per call and rows/s; for a model also one session on as many threads.
"""
import argparse
import json
import multiprocessing as mp
import os
import statistics
import time

import numpy as np


def worker(index, model, tasks, results):
    os.sched_setaffinity(0, {index})
    if model != "null":
        session = make_session(model, 1)
        name = session.get_inputs()[0].name
    results.put(None)  # ready
    while True:
        x = tasks.get()
        if x is None:
            return
        results.put(np.zeros((len(x), 1), np.float32) if model == "null" else session.run(None, {name: x})[0])


def make_session(model, threads):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class DataParallel:
    def __init__(self, model, sizes):
        self.cuts = np.cumsum([0, *sizes])
        self.tasks, self.results, self.processes = [], [], []
        for index in range(len(sizes)):
            tasks, results = mp.Queue(), mp.Queue()
            process = mp.Process(target=worker, args=(index, model, tasks, results))
            process.start()
            self.tasks.append(tasks), self.results.append(results), self.processes.append(process)
        for results in self.results:
            results.get()

    def __call__(self, x):
        for i, tasks in enumerate(self.tasks):
            tasks.put(x[self.cuts[i]:self.cuts[i + 1]])
        return np.concatenate([results.get() for results in self.results])

    def close(self):
        for tasks in self.tasks:
            tasks.put(None)
        for process in self.processes:
            process.join()


def timed(call, x, seconds):
    times, until = [], time.perf_counter() + seconds
    call(x)
    while time.perf_counter() < until or len(times) < 5:
        began = time.perf_counter()
        call(x)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--shape", default="3x224x224")
    args = parser.parse_args()
    mp.set_start_method("spawn")
    shape = [int(n) for n in args.shape.split("x")]
    x = np.random.default_rng(1).standard_normal((args.batch * args.devices, *shape), np.float32)
    scheme = DataParallel(args.model, [args.batch] * args.devices)
    call = timed(scheme, x, args.seconds)
    scheme.close()
    out = {"ms_per_call": call * 1e3, "rows_per_s": len(x) / call}
    if args.model != "null":
        session = make_session(args.model, args.devices)
        name = session.get_inputs()[0].name
        alone = timed(lambda rows: session.run(None, {name: rows}), x, args.seconds)
        out["one_session_all_threads_rows_per_s"] = len(x) / alone
    print(json.dumps(out))


if __name__ == "__main__":
    main()
