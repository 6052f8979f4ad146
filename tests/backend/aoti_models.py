"""The conformance suite's models as packages of AOTInductor.

  aoti_models.py FOLDER        writes FOLDER/NAME.pt2 for each; those that are newer than this script stay
"""
import os
import pathlib
import sys

DTYPES = "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64".split()
NAMES = ["mlp", "mlp4", "multi", "scale", "dynamic", "encoder", "nonzero", "strided", *(f"identity-{d}" for d in DTYPES)]

folder, source = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).resolve().parents[2]
written = {path.stem: path.stat().st_mtime for path in folder.glob("*.pt2")}
lacking = [name for name in NAMES if written.get(name, 0) < pathlib.Path(__file__).stat().st_mtime]
if not lacking:
    sys.exit(0)  # without torch, which takes seconds to import
sys.path.insert(0, str(source / ".deps" / "torch"))
try:
    import torch
except ImportError as missing:
    print(f"aoti_models.py: {missing}: PyTorch is not installed (tools/deps.sh test)", file=sys.stderr)
    sys.exit(77)
from torch import nn  # noqa: E402

ROWS, WIDTH = torch.export.Dim("rows", min=1, max=256), torch.export.Dim("width", min=1, max=128)


class Multi(nn.Module):
    def forward(self, x, k):
        total = k.sum(1)
        y = x + total.to(torch.float32)[:, None]
        return y, y > 0, total


class Scale(nn.Module):
    def forward(self, x, s):
        return x * s


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(100, 64), nn.Linear(64, 64)

    def forward(self, ids, mask):
        weight = mask.to(torch.float32)[:, :, None]
        return self.linear((self.table(ids) * weight).sum(1) / (weight.sum(1) + 1))


class Nonzero(nn.Module):
    def forward(self, x):
        return torch.nonzero(x > 0)


class Identity(nn.Module):
    def forward(self, x):
        return x.clone()


class Strided(nn.Module):
    def forward(self, x):
        return (x * 2).transpose(1, 2)  # not in C order


def models():
    """Name, module, example inputs, free axes of each, note of the inputs, names of the outputs."""
    rows, free = {0: ROWS}, {0: ROWS, 1: WIDTH}
    mlp = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    x4, k, ids = torch.randn(2, 4), torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    yield "mlp", mlp, (torch.randn(2, 64),), (rows,), "input float32 1:256,64", "output"
    yield "mlp4", mlp, (torch.randn(4, 64),), None, "input float32 4,64", "output"
    yield "multi", Multi(), (x4, k), (rows, rows), "x float32 1:256,4;k int64 1:256,3", "sum;positive;total"
    yield "scale", Scale(), (x4, torch.ones(4)), (rows, None), "x float32 1:256,4;s float32 4", "y"
    yield "dynamic", nn.ReLU(), (torch.randn(2, 5),), (free,), "x float32 1:256,1:128", "y"
    yield "encoder", Encoder(), (ids, ids), (free, free), "ids int64 1:256,1:128;mask int64 1:256,1:128", "output"
    yield "nonzero", Nonzero(), (torch.randn(2, 8),), (rows,), "x float32 1:256,8", "y"
    yield "strided", Strided(), (torch.randn(2, 3, 4),), (rows,), "x float32 1:256,3,4", "y"
    for name in DTYPES:
        x = torch.ones(2, 3, 4).to(getattr(torch, name))
        yield f"identity-{name}", Identity(), (x,), (rows,), f"x {name} 1:256,3,4", "y"


torch.manual_seed(1)
for name, module, inputs, free_axes, note, outputs in models():
    if name not in lacking:
        continue
    part = folder / f".{name}.{os.getpid()}.pt2"
    settings = {"aot_inductor.metadata": {"DPINFER_INPUTS": note, "DPINFER_OUTPUTS": outputs}}
    with torch.no_grad():
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=free_axes)
    torch._inductor.aoti_compile_and_package(program, package_path=str(part), inductor_configs=settings)
    part.rename(folder / f"{name}.pt2")
