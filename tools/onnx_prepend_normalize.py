#!/usr/bin/env python3
"""Lets an image model take uint8 pixels: puts cast, layout change, mean and scale in front of its input.

  onnx_prepend_normalize.py IN.onnx OUT.onnx [--input NAME] [--layout NHWC|NCHW]
                            [--mean r,g,b] [--std r,g,b] [--scale 255]

A pixel p of channel c becomes (p / scale - mean[c]) / std[c], folded into one Mul and one Add. By default the
input is the only float16 or float32 input of four axes, pixels are NHWC as image decoders write them, and mean and
standard deviation are ImageNet's. Pixels are a quarter of the bytes of fp32 on the way to a device.

  NAME uint8 [N,H,W,C] -> Cast to float32 -> Transpose (NHWC only) -> Mul -> Add -> (Cast to float16) -> the model

NAME keeps its name and its place among the inputs, its batch axis, height and width. What read NAME before reads
NAME.normalize now. All else stays as it is, bit for bit: weights, opset, IR version, metadata. Weights in a file of
their own (external data) are neither read nor written, so OUT.onnx must be in the same folder as IN.onnx.

Why this order: TensorRT takes uint8 for inputs only, if a Cast is the first that reads them, and ONNX Runtime is
slow where a Mul's last axis is the three channels. Needs the packages onnx and numpy. OUT.onnx gets its name only
when it is whole. Exit codes: 0 done, 1 not written, 2 a mistake (one sentence says which), 77 a package is missing.
"""
import argparse
import math
import os
import sys

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_SKIP = 77

try:
    import numpy as np
    from google.protobuf.message import DecodeError, EncodeError
    from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
except ImportError as missing:
    print(f"onnx_prepend_normalize.py: {missing}: install the Python packages onnx and numpy", file=sys.stderr)
    sys.exit(EXIT_SKIP)

OLDEST_OPSET = 7  # before it Add and Mul broadcast only where an attribute says so
STANDARD_DOMAINS = ("", "ai.onnx")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
CHANNEL_AXIS = 1
TO_NCHW = [0, 3, 1, 2]
TO_NHWC = [0, 2, 3, 1]
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


class Mistake(Exception):
    """What the user can put right, in one sentence."""


class Parser(argparse.ArgumentParser):
    """Says one sentence, without the usage, as every other mistake does."""

    def error(self, message):
        raise Mistake(message)


def numbers(text):
    """'0.5,0.4,0.3' -> [0.5, 0.4, 0.3]."""
    values = [float(part) for part in text.split(",")]
    if not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return values


def parse(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN.onnx")
    parser.add_argument("target", metavar="OUT.onnx")
    parser.add_argument("--input", metavar="NAME", help="default: the only float input of four axes")
    parser.add_argument("--layout", choices=("NHWC", "NCHW"), default="NHWC", help="of the pixels; default NHWC")
    parser.add_argument("--mean", type=numbers, default=IMAGENET_MEAN, help="of each channel, after the scale")
    parser.add_argument("--std", type=numbers, default=IMAGENET_STD, help="of each channel, after the scale")
    parser.add_argument("--scale", type=float, default=255.0, help="what pixels are divided by first; default 255")
    args = parser.parse_args(argv)
    if len(args.mean) != len(args.std):
        raise Mistake(f"--mean has {len(args.mean)} values and --std has {len(args.std)}: give one for each channel")
    if not math.isfinite(args.scale) or 0 in [args.scale, *args.std]:
        raise Mistake("--std and --scale are divided by: they must be finite and not 0")
    return args


def read(path):
    """The model as it stands in its file; external data is not looked at."""
    model = ModelProto()
    try:
        with open(path, "rb") as file:
            model.ParseFromString(file.read())
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}") from None
    except DecodeError:
        raise Mistake(f"{path} is not an ONNX model, or holds more than 2 GB by itself") from None
    if not model.HasField("graph"):
        raise Mistake(f"{path} is not an ONNX model: it has no graph")
    return model


def graphs_of(graph):
    """The graph and all graphs inside its nodes (branches, loop bodies)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                yield from graphs_of(inner)


def tensors_of(model):
    """Every tensor that the file holds or refers to: initializers, sparse ones, attributes, also of functions."""
    nodes = [node for function in model.functions for node in function.node]
    bodies = [inner for node in nodes for a in node.attribute for inner in [a.g] * a.HasField("g") + list(a.graphs)]
    for graph in [each for top in [model.graph, *bodies] for each in graphs_of(top)]:
        nodes.extend(graph.node)
        yield from graph.initializer
        yield from (part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices))
    for attribute in (a for node in nodes for a in node.attribute):
        yield from [attribute.t] * attribute.HasField("t") + list(attribute.tensors)


def external_files(model):
    """Where the model keeps weights outside itself, as it writes it: relative to its own folder."""
    entries = (e for t in tensors_of(model) if t.data_location == TensorProto.EXTERNAL for e in t.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location"})


def folder_of(path):
    """Where a path leads to; of the file itself no link is followed, as runtimes look for weights beside it."""
    return os.path.realpath(os.path.dirname(os.path.abspath(path)))


def check_paths(source, target, external):
    """Refuses to write over what is read, or away from weights that the model names relative to itself."""
    folder, real = folder_of(source), os.path.realpath(target)
    if os.path.exists(target) and not os.path.isfile(target):
        raise Mistake(f"{target} is not a regular file: give the result another name")
    if real == os.path.realpath(source):
        raise Mistake(f"{target} is the model itself: give the result another name")
    if real in [os.path.realpath(os.path.join(folder, name)) for name in external]:
        raise Mistake(f"{target} holds the model's weights: give the result another name")
    if external and folder_of(target) != folder:
        raise Mistake(f"the model keeps its weights in {', '.join(external)} beside it: write the result into the same "
                      f"folder, {folder}")


def check_opset(model):
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    if not versions:
        raise Mistake("the model imports no standard operators, so that none can be put in front of it")
    if max(versions) < OLDEST_OPSET:
        raise Mistake(f"the model is of opset {max(versions)}: {OLDEST_OPSET} is the oldest whose Mul and Add broadcast; "
                      "convert it with onnx.version_converter")


def dims(port):
    return port.type.tensor_type.shape.dim


def describe(port):
    """'image float32 [N,3,224,224]'"""
    if not port.type.HasField("tensor_type"):
        return f"{port.name} (not a tensor)"
    kind = TensorProto.DataType.Name(port.type.tensor_type.elem_type).lower()
    axes = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims(port)]
    shape = f"[{','.join(axes)}]" if port.type.tensor_type.HasField("shape") else "of unknown shape"
    return f"{port.name} {'float32' if kind == 'float' else kind} {shape}"


def find_input(graph, name):
    """The image input: the one named, or the only one that can be meant."""
    stored = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    ports = [port for port in graph.input if port.name not in stored]
    listed = "; ".join(map(describe, ports)) or "none"
    if name is not None:
        chosen = [port for port in ports if port.name == name]
        if not chosen:
            raise Mistake(f"the model has no input {name}; its inputs: {listed}")
        return chosen[0]
    images = [port for port in ports if len(dims(port)) == 4 and port.type.tensor_type.elem_type in FLOATS]
    if len(images) > 1:
        raise Mistake(f"several inputs may be the image, choose one with --input: {'; '.join(map(describe, images))}")
    if not images:
        raise Mistake(f"no input is float16 or float32 with four axes, as images are; the model's inputs: {listed}")
    return images[0]


def check_input(graph, port, channels):
    """Refuses an input that is no image of `channels` channels, or that cannot be replaced."""
    kind = port.type.tensor_type.elem_type
    if kind == TensorProto.UINT8:
        raise Mistake(f"the input takes uint8 already: {describe(port)}")
    if kind not in FLOATS:
        raise Mistake(f"the input is neither float16 nor float32: {describe(port)}")
    if len(dims(port)) != 4:
        raise Mistake(f"the input has not the four axes N,C,H,W: {describe(port)}")
    axis = dims(port)[CHANNEL_AXIS]
    if axis.HasField("dim_value") and axis.dim_value != channels:
        raise Mistake(f"the input has {axis.dim_value} channels (axis 1 of N,C,H,W) but --mean and --std have {channels} "
                      f"values: {describe(port)}")
    if any(output.name == port.name for output in graph.output):
        raise Mistake(f"the input is also an output of the model, which would become uint8: {describe(port)}")


def names_of(graph):
    """Every name of a tensor or a node in the graph and the graphs inside it."""
    names = set()
    for each in graphs_of(graph):
        for thing in [*each.input, *each.output, *each.value_info, *each.initializer, *each.node]:
            names.add(thing.name)
        names.update(t.values.name for t in each.sparse_initializer)
        names.update(name for node in each.node for name in [*node.input, *node.output])
    return names


def rename_uses(graph, old, new):
    """Lets all that read tensor `old` read `new`, also inside branches and loop bodies."""
    for each in graphs_of(graph):
        for node in each.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
        for info in each.value_info:
            if info.name == old:
                info.name = new
        for note in each.quantization_annotation:
            if note.tensor_name == old:
                note.tensor_name = new
        if each is not graph:
            for output in each.output:  # a branch may hand an outer tensor on
                if output.name == old:
                    output.name = new


class Chain:
    """The nodes in front of the model, with the shape of what each writes."""

    def __init__(self, port, channels):
        self.name, self.prefix = port.name, port.name + ".normalize"
        self.last = port.name
        self.nodes, self.infos = [], []
        self.shape = ValueInfoProto()
        self.shape.CopyFrom(port)
        if not dims(self.shape)[CHANNEL_AXIS].HasField("dim_value"):
            dims(self.shape)[CHANNEL_AXIS].dim_value = channels
        self.elem = TensorProto.UINT8

    def info(self, name):
        """The shape as it is now, as a port or a note called `name`."""
        info = ValueInfoProto(name=name)
        info.type.CopyFrom(self.shape.type)
        info.type.tensor_type.elem_type = self.elem
        return info

    def permute(self, order):
        old = [type(dim).FromString(dim.SerializeToString()) for dim in dims(self.shape)]
        for dim, axis in zip(dims(self.shape), order):
            dim.CopyFrom(old[axis])

    def constant(self, part, values):
        """[C] numbers of double precision -> a float32 constant [1,C,1,1]; returns its name."""
        name = f"{self.prefix}.{part}"
        value = numpy_helper.from_array(np.array(values, np.float64).astype("<f4").reshape(1, -1, 1, 1), name)
        self.nodes.append(helper.make_node("Constant", [], [name], name=name, value=value))
        return name

    def node(self, op, out, *more, **attributes):
        name = f"{self.prefix}.{out}"
        self.nodes.append(helper.make_node(op, [self.last, *more], [name], name=name, **attributes))
        self.last = name

    def note(self):
        """Notes the shape of the tensor that was written last."""
        self.infos.append(self.info(self.last))


def build_chain(port, args):
    """port: the model's own input. Returns (the new input, nodes, their shapes); the last node writes .prefix."""
    chain = Chain(port, len(args.mean))
    model_elem = port.type.tensor_type.elem_type
    if args.layout == "NHWC":
        chain.permute(TO_NHWC)
    pixels = chain.info(port.name)
    chain.elem = TensorProto.FLOAT
    chain.node("Cast", "float", to=TensorProto.FLOAT)
    chain.note()
    if args.layout == "NHWC":
        chain.permute(TO_NCHW)
        chain.node("Transpose", "nchw", perm=TO_NCHW)
        chain.note()
    factor = chain.constant("factor", [1 / (args.scale * std) for std in args.std])
    chain.node("Mul", "scaled", factor)
    chain.note()
    chain.node("Add", "shifted", chain.constant("shift", [-mean / std for mean, std in zip(args.mean, args.std)]))
    if model_elem != TensorProto.FLOAT:
        chain.note()
        chain.elem = model_elem
        chain.node("Cast", "cast", to=model_elem)
    chain.nodes[-1].output[0] = chain.last = chain.prefix
    chain.note()
    return pixels, chain


def prepend(model, args):
    """Changes `model` as the module's text says."""
    graph = model.graph
    check_opset(model)
    port = find_input(graph, args.input)
    check_input(graph, port, len(args.mean))
    pixels, chain = build_chain(port, args)
    taken = names_of(graph)
    clash = sorted({name for node in chain.nodes for name in [node.name, *node.output] if name in taken})
    if clash:
        raise Mistake(f"the model has the name {clash[0]} already, which a new node needs")
    noted = len(graph.value_info) > 0
    rename_uses(graph, port.name, chain.last)
    port.type.CopyFrom(pixels.type)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend(chain.nodes + rest)
    if noted:
        known = {info.name for info in graph.value_info}
        graph.value_info.extend(info for info in chain.infos if info.name not in known)
    return port


def write(path, content):
    """`path` has its old content, or all of the new one."""
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def main(argv):
    try:
        args = parse(argv)
        model = read(args.source)
        check_paths(args.source, args.target, external_files(model))
        port = prepend(model, args)
        write(args.target, model.SerializeToString(deterministic=True))
    except Mistake as mistake:
        print(f"onnx_prepend_normalize.py: {mistake}", file=sys.stderr)
        return EXIT_MISTAKE
    except (OSError, EncodeError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"onnx_prepend_normalize.py: {args.target}: {reason}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{args.target}: {describe(port)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
