"""Small files under the names that pages speak of: a network for images in ResNet-50's place, photographs, tars.
usage: make_files.py model FILE.onnx [uint8] | photos FOLDER COUNT | tars FILES ROWS | labels FILE COUNT"""
import io
import os
import pathlib
import sys
import tarfile

import numpy as np

sys.path.append(os.path.join(os.environ["DPI_SRC"], "tests", "cli"))
from image_files import photo, png


def model(path, kind="float32"):
    """pixels [N,3,224,224] (or uint8 [N,224,224,3]) -> logits [N,1000]: one convolution, and the mean of what it gives."""
    from onnx import TensorProto, helper, numpy_helper, save

    chance = np.random.default_rng(1)
    weights = {"filter": chance.normal(0, 0.05, (8, 3, 32, 32)), "classes": chance.normal(0, 1, (8, 1000))}
    nodes = [helper.make_node("Conv", ["image", "filter"], ["a"], strides=[32, 32]), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("GlobalAveragePool", ["b"], ["c"]), helper.make_node("Flatten", ["c"], ["d"]),
             helper.make_node("MatMul", ["d", "classes"], ["logits"])]  # fmt: skip
    shape, dtype, name = ["N", 3, 224, 224], TensorProto.FLOAT, "input"
    if kind == "uint8":
        shape, dtype = ["N", 224, 224, 3], TensorProto.UINT8
        nodes = [helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT),
                 helper.make_node("Transpose", ["float"], ["image"], perm=[0, 3, 1, 2]), *nodes]  # fmt: skip
    else:
        nodes[0].input[0] = name
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info(name, dtype, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def photos(folder, count):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    for i in range(int(count)):
        pathlib.Path(folder, f"{i:03}.png").write_bytes(png(photo(240 + 8 * (i % 5), 260, i)))


def tars(files, rows):
    for f in range(int(files)):
        with tarfile.open(f"shards-{f:03}.tar", "w") as out:
            for i in range(int(rows)):
                member = tarfile.TarInfo(f"{f}-{i:04}.png")
                data = png(photo(230, 250, 1000 * f + i))
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))


def labels(path, count):
    pathlib.Path(path).write_text("".join(f"class {i}\n" for i in range(int(count))))


{"model": model, "photos": photos, "tars": tars, "labels": labels}[sys.argv[1]](*sys.argv[2:])
