"""What a session is, and what it has done: the library's own numbers, under its own names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Dict, Tuple, Type, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class WorkerInfo:
    """One device's worker.

    Attributes:
        device: such as "cpu:0-3".
        backend, library, version: the backend, the file of its library ("" for none) and that one's version.
        fingerprint: of the engine, hex: equal ones give equal bits.
        pid: 0 in thread isolation, and while there is no worker.
        generation: how often it was started.
        open_seconds: from its start until it was ready.
        from_cache: the engine was not compiled for it.
    """

    device: str
    backend: str
    library: str
    version: str
    fingerprint: str
    pid: int
    generation: int
    open_seconds: float
    from_cache: bool


@dataclass(frozen=True)
class Description:
    """What a session is.

    Attributes:
        workers: by worker number; one is added for each new device.
        batch: most rows of one slice.
        fixed_batch: rows that every engine call has, 0 where free.
        bit_identical: all engines have one fingerprint.
        tolerance: largest difference between the workers on the same rows, relative to the largest value.
    """

    workers: Tuple[WorkerInfo, ...]
    batch: int
    fixed_batch: int
    bit_identical: bool
    tolerance: float


@dataclass(frozen=True)
class WorkerStats:
    """What one worker has done since the session was opened.

    Attributes:
        slices, rows: finished.
        stolen: slices of those that were planned for another worker.
        wait_ns, load_ns, copy_in_ns, compute_ns, copy_out_ns: where its time went, nanoseconds.
        fixed_us, row_us: learnt cost of a slice of n rows, microseconds: fixed_us + n * row_us.
    """

    slices: int
    rows: int
    stolen: int
    wait_ns: int
    load_ns: int
    copy_in_ns: int
    compute_ns: int
    copy_out_ns: int
    fixed_us: float
    row_us: float


@dataclass(frozen=True)
class Stats:
    """What a session has done since it was opened.

    Attributes:
        batches, rows, failed_batches: ended.
        copy_in_ns, copy_out_ns: nanoseconds of the caller's threads, for memory that is not the session's, and in strict
            isolation for all results.
        copied_in_bytes, copied_out_bytes: of that memory.
        arena_input_bytes, arena_output_bytes: committed now.
        wake_ns: from the last slice's end until the waiter went on, summed.
        workers: by worker number.
        deaths: of workers, hangs that were ended among them.
        replayed_slices: that a worker died over and another computed.
        bad_rows: left out.
        retired_devices: given up, and neither added again nor removed since.
        worker_starts: that came to be ready, the first ones among them.
        compiled_engines: of those starts, with an engine that was not in the cache.
        resumed_rows: of runs, finished by earlier ones.
        slice_p50_ms, slice_p90_ms, slice_p99_ms: of the time that slices took, from claimed to delivered, within 6 %.
    """

    batches: int
    rows: int
    failed_batches: int
    copy_in_ns: int
    copy_out_ns: int
    copied_in_bytes: int
    copied_out_bytes: int
    arena_input_bytes: int
    arena_output_bytes: int
    wake_ns: int
    workers: Tuple[WorkerStats, ...]
    deaths: int
    replayed_slices: int
    bad_rows: int
    retired_devices: int
    worker_starts: int
    compiled_engines: int
    resumed_rows: int
    slice_p50_ms: float
    slice_p90_ms: float
    slice_p99_ms: float


def from_struct(kind: Type[T], struct: Any, **given: Any) -> T:
    """A dataclass of this kind from the C structure whose fields have the same names; `given` are those that differ."""
    values: Dict[str, Any] = dict(given)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in given:
            value = getattr(struct, field.name)
            values[field.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return kind(**values)
