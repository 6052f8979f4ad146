"""From a PyTorch module to a file that every device opens: ONNX, or a package of AOTInductor."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import pathlib
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from .arrays import to_torch
from .errors import BackendError, ModelError
from .session import Session

if TYPE_CHECKING:
    from ._module import OutputKind

log = logging.getLogger("dpinfer")
Normalize = Union[None, str, Tuple[Sequence[float], Sequence[float]]]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CHECK_ROWS = 5
PACKAGES_SINCE = (2, 8)  # as PyTorch lays out .pt2 since, with the functions that are called
# Largest |y - module's y| relative to max |module's y| that is still taken for the same function.
TOLERANCES = {None: 2e-3, "fp32": 2e-3, "tf32": 1e-2, "fp16": 3e-2, "bf16": 1e-1}


def _is_older(version: str, least: Tuple[int, int]) -> bool:
    return tuple(int(part) for part in version.split(".")[:2]) < least


class Compiled:
    """A module's file, usable as a path.

    Attributes:
        path: the file.
        difference: largest difference from the module on random rows, relative to the largest absolute value of the
            module's output; None: not checked yet.
        output_names: keys of the outputs where the module returns a dict; None otherwise.
        single: the module returns one tensor.
    """

    def __init__(self, path: pathlib.Path, kind: "OutputKind", folder: Any, expected: "_Expected") -> None:
        self.path, self.output_names, self.single = path, kind.names, kind.single
        self.difference: Optional[float] = None
        self._folder, self._expected = folder, expected

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        said = "not compared" if self.difference is None else f"differs from the module by at most {self.difference:.2g}"
        return f"<dpinfer.Compiled {self.path} ({said})>"

    def check(self, session: Session, tolerance: Optional[float] = None) -> float:
        """Compares an opened session of this file with the module on random rows; returns and keeps the difference.

        Args:
            session: one that opened this file.
            tolerance: the most that is taken for the same function; None: by the precision.

        Raises:
            ModelError: they differ by more.
        """
        e = self._expected
        got = zip(session.forward(*e.inputs), session.output_dtypes)
        tensors = [to_torch(y, number, None) for y, number in got]
        self.difference = max((_difference(y, want) for y, want in zip(tensors, e.outputs)), default=0.0)
        log.info("%s: %d random rows differ from the module by at most %.2g", self.path, e.rows, self.difference)
        limit = e.tolerance if tolerance is None else tolerance
        if not self.difference <= limit:
            raise ModelError(
                f"{self.path} does not compute what the module computes: {e.rows} random rows differ by "
                f"{self.difference:.2g} of the largest value, and {limit:.2g} is allowed; export in another precision or "
                f"format, or give check=False"
            )
        return self.difference


class _Expected:
    """Random rows and what the module makes of them."""

    def __init__(self, inputs: List[Any], outputs: List[Any], rows: int, tolerance: float) -> None:
        self.inputs, self.outputs, self.rows, self.tolerance = inputs, outputs, rows, tolerance


def _difference(got: Any, want: Any) -> float:
    """Largest difference of two tensors relative to the largest value of the second; infinite where shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    a, b = got.double().numpy(), want.double().numpy()
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    worst = float(np.abs(a[~same] - b[~same]).max())
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return worst / largest if largest > 0 else worst


def build(module: Any, checkpoint: Union[None, str, "os.PathLike[str]"]) -> Any:
    """An nn.Module of one's own, in eval mode: a copy of a module, or what a callable makes; with a checkpoint's weights.

    Raises:
        TypeError: neither a module nor a callable that makes one.
        ModelError: the checkpoint does not fit, or the callable failed.
    """
    import torch

    if isinstance(module, torch.nn.Module):
        module = copy.deepcopy(module)
    elif callable(module):
        made = module()
        if not isinstance(made, torch.nn.Module):
            raise TypeError(f"the callable made a {type(made).__name__} and no torch.nn.Module")
        module = made
    else:
        raise TypeError(f"a torch.nn.Module, or a callable that makes one, is needed; a {type(module).__name__} was given")
    if checkpoint is not None:
        try:
            weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
            module.load_state_dict(weights.get("state_dict", weights))
        except OSError:
            raise
        except Exception as problem:
            raise ModelError(f"{os.fspath(checkpoint)} is no checkpoint of {type(module).__name__}: {problem}") from problem
    return module.eval()


def _named_examples(module: Any, examples: Any) -> Tuple[List[str], List[Any], bool]:
    """Names and tensors of the example inputs, and whether the module takes them by keyword."""
    import torch

    if isinstance(examples, Mapping):
        names, tensors, keywords = [str(k) for k in examples], list(examples.values()), True
    else:
        tensors = [examples] if isinstance(examples, (torch.Tensor, np.ndarray)) else list(examples or ())
        parameters = [
            p.name
            for p in inspect.signature(module.forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        names = [parameters[i] if i < len(parameters) else f"input{i}" for i in range(len(tensors))]
        keywords = False
    tensors = [torch.from_numpy(t) if isinstance(t, np.ndarray) else t for t in tensors]
    if not tensors or not all(isinstance(t, torch.Tensor) and t.dim() > 0 for t in tensors):
        raise TypeError("example_inputs is a tensor, a tuple of them or a dict of them by name, each with its row axis first")
    if len({t.shape[0] for t in tensors}) != 1 or tensors[0].shape[0] == 0:
        raise ValueError("example_inputs have one number of rows (axis 0), at least 1")
    return names, tensors, keywords


def _random_rows(examples: Sequence[Any], rows: int) -> List[Any]:
    """Rows like the examples: normals, or whole numbers up to the example's largest (token numbers stay in range)."""
    import torch

    generator = torch.Generator().manual_seed(20231)
    made = []
    for t in examples:
        shape = (rows, *t.shape[1:])
        if t.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(t.dtype))
        elif t.dtype == torch.bool:
            made.append(torch.randint(0, 2, shape, generator=generator).bool())
        else:
            low, high = int(t.min()), int(t.max())
            made.append(torch.randint(low, high + 1, shape, generator=generator).to(t.dtype))
    return made


def _pixels(normalize: Normalize, input_format: Optional[str], image: Any) -> Tuple[Any, bool, Any]:
    """Normalisation, whether channels are last, and pixels in place of the example image."""
    import torch

    if normalize is None and input_format is None:
        return None, False, image
    if input_format not in (None, "NCHW", "NHWC"):
        raise ValueError(f"input_format is {input_format!r}; give 'NCHW' or 'NHWC' (uint8 pixels), or None")
    if image.dim() != 4:
        raise ValueError("normalize and input_format are for images: the first example input has axes [N, C, H, W]")
    channels = int(image.shape[1])
    if isinstance(normalize, str):
        if normalize != "imagenet":
            raise ValueError(f"normalize is {normalize!r}; give 'imagenet', or mean and standard deviation per channel")
        normalize = IMAGENET
    mean, deviation = normalize if normalize is not None else ((0.0,) * channels, (1.0,) * channels)
    if len(mean) != channels or len(deviation) != channels or not all(d > 0 for d in deviation):
        raise ValueError(f"normalize has a mean and a positive deviation for each of {channels} channels, on a scale of 0..1")
    last = input_format == "NHWC"
    shape = (image.shape[0], *image.shape[2:], channels) if last else tuple(image.shape)
    return (mean, deviation), last, torch.arange(256).repeat(int(np.prod(shape)) // 256 + 1)[: int(np.prod(shape))].reshape(
        shape
    ).to(torch.uint8)


def _batch_range(dynamic_batch: Union[None, int, Tuple[int, int]], rows: int) -> Tuple[int, int]:
    if dynamic_batch is None:
        return rows, rows
    low, high = (dynamic_batch, dynamic_batch) if isinstance(dynamic_batch, int) else dynamic_batch
    if not 1 <= low <= high:
        raise ValueError(f"dynamic_batch is {dynamic_batch!r}; give (least, most) rows, 1 or more, or one number")
    return low, high


def _trace(prepared: Any, inputs: Sequence[Any], low: int, high: int) -> Any:
    import torch

    axes: Optional[Tuple[Dict[int, Any], ...]] = None
    if low != high:
        batch = torch.export.Dim("batch", min=low, max=high)
        axes = tuple({0: batch} for _ in inputs)
    with torch.no_grad():
        return torch.export.export(prepared, tuple(inputs), dynamic_shapes=None if axes is None else (axes,))


def _write_onnx(program: Any, path: pathlib.Path, names: Sequence[str], outputs: Sequence[str]) -> None:
    import torch

    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns of torchvision, which is not needed
    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=list(names), output_names=list(outputs))
        assert made is not None
        made.save(str(path), external_data=False)
    finally:
        exporter.setLevel(level)


def _signature(tensors: Sequence[Any], names: Sequence[str], low: int, high: int) -> str:
    """What `src/backend/aoti_package.h` reads: "x float32 1:256,3,224,224;ids int64 1:256,128"."""
    rows = f"{low}:{high}" if low != high else str(low)
    return ";".join(
        f"{name} {str(t.dtype).split('.')[-1]} {','.join([rows, *(str(int(n)) for n in t.shape[1:])])}"
        for name, t in zip(names, tensors)
    )


def _write_package(program: Any, path: pathlib.Path, inputs: str, outputs: Sequence[str]) -> None:
    import torch

    metadata = {"DPINFER_INPUTS": inputs, "DPINFER_OUTPUTS": ";".join(outputs)}
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs={"aot_inductor.metadata": metadata}
    )


def _most_rows(program: Any, high: int) -> int:
    """How many rows the compiled code is for: compiling may have decided by their number, such as how convolutions on a
    CPU are laid out, and what it has decided holds for the example's side of the border."""
    inputs = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and "val" in n.meta]
    rows = [t.shape[0] for t in inputs if t.ndim and hasattr(t.shape[0], "node")]  # buffers may have no axis
    bounds = [n.node.shape_env.bound_sympy(n.node.expr) for n in rows]
    return min([high, *(int(b.upper) for b in bounds)])


def _compile_package(trace: Any, path: pathlib.Path, note: Any, outputs: Sequence[str], low: int, high: int) -> int:
    """Writes the package, for as many rows as its code is right for; returns how many."""
    program = trace(low, high)
    _write_package(program, path, note(low, high), outputs)
    most = _most_rows(program, high) if low != high else high
    if most < high:
        log.info("%s: the compiled code is for at most %d rows a call, and not for %d; larger batches are cut", path, most, high)
        _write_package(trace(low, most), path, note(low, most), outputs)
    return most


def _publish(write: Any, path: pathlib.Path) -> None:
    """Nothing half-written stands under its final name."""
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def compile(
    module: Any,
    example_inputs: Any,
    *,
    precision: Optional[str] = None,
    dynamic_batch: Union[None, int, Tuple[int, int]] = (1, 256),
    checkpoint: Union[None, str, "os.PathLike[str]"] = None,
    normalize: Normalize = None,
    input_format: Optional[str] = None,
    format: str = "onnx",
    output: Union[None, str, "os.PathLike[str]"] = None,
    device: Optional[str] = None,
    check: bool = True,
) -> Compiled:
    """Writes a module as a file that :class:`DataParallel`, :class:`Session` and the program open.

    The module is copied, put into eval mode and traced by ``torch.export``; then random rows go through the file and
    through the module, and :attr:`Compiled.difference` says how far apart the results are.

    Args:
        module: a ``torch.nn.Module``, or a callable that makes one.
        example_inputs: a tensor, a tuple of them, or a dict by the names of ``forward``; axis 0 are the rows. Whole
            numbers are tried up to the largest that the example has.
        precision: "fp32", "fp16" or "bf16": weights and computation in it, inputs and outputs stay as they are. None:
            the module's own.
        dynamic_batch: least and most rows of one call; one number, or None (the example's rows): fixed.
        checkpoint: file of a state dict, loaded with ``weights_only``.
        normalize: the file takes uint8 pixels 0..255 and computes ``(pixel / 255 - mean) / deviation`` inside: "imagenet"
            or (mean, deviation), one number per channel. For images, the first input.
        input_format: layout of those pixels, "NCHW" (the default) or "NHWC"; given alone, pixels are divided by 255.
        format: "onnx", or "pt2": a package of AOTInductor, compiled for `device` by the C++ compiler of this machine.
        output: the file; None: one in a temporary folder that goes with the result.
        device: "cpu" or "cuda", for "pt2"; None: the module's own.
        check: compare the file with the module; needs a backend that opens it on this machine.

    Raises:
        ModelError: the module cannot be exported (with its own message), or the file computes something else.
        BackendError: format="pt2" with a PyTorch that is older than 2.8.
        TypeError, ValueError: an argument is wrong.
    """
    import torch

    from ._module import OutputKind, Prepared

    dtypes = {None: None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision not in dtypes:
        raise ValueError(f"precision is {precision!r}; a file is exported in 'fp32', 'fp16', 'bf16' or None")
    if format not in ("onnx", "pt2"):
        raise ValueError(f"format is {format!r}; give 'onnx' or 'pt2'")
    if format == "pt2" and _is_older(torch.__version__, PACKAGES_SINCE):
        raise BackendError(f"packages need PyTorch {'.'.join(map(str, PACKAGES_SINCE))}, and this is {torch.__version__}: "
                           "pip install -U torch, or use format='onnx'")  # fmt: skip
    built = build(module, checkpoint)
    names, examples, keywords = _named_examples(built, example_inputs)
    low, high = _batch_range(dynamic_batch, int(examples[0].shape[0]))
    if format == "pt2" and 1 < low < high:
        raise ValueError(f"dynamic_batch is {dynamic_batch!r}; a package takes one row or more, or a fixed number")
    if not all(name.isidentifier() for name in names):
        raise ValueError(f"example_inputs has the names {names}; give words")
    pixels, last, examples[0] = _pixels(normalize, input_format, examples[0])
    where = torch.device(device) if device else next((p.device for p in built.parameters()), torch.device("cpu"))
    built = built.to(where)
    called = names if keywords else None
    try:
        rows = [t.to(where) for t in _random_rows(examples, min(max(low, CHECK_ROWS), high))]
        traced = [t.to(where) for t in _random_rows(examples, min(max(low, 2), high))]
        plain = Prepared(built, called, None, pixels, last).to(where)
        with torch.no_grad():
            wanted = [y.detach().cpu() for y in plain(*rows)]
        kind, dtype = plain.kind, dtypes[precision]
        assert kind is not None
        converted = built if dtype is None else built.to(dtype)
        prepared = Prepared(converted, called, kind, pixels, last, dtype).to(where).eval()
        program = _trace(prepared, traced, low, high)
    except (TypeError, ModelError):
        raise
    except Exception as problem:
        raise ModelError(f"{type(built).__name__} cannot be exported: {type(problem).__name__}: {problem}") from problem
    outputs = kind.names or (["output"] if kind.single else [f"output{i}" for i in range(len(wanted))])
    folder = None if output is not None else tempfile.TemporaryDirectory(prefix="dpinfer-")
    path = pathlib.Path(output) if output is not None else pathlib.Path(str(folder and folder.name)) / f"model.{format}"
    expected = _Expected([r.cpu() for r in rows], wanted, len(rows[0]), TOLERANCES[precision])
    try:
        if format == "onnx":
            _publish(lambda part: _write_onnx(program, part, names, outputs), path)
        else:
            trace, note = partial(_trace, prepared, traced), partial(_signature, rows, names)
            _publish(lambda part: _compile_package(trace, part, note, outputs, low, high), path)
    except OSError:
        raise
    except Exception as problem:
        raise ModelError(f"{type(built).__name__} cannot be written as {format}: {problem}") from problem
    made = Compiled(path, kind, folder, expected)
    if check:
        with Session(path, devices="cuda:0" if where.type == "cuda" and format == "pt2" else "cpu:all") as session:
            made.check(session)
    return made
