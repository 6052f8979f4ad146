"""The models that dpinfer's tests and benchmarks use, one module per kind.

MODELS maps a name to (build function, dtypes it can be written in; the first
is the default). A build function takes the parsed arguments of make_model.py
and returns a checked ModelProto.
"""
from . import encoder, identity, mlp, mobilenet, resnet, special, spread

MODELS = {
    "resnet50": (resnet.build, ("fp32", "fp16")),
    "mobilenetv2": (mobilenet.build, ("fp32", "fp16")),
    "mlp": (mlp.build, ("fp32", "fp16", "fp64", "bf16")),
    "encoder": (encoder.build, ("fp32", "fp16")),
    "batch_softmax": (special.build_batch_softmax, ("fp32", "fp16", "fp64")),
    "nonzero": (special.build_nonzero, ("fp32", "fp64")),
    "pool": (special.build_pool, ("fp32", "fp64")),
    "unsupported": (special.build_unsupported, ("fp32", "fp16")),
    "multi": (special.build_multi, ("fp32",)),
    "spread": (spread.build, ("fp32", "fp16")),
    "identity": (identity.build, ("fp32",)),
}
