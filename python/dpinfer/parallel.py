"""DataParallel: called like the module it replaces, computed by every device."""

from __future__ import annotations

import os
import sys
from typing import Any, Generator, Optional, Sequence, Tuple, Union

import numpy as np

from .session import Pending, Session


def _torch() -> Any:
    return sys.modules.get("torch")


def _is_torch(value: Any) -> bool:
    torch = _torch()
    return torch is not None and isinstance(value, torch.Tensor)


def _to_numpy(value: Any) -> Any:
    """A CPU tensor's own memory, a copy of a GPU's; arrays as they are; no hidden copies of lists."""
    if _is_torch(value):
        return value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value
    raise TypeError(f"a batch is numpy arrays or torch tensors, and a {type(value).__name__} was given")


class Forward:
    """A batch of :meth:`DataParallel.submit`: take it by :meth:`result` or by ``await``."""

    def __init__(self, pending: Pending, names: Tuple[str, ...], like: Any, as_dict: bool) -> None:
        self._pending, self._names, self._like, self._as_dict = pending, names, like, as_dict

    def _shaped(self, outputs: Tuple[Any, ...]) -> Any:
        if self._like is not None:
            outputs = tuple(_torch().from_numpy(y).to(self._like) for y in outputs)
        if self._as_dict:
            return dict(zip(self._names, outputs))
        return outputs[0] if len(outputs) == 1 else outputs

    def done(self) -> bool:
        """True when :meth:`result` would not wait."""
        return self._pending.done()

    def cancel(self) -> None:
        """Drops what has not started."""
        self._pending.cancel()

    def result(self, timeout: Optional[float] = None) -> Any:
        """The outputs, in the kind of the inputs; ``timeout`` in seconds."""
        return self._shaped(self._pending.result(timeout))

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.get_running_loop().run_in_executor(None, self.result).__await__()


class DataParallel:
    """A model file over all devices, called like a module.

    Args:
        model: file of the model (.onnx, OpenVINO IR, .sim, .engine).
        device_indices: CUDA devices by number; an error where there is none. None: `devices`.
        total_batch_size: fixed even shares of so many rows, the remainder spread; None: adaptive.
        batch_size_list: fixed shares, one per device; None: adaptive.
        devices: "auto" (default) or a list such as "cpu:0-3,cpu:4-7".
        precision: "fp32", "tf32", "fp16", "bf16"; None: the model's own.
        return_dict: outputs by name; otherwise one array, or a tuple of several in the model's order.
        options: as of :class:`Session`.

    numpy in, numpy out; torch in, torch out, on the device of the first input.
    """

    def __init__(
        self,
        model: Union[str, "os.PathLike[str]"],
        device_indices: Optional[Sequence[int]] = None,
        total_batch_size: Optional[int] = None,
        batch_size_list: Optional[Sequence[int]] = None,
        *,
        devices: Optional[str] = None,
        precision: Optional[str] = None,
        return_dict: bool = False,
        **options: Any,
    ) -> None:
        if device_indices is not None:
            if devices is not None or not device_indices:
                raise ValueError("give CUDA devices as device_indices or any as devices, at least one, not both")
            devices = ",".join(f"cuda:{int(i)}" for i in device_indices)
        if not isinstance(model, (str, os.PathLike)):
            raise TypeError(f"model is a file's path, and a {type(model).__name__} was given; export it to ONNX first")
        self.session = Session(
            model, devices=devices, precision=precision, total_batch_size=total_batch_size,
            batch_size_list=batch_size_list, **options,
        )  # fmt: skip
        self._return_dict = return_dict

    def submit(self, *inputs: Any, out: Optional[Sequence[Any]] = None, **named: Any) -> Forward:
        """Puts a batch in flight. Keep two or three in flight so that devices never wait for the caller."""
        if len(inputs) == 1 and isinstance(inputs[0], dict):
            named, inputs = {**inputs[0], **named}, ()
        first: Any = inputs[0] if inputs else next(iter(named.values()), None)
        arrays = {name: _to_numpy(value) for name, value in named.items()}
        outputs = None if out is None else [_to_numpy(y) for y in out]
        pending = self.session.submit(*[_to_numpy(value) for value in inputs], outputs=outputs, **arrays)
        like = first.device if _is_torch(first) else None
        return Forward(pending, self.session.output_names, like, self._return_dict)

    def __call__(self, *inputs: Any, out: Optional[Sequence[Any]] = None, **named: Any) -> Any:
        """All rows over all devices. ``out``: where the results go, such as arrays of :meth:`empty`."""
        return self.submit(*inputs, out=out, **named).result()

    forward = __call__

    def empty(self, shape: Sequence[int], dtype: Any = "float32", direction: str = "input") -> Any:
        """Memory that batches are read from (or written to) without a copy; see :meth:`Session.empty`."""
        return self.session.empty(shape, dtype, direction)

    def close(self) -> None:
        """Ends the session."""
        self.session.close()

    def __enter__(self) -> "DataParallel":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
