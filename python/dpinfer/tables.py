"""Results as Arrow and Parquet tables, written by pyarrow as the rows come."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import sys
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np

from .arrays import BFLOAT16, copy_of, numpy_dtype, to_numpy
from .errors import DataError, FileError

SUFFIXES = (".parquet", ".arrow")
GROUP_ROWS, GROUP_BYTES = 65536, 16 << 20  # of a row group or record batch, whichever comes first


def is_table(file: Union[str, "os.PathLike[str]"]) -> bool:
    return os.fspath(file).endswith(SUFFIXES)


def pyarrow_for(file: Union[str, "os.PathLike[str]"]) -> Any:
    """The module; ImportError with one sentence where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ImportError(
            f"{os.fspath(file)} is written by pyarrow, which {sys.executable} lacks: pip install pyarrow"
        ) from None
    return pyarrow


# ---- columns -------------------------------------------------------------------------------------------------------


class _Tensor:
    """An output as one column: single values, or lists of fixed size, or tensors of fixed shape."""

    def __init__(self, arrow: Any, name: str, number: int, axes: Tuple[int, ...], whole_nulls: bool) -> None:
        self._arrow, self._bf16, self._axes = arrow, number == BFLOAT16, axes
        self._elements = int(np.prod(axes, dtype=np.int64))
        if axes and not self._elements:
            raise DataError(f"the output {name} has rows without elements, which no column holds")
        value = arrow.from_numpy_dtype(np.float32 if self._bf16 else numpy_dtype(number))
        kind = value if not axes else arrow.list_(value, self._elements)
        self._whole_nulls = whole_nulls
        self._kind = arrow.fixed_shape_tensor(value, list(axes)) if len(axes) > 1 else kind
        self.fields = [arrow.field(name, self._kind)]

    def arrays(self, values: Any, bad: Any) -> List[Any]:
        if values.shape[1:] != self._axes:
            raise DataError(f"rows of shape {values.shape[1:]} came behind rows of shape {self._axes}; a column has one shape")
        if self._bf16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        if not self._axes:
            return [self._arrow.array(values, mask=bad)]
        whole = None if bad is None or not self._whole_nulls else self._arrow.array(bad)
        parts = None if bad is None or self._whole_nulls else np.repeat(bad, self._elements)
        flat = self._arrow.array(np.ascontiguousarray(values).reshape(-1), mask=parts)
        lists = self._arrow.FixedSizeListArray.from_arrays(flat, self._elements, mask=whole)
        return [self._arrow.ExtensionArray.from_storage(self._kind, lists) if len(self._axes) > 1 else lists]


def best_classes(scores: Any, top: int) -> Any:
    """The `top` best classes of each row [N, C], best first; equal ones by number, NaN last. int64 [N, top]."""
    keys = scores.astype(np.float64)
    keys = np.where(np.isnan(keys), -np.inf, keys)
    classes = keys.shape[1]
    if top < classes:
        worst = np.partition(keys, classes - top, axis=1)[:, classes - top, None]
        mine = keys >= worst  # as many as wanted, or more where the last ones are equal
        if (mine.sum(axis=1) == top).all():
            found = np.nonzero(mine)[1].reshape(-1, top)  # by number
            order = np.argsort(-np.take_along_axis(keys, found, axis=1), axis=1, kind="stable")
            return np.take_along_axis(found, order, axis=1)
    return np.argsort(-keys, axis=1, kind="stable")[:, :top]


class _Classes:
    """The best classes of each row as columns: class, label, score."""

    def __init__(self, arrow: Any, name: str, number: int, axes: Tuple[int, ...], top: int, labels: Any) -> None:
        self._arrow, self._top, self._bf16 = arrow, top, number == BFLOAT16
        classes = int(np.prod(axes, dtype=np.int64))
        if number == 1 or top > classes:
            raise DataError(f"the best {top} classes of the output {name} were asked for, and it has {classes} scores in a row")
        if labels is not None and len(labels) != classes:
            raise DataError(f"there are {len(labels)} labels, and the output {name} has {classes} classes; give one line to each")
        self._labels = None if labels is None else arrow.array(labels, arrow.string())
        self.fields = []
        for i in range(1, top + 1):
            n = str(i) if top > 1 else ""
            self.fields.append(arrow.field(f"class{n}", arrow.int32()))
            if labels is not None:
                self.fields.append(arrow.field(f"label{n}", arrow.string()))
            self.fields.append(arrow.field(f"score{n}", arrow.float32()))

    def arrays(self, values: Any, bad: Any) -> List[Any]:
        if self._bf16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.reshape(len(values), -1)
        best = best_classes(values, self._top)
        out = []
        for i in range(self._top):
            of = self._arrow.array(best[:, i].astype(np.int32), mask=bad)
            out.append(of)
            if self._labels is not None:
                out.append(self._labels.take(of))
            score = np.take_along_axis(values, best[:, i, None], axis=1)[:, 0].astype(np.float32)
            out.append(self._arrow.array(score, mask=bad))
        return out


def read_labels(file: Union[str, "os.PathLike[str]"]) -> List[str]:
    """One label a line, as for .csv."""
    try:
        text = pathlib.Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {os.fspath(file)}: {error.strerror}") from error
    lines = text.decode("utf-8", "replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line[:-1] if line.endswith("\r") else line for line in lines]


# ---- the file ------------------------------------------------------------------------------------------------------


def _lock(descriptor: int) -> None:
    """BlockingIOError: somebody else has it. A file system without locks has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass


def _claim(part: pathlib.Path) -> int:
    """A descriptor of the file, empty and locked: nobody else's while it is open."""
    while True:
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise DataError(f"cannot create {part}: {error.strerror}") from error
        try:
            _lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), os.lstat(part)):  # else another run has just ended
                os.truncate(descriptor, 0)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise DataError(f"{part} is being written by another run") from None
        except FileNotFoundError:
            pass
        os.close(descriptor)


class Table:
    """A table that appears under its name when it is whole; until then it is FILE.part, and what is there is of no use.

    Columns: ``row``; ``name`` where rows have names; then each output, or with `top` its best classes. Rows that could not
    be computed have nulls. In memory is one row group.
    """

    def __init__(self, file: str, outputs: Sequence[Tuple[str, int]], top: Optional[int], labels: Any) -> None:
        self._arrow = pyarrow_for(file)
        if top is not None and (top < 1 or len(outputs) != 1):
            raise ValueError("top is 1 or more, and for a model with one output (output_names chooses one)")
        if labels is not None and top is None:
            raise ValueError("labels are for the best classes: give top")
        self._outputs, self._top = outputs, top
        columns = ["row", "name", *(name for name, _ in outputs)]
        if top is None and len(set(columns)) < len(columns):
            raise DataError(f"a table has the columns row and name, and the outputs are {columns[2:]}: give top, or choose others")
        self._labels = None if labels is None else read_labels(labels)
        self._file, self._part = pathlib.Path(file), pathlib.Path(file + ".part")
        self._columns: List[Union[_Tensor, _Classes]] = []
        self._sink: Any = None
        self._writer: Any = None
        self._waiting: List[Tuple[Any, Any, Any, Tuple[Any, ...]]] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._descriptor: Optional[int] = _claim(self._part)
        self.rows = 0

    def _open(self, named: bool, shapes: Sequence[Tuple[int, ...]]) -> None:
        arrow = self._arrow
        parquet = self._file.suffix == ".parquet"
        whole_nulls = not parquet or int(arrow.__version__.split(".")[0]) >= 26  # older ones cannot write such lists
        for (name, number), axes in zip(self._outputs, shapes):
            self._columns.append(
                _Tensor(arrow, name, number, axes, whole_nulls) if self._top is None else _Classes(arrow, name, number, axes, self._top, self._labels)
            )
        fields = [arrow.field("row", arrow.int64()), *([arrow.field("name", arrow.string())] if named else [])]
        schema = arrow.schema(fields + [f for c in self._columns for f in c.fields])
        self._sink = arrow.PythonFile(os.fdopen(os.dup(self._descriptor or 0), "wb"), "w")
        words = [f.name for f in schema if f.type in (arrow.string(), arrow.int32())] or False  # numbers rarely come again
        self._writer = (
            arrow.parquet.ParquetWriter(self._sink, schema, use_dictionary=words) if parquet else arrow.ipc.new_file(self._sink, schema)
        )
        self._schema = schema

    def add(self, first: int, arrays: Tuple[Any, ...], names: Optional[Sequence[bytes]] = None, bad: Any = None) -> None:
        """Rows that follow; `first` is the number of the first one. The arrays are the table's from now on."""
        count = len(arrays[0])
        if self._writer is None:
            self._guarded(lambda: self._open(names is not None, [a.shape[1:] for a in arrays]))
        self._waiting.append((np.arange(first, first + count), names, bad, arrays))
        self._waiting_rows += count
        self._waiting_bytes += sum(a.nbytes for a in arrays)
        self.rows += count
        if self._waiting_rows >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
            self._guarded(self._write)

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            raise FileError(f"cannot write {self._part}: {error.strerror or error}") from error

    def _write(self) -> None:
        if not self._waiting:
            return
        rows, names, bads, outputs = zip(*self._waiting)
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
        bad = None
        if any(b is not None for b in bads):
            bad = np.concatenate([np.zeros(len(r), bool) if b is None else b for r, b in zip(rows, bads)])
        columns = [self._arrow.array(np.concatenate(rows))]
        if names[0] is not None:
            columns.append(self._arrow.array([n.decode("utf-8", "replace") for part in names for n in part], self._arrow.string()))
        for column, parts in zip(self._columns, zip(*outputs)):
            columns += column.arrays(parts[0] if len(parts) == 1 else np.concatenate(parts), bad)
        self._writer.write_batch(self._arrow.record_batch(columns, schema=self._schema))

    def end(self, shapes: Sequence[Tuple[int, ...]] = ()) -> None:
        """Gives the file its name. `shapes` of the outputs' rows, for a table without any."""
        if self._writer is None:
            self._guarded(lambda: self._open(False, [tuple(max(n, 1) for n in axes) for axes in shapes]))
        self._guarded(self._finish)

    def _finish(self) -> None:
        self._write()
        self._writer.close()
        self._sink.close()
        os.fsync(self._descriptor or 0)
        os.replace(self._part, self._file)
        self._close()
        folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def drop(self) -> None:
        """Removes what is unfinished; nothing where it has its name."""
        if self._descriptor is None:
            return
        if self._writer is not None:
            with contextlib.suppress(Exception):  # it would try again when it is collected
                self._writer.close()
        self._part.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        self._waiting, self._writer, self._sink = [], None, None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class TableOfResults:
    """The table of a session's outputs (`chosen`: of these), as a run or a data set of Python brings them."""

    def __init__(self, file: str, session: Any, top: Optional[int], labels: Any, chosen: Optional[str] = None) -> None:
        self._ports = [p for p in session._outputs if chosen is None or p[0].decode() == chosen]
        self._table = Table(file, [(name.decode(), number) for name, number, _ in self._ports], top, labels)
        self.names = [name.decode() for name, _, _ in self._ports]

    @property
    def rows(self) -> int:
        return self._table.rows

    def add(self, arrays: Tuple[Any, ...]) -> None:
        self._table.add(self._table.rows, tuple(to_numpy(a)[0] for a in arrays))

    def take(self, rows: Any) -> None:
        """What dpi_run hands over; it holds during the call alone."""
        arrays = tuple(copy_of(rows.outputs[i]) for i in range(rows.output_count))
        names = [rows.names[i] for i in range(rows.count)] if rows.names else None
        bad = np.array([rows.bad[i] for i in range(rows.count)], bool) if rows.bad else None
        self._table.add(rows.first, arrays, names, bad)

    def drop(self) -> None:
        self._table.drop()

    def end(self) -> int:
        self._table.end([tuple(shape[1:]) for _, _, shape in self._ports])
        return self._table.rows


def table_of(session: Any, outputs: Sequence[str], top: Optional[int], labels: Any) -> Tuple[Optional[TableOfResults], Sequence[str]]:
    """The table that `outputs` of a run ask for, and what dpi_run is to be told instead of it."""
    if not any(is_table(o) for o in outputs):
        return None, outputs
    if len(outputs) != 1:
        raise ValueError("a table has all outputs of a run: name it alone, or write the others by another run")
    name, equals, file = outputs[0].partition("=")
    named = bool(equals) and name in session.output_names
    table = TableOfResults(file if named else outputs[0], session, top, labels, name if named else None)
    return table, [f"{n}=rows" for n in table.names]
