"""A model opened on its devices, close to the C interface: batches of numpy arrays, memory that workers share."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import logging
import os
import threading
import time
import weakref
from typing import Any, Callable, Dict, Generator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from . import _c
from .arrays import DTYPES, Array, copy_of, is_torch, numpy_dtype, to_numpy
from .errors import BadRows, ClosedError, DataError, ForkedError, Timeout
from .events import Waiters
from .facts import Description, Stats, WorkerInfo, WorkerStats, from_struct
from .images import Preprocess
from .options import Options
from .tables import TableOfResults, table_of

STEP_MS = 100  # a wait comes back to Python this often, so that an interrupt is heard


class _Handle:
    """The C session and what keeps it: it is closed when nobody calls it and no array stands in its memory."""

    def __init__(self, pointer: Any, callbacks: List[Any]) -> None:
        self.pointer, self.callbacks = pointer, callbacks
        self.closing = self.gone = self.forked = False
        self.users = 0
        self.abandoned: List[Tuple[int, Any]] = []  # batches that nobody will ask for, and their memory
        self.condition = threading.Condition(threading.RLock())
        _handles.add(self)

    def enter(self) -> None:
        if self.forked:
            raise ForkedError(
                "this session was opened before fork(); open another one in this process, or start processes by "
                "multiprocessing.get_context('spawn')"
            )
        with self.condition:
            if self.closing:
                raise ClosedError("the session is closed; open another one")
            self.users += 1

    def leave(self) -> None:
        if self.forked:
            return
        with self.condition:
            self.users -= 1
            if self.closing and self.users == 0 and not self.gone:
                self.gone = True
                _c.library().dpi_close(self.pointer)

    def close(self) -> None:
        if self.forked or self.closing:
            return
        self.enter()
        self.closing = True
        self.leave()


    def reap(self) -> None:
        """Ends the tickets of batches that were dropped without having been waited for."""
        while self.abandoned:
            ticket, memory = self.abandoned.pop()
            if _c.library().dpi_wait(self.pointer, ticket, -1, None, 0, None) == _c.TIMEOUT:
                self.abandoned.append((ticket, memory))
                return


_handles: "weakref.WeakSet[_Handle]" = weakref.WeakSet()


def _after_fork() -> None:
    for handle in list(_handles):
        handle.forked = True
        handle.condition = threading.Condition(threading.RLock())


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _before_exit() -> None:
    """The library's threads must not call into an interpreter that is ending."""
    for handle in list(_handles):
        if handle.callbacks:
            handle.close()


class _Block:
    """Memory of a session behind a numpy array; given back when the last array of it goes."""

    def __init__(self, handle: _Handle, address: int, shape: Tuple[int, ...], dtype: Any) -> None:
        self.handle, self.address = handle, address
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (address, False)}

    def __del__(self) -> None:
        if not self.handle.forked:
            _c.library().dpi_free(self.handle.pointer, self.address, None)
        self.handle.leave()


class Pending:
    """A batch in flight. Give it up by :meth:`cancel`, end it by :meth:`result`, or ``await`` it.

    One that is dropped is cancelled.
    """

    def __init__(self, session: "Session", ticket: int, outputs: List[Optional[Array]], keep: Any) -> None:
        self._session, self._ticket, self._outputs, self._keep = session, ticket, outputs, keep
        self._lock = threading.Lock()
        self._error: Optional[BaseException] = None
        self._ended = False

    def _poll(self, timeout_ms: int) -> bool:
        """Waits so long at most (negative: looks only); True when the batch has ended."""
        with self._lock:
            if self._ended:
                return True
            error = _c.CError()
            handle, outputs = self._session._handle, self._outputs
            count = len(outputs) if any(y is None for y in outputs) else 0
            views = (_c.CTensor * count)() if count else None
            handle.enter()
            try:
                status = _c.library().dpi_wait(handle.pointer, self._ticket, timeout_ms, views, count, error)
                if status == _c.TIMEOUT:
                    return False
                if views and not status:
                    self._outputs = [copy_of(views[i]) if y is None else y for i, y in enumerate(outputs)]
                    _c.library().dpi_release(handle.pointer, self._ticket, None)
            finally:
                handle.leave()
            self._ended, self._keep = True, None
            self._error = _c.failure(status, error) if status else None
            return True

    def __del__(self) -> None:
        handle = self._session._handle
        if self._ended or handle.forked or handle.closing:
            return
        _c.library().dpi_cancel(handle.pointer, self._ticket, None)
        handle.abandoned.append((self._ticket, (self._outputs, self._keep)))

    def done(self) -> bool:
        """True when :meth:`result` would not wait."""
        return self._poll(-1)

    def cancel(self) -> None:
        """Drops what has not started; :meth:`result` then raises Cancelled, or gives what was done already."""
        handle = self._session._handle
        handle.enter()
        try:
            if not self._ended:
                _c.library().dpi_cancel(handle.pointer, self._ticket, None)
        finally:
            handle.leave()

    def result(self, timeout: Optional[float] = None) -> Tuple[Array, ...]:
        """The outputs in the session's order, each [rows, ...].

        Args:
            timeout: seconds to wait; None for ever. Timeout is raised and the batch goes on.

        Raises:
            Timeout: the time is over.
            Cancelled: by :meth:`cancel`.
            BadRows: done, but for rows that were left out (``on_bad_row="skip"``).
            EngineError, WorkerError, ClosedError: what went wrong, in the library's words.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        step = STEP_MS
        try:
            while not self._poll(step):
                if deadline is not None:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise Timeout(f"the batch was not done within {timeout} s; it goes on")
                    step = max(1, min(STEP_MS, int(left * 1000)))
        except KeyboardInterrupt:
            self.cancel()
            self._poll(10_000)
            raise
        if self._error is not None:
            raise self._error
        return tuple(self._outputs)

    def __await__(self) -> Generator[Any, None, Tuple[Array, ...]]:
        return self._result_in_loop().__await__()

    async def _result_in_loop(self) -> Tuple[Array, ...]:
        waiters = self._session._waiters()
        if waiters is not None:
            await waiters.wait(self)
        elif not self.done():  # no descriptor in thread isolation
            await asyncio.get_running_loop().run_in_executor(None, self._poll, 0)
        return self.result()


_Port = Tuple[bytes, int, Tuple[int, ...]]


def _ports(tensors: Any, count: int) -> List[_Port]:
    return [(t.name, t.dtype, tuple(t.shape[: t.rank])) for t in (tensors[i] for i in range(count))]


_Array = Tuple[Optional[bytes], Any, int]  # name, memory (None: the library makes it), dpi_dtype
_BATCH_SIZE = ctypes.sizeof(_c.CBatch)


def _plain(given: Any) -> Array:
    """The memory that an output was given as, to see whether what stands for it is still that."""
    if isinstance(given, np.ndarray):
        return given
    array, _ = to_numpy(given)
    if is_torch(given) and (not given.is_contiguous() or given.device.type != "cpu"):
        return np.empty(1)
    return array


def _tensors(arrays: Sequence[_Array]) -> Tuple[Any, int]:
    """The C structures of arrays with their names and dtypes; an array that is None is one for the library to make."""
    made = (_c.CTensor * len(arrays))()
    for t, (name, array, number) in zip(made, arrays):
        if array is not None:
            t.name, t.dtype, t.rank, t.data = name, number, array.ndim, array.ctypes.data
            t.shape[: array.ndim] = array.shape
    return made, len(arrays)


class Session:
    """A model on every device. Any thread may use it, several at once; a process that was forked later may not.

    Args:
        model: file of the model (.onnx, OpenVINO IR, .pt2, .sim, .engine).
        devices: "auto", or a list as the program takes it: "cpu:0-3,cpu:4-7", "cuda:0,cuda:1".
        backend: "openvino", "onnxruntime", "aoti", "tensorrt", "sim"; None: the first that opens the file.
        library: file of the backend's library; None: found.
        precision: "fp32", "tf32", "fp16", "bf16"; None: the model's own.
        batch: most rows of one slice per device; None: 64; "auto": measured.
        total_batch_size: fixed even shares of so many rows, the remainder spread.
        batch_size_list: fixed shares, one per device.
        output_names: the outputs wanted, in this order; None: all.
        broadcast: inputs that are the same for every row, by name: arrays or tensors, copied.
        trust_rows: do not refuse a model whose rows depend on each other.
        deterministic: refuse devices whose engines are not bit-identical.
        isolation: "process"; "thread" (a crash of the engine is the caller's); or "strict": a worker gone mad can spoil
            no rows but those of its own slices, for one copy more of each result.
        wait_mode: "block", "yield" or "spin"; None: spinning only where everybody has a core.
        queue_depth: batches in flight at most; None: 16.
        arena_max_bytes: of inputs, and of outputs; None: the machine's memory.
        provider, provider_options: ONNX Runtime's execution provider.
        backend_options: passed to the backend.
        worker_path: the worker program; None: found.
        cache_dir: folder of compiled engines; "" for none.
        cache_max_bytes: None: 10 GiB.
        compile_timeout, slice_timeout: seconds; None: 600, and the larger of 10 and 20 times the prediction.
        log: gets the library's lines, as far as it is enabled for their level; None: warnings to standard error.
        on_bad_row: "fail", or "skip": outputs of a row that cannot be computed, or of an image that cannot be had, are NaN
            or 0, and BadRows says so when all is done.
        max_bad_rows: more of them in a batch or run are a failure; None: 1,000.
        bad_row: called with the number of each row that was left out and the reason, in the thread that waits.
        max_deaths: of a device in a row, not explained by a bad row, until it is given up; None: 5.
        event: called with what happens to workers, {"event": "started", "worker": 1, ...}: docs/reliability.md has all.
        sandbox: workers give up what they do not need.
        core_dumps: workers may leave core files, which hold rows and weights.
        worker_memory_bytes: each worker's own memory; None: no limit.
        producers: loader processes may write rows into this session's inputs: see :class:`DistributedSampled`.
        data_folders: that workers may read besides the model's: where images and tars of :meth:`run` stand.
        trace_path: file that is a trace of all slices when the session is closed, for Perfetto or chrome://tracing.

    `log` and `event` are called by threads of the library, also while the session opens and closes. None of the functions
    may call the session; what they raise is printed and goes no further.

    Attributes:
        devices: names of the devices that it was opened on, such as "cpu:0".
        input_names, output_names: in the model's order.
        output_dtypes: of each output, by its number (``dpi_dtype``).

    Raises:
        ModelError, BackendError, DeviceError, ArgumentError: with the library's sentence.
    """

    def __init__(
        self,
        model: Union[str, "os.PathLike[str]"],
        *,
        devices: Optional[str] = None,
        backend: Optional[str] = None,
        library: Union[None, str, "os.PathLike[str]"] = None,
        precision: Optional[str] = None,
        batch: Union[None, int, str] = None,
        total_batch_size: Optional[int] = None,
        batch_size_list: Optional[Sequence[int]] = None,
        output_names: Optional[Sequence[str]] = None,
        broadcast: Optional[Mapping[str, Any]] = None,
        trust_rows: bool = False,
        deterministic: bool = False,
        isolation: str = "process",
        wait_mode: Optional[str] = None,
        queue_depth: Optional[int] = None,
        arena_max_bytes: Optional[int] = None,
        provider: Optional[str] = None,
        provider_options: Optional[Mapping[str, object]] = None,
        backend_options: Optional[Mapping[str, object]] = None,
        worker_path: Union[None, str, "os.PathLike[str]"] = None,
        cache_dir: Union[None, str, "os.PathLike[str]"] = None,
        cache_max_bytes: Optional[int] = None,
        compile_timeout: Optional[float] = None,
        slice_timeout: Optional[float] = None,
        log: Optional[logging.Logger] = None,
        on_bad_row: str = "fail",
        max_bad_rows: Optional[int] = None,
        bad_row: Optional[Callable[[int, str], None]] = None,
        max_deaths: Optional[int] = None,
        event: Optional[Callable[[Dict[str, Any]], None]] = None,
        sandbox: bool = True,
        core_dumps: bool = False,
        worker_memory_bytes: Optional[int] = None,
        producers: bool = False,
        data_folders: Sequence[Union[str, "os.PathLike[str]"]] = (),
        trace_path: Union[None, str, "os.PathLike[str]"] = None,
    ) -> None:
        options = Options(model, {name: value for name, value in locals().items() if name not in ("self", "model")})
        c = _c.library()
        pointer, error = ctypes.c_void_p(), _c.CError()
        status = c.dpi_open(options.struct, pointer, error)
        if status:
            raise _c.failure(status, error)
        self._handle = _Handle(pointer, options.callbacks)
        self._events: Optional[Waiters] = None
        self._submit = c.dpi_submit
        self._read_ports()

    def _ask(self, function: Any, struct: Any) -> Any:
        error = _c.CError()
        self._handle.enter()
        try:
            status = function(self._handle.pointer, struct, error)
        finally:
            self._handle.leave()
        if status:
            raise _c.failure(status, error)
        return struct

    def _described(self) -> Any:
        return self._ask(_c.library().dpi_describe, _c.CDescription(struct_size=ctypes.sizeof(_c.CDescription)))

    def describe(self) -> Description:
        """What the session is now: its workers, their engines, and how alike those are."""
        d = self._described()
        return from_struct(Description, d, workers=tuple(from_struct(WorkerInfo, d.workers[w]) for w in range(d.worker_count)))

    def stats(self) -> Stats:
        """What the session has done since it was opened; does not disturb what runs."""
        room = 256  # workers of a session at most
        workers = (_c.CWorkerStats * room)()
        s = _c.CStats(struct_size=ctypes.sizeof(_c.CStats), workers=workers, worker_count=room)
        self._ask(_c.library().dpi_stats, s)
        return from_struct(Stats, s, workers=tuple(from_struct(WorkerStats, workers[w]) for w in range(min(room, s.worker_count))))

    def _read_ports(self) -> None:
        d = self._described()
        self._inputs, self._outputs = _ports(d.inputs, d.input_count), _ports(d.outputs, d.output_count)
        self._makes = [
            (None if any(n < 0 for n in shape[1:]) else numpy_dtype(number), shape[1:]) for _, number, shape in self._outputs
        ]
        self.devices: Tuple[str, ...] = tuple(d.workers[w].device.decode() for w in range(d.worker_count))
        self.input_names = tuple(name.decode() for name, _, _ in self._inputs)
        self.output_dtypes: Tuple[int, ...] = tuple(number for _, number, _ in self._outputs)  # dpi_dtype
        self.output_names = tuple(name.decode() for name, _, _ in self._outputs)

    def empty(self, shape: Sequence[int], dtype: Any = "float32", direction: str = "input") -> Array:
        """An array in memory that every worker sees, not cleared: batches in it are not copied.

        Its memory goes back when the last array of it goes; a closed session's workers stay until then.

        Args:
            shape: of the array, rows first.
            dtype: of its elements, by numpy's name; bfloat16 is uint16 here.
            direction: "input" for rows that workers read, "output" for results.

        Raises:
            ResourceError: there is no more memory.
        """
        dtype = np.dtype(dtype)
        extent = tuple(int(n) for n in shape)
        if direction not in ("input", "output") or any(n < 0 for n in extent):
            raise ValueError("direction is 'input' or 'output', and no axis is negative")
        size, error = dtype.itemsize, _c.CError()
        for n in extent:
            size *= n
        self._handle.enter()  # left when the block goes
        where = _c.INPUT if direction == "input" else _c.OUTPUT
        address = _c.library().dpi_alloc(self._handle.pointer, max(size, 1), where, error)
        if not address:
            self._handle.leave()
            raise _c.failure(error.status, error)
        return np.asarray(_Block(self._handle, address, extent, dtype))

    def submit(self, *inputs: Any, outputs: Optional[Sequence[Any]] = None, **named: Any) -> Pending:
        """Puts a batch in flight: arrays by position or by name, equal in rows (axis 0).

        Memory of :meth:`empty` is read in place and must stay as it is until the batch has ended; other memory has
        been copied when this returns. ``outputs`` are C-ordered arrays for the results; None makes them.
        Waits while as many batches are in flight as the session may have.

        Raises:
            TypeError: an input is no array, tensor or buffer.
            DataError: a dtype or shape is not the model's.
        """
        given: List[_Array] = [(None, *to_numpy(a)) for a in inputs]
        given += [(name.encode(), *to_numpy(a)) for name, a in named.items()]
        if not given or not all(array.ndim for _, array, _ in given):
            raise DataError("a batch has one array of rows for each input")
        results = self._given_outputs(outputs) if outputs is not None else self._new_outputs(given[0][1].shape[0])
        batch, ticket, error = _c.CBatch(struct_size=_BATCH_SIZE), ctypes.c_uint64(), _c.CError()
        batch.inputs, batch.input_count = _tensors(given)
        batch.outputs, batch.output_count = _tensors([(None, y, port[1]) for y, port in zip(results, self._outputs)])
        batch.queue_timeout_ms = STEP_MS
        handle, status = self._handle, _c.BUSY
        while status == _c.BUSY:
            handle.enter()
            try:
                if handle.abandoned:
                    handle.reap()
                status = self._submit(handle.pointer, batch, ticket, error)
            finally:
                handle.leave()
        if status:
            raise _c.failure(status, error)
        return Pending(self, ticket.value, results, given)

    def _given_outputs(self, outputs: Sequence[Any]) -> List[Optional[Array]]:
        if len(outputs) != len(self._outputs):
            raise DataError(f"the session has {len(self._outputs)} outputs and {len(outputs)} were given")
        arrays: List[Optional[Array]] = []
        for given, (name, number, _) in zip(outputs, self._outputs):
            array, kind = to_numpy(given)
            if not np.shares_memory(array, _plain(given)) and array.size or not array.flags.writeable:
                raise ValueError(f"the output {name.decode()}: give C-ordered memory of the host that may be written")
            if array.dtype != numpy_dtype(number):
                raise DataError(f"the output {name.decode()} is {DTYPES[number]}, and {DTYPES[kind]} was given")
            arrays.append(array)
        return arrays

    def _new_outputs(self, rows: int) -> List[Optional[Array]]:
        """Memory for each output; None where its shape follows the inputs: a view of the session's, copied later."""
        return [np.empty((rows, *tail), dtype) if dtype is not None else None for dtype, tail in self._makes]

    def _waiters(self) -> Optional[Waiters]:
        if self._events is None:
            descriptor = _c.library().dpi_event_fd(self._handle.pointer, None)
            if descriptor < 0:
                return None
            self._events = Waiters(descriptor)
        return self._events

    def forward(self, *inputs: Array, outputs: Optional[Sequence[Array]] = None, **named: Array) -> Tuple[Array, ...]:
        """:meth:`submit` and :meth:`Pending.result` in one: arrays [rows, ...] in, a tuple of arrays [rows, ...] out."""
        return self.submit(*inputs, outputs=outputs, **named).result()

    def add_device(self, devices: str, timeout: Optional[float] = None) -> None:
        """Adds devices while batches go on, or brings back those that were given up or removed.

        Args:
            devices: a list as at the opening, without "auto". All of them are added or none.
            timeout: seconds until Timeout is raised and none is added; None: as long as compiling may take.
        """
        self._change(_c.library().dpi_device_add, devices, timeout)

    def remove_device(self, devices: str, timeout: Optional[float] = None) -> None:
        """Removes devices while batches go on: they finish what they have begun, the others have the rest.

        Args:
            devices: a list as at the opening. One device has to stay.
            timeout: seconds until Timeout is raised, and the removal goes on; None: for ever.
        """
        self._change(_c.library().dpi_device_remove, devices, timeout)

    def _change(self, function: Any, devices: str, timeout: Optional[float]) -> None:
        error = _c.CError()
        self._handle.enter()
        try:
            milliseconds = 0 if timeout is None else max(1, int(timeout * 1000))
            status = function(self._handle.pointer, devices.encode(), milliseconds, error)
        finally:
            self._handle.leave()
        if status:
            raise _c.failure(status, error)

    @property
    def inputs(self) -> Tuple[_Port, ...]:
        """Name, dpi_dtype and shape (-1: free) of each input of a batch."""
        return tuple(self._inputs)

    def run(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        progress: Optional[Callable[[int, int], None]] = None,
        *,
        preprocess: Union[None, str, Preprocess] = None,
        loader_threads: int = 0,
        spool_max_bytes: int = 0,
        top: Optional[int] = None,
        labels: Union[None, str, "os.PathLike[str]"] = None,
    ) -> int:
        """A data set in files, through all devices: workers read and write it themselves. Returns the number of rows.

        Args:
            inputs: "[NAME=]FILE.npy", "[NAME=]FILE.npz[:MEMBER]", "[NAME=]raw:SHAPE:DTYPE:FILE",
                "[NAME=]random:SHAPE:DTYPE:N" or images for each input: a folder, ``photos/*.jpg``, "list.txt", "shards-{000..009}.tar" or ".tar.gz"; their folders must be among the session's ``data_folders``.
            outputs: "[NAME=]FILE.npy", "[NAME=]FILE.npz", "[NAME=]FILE.csv", "[NAME=]FILE.jsonl" or "none" for each output;
                they appear when whole. A run that was stopped goes on where it ended when it is called again. Or one table
                of all outputs (with NAME, of that one), "FILE.parquet" or "FILE.arrow", written by pyarrow: such a run
                begins anew.
            progress: called with rows done and rows in all, about ten times a second.
            preprocess: how images become rows: a recipe's name ("imagenet", "clip", "none") or :class:`Preprocess`.
            loader_threads: of each worker, that decode images; 0: as many as it has processors.
            spool_max_bytes: of what is kept in TMPDIR meanwhile: a pipe on standard input, what compressed tars hold; 0:
                64 GiB.
            top: how many classes of a row, best first; for .csv and .jsonl (1 without it) and for tables, which then have
                them instead of the outputs.
            labels: file with the classes' names, one a line.

        Raises:
            BadRows: done, but for rows that could not be had or computed (``on_bad_row="skip"``).
            DataError: a source or sink does not fit. Cancelled, KeyboardInterrupt: interrupted.
        """
        interrupt: List[BaseException] = []

        def tell(_: Any, p: Any) -> int:
            try:
                if progress is not None:
                    progress(p.contents.rows_done, p.contents.rows_total)
                return 0
            except BaseException as raised:  # also an interrupt that was heard here
                interrupt.append(raised)
                return 1

        table: Optional[TableOfResults] = None

        def take(_: Any, p: Any) -> int:
            assert table is not None
            try:
                table.take(p.contents)
                return 0
            except BaseException as raised:
                interrupt.append(raised)
                return 1

        o, result, error = _c.CRunOptions(struct_size=ctypes.sizeof(_c.CRunOptions)), _c.CRunResult(), _c.CError()
        o.inputs, o.input_count = (ctypes.c_char_p * len(inputs))(*map(os.fsencode, inputs)), len(inputs)
        if preprocess is not None:
            how = Preprocess(preprocess) if isinstance(preprocess, str) else preprocess
            o.preprocess = ctypes.pointer(how._as_struct())
        o.loader_threads, o.spool_max_bytes = loader_threads, spool_max_bytes
        o.progress, result.struct_size = _c.PROGRESS_FN(tell), ctypes.sizeof(_c.CRunResult)
        try:
            table, outputs = table_of(self, outputs, top, labels)
            o.outputs, o.output_count = (ctypes.c_char_p * len(outputs))(*map(os.fsencode, outputs)), len(outputs)
            if table is not None:
                o.take_rows = _c.ROWS_FN(take)
            else:
                o.top, o.labels_path = top or 0, None if labels is None else os.fsencode(labels)
            self._handle.enter()
            try:
                status = _c.library().dpi_run(self._handle.pointer, o, result, error)
            finally:
                self._handle.leave()
            if interrupt:
                raise interrupt[0]
            if table is not None and status in (0, BadRows.status):
                table.end()
        finally:
            if table is not None:
                table.drop()
        if status:
            raise _c.failure(status, error)
        return int(result.rows)

    def close(self) -> None:
        """Ends the session; calls raise ClosedError from now on. Workers end when no array of it is left."""
        self._handle.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            handle.close()

    def __reduce__(self) -> Any:
        raise TypeError("a session belongs to one process; open one in the process that uses it")
