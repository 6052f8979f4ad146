"""Modules of PyTorch: exported, compared, called like themselves. Skipped where torch is not installed."""
import collections
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (tools/deps.sh test)", exc_type=ImportError)
pytest.importorskip("openvino")
import dpinfer  # noqa: E402
from torch import nn  # noqa: E402


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)

    def forward(self, image):
        return self.body(image)


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(6, 3)

    def forward(self, x, shift):
        a, b = self.linear(x) + shift, x.sum(1)
        return self.kind(a, b)


class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("the module's own words")


IMAGES = torch.rand(2, 3, 8, 8)


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.fixture(scope="module")
def parallel(net):
    with dpinfer.DataParallel(net, example_inputs=IMAGES) as opened:
        yield opened


def test_module_is_what_it_was(net, parallel):
    x = torch.randn(70, 3, 8, 8)
    y = parallel(x)
    assert isinstance(y, torch.Tensor) and y.dtype == torch.float32
    torch.testing.assert_close(y, net(x), rtol=1e-4, atol=1e-4)
    assert parallel.difference is not None and parallel.difference < 1e-4
    np.testing.assert_array_equal(parallel(x.numpy()), y.numpy())
    assert net.training, "the caller's module is left as it was"


def test_kinds_of_memory(parallel):
    x = torch.randn(6, 8, 8, 3).permute(0, 3, 1, 2)  # not C-ordered
    y = parallel(x)
    np.testing.assert_array_equal(parallel(x.contiguous()), y)
    np.testing.assert_array_equal(parallel(memoryview(np.ascontiguousarray(x.numpy()))), y)
    inside = torch.from_numpy(dpinfer.empty(parallel, x.shape))
    inside[:] = x
    out = torch.from_numpy(dpinfer.empty(parallel, (6, 5), direction="output"))
    given = parallel(inside, out=[out])
    np.testing.assert_array_equal(given, y)
    assert given.data_ptr() == out.data_ptr(), "results stand where they were wanted"
    assert parallel(x.clone().requires_grad_()).requires_grad is False


def test_wrong_outputs_and_tensors(parallel):
    x = torch.randn(6, 3, 8, 8)
    with pytest.raises(ValueError, match="output"):
        parallel(x, out=[torch.empty(5, 6).T])
    with pytest.raises(ValueError, match="float32"):
        parallel(x, out=[np.empty((6, 5))])
    with pytest.raises(ValueError, match="float32"):
        parallel(x.double())
    with pytest.raises(TypeError, match="sparse"):
        parallel(x.to_sparse())


@pytest.mark.parametrize(
    "kind",
    [lambda a, b: (a, b), lambda a, b: {"logits": a, "sum": b}, lambda a, b: collections.OrderedDict(one=a, two=b)],
    ids=["tuple", "dict", "ordered"],
)
def test_results_have_the_modules_form(kind):
    module = Several(kind).eval()
    x, shift = torch.randn(9, 6), torch.randn(9, 3)
    want = module(x, shift)
    with dpinfer.DataParallel(module, devices="cpu:0", example_inputs=(x, shift)) as model:
        for got in (model(x, shift), model(shift=shift, x=x), model({"x": x, "shift": shift})):
            if isinstance(want, tuple):
                assert isinstance(got, tuple)
                got, expected = list(got), list(want)
            else:
                assert list(got) == list(want)
                got, expected = list(got.values()), list(want.values())
            for g, w in zip(got, expected):
                torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


def test_callable_and_checkpoint(tmp_path):
    other = Net(seed=7).eval()
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    x = torch.randn(5, 3, 8, 8)
    with dpinfer.DataParallel(Net, devices="cpu:0", example_inputs=IMAGES, checkpoint=tmp_path / "weights.pt") as model:
        torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-4)
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(dpinfer.ModelError, match="other.pt is no checkpoint of Net"):
        dpinfer.compile(Net, IMAGES, checkpoint=tmp_path / "other.pt")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels_go_in(tmp_path, net, layout):
    made = dpinfer.compile(net, IMAGES, normalize="imagenet", input_format=layout, output=tmp_path / "u8.onnx")
    assert made.difference < 1e-3 and [f.name for f in tmp_path.iterdir()] == ["u8.onnx"]
    pixels = torch.randint(0, 256, (7, 8, 8, 3), dtype=torch.uint8)
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    want = net((pixels.permute(0, 3, 1, 2) / 255 - mean) / deviation)
    with dpinfer.DataParallel(made, devices="cpu:0") as model:
        got = model(pixels if layout == "NHWC" else pixels.permute(0, 3, 1, 2))
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(dpinfer.ModelError, match="Raises cannot be exported.*own words"):
        dpinfer.compile(Raises(), torch.zeros(2, 3), output=tmp_path / "m.onnx")
    with pytest.raises(TypeError, match="returns a str"):
        dpinfer.compile(Several(lambda a, b: "text"), (torch.zeros(2, 6), torch.zeros(2, 3)))
    with pytest.raises(TypeError, match="example_inputs"):
        dpinfer.DataParallel(Net())
    with pytest.raises(ValueError, match="number of rows"):
        dpinfer.compile(Several(lambda a, b: a), (torch.zeros(2, 6), torch.zeros(3, 3)))
    for wrong in ({"precision": "fp8"}, {"format": "tf"}, {"input_format": "HWC"}, {"normalize": ((0,), (1,))},
                  {"dynamic_batch": (4, 2)}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dpinfer.compile(Net(), IMAGES, **wrong)
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_a_file_that_computes_something_else_is_refused(tmp_path, net):
    made = dpinfer.compile(net, IMAGES, output=tmp_path / "m.onnx", check=False)
    other = dpinfer.compile(Net(seed=3), IMAGES, check=False)
    with dpinfer.Session(made, devices="cpu:0") as session:
        assert made.check(session) < 1e-4
        with pytest.raises(dpinfer.ModelError, match="does not compute what the module computes"):
            other.check(session)
    assert f"{made.difference:.2g}" in repr(made) and str(made.path) in repr(made)


def test_rows_that_depend_on_each_other_are_refused():
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0, keepdim=True)

    with pytest.raises(dpinfer.ModelError, match="row"):
        dpinfer.DataParallel(Centred(), example_inputs=torch.randn(4, 3))


def test_fixed_batch(net):
    made = dpinfer.compile(net, IMAGES, dynamic_batch=4)
    x = torch.randn(11, 3, 8, 8)
    with dpinfer.DataParallel(made, devices="cpu:0") as model:
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-4)


def test_import_brings_no_torch():
    code = "import sys, dpinfer; assert 'torch' not in sys.modules and 'onnx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def package(tmp_path_factory, net):
    return dpinfer.compile(net, IMAGES, format="pt2", output=tmp_path_factory.mktemp("aoti") / "m.pt2")


def test_package_needs_a_newer_pytorch(net, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.7.1+cpu")
    with pytest.raises(dpinfer.BackendError, match=r"PyTorch 2\.8, and this is 2\.7\.1"):
        dpinfer.compile(net, torch.zeros(4, 3, 16, 16), format="pt2")


def test_package_of_aotinductor(net, package):
    assert package.difference < 1e-4
    x = torch.randn(300, 3, 8, 8)  # more than the package takes at once
    with dpinfer.DataParallel(package, devices="cpu:0,cpu:1" if len(os.sched_getaffinity(0)) > 1 else "cpu:0") as model:
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-4)
        assert model.session.input_names == ("image",) and model.session.output_names == ("output",)
        with pytest.raises(ValueError, match="image"):
            model(torch.randn(2, 3, 9, 8))


def test_package_is_refused_by_reason(package, tmp_path):
    with pytest.raises(dpinfer.Error, match="compiled already"):
        dpinfer.Session(package, devices="cpu:0", precision="bf16")
    with pytest.raises(dpinfer.ArgumentError, match="knows: inputs"):
        dpinfer.Session(package, devices="cpu:0", backend_options={"nothing": 1})
    with pytest.raises(dpinfer.ModelError, match="takes 1 inputs, and 2 are described"):
        note = "image float32 1:8,3,8,8;more float32 1:8,2"
        dpinfer.Session(package, devices="cpu:0", backend_options={"inputs": note})
    (tmp_path / "cut.pt2").write_bytes(package.path.read_bytes()[:-100])
    with pytest.raises(dpinfer.ModelError, match="cut.pt2 is no whole .pt2 package"):
        dpinfer.Session(tmp_path / "cut.pt2", devices="cpu:0")


def test_package_in_bf16(net):
    made = dpinfer.compile(net, IMAGES, format="pt2", precision="bf16", dynamic_batch=(1, 8), check=False)
    with dpinfer.DataParallel(made, devices="cpu:0") as model:
        x = torch.randn(5, 3, 8, 8)
        torch.testing.assert_close(model(x), net(x), rtol=0.1, atol=0.1)
        assert 0 < made.check(model.session) < 0.1
