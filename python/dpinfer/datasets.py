"""Data sets of Python through all devices: loader processes write samples where workers read them, results come in order."""

from __future__ import annotations

import collections
import ctypes
import multiprocessing
import os
import pathlib
import socket
import sys
from typing import Any, Deque, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from . import _c, _loader
from .arrays import is_torch, numpy_dtype, to_numpy, torch_module
from .parallel import DataParallel
from .session import STEP_MS, Pending, Session
from .tables import TableOfResults, is_table, pyarrow_for

LOOK_MS = 5  # for new rows, while a batch is in flight
JOIN_SECONDS = 10.0


class _Feed:
    """The C feed of a session, and its loader processes."""

    def __init__(self, session: Session, inputs: Any, rows: int, batch_size: int, slots: int, loaders: int) -> None:
        self._session, self._library = session, _c.library()
        self._pointer: Optional[ctypes.c_void_p] = ctypes.c_void_p()
        self._error, self._memory = _c.CError(), _loader.Memory()
        self._count, self._processes = len(inputs), []  # type: int, List[Any]
        options = _c.CFeedOptions(ctypes.sizeof(_c.CFeedOptions), inputs, len(inputs), rows, batch_size, slots, loaders)
        session._handle.enter()
        try:
            self._check(self._library.dpi_feed_open(session._handle.pointer, options, self._pointer, self._error))
        except BaseException:
            session._handle.leave()
            raise

    def _check(self, status: int) -> None:
        if status:
            raise _c.failure(status, self._error)

    def start(self, context: Any, arguments: Tuple[Any, ...], number: int, count: int, whole: bool) -> None:
        """Starts one loader; its socket goes to it alone."""
        descriptor = ctypes.c_int()
        self._check(self._library.dpi_feed_connect(self._pointer, descriptor, self._error))
        with socket.socket(fileno=descriptor.value) as connection:
            process = context.Process(
                target=_loader.main, args=(connection, *arguments, number, count, whole), daemon=True, name=f"dpinfer-loader-{number}"
            )  # fmt: skip
            process.start()
            self._processes.append(process)

    def next(self, timeout_ms: int) -> Optional[Tuple[int, int, List[Any]]]:
        """Index, rows and arrays of the next range; index -1 at the end; None: not yet."""
        taken, tensors = _c.CRange(), (_c.CTensor * self._count)()
        status = self._library.dpi_feed_next(self._pointer, timeout_ms, taken, tensors, self._error)
        if status == _c.TIMEOUT:
            return None
        self._check(status)
        if taken.index == _c.ENDLESS:
            return -1, 0, []
        return taken.index, taken.rows, [self._memory.of(t) for t in tensors] if taken.rows else []

    def release(self, index: int) -> None:
        self._check(self._library.dpi_feed_release(self._pointer, index, self._error))

    def close(self) -> None:
        """Nothing is left running afterwards."""
        if self._pointer is None:
            return
        for process in self._processes:
            if process.is_alive():
                process.terminate()
        for process in self._processes:
            process.join(JOIN_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        self._library.dpi_feed_close(self._pointer)
        self._pointer = None
        self._session._handle.leave()


def _context(start_method: Optional[str]) -> Any:
    method = start_method or ("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    if method not in ("spawn", "forkserver"):
        raise ValueError(
            f"start_method is {method!r}; loaders start by 'spawn' or 'forkserver', for a fork would copy this process's "
            f"threads' locks and its sockets"
        )
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        _preload()
    return context


def _preload() -> None:
    """The server that loaders are forked from imports once what each of them needs, where nobody else has chosen it."""
    from multiprocessing import forkserver

    server = forkserver._forkserver
    if getattr(server, "_preload_modules", None) == ["__main__"]:
        torch = ["torch"] if "torch" in sys.modules else []
        forkserver.set_forkserver_preload(["__main__", "dpinfer._loader", *torch])


class DistributedSampled:
    """A data set through all devices; iterating gives the results batch by batch, in order, without padding.

    Args:
        model: as of :class:`DataParallel`: a module, a callable that makes one, or a file. Or an opened one, or a
            :class:`Session`, that was opened with ``producers=True``.
        dataset: a ``torch.utils.data.Dataset``, or anything with ``len()`` and ``[i]``: results come in its order. Or an
            iterable without ``len()`` such as an ``IterableDataset``: each loader iterates its own part
            (``get_worker_info()`` tells which), and results come in turns: `batch_size` rows of loader 0, of loader 1, ...
            It is pickled once for each loader; samples are not. A sample is the model's input ([...], without rows, of its
            dtype), a tuple that begins with the inputs (what follows, such as a label, stays behind), or a dict by name.
            One with ``load_into(i, *rows)`` beside ``[i]`` writes sample i itself, all of it: `rows` are writable arrays,
            one per input in the model's order ([...], without rows; bfloat16 as uint16), not to be kept.
        num_workers: loader processes, 1 or more.
        batch_size: rows that one loader fills at once, and of one result; the last may have fewer.
        start_method: of the loaders: "forkserver" (the default) or "spawn".
        options: as of :class:`DataParallel`.

    Results are numpy arrays, or torch tensors where samples are.

    Raises:
        DataError: a sample raised, or has the wrong shape or dtype: with its row and its own words.
        WorkerError: every loader died.
    """

    def __init__(
        self, model: Any, dataset: Any, num_workers: int = 2, *, batch_size: int = 64,
        start_method: Optional[str] = None, **options: Any,
    ) -> None:  # fmt: skip
        if num_workers < 1 or batch_size < 1:
            raise ValueError("num_workers and batch_size are 1 or more")
        self._whole = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if not self._whole and not hasattr(dataset, "__iter__"):
            raise TypeError(f"a data set has len() and [i], or can be iterated; a {type(dataset).__name__} was given")
        self._context = _context(start_method)
        self._dataset, self._loaders, self._batch = dataset, num_workers, batch_size
        self._owned = not isinstance(model, (DataParallel, Session))
        opened = DataParallel(model, producers=True, **options) if self._owned else model
        if not self._owned and options:
            raise ValueError(f"the model is open already; {', '.join(options)} cannot be given")
        self._model = opened
        self._session: Session = opened if isinstance(opened, Session) else opened.session
        self._torch = False

    def __len__(self) -> int:
        """Number of results. TypeError for data sets that do not know their length."""
        return -(-len(self._dataset) // self._batch)

    def _input_tensors(self) -> Any:
        """The model's inputs; axes that it leaves free are those of the first sample."""
        names = self._session.input_names
        first: Optional[List[Any]] = None
        if self._whole and len(self._dataset):
            parts = _loader.parts_of(self._dataset[0], names)
            self._torch = any(is_torch(p) for p in parts)
            first = [np.asarray(p) if np.isscalar(p) else to_numpy(p)[0] for p in parts]
        made = (_c.CTensor * len(names))()
        for i, (name, number, shape) in enumerate(self._session.inputs):
            rank, axes = len(shape), list(shape)
            if first is not None and first[i].ndim + 1 == rank:
                axes[1:] = [given if n < 0 else n for n, given in zip(shape[1:], first[i].shape)]
            if any(n < 0 for n in axes[1:]):
                raise ValueError(f"the input {name.decode()} has free axes; give a data set with len(), or fix them in the model")
            made[i].dtype, made[i].rank = number, rank
            made[i].shape[:rank] = axes
        return made

    def __iter__(self) -> Iterator[Any]:
        """Starts the loaders and gives their results, [rows, ...] each; leaving the loop early ends the loaders."""
        if self._whole and len(self._dataset) == 0:
            return
        inputs = self._input_tensors()
        in_flight = 2 * len(self._session.devices)
        slots = min(256, in_flight + 2 * self._loaders + 1)
        rows = len(self._dataset) if self._whole else _c.ENDLESS
        feed = _Feed(self._session, inputs, rows, self._batch, slots, self._loaders)
        try:
            arguments = (self._dataset, self._session.input_names)
            for number in range(self._loaders):
                feed.start(self._context, arguments, number, self._loaders, self._whole)
            yield from self._results(feed, in_flight)
        finally:
            feed.close()

    def _results(self, feed: _Feed, in_flight: int) -> Iterator[Any]:
        flying: Deque[Tuple[int, Pending]] = collections.deque()
        at_end = False
        try:
            while flying or not at_end:
                if flying and flying[0][1].done():
                    index, pending = flying.popleft()
                    outputs = pending.result()
                    feed.release(index)
                    yield self._shaped(outputs)
                    continue
                if at_end or len(flying) == in_flight:
                    flying[0][1]._poll(STEP_MS)
                    continue
                got = feed.next(LOOK_MS if flying else STEP_MS)
                if got is None:
                    continue
                index, rows, arrays = got
                at_end = index < 0
                if rows:
                    flying.append((index, self._session.submit(*arrays)))
                elif not at_end:
                    feed.release(index)
        finally:
            for _, pending in flying:  # nothing reads the feed's memory once it is closed
                pending.cancel()
                while not pending._poll(STEP_MS):
                    pass

    def _shaped(self, outputs: Tuple[Any, ...]) -> Any:
        if isinstance(self._model, DataParallel):
            torch = torch_module() if self._torch else None
            return self._model._shaping(torch.empty(0) if torch is not None else None)(outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def close(self) -> None:
        """Ends the session, unless it was given."""
        if self._owned:
            self._model.close()

    def __enter__(self) -> "DistributedSampled":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Progress:
    """tqdm's bar, in terminals and notebooks, where it is installed; nothing elsewhere."""

    def __init__(self, total: Optional[int], shown: Optional[bool]) -> None:
        self._bar: Any = None
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return
        self._bar = tqdm(total=total, unit="row", disable=None if shown is None else not shown)

    def set(self, done: int, total: Optional[int] = None) -> None:
        if self._bar is None:
            return
        if total is not None:
            self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def run(
    model: Any,
    dataset: Any,
    output: Union[None, str, "os.PathLike[str]", Sequence[str]] = None,
    *,
    num_workers: int = 2,
    batch_size: int = 64,
    progress: Optional[bool] = None,
    start_method: Optional[str] = None,
    top: Optional[int] = None,
    labels: Union[None, str, "os.PathLike[str]"] = None,
    **options: Any,
) -> Any:
    """A whole data set through all devices. Raises what :class:`DistributedSampled` raises, for a path :meth:`Session.run`.

    Args:
        model, num_workers, batch_size, start_method, options: as of :class:`DistributedSampled`.
        dataset: as of :class:`DistributedSampled`, or a path (or "random:SHAPE:DTYPE:N"): that is read by the workers
            themselves, memory-mapped, and a run that was stopped goes on.
        output: file of the results, .npy (for a path also .npz, .csv and .jsonl), or one per output; it appears when whole.
            Or one table of all outputs, .parquet or .arrow, for any data set. None: results are returned.
        top, labels: the best classes of each row, as of :meth:`Session.run`; for a data set of Python only in a table.
        progress: a bar by tqdm; None: in terminals and notebooks where tqdm is installed.

    Returns:
        With `output`, the number of rows; without, what the model gives for all rows at once.
    """
    if isinstance(dataset, (str, os.PathLike)):
        return _run_file(model, os.fspath(dataset), output, progress, options, top, labels)
    files = None if output is None else [output] if isinstance(output, (str, os.PathLike)) else list(output)
    tables = [os.fspath(f) for f in files or [] if is_table(f)]
    if tables and len(files or []) != 1:
        raise ValueError("a table has all outputs: name it alone")
    if tables:
        pyarrow_for(tables[0])  # before the model is opened
    elif top is not None or labels is not None:
        raise ValueError("top and labels of a data set of Python are for tables: .parquet or .arrow")
    with DistributedSampled(
        model, dataset, num_workers, batch_size=batch_size, start_method=start_method, **options
    ) as results:  # fmt: skip
        kept: Union[_Files, _Kept, TableOfResults]
        if tables:
            kept = TableOfResults(tables[0], results._session, top, labels)
        else:
            kept = _Files(files, results, len(dataset) if results._whole else None) if files else _Kept(results)
        bar = _Progress(len(dataset) if results._whole else None, progress)
        try:
            for result in results:
                flat = tuple(result.values()) if isinstance(result, dict) else result if isinstance(result, tuple) else (result,)
                kept.add(flat)
                bar.set(kept.rows)
            return kept.end()
        except BaseException:
            kept.drop()
            raise
        finally:
            bar.close()


class _Kept:
    """Results in memory, until they are joined."""

    def __init__(self, results: DistributedSampled) -> None:
        self._results, self._parts, self.rows = results, [], 0  # type: DistributedSampled, List[Tuple[Any, ...]], int

    def add(self, arrays: Tuple[Any, ...]) -> None:
        self._parts.append(arrays)
        self.rows += len(arrays[0])

    def drop(self) -> None:
        self._parts.clear()

    def end(self) -> Any:
        joined = _join(self._parts, self._results)
        model = self._results._model
        if isinstance(model, DataParallel) and model._return_dict:
            return dict(zip(model._names, joined))
        return joined[0] if len(joined) == 1 else joined


class _Files:
    """Results in .npy files that appear under their names when whole; in memory only where the number of rows is not known."""

    def __init__(self, files: List[Any], results: DistributedSampled, rows: Optional[int]) -> None:
        self._files, self._results, self._total = [pathlib.Path(f) for f in files], results, rows
        self._parts: List[Tuple[Any, ...]] = []
        self._maps: List[Any] = []
        self.rows = 0
        outputs = len(results._session.output_names)
        if len(files) != outputs:
            raise ValueError(f"the model has {outputs} outputs, and {len(files)} files were given")
        if any(f.suffix != ".npy" for f in self._files):
            raise ValueError("results of a data set of Python are written as .npy")

    def _part(self, file: pathlib.Path) -> pathlib.Path:
        return file.with_name(file.name + ".part")

    def _open(self, arrays: Sequence[Any], rows: int) -> None:
        for array, file in zip(arrays, self._files):
            self._maps.append(
                np.lib.format.open_memmap(self._part(file), "w+", array.dtype, (rows, *array.shape[1:]))
            )

    def add(self, arrays: Tuple[Any, ...]) -> None:
        plain = tuple(to_numpy(a)[0] for a in arrays)
        if self._total is None:
            self._parts.append(plain)
        else:
            if not self._maps:
                self._open(plain, self._total)
            for array, to in zip(plain, self._maps):
                to[self.rows : self.rows + len(array)] = array
        self.rows += len(plain[0])

    def drop(self) -> None:
        self._maps.clear()
        for file in self._files:
            self._part(file).unlink(missing_ok=True)

    def end(self) -> int:
        if not self._maps:
            joined = _join(self._parts, self._results)
            self._open(joined, self.rows)
            for array, to in zip(joined, self._maps):
                to[:] = array
        for to in self._maps:
            to.flush()
        self._maps.clear()
        for file in self._files:
            with open(self._part(file), "rb") as written:
                os.fsync(written.fileno())
            os.replace(self._part(file), file)
        return self.rows


def _join(parts: List[Tuple[Any, ...]], results: DistributedSampled) -> Tuple[Any, ...]:
    if not parts:
        ports = results._session._outputs
        return tuple(np.empty((0, *(max(n, 0) for n in shape[1:])), numpy_dtype(number)) for _, number, shape in ports)
    columns = list(zip(*parts))
    if is_torch(columns[0][0]):
        torch = torch_module()
        return tuple(torch.cat(column) for column in columns)
    return tuple(np.concatenate(column) for column in columns)


def _run_file(model: Any, source: str, output: Any, progress: Optional[bool], options: Any, top: Any, labels: Any) -> int:
    if output is None:
        raise ValueError("the results of a file go to a file: give output")
    outputs = [os.fspath(output)] if isinstance(output, (str, os.PathLike)) else [os.fspath(o) for o in output]
    for file in filter(is_table, outputs):
        pyarrow_for(file)  # before the model is opened
    owned = not isinstance(model, (DataParallel, Session))
    opened = DataParallel(model, **options) if owned else model
    session: Session = opened if isinstance(opened, Session) else opened.session
    bar = _Progress(None, progress)
    try:
        return session.run([source], outputs, bar.set, top=top, labels=labels)
    finally:
        bar.close()
        if owned:
            opened.close()
