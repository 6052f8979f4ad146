"""Neural-network operators in numpy: NCHW, float64, forward only.

They serve to calibrate statistics, so they favour few passes over memory:
a convolution is one matrix product per image.
"""
import numpy as np


def pad2d(x, pad, value=0.0):
    """x [N,C,H,W] -> [N,C,H+2*pad,W+2*pad]."""
    if pad == 0:
        return x
    return np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=value)


def _windows(x, k, stride):
    """Views of x [N,C,H,W] as [N,C,OH,OW,k,k]."""
    views = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))
    return views[:, :, ::stride, ::stride]


def conv2d(x, w, stride=1, pad=0):
    """x [N,C,H,W], w [M,C,k,k] -> [N,M,OH,OW]."""
    m, c, k, _ = w.shape
    views = _windows(pad2d(x, pad), k, stride)
    n, _, oh, ow = views.shape[:4]
    out = np.empty((n, m, oh, ow), x.dtype)
    flat = w.reshape(m, c * k * k)
    for i in range(n):
        columns = views[i].transpose(0, 3, 4, 1, 2).reshape(c * k * k, oh * ow)
        out[i] = (flat @ columns).reshape(m, oh, ow)
    return out


def depthwise2d(x, w, stride=1, pad=0):
    """x [N,C,H,W], w [C,1,k,k] -> [N,C,OH,OW]: each channel by itself."""
    k = w.shape[2]
    views = _windows(pad2d(x, pad), k, stride)
    out = np.zeros(views.shape[:4], x.dtype)
    for i in range(k):
        for j in range(k):
            out += views[..., i, j] * w[:, 0, i, j].reshape(1, -1, 1, 1)
    return out


def maxpool2d(x, k, stride, pad):
    """x [N,C,H,W] -> [N,C,OH,OW]; padding never wins."""
    views = _windows(pad2d(x, pad, -np.inf), k, stride)
    out = views[..., 0, 0].copy()
    for i in range(k):
        for j in range(k):
            np.maximum(out, views[..., i, j], out=out)
    return out


def round_bits(x, bits):
    """x with its mantissa rounded to `bits` bits.

    A float64 sum differs in its last bits between machines (the order of
    additions is the BLAS library's); rounded to 16 bits it practically does not.
    """
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
