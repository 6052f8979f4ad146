"""From the arguments of a session to the library's own structure of options."""

from __future__ import annotations

import ctypes
import json
import logging
import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from . import _c
from .arrays import to_numpy

PRECISIONS: Mapping[Optional[str], int] = {None: 0, "fp32": 1, "tf32": 2, "fp16": 3, "bf16": 4}
_CHOICES: Mapping[str, Mapping[Optional[str], int]] = {
    "precision": PRECISIONS,
    "isolation": {"process": 0, "thread": 1, "strict": 2},
    "wait_mode": {None: 0, "block": 1, "yield": 2, "spin": 3},
    "on_bad_row": {"fail": 0, "skip": 1},
}
_PLAIN = (
    "total_batch_size", "trust_rows", "deterministic", "queue_depth", "arena_max_bytes", "cache_max_bytes", "max_bad_rows",
    "max_deaths", "core_dumps", "worker_memory_bytes", "producers",
)  # fmt: skip
_TEXTS = ("devices", "backend", "library", "provider", "worker_path", "cache_dir", "trace_path")
_LISTS = {"output_names": "output_count", "data_folders": "data_folder_count"}
_PAIRS = {"backend_options": "backend_option_count", "provider_options": "provider_option_count"}
_SECONDS = {"compile_timeout": "compile_timeout_ms", "slice_timeout": "slice_timeout_ms"}
_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO, 4: logging.DEBUG}


class Options:
    """The structure, and what must live as long as the session: memory that it points to is copied by the library when the
    session opens, functions that it calls are not.

    Args:
        model: the file.
        given: the other arguments of :class:`dpinfer.Session`, by name.
    """

    def __init__(self, model: Any, given: Mapping[str, Any]) -> None:
        self.struct = o = _c.COptions(struct_size=ctypes.sizeof(_c.COptions), model_path=os.fsencode(model))
        self.callbacks: List[Any] = []
        self._arrays: List[Any] = []
        for name, choices in _CHOICES.items():
            if given[name] not in choices:
                raise ValueError(f"{name} is {given[name]!r}; give {' or '.join(repr(c) for c in choices)}")
            setattr(o, name, choices[given[name]])
        for name in _PLAIN:
            setattr(o, name, given[name] or 0)
        for name in _TEXTS:
            setattr(o, name, None if given[name] is None else os.fsencode(given[name]))
        for name, count in _LISTS.items():
            self._list(name, count, ctypes.c_char_p, [os.fsencode(text) for text in given[name] or ()])
        for name, count in _PAIRS.items():
            pairs = [_c.CKeyValue(str(k).encode(), str(v).encode()) for k, v in (given[name] or {}).items()]
            self._list(name, count, _c.CKeyValue, pairs)
        for name, field in _SECONDS.items():
            setattr(o, field, 0 if given[name] is None else max(1, int(given[name] * 1000)))
        o.batch = _c.BATCH_AUTO if given["batch"] == "auto" else int(given["batch"] or 0)
        self._list("batch_size_list", "batch_size_count", ctypes.c_size_t, given["batch_size_list"] or ())
        o.no_sandbox = not given["sandbox"]
        self._broadcast(given["broadcast"] or {})
        self._functions(given["log"], given["event"], given["bad_row"])

    def _list(self, name: str, count: str, kind: Any, items: Sequence[Any]) -> None:
        if items:
            setattr(self.struct, name, (kind * len(items))(*items))
        setattr(self.struct, count, len(items))

    def _broadcast(self, arrays: Mapping[str, Any]) -> None:
        tensors = []
        for name, value in arrays.items():
            array, number = to_numpy(value)
            self._arrays.append(array)
            shape = (ctypes.c_int64 * _c.MAX_RANK)(*array.shape)
            tensors.append(_c.CTensor(name.encode(), number, array.ndim, shape, array.ctypes.data))
        self._list("broadcast", "broadcast_count", _c.CTensor, tensors)

    def _functions(
        self,
        log: Optional[logging.Logger],
        event: Optional[Callable[[Dict[str, Any]], None]],
        bad_row: Optional[Callable[[int, str], None]],
    ) -> None:
        o = self.struct
        if log is not None:
            o.log_level = max((n for n, level in _LEVELS.items() if log.isEnabledFor(level)), default=1)
            o.log = self._kept(_c.LOG_FN(lambda _, level, line: log.log(_LEVELS.get(level, 10), "%s", _words(line))))
        if event is not None:
            o.event = self._kept(_c.EVENT_FN(lambda _, line: event(json.loads(line))))
        if bad_row is not None:
            o.bad_row = self._kept(_c.BAD_ROW_FN(lambda _, row: bad_row(row.contents.row, _words(row.contents.reason))))

    def _kept(self, function: Any) -> Any:
        self.callbacks.append(function)
        return ctypes.cast(function, ctypes.c_void_p)


def _words(text: bytes) -> str:
    return text.decode("utf-8", "replace")
