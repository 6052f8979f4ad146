"""The loader process: takes samples from a data set and writes them where workers read them. Ends when it is told to, or
when the process that started it is gone."""

from __future__ import annotations

import ctypes
import signal
import socket
import sys
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np

from . import _c
from .arrays import numpy_dtype, to_numpy

MESSAGE_BYTES = 480


class Memory:
    """The memory of C tensors as arrays. A feed's ring has few places, and each is made an array once."""

    def __init__(self) -> None:
        self._arrays: Dict[Tuple[int, int], Any] = {}

    def of(self, tensor: Any) -> Any:
        """The array of a tensor that always has the same dtype and shape at its address, but for the number of rows."""
        key = (tensor.data, tensor.shape[0])
        array = self._arrays.get(key)
        if array is None:
            shape, dtype = tuple(tensor.shape[: tensor.rank]), numpy_dtype(tensor.dtype)
            size = dtype.itemsize
            for n in shape:
                size *= n
            array = np.frombuffer((ctypes.c_char * size).from_address(tensor.data), dtype).reshape(shape)
            self._arrays[key] = array
        return array


def parts_of(sample: Any, names: Tuple[str, ...]) -> List[Any]:
    """The model's inputs of one sample: by name of a dict, the first ones of a tuple (labels stay behind), or itself."""
    if isinstance(sample, Mapping):
        return [sample[name] for name in names]
    if isinstance(sample, (tuple, list)):
        if len(sample) < len(names):
            raise ValueError(f"a sample has {len(sample)} parts, and the model takes {len(names)}: {', '.join(names)}")
        return list(sample[: len(names)])
    if len(names) != 1:
        raise ValueError(f"a sample is one array, and the model takes {len(names)}: {', '.join(names)}")
    return [sample]


def write_row(sample: Any, names: Tuple[str, ...], memory: List[Any], row: int) -> None:
    """Copies one sample into row `row`; its dtype and shape must be the model's."""
    for part, name, to in zip(parts_of(sample, names), names, memory):
        array = part if isinstance(part, np.ndarray) else to_numpy(part)[0] if not np.isscalar(part) else np.asarray(part, to.dtype)
        if array.dtype != to.dtype or array.shape != to.shape[1:]:
            raise ValueError(
                f"the input {name} takes {to.dtype} {list(to.shape[1:])}, and a sample is {array.dtype} {list(array.shape)}"
            )
        to[row] = array


class _Ranges:
    """Ranges that this process has reserved, one after the other."""

    def __init__(self, descriptor: int) -> None:
        self.library, self.pointer, self.error = _c.library(), ctypes.c_void_p(), _c.CError()
        status = self.library.dpi_producer_open(descriptor, self.pointer, self.error)
        if status:
            raise _c.failure(status, self.error)
        self.tensors = (_c.CTensor * self.library.dpi_producer_inputs(self.pointer))()
        self._memory = Memory()

    def reserve(self) -> Optional[Any]:
        reserved = _c.CRange()
        status = self.library.dpi_producer_reserve(self.pointer, 0, reserved, self.tensors, self.error)
        return None if status else reserved  # closed: the end

    def memory(self) -> List[Any]:
        return [self._memory.of(t) for t in self.tensors]

    def fill(self, reserved: Any, last: bool = False) -> None:
        status = self.library.dpi_producer_fill(self.pointer, reserved, last, self.error)
        if status:
            raise _c.failure(status, self.error)

    def fail(self, reserved: Any, message: str) -> None:
        text = message.encode("utf-8", "replace")[:MESSAGE_BYTES].decode("utf-8", "ignore").encode()
        self.library.dpi_producer_fail(self.pointer, reserved, text, self.error)


def _load_map(dataset: Any, names: Tuple[str, ...], ranges: _Ranges) -> None:
    load_into = getattr(dataset, "load_into", None)
    for reserved in iter(ranges.reserve, None):
        memory, row = ranges.memory(), 0
        try:
            for row in range(reserved.rows):
                if load_into is None:
                    write_row(dataset[reserved.first_row + row], names, memory, row)
                else:
                    load_into(reserved.first_row + row, *(to[row, ...] for to in memory))
        except Exception as problem:
            ranges.fail(reserved, f"row {reserved.first_row + row}: {type(problem).__name__}: {problem}")
        else:
            ranges.fill(reserved)


def _load_iterable(dataset: Any, names: Tuple[str, ...], ranges: _Ranges) -> None:
    taken, samples, problem = 0, None, None
    for reserved in iter(ranges.reserve, None):
        memory, row, last = ranges.memory(), 0, False
        try:
            samples = iter(dataset) if samples is None else samples
            while row < reserved.rows and not last:
                try:
                    sample = next(samples)
                except StopIteration:
                    last = True
                else:
                    write_row(sample, names, memory, row)
                    row += 1
                    taken += 1
        except Exception as raised:
            problem = raised
            ranges.fail(reserved, f"a loader's sample {taken}: {type(problem).__name__}: {problem}")
            return
        reserved.rows = row
        ranges.fill(reserved, last)
        if last:
            return


def _tell_torch(number: int, count: int, dataset: Any) -> None:
    """What torch.utils.data.get_worker_info() says in this process, by which iterable data sets divide themselves."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch.set_num_threads(1)
    worker = torch.utils.data._utils.worker
    worker._worker_info = worker.WorkerInfo(id=number, num_workers=count, seed=number, dataset=dataset)


def main(connection: socket.socket, dataset: Any, names: Tuple[str, ...], number: int, count: int, whole: bool) -> None:
    """Entry of the process. `whole`: the data set is indexed; otherwise it is iterated, this process's own part of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller hears it, and closes the feed
    _tell_torch(number, count, dataset)
    ranges = _Ranges(connection.detach())
    load: Callable[[Any, Tuple[str, ...], _Ranges], None] = _load_map if whole else _load_iterable
    load(dataset, names, ranges)
