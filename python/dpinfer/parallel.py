"""DataParallel: called like the module it replaces, computed by every device."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Callable, Generator, Optional, Sequence, Tuple, Union

from .arrays import is_torch, to_torch
from .export import TOLERANCES, Compiled, Normalize, compile
from .session import Pending, Session


class Forward:
    """A batch of :meth:`DataParallel.submit`: take it by :meth:`result` or by ``await``."""

    def __init__(self, pending: Pending, shape: Callable[[Tuple[Any, ...]], Any]) -> None:
        self._pending, self._shape = pending, shape

    def done(self) -> bool:
        """True when :meth:`result` would not wait."""
        return self._pending.done()

    def cancel(self) -> None:
        """Drops what has not started."""
        self._pending.cancel()

    def result(self, timeout: Optional[float] = None) -> Any:
        """The outputs, in the kind of the inputs, each [rows, ...]; ``timeout`` and what it raises as :meth:`Pending.result`."""
        return self._shape(self._pending.result(timeout))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result_in_loop().__await__()

    async def _result_in_loop(self) -> Any:
        try:
            return self._shape(await self._pending)
        except asyncio.CancelledError:
            self._pending.cancel()
            raise


class DataParallel:
    """A model over all devices, called like the module it replaces: one process per device, rows in order.

    Args:
        model: a ``torch.nn.Module``, a callable that makes one (both are exported: see :func:`compile`), or a file (.onnx,
            OpenVINO IR, .pt2, .sim, .engine).
        device_indices: CUDA devices by number, an error where there is none; None: `devices`.
        total_batch_size: fixed even shares of so many rows, the remainder spread; None: adaptive.
        batch_size_list: fixed shares, one per device; None: adaptive.
        devices: "auto" (the default: all GPUs, else the cores), or a list such as "cpu:0-3,cpu:4-7".
        precision: "fp32", "tf32", "fp16", "bf16"; None: the model's own.
        example_inputs: for a module: a tensor, a tuple or a dict of them, axis 0 the rows.
        checkpoint: for a module: file of its weights.
        dynamic_batch, normalize, input_format, format: for a module, as of :func:`compile`.
        check: for a module: compare all devices' results with its own on random rows; `difference` tells.
        return_dict: for a file: outputs by name; otherwise one array, or a tuple of several in the model's order.
        options: as of :class:`Session`.

    Inputs are numpy arrays, torch tensors, or what speaks DLPack or the buffer protocol, each of shape [rows, ...] and of
    the model's dtype. numpy in, numpy out; torch in, torch out, on the device of the first input. A module that returns a
    tuple or a dict returns one here too. Any thread may call it, several at once.

    Attributes:
        session: the :class:`Session` behind it.
        difference: how far the devices' results are from the module's on random rows, relative to its largest value;
            None for files.

    Raises:
        TypeError, ValueError: an argument is wrong.
        ModelError: the module cannot be exported, or the file cannot be used.
        DeviceError, BackendError: no such device, or no library for it.
    """

    def __init__(
        self,
        model: Any,
        device_indices: Optional[Sequence[int]] = None,
        total_batch_size: Optional[int] = None,
        batch_size_list: Optional[Sequence[int]] = None,
        *,
        devices: Optional[str] = None,
        precision: Optional[str] = None,
        example_inputs: Any = None,
        checkpoint: Union[None, str, "os.PathLike[str]"] = None,
        dynamic_batch: Union[None, int, Tuple[int, int]] = (1, 256),
        normalize: Normalize = None,
        input_format: Optional[str] = None,
        format: str = "onnx",
        check: bool = True,
        return_dict: bool = False,
        **options: Any,
    ) -> None:
        if device_indices is not None:
            if devices is not None or not device_indices:
                raise ValueError("give CUDA devices as device_indices or any as devices, at least one, not both")
            devices = ",".join(f"cuda:{int(i)}" for i in device_indices)
        if not isinstance(model, (str, os.PathLike)):
            on_gpu = devices is not None and devices.startswith("cuda")
            model = _export(
                model, example_inputs, checkpoint=checkpoint, dynamic_batch=dynamic_batch, normalize=normalize,
                input_format=input_format, format=format, device="cuda" if on_gpu and format == "pt2" else None,
                precision=precision if format == "pt2" else None, check=False,
            )  # fmt: skip
            precision = None if format == "pt2" else precision  # it is in the package
        elif example_inputs is not None or checkpoint is not None:
            raise ValueError("example_inputs and checkpoint belong to a module; a file has its weights and shapes")
        self.session = Session(
            model, devices=devices, precision=precision, total_batch_size=total_batch_size,
            batch_size_list=batch_size_list, **options,
        )  # fmt: skip
        self.difference: Optional[float] = None
        self._model = model  # a compiled one's file is there as long as this
        if isinstance(model, Compiled):
            self._return_dict, self._names = model.output_names is not None, tuple(model.output_names or ())
            self._single = model.single
            if check:
                self._check(model, precision)
        else:
            self._return_dict, self._names = return_dict, self.session.output_names
            self._single = len(self._names) == 1

    def _check(self, model: Compiled, precision: Optional[str]) -> None:
        try:
            self.difference = model.check(self.session, TOLERANCES[precision] if precision else None)
        except BaseException:
            self.close()
            raise

    def _shaping(self, like: Any) -> Callable[[Tuple[Any, ...]], Any]:
        """From the session's arrays to what the caller gets."""
        device = like.device if is_torch(like) else None

        def shaped(outputs: Tuple[Any, ...]) -> Any:
            if device is not None:
                pairs = zip(outputs, self.session.output_dtypes)
                outputs = tuple(to_torch(y, number, device) for y, number in pairs)
            if self._return_dict:
                return dict(zip(self._names, outputs))
            return outputs[0] if self._single else outputs

        return shaped

    def submit(self, *inputs: Any, out: Optional[Sequence[Any]] = None, **named: Any) -> Forward:
        """Puts a batch in flight. Keep two or three in flight so that devices never wait for the caller.

        Args:
            inputs: by position, or one dict by name; [rows, ...] each.
            out: memory for the results, in the model's order, C-ordered and of its dtypes and shapes; None: new memory.
        """
        if len(inputs) == 1 and isinstance(inputs[0], dict):
            named, inputs = {**inputs[0], **named}, ()
        first: Any = inputs[0] if inputs else next(iter(named.values()), None)
        return Forward(self.session.submit(*inputs, outputs=out, **named), self._shaping(first))

    def __call__(self, *inputs: Any, out: Optional[Sequence[Any]] = None, **named: Any) -> Any:
        """All rows over all devices: :meth:`submit` and :meth:`Forward.result <dpinfer.parallel.Forward.result>` in one.

        Args:
            inputs: by position, or one dict by name; [rows, ...] each, any number of rows.
            out: where the results go, such as arrays of :meth:`empty`; None: new memory.

        Returns:
            One array or tensor [rows, ...], or a tuple or dict of them, as the module returns.
        """
        return self.submit(*inputs, out=out, **named).result()

    forward = __call__

    def empty(self, shape: Sequence[int], dtype: Any = "float32", direction: str = "input") -> Any:
        """An array that batches are read from (or written to) without a copy; see :meth:`Session.empty`."""
        return self.session.empty(shape, dtype, direction)

    def close(self) -> None:
        """Ends the session."""
        self.session.close()

    def __enter__(self) -> "DataParallel":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _export(model: Any, example_inputs: Any, **options: Any) -> Compiled:
    if not callable(model):
        raise TypeError(f"model is a torch.nn.Module, a callable that makes one, or a file; not a {type(model).__name__}")
    if example_inputs is None:
        raise TypeError("a module needs example_inputs: a tensor, a tuple or a dict of them, with the rows as axis 0")
    return compile(model, example_inputs, **options)


def empty(
    model: Union[DataParallel, Session], shape: Sequence[int], dtype: Any = "float32", direction: str = "input"
) -> Any:
    """An array [rows, ...] in memory that `model`'s workers see: batches in it are not copied. As :meth:`Session.empty`."""
    return model.empty(shape, dtype, direction)
