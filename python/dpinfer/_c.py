"""The library's C declarations, by ctypes: `include/dpinfer/dpinfer.h` word for word, and the library itself.

ctypes releases the interpreter's lock around every call, so other Python threads run while one waits for a batch.
A structure that begins with ``struct_size`` may be shorter than the library's own: what it lacks is the default.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pathlib
import threading
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char,
    c_char_p,
    c_double,
    c_int,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, Optional

from .errors import Error, error_of

VERSION = "0.1.0"
MAX_RANK = 8
ENDLESS = ctypes.c_uint64(-1).value
BATCH_AUTO = ctypes.c_size_t(-1).value
INPUT, OUTPUT = 1, 2
OK, BUSY, TIMEOUT, CANCELLED = 0, 1, 2, 3


class CError(Structure):
    _fields_ = [("status", c_int), ("message", c_char * 1020)]


class CTensor(Structure):
    _fields_ = [("name", c_char_p), ("dtype", c_int), ("rank", c_int), ("shape", c_int64 * MAX_RANK), ("data", c_void_p)]


class CKeyValue(Structure):
    _fields_ = [("key", c_char_p), ("value", c_char_p)]


class CBadRow(Structure):
    _fields_ = [("row", c_uint64), ("reason", c_char_p)]


LOG_FN = CFUNCTYPE(None, c_void_p, c_int, c_char_p)
BAD_ROW_FN = CFUNCTYPE(None, c_void_p, POINTER(CBadRow))
EVENT_FN = CFUNCTYPE(None, c_void_p, c_char_p)


class COptions(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("model_path", c_char_p),
        ("model_data", c_void_p),
        ("model_bytes", c_size_t),
        ("model_format", c_char_p),
        ("devices", c_char_p),
        ("backend", c_char_p),
        ("library", c_char_p),
        ("precision", c_int),
        ("batch", c_size_t),
        ("total_batch_size", c_size_t),
        ("batch_size_list", POINTER(c_size_t)),
        ("batch_size_count", c_size_t),
        ("output_names", POINTER(c_char_p)),
        ("output_count", c_size_t),
        ("broadcast", POINTER(CTensor)),
        ("broadcast_count", c_size_t),
        ("trust_rows", c_bool),
        ("deterministic", c_bool),
        ("isolation", c_int),
        ("wait_mode", c_int),
        ("queue_depth", c_size_t),
        ("arena_max_bytes", c_uint64),
        ("provider", c_char_p),
        ("provider_options", POINTER(CKeyValue)),
        ("provider_option_count", c_size_t),
        ("backend_options", POINTER(CKeyValue)),
        ("backend_option_count", c_size_t),
        ("worker_path", c_char_p),
        ("cache_dir", c_char_p),
        ("cache_max_bytes", c_uint64),
        ("compile_timeout_ms", c_uint32),
        ("slice_timeout_ms", c_uint32),
        ("log", c_void_p),
        ("log_context", c_void_p),
        ("log_level", c_int),
        ("on_bad_row", c_int),
        ("max_bad_rows", c_uint64),
        ("bad_row", c_void_p),
        ("bad_row_context", c_void_p),
        ("max_deaths", c_uint32),
        ("event", c_void_p),
        ("event_context", c_void_p),
        ("no_sandbox", c_bool),
        ("core_dumps", c_bool),
        ("worker_memory_bytes", c_uint64),
        ("producers", c_bool),
        ("data_folders", POINTER(c_char_p)),
        ("data_folder_count", c_size_t),
        ("trace_path", c_char_p),
    ]


class CBatch(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("inputs", POINTER(CTensor)),
        ("input_count", c_size_t),
        ("outputs", POINTER(CTensor)),
        ("output_count", c_size_t),
        ("queue_timeout_ms", c_int64),
    ]


class CProgress(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("rows_done", c_uint64),
        ("rows_total", c_uint64),
        ("seconds", c_double),
        ("worker_rows", POINTER(c_uint64)),
        ("worker_count", c_size_t),
        ("rows_resumed", c_uint64),
    ]


PROGRESS_FN = CFUNCTYPE(c_int, c_void_p, POINTER(CProgress))


class CRows(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("first", c_uint64),
        ("count", c_size_t),
        ("outputs", POINTER(CTensor)),
        ("output_count", c_size_t),
        ("names", POINTER(c_char_p)),
        ("bad", POINTER(c_bool)),
    ]


ROWS_FN = CFUNCTYPE(c_int, c_void_p, POINTER(CRows))


class CPreprocess(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("recipe", c_char_p),
        ("resize", c_uint32 * 2),
        ("crop", c_uint32 * 2),
        ("mean", POINTER(c_double)),
        ("std", POINTER(c_double)),
        ("scale", c_double),
        ("layout", c_char_p),
        ("interpolation", c_char_p),
        ("color", c_char_p),
        ("member", c_char_p),
        ("max_pixels", c_uint64),
        ("max_image_bytes", c_uint64),
    ]


class CRunOptions(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("inputs", POINTER(c_char_p)),
        ("input_count", c_size_t),
        ("outputs", POINTER(c_char_p)),
        ("output_count", c_size_t),
        ("row_begin", c_uint64),
        ("row_end", c_uint64),
        ("top", c_size_t),
        ("labels_path", c_char_p),
        ("no_overwrite", c_bool),
        ("progress", PROGRESS_FN),
        ("progress_context", c_void_p),
        ("restart", c_bool),
        ("no_journal", c_bool),
        ("journal_interval_ms", c_uint32),
        ("preprocess", POINTER(CPreprocess)),
        ("loader_threads", c_uint32),
        ("spool_max_bytes", c_uint64),
        ("take_rows", ROWS_FN),
        ("take_rows_context", c_void_p),
    ]


class CRunResult(Structure):
    _fields_ = [("struct_size", c_size_t), ("rows", c_uint64), ("seconds", c_double), ("resumed_rows", c_uint64)]


class CFeedOptions(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("inputs", POINTER(CTensor)),
        ("input_count", c_size_t),
        ("rows", c_uint64),
        ("range_rows", c_size_t),
        ("slots", c_size_t),
        ("producers", c_size_t),
    ]


class CRange(Structure):
    _fields_ = [("index", c_uint64), ("first_row", c_uint64), ("rows", c_uint64)]


class CWorkerInfo(Structure):
    _fields_ = [
        ("device", c_char_p),
        ("backend", c_char_p),
        ("library", c_char_p),
        ("version", c_char_p),
        ("fingerprint", c_char_p),
        ("pid", c_int64),
        ("generation", c_uint32),
        ("open_seconds", c_double),
        ("from_cache", c_bool),
    ]


class CDescription(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("inputs", POINTER(CTensor)),
        ("input_count", c_size_t),
        ("outputs", POINTER(CTensor)),
        ("output_count", c_size_t),
        ("workers", POINTER(CWorkerInfo)),
        ("worker_count", c_size_t),
        ("batch", c_size_t),
        ("fixed_batch", c_size_t),
        ("bit_identical", c_bool),
        ("tolerance", c_double),
    ]


class CWorkerStats(Structure):
    _fields_ = [
        ("slices", c_uint64),
        ("rows", c_uint64),
        ("stolen", c_uint64),
        ("wait_ns", c_uint64),
        ("load_ns", c_uint64),
        ("copy_in_ns", c_uint64),
        ("compute_ns", c_uint64),
        ("copy_out_ns", c_uint64),
        ("fixed_us", c_double),
        ("row_us", c_double),
    ]


class CStats(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("batches", c_uint64),
        ("rows", c_uint64),
        ("failed_batches", c_uint64),
        ("copy_in_ns", c_uint64),
        ("copy_out_ns", c_uint64),
        ("copied_in_bytes", c_uint64),
        ("copied_out_bytes", c_uint64),
        ("arena_input_bytes", c_uint64),
        ("arena_output_bytes", c_uint64),
        ("wake_ns", c_uint64),
        ("workers", POINTER(CWorkerStats)),
        ("worker_count", c_size_t),
        ("deaths", c_uint64),
        ("replayed_slices", c_uint64),
        ("bad_rows", c_uint64),
        ("retired_devices", c_uint64),
        ("worker_starts", c_uint64),
        ("compiled_engines", c_uint64),
        ("resumed_rows", c_uint64),
        ("slice_p50_ms", c_double),
        ("slice_p90_ms", c_double),
        ("slice_p99_ms", c_double),
    ]


# C name -> declaration, for the test that compares them with the header.
STRUCTURES = {
    "dpi_error": CError,
    "dpi_tensor": CTensor,
    "dpi_key_value": CKeyValue,
    "dpi_bad_row": CBadRow,
    "dpi_options": COptions,
    "dpi_batch": CBatch,
    "dpi_progress": CProgress,
    "dpi_rows": CRows,
    "dpi_preprocess": CPreprocess,
    "dpi_run_options": CRunOptions,
    "dpi_run_result": CRunResult,
    "dpi_feed_options": CFeedOptions,
    "dpi_range": CRange,
    "dpi_worker_info": CWorkerInfo,
    "dpi_description": CDescription,
    "dpi_worker_stats": CWorkerStats,
    "dpi_stats_data": CStats,
}


def library_path() -> pathlib.Path:
    """The library's file: ``DPINFER_LIBRARY``, or the one inside this package."""
    named = os.environ.get("DPINFER_LIBRARY")
    path = pathlib.Path(named) if named else pathlib.Path(__file__).parent / "lib" / "libdpinfer.so"
    if not path.is_file():
        raise ImportError(
            f"{path} is not there, so dpinfer cannot run; "
            + ("correct DPINFER_LIBRARY" if named else "install the package (pip install .) or name it in DPINFER_LIBRARY")
        )
    return path


def _declare(library: ctypes.CDLL) -> None:
    error = POINTER(CError)
    signatures = {
        "dpi_version": (c_char_p, []),
        "dpi_status_name": (c_char_p, [c_int]),
        "dpi_dtype_name": (c_char_p, [c_int]),
        "dpi_dtype_size": (c_size_t, [c_int]),
        "dpi_open": (c_int, [POINTER(COptions), POINTER(c_void_p), error]),
        "dpi_close": (None, [c_void_p]),
        "dpi_device_add": (c_int, [c_void_p, c_char_p, c_int64, error]),
        "dpi_device_remove": (c_int, [c_void_p, c_char_p, c_int64, error]),
        "dpi_submit": (c_int, [c_void_p, POINTER(CBatch), POINTER(c_uint64), error]),
        "dpi_wait": (c_int, [c_void_p, c_uint64, c_int64, POINTER(CTensor), c_size_t, error]),
        "dpi_release": (c_int, [c_void_p, c_uint64, error]),
        "dpi_cancel": (c_int, [c_void_p, c_uint64, error]),
        "dpi_forward": (c_int, [c_void_p, POINTER(CTensor), c_size_t, POINTER(CTensor), c_size_t, c_int64, error]),
        "dpi_event_fd": (c_int, [c_void_p, error]),
        "dpi_alloc": (c_void_p, [c_void_p, c_size_t, c_int, error]),
        "dpi_free": (c_int, [c_void_p, c_void_p, error]),
        "dpi_run": (c_int, [c_void_p, POINTER(CRunOptions), POINTER(CRunResult), error]),
        "dpi_feed_open": (c_int, [c_void_p, POINTER(CFeedOptions), POINTER(c_void_p), error]),
        "dpi_feed_connect": (c_int, [c_void_p, POINTER(c_int), error]),
        "dpi_feed_next": (c_int, [c_void_p, c_int64, POINTER(CRange), POINTER(CTensor), error]),
        "dpi_feed_release": (c_int, [c_void_p, c_uint64, error]),
        "dpi_feed_close": (None, [c_void_p]),
        "dpi_producer_open": (c_int, [c_int, POINTER(c_void_p), error]),
        "dpi_producer_inputs": (c_size_t, [c_void_p]),
        "dpi_producer_reserve": (c_int, [c_void_p, c_int64, POINTER(CRange), POINTER(CTensor), error]),
        "dpi_producer_fill": (c_int, [c_void_p, POINTER(CRange), c_bool, error]),
        "dpi_producer_fail": (c_int, [c_void_p, POINTER(CRange), c_char_p, error]),
        "dpi_producer_close": (None, [c_void_p]),
        "dpi_describe": (c_int, [c_void_p, POINTER(CDescription), error]),
        "dpi_stats": (c_int, [c_void_p, POINTER(CStats), error]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments


def _load() -> Any:
    path = library_path()
    library = ctypes.CDLL(str(path))
    _declare(library)
    found = library.dpi_version().decode()
    if found != VERSION:
        raise ImportError(f"{path} is dpinfer {found} and this Python package is {VERSION}; install both from one release")
    return library


_lock = threading.Lock()
_library: Optional[Any] = None


def library() -> Any:
    """The loaded library; loads it on first use."""
    global _library
    if _library is None:
        with _lock:
            if _library is None:
                _name_engine_libraries()
                _library = _load()
    return _library


# Inference libraries as Python packages carry them: variable of the library that names it, package, file in it.
_ENGINES = (
    ("DPINFER_OPENVINO_LIBRARY", "openvino", "libs/libopenvino_c.so*"),
    ("DPINFER_ONNXRUNTIME_LIBRARY", "onnxruntime", "capi/libonnxruntime.so*"),
    ("DPINFER_TORCH_LIBRARY", "torch", "lib/libtorch_cpu.so"),
)


def _name_engine_libraries() -> None:
    """Workers look in the environment of the python3 in PATH; what this interpreter would import may be elsewhere (a
    notebook's kernel, an unactivated environment), so they are told."""
    for variable, package, pattern in _ENGINES:
        if variable in os.environ:
            continue
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        for folder in (spec.submodule_search_locations or []) if spec else []:
            files = sorted(pathlib.Path(folder).glob(pattern), key=lambda file: len(file.name))
            if files:
                os.environ[variable] = str(files[-1])
                break


def failure(status: int, error: CError) -> Error:
    """The exception for a call that returned ``status``."""
    return error_of(status, error.message.decode("utf-8", "replace"))
