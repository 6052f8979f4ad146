"""What goes wrong, one class per status of the library. All are :class:`Error`.

Those that are a mistake in an argument or in data are also :class:`ValueError`, a deadline is also
:class:`TimeoutError`, a failure while running also :class:`RuntimeError`. The message is the library's own: what
happened, to which file or device, and what to do next.
"""

from __future__ import annotations

from typing import Dict, Type


class Error(Exception):
    """Base of everything that dpinfer raises for its own reasons.

    Attributes:
        status: the library's number for it (``dpi_status``).
        status_name: its name, such as ``"DPI_E_MODEL"``.
    """

    status: int = 38
    status_name: str = "DPI_E_INTERNAL"


class Busy(Error):
    """The queue is full and the caller did not want to wait."""

    status, status_name = 1, "DPI_BUSY"


class Timeout(Error, TimeoutError):
    """The deadline passed; the batch goes on and can be waited for again."""

    status, status_name = 2, "DPI_TIMEOUT"


class Cancelled(Error):
    """The caller cancelled it."""

    status, status_name = 3, "DPI_CANCELLED"


class BadRows(Error):
    """Done, but for rows that cannot be computed; their outputs are NaN, or 0 where the dtype has none."""

    status, status_name = 4, "DPI_BAD_ROWS"


class ArgumentError(Error, ValueError):
    """An argument or option is wrong."""

    status, status_name = 16, "DPI_E_ARGUMENT"


class ModelError(Error, ValueError):
    """The model cannot be used: unreadable, unsupported, or its rows depend on each other."""

    status, status_name = 17, "DPI_E_MODEL"


class BackendError(Error):
    """No inference library can be used: none installed, too old, or not for this kind of model."""

    status, status_name = 18, "DPI_E_BACKEND"


class DeviceError(Error):
    """The device does not exist, or lacks what was asked of it."""

    status, status_name = 19, "DPI_E_DEVICE"


class DataError(Error, ValueError):
    """A source, sink, dtype or shape is wrong."""

    status, status_name = 20, "DPI_E_DATA"


class EngineError(Error, RuntimeError):
    """The inference library failed while it computed; the session goes on."""

    status, status_name = 32, "DPI_E_ENGINE"


class WorkerError(Error, RuntimeError):
    """A worker died, hung or broke the protocol."""

    status, status_name = 33, "DPI_E_WORKER"


class FileError(Error, RuntimeError):
    """Reading or writing a file failed."""

    status, status_name = 34, "DPI_E_IO"


class ResourceError(Error, RuntimeError):
    """The operating system refused, or memory ran out."""

    status, status_name = 35, "DPI_E_SYSTEM"


class ClosedError(Error, RuntimeError):
    """The session is closed, or has failed before."""

    status, status_name = 36, "DPI_E_CLOSED"


class ForkedError(Error, RuntimeError):
    """The session belongs to the process before ``fork()``."""

    status, status_name = 37, "DPI_E_FORKED"


class InternalError(Error, RuntimeError):
    """An invariant of dpinfer itself does not hold."""

    status, status_name = 38, "DPI_E_INTERNAL"


KINDS: Dict[int, Type[Error]] = {
    kind.status: kind
    for kind in (
        Busy, Timeout, Cancelled, BadRows, ArgumentError, ModelError, BackendError, DeviceError, DataError, EngineError,
        WorkerError, FileError, ResourceError, ClosedError, ForkedError, InternalError,
    )
}  # fmt: skip


def error_of(status: int, message: str) -> Error:
    """The exception for a status of the library; ``message`` is its sentence."""
    return KINDS.get(status, InternalError)(message or f"dpinfer: status {status}")
