"""Loops over one tile of a few planes: the arithmetic of the kernels.

Each function is one loop over arrays of the same length, so that LLVM can vectorise it. Planes are
stored in the type in which the kernels compute, or in bfloat16 (an array of uint16). `load` and
`store` convert from and to bfloat16; for the other types they do nothing.

The flags in `FAST` allow LLVM to change the order of sums. They do not allow it to assume that
there are no NaNs, so that NaNs of a network that has diverged are not lost.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

FAST = {"reassoc", "contract", "arcp", "nsz"}
jit = numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")

_BITS = ir.IntType(32)


def _load(context: Any, stored: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Convert a stored number to the type of the computation.

    The bits of a bfloat16 are the upper half of those of a float32.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] != types.uint16:
            return args[0]
        bits = builder.shl(builder.zext(args[0], _BITS), _BITS(16))
        return builder.bitcast(bits, ir.FloatType())

    return (types.float32 if stored == types.uint16 else stored)(stored), generate


def _store(context: Any, array: types.Array, value: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Convert a number to the type of an array. Bfloat16 is rounded to nearest, ties to even."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0].dtype != types.uint16:
            return args[1]
        bits = builder.bitcast(args[1], _BITS)
        odd = builder.and_(builder.lshr(bits, _BITS(16)), _BITS(1))
        rounded = builder.add(bits, builder.add(odd, _BITS(0x7FFF)))
        # Rounding up the bits of a NaN could give the bits of a number.
        number = builder.fcmp_ordered("ord", args[1], args[1])
        bits = builder.select(number, rounded, _BITS(0x7FC00000))
        return builder.trunc(builder.lshr(bits, _BITS(16)), ir.IntType(16))

    return array.dtype(array, value), generate


# The type is Any, because kernels call them without the argument ``context``.
load: Any = intrinsic(_load)
store: Any = intrinsic(_store)


# Forward: weighted sums of one, two, four or eight shifted planes. If four planes are added at a
# time, the sum is loaded and stored a quarter as often.


@jit
def set1(out, x0, w0):
    for i in range(out.size):
        out[i] = w0 * x0[i]


@jit
def add1(out, x0, w0):
    for i in range(out.size):
        out[i] += w0 * x0[i]


@jit
def set2(out, x0, x1, w0, w1):
    for i in range(out.size):
        out[i] = w0 * x0[i] + w1 * x1[i]


@jit
def add2(out, x0, x1, w0, w1):
    for i in range(out.size):
        out[i] += w0 * x0[i] + w1 * x1[i]


@jit
def set4(out, x0, x1, x2, x3, w0, w1, w2, w3):
    for i in range(out.size):
        out[i] = w0 * x0[i] + w1 * x1[i] + (w2 * x2[i] + w3 * x3[i])


@jit
def add4(out, x0, x1, x2, x3, w0, w1, w2, w3):
    for i in range(out.size):
        out[i] += w0 * x0[i] + w1 * x1[i] + (w2 * x2[i] + w3 * x3[i])


@jit
def add8(out, x0, x1, x2, x3, x4, x5, x6, x7, w0, w1, w2, w3, w4, w5, w6, w7):
    for i in range(out.size):
        low = w0 * x0[i] + w1 * x1[i] + (w2 * x2[i] + w3 * x3[i])
        high = w4 * x4[i] + w5 * x5[i] + (w6 * x6[i] + w7 * x7[i])
        out[i] += low + high


@jit
def masked_sums(y, acc, mask):
    """y = acc * mask. Returns the sums of y and of its squares."""
    s = mask.dtype.type(0)
    q = s
    for i in range(acc.size):
        v = acc[i] * mask[i]
        y[i] = store(y, v)
        s += v
        q += v * v
    return s, q


@jit
def only1(y, x0, w0, mask):
    """Compute `set1` and `masked_sums` in one loop, for a filter with one weight."""
    s = mask.dtype.type(0)
    q = s
    for i in range(y.size):
        v = w0 * x0[i] * mask[i]
        y[i] = store(y, v)
        s += v
        q += v * v
    return s, q


@jit
def only2(y, x0, x1, w0, w1, mask):
    s = mask.dtype.type(0)
    q = s
    for i in range(y.size):
        v = (w0 * x0[i] + w1 * x1[i]) * mask[i]
        y[i] = store(y, v)
        s += v
        q += v * v
    return s, q


@jit
def only3(y, x0, x1, x2, w0, w1, w2, mask):
    s = mask.dtype.type(0)
    q = s
    for i in range(y.size):
        v = (w0 * x0[i] + w1 * x1[i] + w2 * x2[i]) * mask[i]
        y[i] = store(y, v)
        s += v
        q += v * v
    return s, q


@jit
def only4(y, x0, x1, x2, x3, w0, w1, w2, w3, mask):
    s = mask.dtype.type(0)
    q = s
    for i in range(y.size):
        v = (w0 * x0[i] + w1 * x1[i] + (w2 * x2[i] + w3 * x3[i])) * mask[i]
        y[i] = store(y, v)
        s += v
        q += v * v
    return s, q


@jit
def affine(out, y, a, b, floor, mask):
    """out = max(a y + b, floor) at the pixels."""
    for i in range(out.size):
        v = a * load(y[i]) + b
        out[i] = (floor if v < floor else v) * mask[i]


@jit
def affine_sum(out, y, r, a, b, c, floor, mask):
    """out = max(a y + b + c r, floor) at the pixels."""
    for i in range(out.size):
        v = a * load(y[i]) + (c * load(r[i]) + b)
        out[i] = (floor if v < floor else v) * mask[i]


@jit
def constant(out, b, floor, mask):
    """out = max(b, floor) at the pixels."""
    v = floor if b < floor else b
    for i in range(out.size):
        out[i] = v * mask[i]


# Backward.


@jit
def sum_and_product(g, y):
    """Return the sums of g and of g y."""
    s = g.dtype.type(0)
    q = s
    for i in range(g.size):
        s += g[i]
        q += g[i] * load(y[i])
    return s, q


@jit
def product(g, y):
    """Return the sum of g y."""
    q = g.dtype.type(0)
    for i in range(g.size):
        q += g[i] * load(y[i])
    return q


@jit
def total(g):
    """Return the sum of g."""
    s = g.dtype.type(0)
    for i in range(g.size):
        s += g[i]
    return s


@jit
def norm_input(d, g, y, a, b, c, mask):
    """d = a g + b y + c at the pixels."""
    for i in range(d.size):
        d[i] = (a * load(g[i]) + b * load(y[i]) + c) * mask[i]


@jit
def scaled(d, g, a):
    """d = a g."""
    for i in range(d.size):
        d[i] = a * load(g[i])


# The transpose of the sums above, and the sums of products of the same planes with x. Each plane of
# a gradient is loaded once for both the gradient of the input and the gradient of the weight.


@jit
def back_set1(out, x, d0, w0):
    s0 = out.dtype.type(0)
    for i in range(out.size):
        v0 = d0[i]
        out[i] = w0 * v0
        s0 += v0 * x[i]
    return s0


@jit
def back_add1(out, x, d0, w0):
    s0 = out.dtype.type(0)
    for i in range(out.size):
        v0 = d0[i]
        out[i] += w0 * v0
        s0 += v0 * x[i]
    return s0


@jit
def back_set2(out, x, d0, d1, w0, w1):
    s0 = out.dtype.type(0)
    s1 = s0
    for i in range(out.size):
        v0, v1, u = d0[i], d1[i], x[i]
        out[i] = w0 * v0 + w1 * v1
        s0 += v0 * u
        s1 += v1 * u
    return s0, s1


@jit
def back_add2(out, x, d0, d1, w0, w1):
    s0 = out.dtype.type(0)
    s1 = s0
    for i in range(out.size):
        v0, v1, u = d0[i], d1[i], x[i]
        out[i] += w0 * v0 + w1 * v1
        s0 += v0 * u
        s1 += v1 * u
    return s0, s1


@jit
def back_set4(out, x, d0, d1, d2, d3, w0, w1, w2, w3):
    s0 = out.dtype.type(0)
    s1 = s0
    s2 = s0
    s3 = s0
    for i in range(out.size):
        v0, v1, v2, v3, u = d0[i], d1[i], d2[i], d3[i], x[i]
        out[i] = w0 * v0 + w1 * v1 + (w2 * v2 + w3 * v3)
        s0 += v0 * u
        s1 += v1 * u
        s2 += v2 * u
        s3 += v3 * u
    return s0, s1, s2, s3


@jit
def back_add4(out, x, d0, d1, d2, d3, w0, w1, w2, w3):
    s0 = out.dtype.type(0)
    s1 = s0
    s2 = s0
    s3 = s0
    for i in range(out.size):
        v0, v1, v2, v3, u = d0[i], d1[i], d2[i], d3[i], x[i]
        out[i] += w0 * v0 + w1 * v1 + (w2 * v2 + w3 * v3)
        s0 += v0 * u
        s1 += v1 * u
        s2 += v2 * u
        s3 += v3 * u
    return s0, s1, s2, s3


@jit
def gate_sums(out, acc, x, y, floor):
    """out = acc where x is above the floor, else 0. Returns the sums of out and of out y."""
    zero = acc.dtype.type(0)
    s = zero
    q = zero
    for i in range(acc.size):
        v = acc[i] if x[i] > floor else zero
        out[i] = store(out, v)
        s += v
        q += v * load(y[i])
    return s, q


@jit
def gate_in_place(g, x, floor):
    """g = 0 where x is not above the floor."""
    zero = g.dtype.type(0)
    for i in range(g.size):
        g[i] = g[i] if x[i] > floor else zero


@jit
def spread_where(out, g, x, floor):
    """out = the number g where x is above the floor, else 0. Returns the number of such points."""
    zero = out.dtype.type(0)
    count = 0
    for i in range(out.size):
        above = x[i] > floor
        out[i] = g if above else zero
        count += above
    return count


@jit
def gated(out, g, x, floor):
    """out = g where x is above the floor, else 0. Returns the sum of out."""
    zero = out.dtype.type(0)
    s = zero
    for i in range(out.size):
        v = g[i] if x[i] > floor else zero
        out[i] = v
        s += v
    return s


@jit
def gated_sum(out, acc, g, x, floor):
    """out = acc + g where x is above the floor, else 0. Returns the sum of out."""
    zero = out.dtype.type(0)
    s = zero
    for i in range(out.size):
        v = acc[i] + g[i] if x[i] > floor else zero
        out[i] = v
        s += v
    return s


@jit
def masked(out, g, mask):
    """out = g at the pixels. Returns the sum of out."""
    s = out.dtype.type(0)
    for i in range(out.size):
        v = g[i] * mask[i]
        out[i] = v
        s += v
    return s


@jit
def masked_sum(out, acc, g, mask):
    """out = acc + g at the pixels. Returns the sum of out."""
    s = out.dtype.type(0)
    for i in range(out.size):
        v = (acc[i] + g[i]) * mask[i]
        out[i] = v
        s += v
    return s
