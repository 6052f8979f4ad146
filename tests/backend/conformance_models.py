"""Small ONNX models that only the conformance suite needs.

  conformance_models.py scale|dynamic|doubled|hostile OUT.onnx
"""
import sys

try:
    from onnx import TensorProto, helper
except ImportError as missing:
    print("conformance_models.py: {}: install the Python package onnx".format(missing), file=sys.stderr)
    sys.exit(77)


def port(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def scale():
    """y [N,4] = x [N,4] * s [4]: s is an input that is the same for every row."""
    node = helper.make_node("Mul", ["x", "s"], ["y"])
    return helper.make_graph([node], "scale", [port("x", ["N", 4]), port("s", [4])], [port("y", ["N", 4])])


def dynamic():
    """y = relu(x), of any width."""
    node = helper.make_node("Relu", ["x"], ["y"])
    return helper.make_graph([node], "dynamic", [port("x", ["N", "S"])], [port("y", ["N", "S"])])


def doubled():
    """y = x beside x: [N,S] -> [N,?], an extent that the model does not say."""
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=1)
    return helper.make_graph([node], "doubled", [port("x", ["N", "S"])], [port("y", ["N", None])])


def hostile():
    """A weight that claims 2^50 elements and has four bytes."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 25, 1 << 25], raw_data=b"1234")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return helper.make_graph([node], "hostile", [port("x", ["N", 1 << 25])], [port("y", ["N", 1 << 25])], [weight])


def main(argv):
    models = {"scale": scale, "dynamic": dynamic, "doubled": doubled, "hostile": hostile}
    if len(argv) != 3 or argv[1] not in models:
        print(__doc__, file=sys.stderr)
        return 2
    model = helper.make_model(models[argv[1]](), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with open(argv[2], "wb") as f:
        f.write(model.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
