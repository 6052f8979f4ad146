#!/usr/bin/env python3
"""The scheme that dpinfer started from, on GPUs, and what its parts cost: torchvision's ResNet-50 with random weights, fp16,
channels_last, torch.compile. One process per GPU; rows are uint8 NHWC on the host, cast and normalised on the GPU.

usage: gpu_queue_scheme.py [--devices 1] [--batch 128,256] [--modes queue,pinned,device,queue2,shm] [--seconds 3] [--turns 3]
                           [--limit 145] [--device cuda|cpu] [--small] [--no-compile]

  queue    the scheme (bench/python_queue.py is it on CPUs): slices are pickled into a queue for each worker, copied to the
           GPU from pageable memory, results pickled back and concatenated; one call at a time, as y = model(x)
  queue2   the same, two calls in flight: a loop that asks for more before it takes what is there
  shm      as queue, tensors handed over through shared memory, and the rows in it already (torch's own way, its best case)
  pinned   the same compiled model in this process without queues: page-locked rows, copies beside compute, two in flight
  device   the same with rows on the GPU and results left there: the engine alone

device against pinned is what the copies cost, pinned against queue what the transport costs. pinned and device use one GPU.
--batch is rows per device. A figure is the median of turns of at least --seconds after a warm-up; each turn ends when its
last result is there. Prints one JSON object a line, then a table. Measurements that would end after --limit seconds are left
out, and said to be. --device cpu --small tries the logic in seconds: a small network, tiny turns, not compiled.
Needs torch and torchvision. Exit codes: 0 done, 1 a worker failed or nothing was measured, 77 a package is missing.
"""
import argparse
import json
import multiprocessing as mp
import queue
import statistics
import sys
import time
import traceback

EXIT_SKIP = 77

try:
    import numpy as np
    import torch
    import torchvision
except ImportError as missing:
    print(f"gpu_queue_scheme.py: {missing}: install the Python packages torch and torchvision", file=sys.stderr)
    sys.exit(EXIT_SKIP)

BEGAN = time.perf_counter()
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MODES = ("queue", "pinned", "device", "queue2", "shm")
WARM_SECONDS = 1.0
WARM_CALLS = 3
BATCHES = 4  # different ones take turns, so that none stays in the caches
READY_SECONDS = 110
IN_FLIGHT = 2


def make_forward(args, device):
    """uint8 [N,H,W,3] on `device` -> logits there; compiled unless args say otherwise. All processes get the same weights."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    make = torchvision.models.resnet18 if args.small else torchvision.models.resnet50
    net = make(weights=None).eval().to(device=device, dtype=dtype, memory_format=torch.channels_last)
    factor = torch.tensor([1 / (255 * s) for s in STD], device=device).reshape(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD)], device=device).reshape(1, 3, 1, 1)

    def forward(pixels):
        x = pixels.permute(0, 3, 1, 2)  # NHWC in memory is what channels_last means: nothing moves
        return net((x.float() * factor + shift).to(dtype))

    return torch.compile(forward, dynamic=False) if args.compile else forward


def prepare(args, device):
    """A forward function that has run, and so is compiled, for every batch size."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    forward = make_forward(args, device)
    for batch in args.batch:
        pixels = torch.zeros((batch, args.size, args.size, 3), dtype=torch.uint8, device=device)
        for _ in range(WARM_CALLS):
            forward(pixels).cpu()
    return forward


# The scheme

def worker(index, args, tasks, results):
    """Takes slices until None; sends ("ready", None), then (rows, None) for each slice; (None, text) if anything fails.

    A slice is a numpy array, which the queue pickles, or a tensor, which it hands over through shared memory; the result
    is of the same kind.
    """
    try:
        device = torch.device(args.device, index) if args.device == "cuda" else torch.device("cpu")
        with torch.no_grad():
            forward = prepare(args, device)
            results.put(("ready", None))
            while True:
                x = tasks.get()
                if x is None:
                    return
                if isinstance(x, np.ndarray):
                    results.put((forward(torch.from_numpy(x).to(device)).cpu().numpy(), None))
                else:
                    results.put((forward(x.to(device)).cpu(), None))
    except Exception:  # whatever it is, the caller waits for word of it
        results.put((None, traceback.format_exc()))


class QueueScheme:
    """The workers, each with a queue of tasks and one of results; see the module's text."""

    def __init__(self, args):
        context = mp.get_context("spawn")
        self.workers, self.broken = [], False
        for index in range(args.devices):
            tasks, results = context.Queue(), context.Queue()
            process = context.Process(target=worker, args=(index, args, tasks, results))
            process.start()
            self.workers.append((process, tasks, results))

    def wait_ready(self):
        for one in self.workers:
            self.take(one, READY_SECONDS)

    def take(self, one, seconds=60):
        """A worker's next result; RuntimeError if it has failed, died, or says nothing for `seconds`."""
        process, _, results = one
        until = time.perf_counter() + seconds
        while True:
            try:
                value, error = results.get(timeout=1)
                break
            except queue.Empty:
                if not process.is_alive() or time.perf_counter() > until:
                    self.broken = True
                    raise RuntimeError(f"a worker {'hangs' if process.is_alive() else 'died'}") from None
        if error:
            self.broken = True
            raise RuntimeError(f"a worker failed:\n{error}")
        return value

    def send(self, x):
        """Cuts x, numpy array or tensor, into equal slices, one for each worker."""
        if self.broken:  # results of earlier calls may still come
            raise RuntimeError("a worker has failed before")
        share = len(x) // len(self.workers)
        for i, (_, tasks, _) in enumerate(self.workers):
            tasks.put(x[i * share:(i + 1) * share])

    def receive(self):
        parts = [self.take(one) for one in self.workers]
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(parts)

    def close(self):
        for process, tasks, _ in self.workers:
            if process.is_alive():
                tasks.put(None)
        for process, _, _ in self.workers:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()


class QueueMode:
    """`step` asks for one batch and takes the oldest result when `depth` are in flight."""

    def __init__(self, scheme, batches, depth):
        self.scheme, self.batches, self.depth = scheme, batches, depth
        self.calls = self.in_flight = 0

    def step(self):
        self.scheme.send(self.batches[self.calls % len(self.batches)])
        self.calls += 1
        self.in_flight += 1
        if self.in_flight == self.depth:
            self.scheme.receive()
            self.in_flight -= 1

    def drain(self):
        while self.in_flight:
            self.scheme.receive()
            self.in_flight -= 1


# One process, no queues

class PinnedMode:
    """Rows in page-locked memory; copy in, compute and copy out are three streams, so that they overlap over two slots."""

    def __init__(self, forward, batches, device):
        self.forward, self.calls = forward, 0
        self.rows = [torch.from_numpy(x).pin_memory() for x in batches]
        self.copy_in, self.copy_out = torch.cuda.Stream(device), torch.cuda.Stream(device)
        example = forward(self.rows[0].to(device))
        self.slots = [self.make_slot(device, example) for _ in range(IN_FLIGHT)]
        torch.cuda.synchronize(device)

    def make_slot(self, device, example):
        events = {name: torch.cuda.Event() for name in ("arrived", "computed", "done")}
        return {"pixels": torch.empty_like(self.rows[0], device=device),
                "logits": torch.empty_like(example, device="cpu").pin_memory(), **events}

    def step(self):
        slot = self.slots[self.calls % IN_FLIGHT]
        rows = self.rows[self.calls % len(self.rows)]
        self.calls += 1
        slot["done"].synchronize()  # what was in the slot has been computed and is on the host
        with torch.cuda.stream(self.copy_in):
            slot["pixels"].copy_(rows, non_blocking=True)
            slot["arrived"].record()
        compute = torch.cuda.current_stream()
        compute.wait_event(slot["arrived"])
        y = self.forward(slot["pixels"])
        slot["computed"].record()
        with torch.cuda.stream(self.copy_out):
            self.copy_out.wait_event(slot["computed"])
            slot["logits"].copy_(y, non_blocking=True)
            y.record_stream(self.copy_out)  # its memory is in use there until the copy ends
            slot["done"].record()

    def drain(self):
        torch.cuda.synchronize()


class DeviceMode:
    """Rows on the GPU, results left there; the host is at most two calls ahead."""

    def __init__(self, forward, batches, device):
        self.forward, self.calls = forward, 0
        self.rows = [torch.from_numpy(x).to(device) for x in batches]
        self.done = [torch.cuda.Event() for _ in range(IN_FLIGHT)]

    def step(self):
        done = self.done[self.calls % IN_FLIGHT]
        done.synchronize()
        self.forward(self.rows[self.calls % len(self.rows)])
        done.record()
        self.calls += 1

    def drain(self):
        torch.cuda.synchronize()


class HostMode:
    """Stands for pinned and device where there is no GPU: nothing to copy, nothing to wait for."""

    def __init__(self, forward, batches, _device):
        self.forward, self.rows = forward, [torch.from_numpy(x) for x in batches]

    def step(self):
        self.forward(self.rows[0])

    def drain(self):
        pass


# Measuring

def say(**facts):
    print(json.dumps(facts), flush=True)


def measure(mode, rows_per_step, args):
    """Rows per second of each turn, after a warm-up."""
    until = time.perf_counter() + min(WARM_SECONDS, args.seconds)
    calls = 0
    while time.perf_counter() < until or calls < WARM_CALLS:
        mode.step()
        calls += 1
    mode.drain()
    turns = []
    for _ in range(args.turns):
        calls, began = 0, time.perf_counter()
        while time.perf_counter() - began < args.seconds:
            mode.step()
            calls += 1
        mode.drain()
        turns.append(calls * rows_per_step / (time.perf_counter() - began))
    return turns


def random_batches(rows, size):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8) for _ in range(BATCHES)]


class Bench:
    """The workers, the same model in this process (made when first wanted), and what was measured."""

    def __init__(self, args):
        self.args = args
        self.device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
        self.scheme = self.forward = None
        self.results = {}

    def workers(self):
        if self.scheme is None:
            began = time.perf_counter()
            self.scheme = QueueScheme(self.args)  # kept even if not ready: it is closed in the end
            self.scheme.wait_ready()
            say(event="workers ready", seconds=round(time.perf_counter() - began, 1))
        return self.scheme

    def here(self):
        if self.forward is None:
            began = time.perf_counter()
            self.forward = prepare(self.args, self.device)
            say(event="model ready in this process", seconds=round(time.perf_counter() - began, 1))
        return self.forward

    def make_mode(self, name, batch):
        """(the mode, rows per step)"""
        if name in ("pinned", "device"):
            kinds = {"pinned": PinnedMode, "device": DeviceMode} if self.device.type == "cuda" else {}
            mode = kinds.get(name, HostMode)(self.here(), random_batches(batch, self.args.size), self.device)
            return mode, batch
        rows = batch * self.args.devices
        batches = random_batches(rows, self.args.size)
        if name == "shm":
            batches = [torch.from_numpy(x).share_memory_() for x in batches]
        return QueueMode(self.workers(), batches, IN_FLIGHT if name == "queue2" else 1), rows

    def run(self, name, batch):
        facts = {"mode": name, "batch": batch, "devices": 1 if name in ("pinned", "device") else self.args.devices}
        used = time.perf_counter() - BEGAN
        if used + self.args.turns * self.args.seconds + WARM_SECONDS > self.args.limit:
            say(**facts, left_out=f"{used:.0f} s of {self.args.limit:g} s are over")
            return
        mode, rows = self.make_mode(name, batch)
        turns = measure(mode, rows, self.args)
        rate = statistics.median(turns)
        self.results[name, batch] = rate
        say(**facts, images_per_s=round(rate, 1), ms_per_call=round(rows / rate * 1e3, 3),
            turns=[round(turn, 1) for turn in turns])

    def check(self):
        """Says how far the scheme's logits are from those of the model in this process, for the same rows."""
        rows = random_batches(self.args.batch[0] * self.args.devices, self.args.size)[0]
        self.workers().send(rows)
        got = self.scheme.receive()[:self.args.batch[0]].astype(np.float64)
        want = self.here()(torch.from_numpy(rows[:self.args.batch[0]]).to(self.device)).cpu().numpy().astype(np.float64)
        say(event="same results", largest_difference_over_largest_logit=float(np.abs(got - want).max() / np.abs(want).max()))

    def table(self):
        print(f"{'images/s':10}" + "".join(f"{'batch ' + str(batch):>12}" for batch in self.args.batch))
        for name in self.args.modes:
            cells = [self.results.get((name, batch)) for batch in self.args.batch]
            print(f"{name:10}" + "".join(f"{cell:12.0f}" if cell else f"{'-':>12}" for cell in cells))

    def close(self):
        if self.scheme:
            self.scheme.close()


def listed(text, known=None):
    words = text.split(",")
    if known and not set(words) <= set(known):
        raise argparse.ArgumentTypeError(f"choose from {','.join(known)}")
    return words


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1, help="GPUs for the scheme")
    parser.add_argument("--batch", type=lambda text: [int(n) for n in listed(text)], help="rows per device; default 128,256")
    parser.add_argument("--modes", type=lambda text: listed(text, MODES), default=list(MODES))
    parser.add_argument("--seconds", type=float, help="of a turn, at least; default 3")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--limit", type=float, default=145, help="seconds for everything; default 145")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="ResNet-18 on 64 x 64, batches of 2 and 4, turns of 0.2 s")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    args.size = 64 if args.small else 224
    args.batch = args.batch or ([2, 4] if args.small else [128, 256])
    args.seconds = args.seconds or (0.2 if args.small else 3.0)
    args.compile = args.compile and not args.small
    if args.device == "cuda" and torch.cuda.device_count() < args.devices:
        parser.error(f"{args.devices} GPUs are wanted, {torch.cuda.device_count()} are here")
    if min([args.devices, args.turns, *args.batch]) < 1 or args.seconds <= 0:
        parser.error("counts must be 1 or more and --seconds above 0")
    return args


def main():
    args = parse()
    say(torch=torch.__version__, torchvision=torchvision.__version__, compiled=args.compile,
        device=torch.cuda.get_device_name(0) if args.device == "cuda" else "cpu", devices=args.devices)
    bench, failed = Bench(args), False
    try:
        with torch.no_grad():
            for name, batch in [(name, batch) for name in args.modes for batch in args.batch]:
                try:
                    bench.run(name, batch)
                except (RuntimeError, OSError) as error:  # of a worker, CUDA, the compiler: the other modes still count
                    failed = True
                    say(mode=name, batch=batch, error=str(error))
            if bench.scheme and bench.forward and not failed:
                bench.check()
    finally:
        bench.close()
    bench.table()
    say(seconds=round(time.perf_counter() - BEGAN, 1))
    return 1 if failed or not bench.results else 0


if __name__ == "__main__":
    sys.exit(main())
