"""What is exported: the user's module behind plain tensors. Imports torch; only `export.py` imports it."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence, Tuple

import torch


class OutputKind:
    """How a module's result is made of tensors: one, several in a tuple or list, or several by name."""

    def __init__(self, result: Any, module: torch.nn.Module) -> None:
        self.names: Optional[List[str]] = None
        self.single = isinstance(result, torch.Tensor)
        if isinstance(result, Mapping):
            self.names = [str(name) for name in result]
        elif not isinstance(result, (torch.Tensor, tuple, list)):
            raise TypeError(self._message(module, result))
        for part in self.flat(result):
            if not isinstance(part, torch.Tensor):
                raise TypeError(self._message(module, part))

    @staticmethod
    def _message(module: torch.nn.Module, part: Any) -> str:
        return (
            f"{type(module).__name__} returns a {type(part).__name__}; dpinfer moves a tensor, a tuple of them or a dict "
            f"of them: wrap the module in one that returns that"
        )

    def flat(self, result: Any) -> Tuple[Any, ...]:
        """The tensors of a result."""
        if self.single:
            return (result,)
        return tuple(result[name] for name in self.names) if self.names else tuple(result)


class Prepared(torch.nn.Module):
    """Takes tensors by position and returns a tuple of them: pixels are cast, laid out and normalised, and floating-point
    numbers go through the module in `dtype`, all inside the graph.

    Args:
        module: the user's.
        names: keywords under which the inputs are given to it; None: by position.
        kind: what it returns; None: learnt from the first call.
        pixels: mean and standard deviation per channel for uint8 input of 0..255; None: inputs as they are.
        channels_last: pixels come as [N, H, W, C], and the module takes [N, C, H, W].
        dtype: of weights and computation; None: as they are.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        module: torch.nn.Module,
        names: Optional[Sequence[str]],
        kind: Optional[OutputKind] = None,
        pixels: Optional[Tuple[Sequence[float], Sequence[float]]] = None,
        channels_last: bool = False,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        self.module, self.names, self.kind = module, names, kind
        self.channels_last, self.dtype, self.has_pixels = channels_last, dtype, pixels is not None
        if pixels is not None:
            mean, deviation = (torch.tensor(list(values), dtype=torch.float32).reshape(1, -1, 1, 1) for values in pixels)
            self.register_buffer("scale", 1.0 / (255.0 * deviation))
            self.register_buffer("shift", -mean / deviation)

    def _input(self, x: torch.Tensor, index: int) -> torch.Tensor:
        if self.has_pixels and index == 0:
            if self.channels_last:
                x = x.permute(0, 3, 1, 2)
            x = x.to(torch.float32) * self.scale + self.shift
        return x.to(self.dtype) if self.dtype is not None and x.is_floating_point() else x

    def forward(self, *inputs: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        given = [self._input(x, i) for i, x in enumerate(inputs)]
        result = self.module(**dict(zip(self.names, given))) if self.names else self.module(*given)
        if self.kind is None:
            self.kind = OutputKind(result, self.module)
        outputs = tuple(y.contiguous() for y in self.kind.flat(result))
        if self.dtype is None:
            return outputs
        return tuple(y.to(torch.float32) if y.dtype == self.dtype else y for y in outputs)
