"""Images on CPUs: decoding alone (a), the model alone (b), both through dpinfer against 1/(1/a + 1/b), and PyTorch's
DataLoader with torchvision on the same files and net. usage: bench/images.sh [--rounds N] [--images N] [--net NAME]"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--images", type=int, default=400)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--net", default="mobilenet_v2")
parser.add_argument("--devices", default="auto")
parser.add_argument("--no-torch", action="store_true")
parser.add_argument("--dpinfer", default="build/dpinfer")
arguments = parser.parse_args()
folder = pathlib.Path("build/bench/images")
folder.mkdir(parents=True, exist_ok=True)


def photographs():
    """Copies of the photographs that scikit-image and scikit-learn ship, as JPEG of several sizes."""
    from PIL import Image

    names = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
             "motorcycle_right.png", "retina.jpg", "rocket.jpg", "china.jpg", "flower.jpg")
    packages = pathlib.Path(".deps/images")
    found = [p for n in names for p in (packages / "skimage/data" / n, packages / "sklearn/datasets/images" / n) if p.exists()]
    out = folder / f"photos-{arguments.images}"
    if not out.exists():
        part = out.with_suffix(".part")
        part.mkdir(exist_ok=True)
        for i in range(arguments.images):
            image = Image.open(found[i % len(found)]).convert("RGB")
            side = (320, 500, 640, 1024)[i // len(found) % 4]
            factor = side / max(image.size)
            image = image.resize((round(image.width * factor), round(image.height * factor)), Image.LANCZOS)
            image.save(part / f"{i:05}.jpg", quality=90)
        part.rename(out)
    return out


def net():
    """torchvision's net with weights from a seed, for PyTorch and as ONNX for dpinfer."""
    import torch
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, arguments.net)(weights=None).eval()
    path = folder / f"{arguments.net}.onnx"
    if not path.exists():
        torch.onnx.export(model, (torch.zeros(2, 3, 224, 224),), path, input_names=["x"], output_names=["y"], dynamo=True,
                          dynamic_shapes=({0: torch.export.Dim("N")},), external_data=False)
    return model, path


def run(model, source, *more):
    words = [arguments.dpinfer, "run", model, "--input", str(source), "--output", "none", "--batch", str(arguments.batch),
             "--json", "-q", *more]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.returncode}")
    return json.loads(done.stdout)


def torch_rate(model, photos):
    import torch
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms
    from torchvision.datasets.folder import default_loader

    prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
                                  transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])

    class Files(Dataset):
        names = sorted(photos.iterdir())

        def __len__(self):
            return len(self.names)

        def __getitem__(self, i):
            return prepare(default_loader(self.names[i]))

    best = 0
    for workers in (1, 2):
        loader = DataLoader(Files(), batch_size=arguments.batch, num_workers=workers)
        with torch.inference_mode():
            model(next(iter(loader)))
            began = time.monotonic()
            for batch in loader:
                model(batch)
        best = max(best, len(Files()) / (time.monotonic() - began))
    return best


def main():
    import numpy

    photos, (model, path) = photographs(), net()
    cpus = len(__import__("os").sched_getaffinity(0))
    nothing, ready = folder / "nothing.sim", folder / "ready.npy"
    nothing.write_text("input x float32 N 3 224 224\noutput y float32 N 1\ntouch none\n")
    if not ready.exists() or len(numpy.load(ready, mmap_mode="r")) != arguments.images:
        numpy.save(ready, numpy.random.default_rng(0).standard_normal((arguments.images, 3, 224, 224), numpy.float32))
    how = ("--preprocess", "imagenet")
    rounds = []
    for _ in range(arguments.rounds):
        # Each worker's own thread decodes: helpers are niced, and would lose to whatever else is on the machine.
        a = run(nothing, photos, *how, "--devices", f"sim:0*{cpus}", "--loader-threads", "1")["rows_per_s"]
        b = run(path, ready, "--devices", arguments.devices)["rows_per_s"]
        both = run(path, photos, *how, "--devices", arguments.devices)
        one = {"decode": a, "model": b, "both": both["rows_per_s"], "ratio": both["rows_per_s"] * (1 / a + 1 / b),
               "loading_share": both["loading_share"]}
        if not arguments.no_torch:
            one["torch"] = torch_rate(model, photos)
            one["to_torch"] = one["both"] / one["torch"]
        rounds.append(one)
        print(json.dumps(one), flush=True)
    for key in rounds[0]:
        values = sorted(r[key] for r in rounds)
        print(f"{key:14} median {statistics.median(values):8.3f}   {values[0]:8.3f} to {values[-1]:8.3f}")


sys.exit(main())
