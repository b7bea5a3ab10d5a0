"""Numba kernels of sparse execution: loops over the weights that are kept, one plane at a time.

A *plane* is one channel of a batch: its images one after the other, each with zeros to the right of
its rows and below them (`planes.py`). A convolution is then a sum of shifted planes, one for each
kept weight, without a branch for the border. All loops work on a *tile*, the planes of a few
images, so that the channels of a tile stay in the L2 cache between the loops that read them.

Every kernel is compiled for float32 and float64 from the same source. Sums over a batch are taken
in the planes' type within a tile and in float64 over the tiles. The flags of `FAST` let LLVM
reorder sums; they do not let it assume that there are no NaNs, so a diverged network shows them.

Arguments that occur in many kernels:
    x, x_step: planes that are read, and the distance between two tiles of one plane.
    base: where each plane begins in the array it belongs to; -1 for a plane that does not exist.
    start, offset: the kept weights of plane c are number start[c] to start[c + 1] - 1; weight k
        reads at offset[k], its plane's base plus its shift.
    mask: 1 at the pixels of a tile, 0 at the zeros between them.
    tile, tiles, last: points in a tile, number of tiles, and points in the last tile.
"""

import numba
import numpy as np

FAST = {"reassoc", "contract", "arcp", "nsz"}
jit = numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")


# Sums of one, two or four shifted planes. Four at a time, a plane of sums is loaded and stored a
# quarter as often; written out, because LLVM vectorises only loops over arrays that it can tell
# apart.


@jit
def _set1(out, x0, w0):
    for i in range(out.size):
        out[i] = w0 * x0[i]


@jit
def _add1(out, x0, w0):
    for i in range(out.size):
        out[i] += w0 * x0[i]


@jit
def _set2(out, x0, x1, w0, w1):
    for i in range(out.size):
        out[i] = w0 * x0[i] + w1 * x1[i]


@jit
def _add2(out, x0, x1, w0, w1):
    for i in range(out.size):
        out[i] += w0 * x0[i] + w1 * x1[i]


@jit
def _set4(out, x0, x1, x2, x3, w0, w1, w2, w3):
    for i in range(out.size):
        out[i] = w0 * x0[i] + w1 * x1[i] + (w2 * x2[i] + w3 * x3[i])


@jit
def _add4(out, x0, x1, x2, x3, w0, w1, w2, w3):
    for i in range(out.size):
        out[i] += w0 * x0[i] + w1 * x1[i] + (w2 * x2[i] + w3 * x3[i])


@jit
def _gather(out, x, offset, weight, first, end, at, n):
    """out = sum of weight[k] * (plane of x at offset[k]) over first <= k < end (not empty)."""
    k = first
    if end - k >= 4:
        a, b, c, d = offset[k] + at, offset[k + 1] + at, offset[k + 2] + at, offset[k + 3] + at
        _set4(
            out, x[a : a + n], x[b : b + n], x[c : c + n], x[d : d + n],
            weight[k], weight[k + 1], weight[k + 2], weight[k + 3],
        )  # fmt: skip
        k += 4
    elif end - k >= 2:
        a, b = offset[k] + at, offset[k + 1] + at
        _set2(out, x[a : a + n], x[b : b + n], weight[k], weight[k + 1])
        k += 2
    else:
        a = offset[k] + at
        _set1(out, x[a : a + n], weight[k])
        k += 1
    while end - k >= 4:
        a, b, c, d = offset[k] + at, offset[k + 1] + at, offset[k + 2] + at, offset[k + 3] + at
        _add4(
            out, x[a : a + n], x[b : b + n], x[c : c + n], x[d : d + n],
            weight[k], weight[k + 1], weight[k + 2], weight[k + 3],
        )  # fmt: skip
        k += 4
    if end - k >= 2:
        a, b = offset[k] + at, offset[k + 1] + at
        _add2(out, x[a : a + n], x[b : b + n], weight[k], weight[k + 1])
        k += 2
    if end > k:
        a = offset[k] + at
        _add1(out, x[a : a + n], weight[k])


@jit
def _masked_sums(y, acc, mask):
    """y = acc * mask; returns the sums of y and of its squares."""
    s = acc.dtype.type(0)
    q = s
    for i in range(acc.size):
        v = acc[i] * mask[i]
        y[i] = v
        s += v
        q += v * v
    return s, q


@jit
def _one1(y, x0, w0, mask):
    """The same for a filter of one weight, without a plane for the sum."""
    s = y.dtype.type(0)
    q = s
    for i in range(y.size):
        v = w0 * x0[i] * mask[i]
        y[i] = v
        s += v
        q += v * v
    return s, q


@jit
def _one2(y, x0, x1, w0, w1, mask):
    s = y.dtype.type(0)
    q = s
    for i in range(y.size):
        v = (w0 * x0[i] + w1 * x1[i]) * mask[i]
        y[i] = v
        s += v
        q += v * v
    return s, q


@jit
def _one4(y, x0, x1, x2, x3, w0, w1, w2, w3, mask):
    s = y.dtype.type(0)
    q = s
    for i in range(y.size):
        v = (w0 * x0[i] + w1 * x1[i] + (w2 * x2[i] + w3 * x3[i])) * mask[i]
        y[i] = v
        s += v
        q += v * v
    return s, q


@jit
def _filter(y, acc, x, offset, weight, first, end, at, n, mask):
    """One filter on one tile: y, its sum and its sum of squares."""
    if end - first == 1:
        a = offset[first] + at
        return _one1(y, x[a : a + n], weight[first], mask)
    if end - first == 2:
        a, b = offset[first] + at, offset[first + 1] + at
        return _one2(y, x[a : a + n], x[b : b + n], weight[first], weight[first + 1], mask)
    if end - first == 4:
        k = first
        a, b, c, d = offset[k] + at, offset[k + 1] + at, offset[k + 2] + at, offset[k + 3] + at
        return _one4(
            y, x[a : a + n], x[b : b + n], x[c : c + n], x[d : d + n],
            weight[k], weight[k + 1], weight[k + 2], weight[k + 3], mask,
        )  # fmt: skip
    _gather(acc, x, offset, weight, first, end, at, n)
    return _masked_sums(y, acc, mask)


@jit
def _affine(out, y, a, b, floor, mask):
    for i in range(out.size):
        v = a * y[i] + b
        out[i] = (floor if v < floor else v) * mask[i]


@jit
def _affine_sum(out, y, r, a, b, c, floor, mask):
    for i in range(out.size):
        v = a * y[i] + (c * r[i] + b)
        out[i] = (floor if v < floor else v) * mask[i]


@jit
def _constant(out, b, floor, mask):
    v = floor if b < floor else b
    for i in range(out.size):
        out[i] = v * mask[i]


@jit
def kept_values(flat, where, out):
    """Copy the kept weights out of a weight's memory."""
    for k in range(where.size):
        out[k] = flat[where[k]]


@jit
def convolve(
    x, x_step, start, offset, weight, y, y_base, y_step,
    virtual, p, p_base, p_step, p_coef, p_floor, s, s_base,
    sums, mask, tile, tiles, last,
):  # fmt: skip
    """One convolution, and the sums its batch norm needs.

    virtual: whether x is an activation that is not stored: s then holds one tile of
    max(a p + b, floor) for the planes p, made anew for every tile. y_base: -1 for a filter whose
    output nobody reads; its sums are taken all the same. sums: (filters, 2), sum and sum of
    squares of each filter's output.
    """
    acc = np.empty_like(mask)
    unread = np.empty_like(mask)
    sums[:] = 0
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        m = mask[:n]
        if virtual:
            at = 0
            for j in range(s_base.size):
                o = s[s_base[j] : s_base[j] + n]
                if p_base[j] >= 0:
                    q = p_base[j] + t * p_step
                    _affine(o, p[q : q + n], p_coef[j, 0], p_coef[j, 1], p_floor, m)
                else:
                    _constant(o, p_coef[j, 1], p_floor, m)
        else:
            at = t * x_step
        for c in range(y_base.size):
            if start[c] == start[c + 1]:
                continue
            if y_base[c] >= 0:
                o = y_base[c] + t * y_step
                u, v = _filter(
                    y[o : o + n], acc[:n], x, offset, weight, start[c], start[c + 1], at, n, m
                )
            else:
                u, v = _filter(
                    unread[:n], acc[:n], x, offset, weight, start[c], start[c + 1], at, n, m
                )
            sums[c, 0] += u
            sums[c, 1] += v


@jit
def batch_statistics(
    sums, channel, count, bias, gamma, beta, eps, momentum, mean, var, stats, coef
):  # fmt: skip
    """Batch norm in train mode: its affine form y -> a y + b, and its running statistics.

    channel: channel of each filter that has weights; the output of every other one is its
    convolution's bias. stats: (C, 2), mean without the bias and 1 / standard deviation. coef:
    (C, 2), a and b.
    """
    stats[:] = 0
    for j in range(channel.size):
        c = channel[j]
        m = sums[j, 0] / count
        stats[c, 0] = m
        stats[c, 1] = max(sums[j, 1] / count - m * m, 0.0)
        if np.isnan(sums[j, 1]):
            stats[c, 1] = sums[j, 1]
    for c in range(gamma.size):
        m = stats[c, 0]
        v = stats[c, 1]
        mean[c] += momentum * (m + bias[c] - mean[c])
        var[c] += momentum * (v * count / (count - 1) - var[c])
        r = 1 / np.sqrt(v + eps)
        a = gamma[c] * r
        stats[c, 1] = r
        coef[c, 0] = a
        coef[c, 1] = beta[c] - m * a


@jit
def running_statistics(bias, gamma, beta, eps, mean, var, stats, coef):
    """Batch norm in eval mode, in the same form; its mean is taken without the bias."""
    for c in range(gamma.size):
        r = 1 / np.sqrt(np.float64(var[c]) + eps)
        a = gamma[c] * r
        stats[c, 0] = mean[c] - bias[c]
        stats[c, 1] = r
        coef[c, 0] = a
        coef[c, 1] = beta[c] - stats[c, 0] * a


@jit
def combine(
    y, y_base, y_step, y_coef, r, r_base, r_step, r_coef, out, out_base, out_step, floor,
    mask, tile, tiles, last,
):  # fmt: skip
    """out = max(a y + b + c r + d, floor), by channel; planes that do not exist count as zero."""
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        m = mask[:n]
        for c in range(out_base.size):
            o = out_base[c] + t * out_step
            i = y_base[c] + t * y_step
            j = r_base[c] + t * r_step
            b = y_coef[c, 1] + r_coef[c, 1]
            if y_base[c] >= 0 and r_base[c] >= 0:
                _affine_sum(
                    out[o : o + n], y[i : i + n], r[j : j + n], y_coef[c, 0], b, r_coef[c, 0],
                    floor, m,
                )  # fmt: skip
            elif y_base[c] >= 0:
                _affine(out[o : o + n], y[i : i + n], y_coef[c, 0], b, floor, m)
            elif r_base[c] >= 0:
                _affine(out[o : o + n], r[j : j + n], r_coef[c, 0], b, floor, m)
            else:
                _constant(out[o : o + n], b, floor, m)


# Backward.


@jit
def _sums(g, y):
    s = g.dtype.type(0)
    q = s
    for i in range(g.size):
        s += g[i]
        q += g[i] * y[i]
    return s, q


@jit
def _sum(g):
    s = g.dtype.type(0)
    for i in range(g.size):
        s += g[i]
    return s


@jit
def gradient_sums(g, g_base, g_step, y, y_base, y_step, sums, tile, tiles, last):
    """Sums over the batch of a gradient g and of g y, by channel: what a batch norm's backward
    needs. sums: (channels, 2)."""
    sums[:] = 0
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        for c in range(g_base.size):
            if g_base[c] < 0:
                continue
            i = g_base[c] + t * g_step
            if y_base[c] >= 0:
                j = y_base[c] + t * y_step
                u, v = _sums(g[i : i + n], y[j : j + n])
                sums[c, 0] += u
                sums[c, 1] += v
            else:
                sums[c, 0] += _sum(g[i : i + n])


@jit
def norm_backward(sums, channel, count, stats, gamma, frozen, d_gamma, d_beta, coef):
    """Gradients of a batch norm's scale and shift, and dy = coef0 g + coef1 y + coef2.

    channel: of each row of sums. frozen: whether the statistics were the running ones, which do
    not depend on y. The output of a filter without weights has no deviation from its mean.
    """
    for j in range(channel.size):
        c = channel[j]
        s = sums[j, 0]
        m = stats[c, 0]
        r = stats[c, 1]
        x = (sums[j, 1] - m * s) * r
        a = gamma[c] * r
        d_gamma[c] = x
        d_beta[c] = s
        coef[j, 0] = a
        if frozen:
            coef[j, 1] = 0
            coef[j, 2] = 0
        else:
            coef[j, 1] = -a * r * x / count
            coef[j, 2] = a * (r * m * x - s) / count


@jit
def _norm_input(d, g, y, a, b, c, mask):
    for i in range(d.size):
        d[i] = (a * g[i] + b * y[i] + c) * mask[i]


@jit
def _scaled(d, g, a):
    for i in range(d.size):
        d[i] = a * g[i]


@jit
def _fill(d, d_base, g, g_base, g_step, y, y_base, y_step, coef, t, n, mask):
    """One tile of the gradients of all filters' outputs, in the scratch array d."""
    for c in range(g_base.size):
        if g_base[c] < 0 or y_base[c] < 0:
            continue
        i = g_base[c] + t * g_step
        j = y_base[c] + t * y_step
        o = d_base[c]
        if coef[c, 1] == 0 and coef[c, 2] == 0:
            _scaled(d[o : o + n], g[i : i + n], coef[c, 0])
        else:
            _norm_input(
                d[o : o + n], g[i : i + n], y[j : j + n], coef[c, 0], coef[c, 1], coef[c, 2], mask
            )


# The transpose of `_gather`, and the products of the same planes with x: one load of a gradient
# plane serves the gradients of the input and of the weight.


@jit
def _back_set1(out, x, d0, w0):
    s0 = out.dtype.type(0)
    for i in range(out.size):
        v0 = d0[i]
        out[i] = w0 * v0
        s0 += v0 * x[i]
    return s0


@jit
def _back_add1(out, x, d0, w0):
    s0 = out.dtype.type(0)
    for i in range(out.size):
        v0 = d0[i]
        out[i] += w0 * v0
        s0 += v0 * x[i]
    return s0


@jit
def _back_set2(out, x, d0, d1, w0, w1):
    s0 = out.dtype.type(0)
    s1 = s0
    for i in range(out.size):
        v0, v1, u = d0[i], d1[i], x[i]
        out[i] = w0 * v0 + w1 * v1
        s0 += v0 * u
        s1 += v1 * u
    return s0, s1


@jit
def _back_add2(out, x, d0, d1, w0, w1):
    s0 = out.dtype.type(0)
    s1 = s0
    for i in range(out.size):
        v0, v1, u = d0[i], d1[i], x[i]
        out[i] += w0 * v0 + w1 * v1
        s0 += v0 * u
        s1 += v1 * u
    return s0, s1


@jit
def _back_set4(out, x, d0, d1, d2, d3, w0, w1, w2, w3):
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
def _back_add4(out, x, d0, d1, d2, d3, w0, w1, w2, w3):
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
def _scatter(out, x, d, offset, weight, first, end, n, dw, fresh):
    """Add to out (or set it, if fresh) the planes of d that one input plane reaches; the products
    of these planes with x are added to dw. Returns whether out is still not set."""
    k = first
    while end - k >= 4:
        a, b, c, e = offset[k], offset[k + 1], offset[k + 2], offset[k + 3]
        if fresh:
            s0, s1, s2, s3 = _back_set4(
                out, x, d[a : a + n], d[b : b + n], d[c : c + n], d[e : e + n],
                weight[k], weight[k + 1], weight[k + 2], weight[k + 3],
            )  # fmt: skip
        else:
            s0, s1, s2, s3 = _back_add4(
                out, x, d[a : a + n], d[b : b + n], d[c : c + n], d[e : e + n],
                weight[k], weight[k + 1], weight[k + 2], weight[k + 3],
            )  # fmt: skip
        fresh = False
        dw[k] += s0
        dw[k + 1] += s1
        dw[k + 2] += s2
        dw[k + 3] += s3
        k += 4
    if end - k >= 2:
        a, b = offset[k], offset[k + 1]
        if fresh:
            s0, s1 = _back_set2(out, x, d[a : a + n], d[b : b + n], weight[k], weight[k + 1])
        else:
            s0, s1 = _back_add2(out, x, d[a : a + n], d[b : b + n], weight[k], weight[k + 1])
        fresh = False
        dw[k] += s0
        dw[k + 1] += s1
        k += 2
    if end > k:
        a = offset[k]
        if fresh:
            s0 = _back_set1(out, x, d[a : a + n], weight[k])
        else:
            s0 = _back_add1(out, x, d[a : a + n], weight[k])
        fresh = False
        dw[k] += s0
    return fresh


@jit
def _dot(x, d0):
    s0 = x.dtype.type(0)
    for i in range(x.size):
        s0 += d0[i] * x[i]
    return s0


@jit
def _gate(out, acc, x, y, floor):
    """out = acc where x is above the floor, else 0; returns its sum and its sum times y."""
    zero = out.dtype.type(0)
    s = zero
    q = zero
    for i in range(acc.size):
        v = acc[i] if x[i] > floor else zero
        out[i] = v
        s += v
        q += v * y[i]
    return s, q


@jit
def backward_to_virtual(
    g, g_base, g_step, y, y_base, y_step, coef, d, d_base, offset, weight, start, dw,
    p, p_base, p_step, p_coef, p_floor, out, out_base, out_step, sums,
    mask, tile, tiles, last,
):  # fmt: skip
    """From the gradient g behind a convolution and its batch norm to the activation before it,
    which is not stored: max(a p + b, floor), computed anew from the planes p.

    g, y, coef: the gradient of the convolution's output is coef0 g + coef1 y + coef2. out: the
    gradient that passed the ReLU of the activation. sums: (planes, 2), of out and of out p.
    """
    acc = np.empty_like(mask)
    x = np.empty_like(mask)
    dw[:] = 0
    sums[:] = 0
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        m = mask[:n]
        _fill(d, d_base, g, g_base, g_step, y, y_base, y_step, coef, t, n, m)
        for c in range(out_base.size):
            o = out_base[c] + t * out_step
            if start[c] == start[c + 1]:
                out[o : o + n] = 0
                continue
            if p_base[c] >= 0:
                j = p_base[c] + t * p_step
                _affine(x[:n], p[j : j + n], p_coef[c, 0], p_coef[c, 1], p_floor, m)
            else:
                _constant(x[:n], p_coef[c, 1], p_floor, m)
            _scatter(acc[:n], x[:n], d, offset, weight, start[c], start[c + 1], n, dw, True)
            if p_base[c] >= 0:
                u, v = _gate(out[o : o + n], acc[:n], x[:n], p[j : j + n], p_floor)
                sums[c, 1] += v
            else:
                u, v = _gate(out[o : o + n], acc[:n], x[:n], m, p_floor)
            sums[c, 0] += u


@jit
def _gated_copy(out, g, x, floor):
    zero = out.dtype.type(0)
    for i in range(out.size):
        out[i] = g[i] if x[i] > floor else zero


@jit
def _gated_sum(out, acc, g, x, floor):
    zero = out.dtype.type(0)
    for i in range(out.size):
        out[i] = acc[i] + g[i] if x[i] > floor else zero


@jit
def _copy_masked(out, acc, mask):
    for i in range(out.size):
        out[i] = acc[i] * mask[i]


@jit
def _sum_masked(out, acc, g, mask):
    for i in range(out.size):
        out[i] = (acc[i] + g[i]) * mask[i]


@jit
def backward_to_input(
    g, g_base, g_step, y, y_base, y_step, coef, d, d_base, offset, weight, start, dw,
    two, g2, g2_base, g2_step, y2, y2_base, y2_step, coef2, d2, d2_base, offset2, weight2, start2,
    dw2,
    r, r_base, r_step, x, x_base, x_step, gated, floor, out, out_base, out_step,
    mask, tile, tiles, last,
):  # fmt: skip
    """From the gradients behind one or two convolutions to the planes x that they read.

    r: a gradient that reaches x as it is (a residual connection); base -1: none. gated: whether x
    is the output of a ReLU; the gradient in front of that ReLU is then written, zero where x is
    not above the floor.
    """
    acc = np.empty_like(mask)
    dw[:] = 0
    dw2[:] = 0
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        m = mask[:n]
        _fill(d, d_base, g, g_base, g_step, y, y_base, y_step, coef, t, n, m)
        if two:
            _fill(d2, d2_base, g2, g2_base, g2_step, y2, y2_base, y2_step, coef2, t, n, m)
        for c in range(out_base.size):
            i = x_base[c] + t * x_step
            o = out_base[c] + t * out_step
            v = x[i : i + n]
            fresh = _scatter(acc[:n], v, d, offset, weight, start[c], start[c + 1], n, dw, True)
            if two:
                fresh = _scatter(
                    acc[:n], v, d2, offset2, weight2, start2[c], start2[c + 1], n, dw2, fresh
                )
            if r_base[c] >= 0:
                j = r_base[c] + t * r_step
                if fresh and gated:
                    _gated_copy(out[o : o + n], r[j : j + n], v, floor)
                elif gated:
                    _gated_sum(out[o : o + n], acc[:n], r[j : j + n], v, floor)
                elif fresh:
                    _copy_masked(out[o : o + n], r[j : j + n], m)
                else:
                    _sum_masked(out[o : o + n], acc[:n], r[j : j + n], m)
            elif fresh:
                out[o : o + n] = 0
            elif gated:
                _gated_copy(out[o : o + n], acc[:n], v, floor)
            else:
                _copy_masked(out[o : o + n], acc[:n], m)


@jit
def backward_weight(
    g, g_base, g_step, y, y_base, y_step, coef, d, d_base, offset, start, dw, x, x_base, x_step,
    mask, tile, tiles, last,
):  # fmt: skip
    """Gradients of the kept weights alone, where nobody asks for the input's."""
    dw[:] = 0
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        _fill(d, d_base, g, g_base, g_step, y, y_base, y_step, coef, t, n, mask[:n])
        for c in range(x_base.size):
            if start[c] == start[c + 1]:
                continue
            i = x_base[c] + t * x_step
            v = x[i : i + n]
            for k in range(start[c], start[c + 1]):
                dw[k] += _dot(v, d[offset[k] : offset[k] + n])


@jit
def scatter_weight(flat, where, dw):
    """Write the gradients of kept weights into a dense gradient's memory."""
    for k in range(where.size):
        flat[where[k]] = dw[k]


# Layout.


@jit
def gate(g, x, base, step, floor, tile, tiles, last):
    """Set the planes of a gradient to zero where the ReLU's output x, laid out alike, is zero."""
    zero = g.dtype.type(0)
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        for c in range(base.size):
            i = base[c] + t * step
            p = g[i : i + n]
            q = x[i : i + n]
            for k in range(n):
                p[k] = p[k] if q[k] > floor else zero


@jit
def split_phases(
    x, x_base, x_image, x_row, height, width, row, column, stride, out, out_base, out_image,
    out_row, out_height, out_width, images,
):  # fmt: skip
    """Every stride-th pixel, from (row, column) of each plane on; zeros beyond the image."""
    for j in range(x_base.size):
        rows = min(out_height, (height - row[j] + stride - 1) // stride)
        columns = min(out_width, (width - column[j] + stride - 1) // stride)
        for n in range(images):
            for h in range(rows):
                i = x_base[j] + n * x_image + (h * stride + row[j]) * x_row + column[j]
                o = out_base[j] + n * out_image + h * out_row
                if stride == 2:
                    for w in range(columns):
                        out[o + w] = x[i + 2 * w]
                else:
                    for w in range(columns):
                        out[o + w] = x[i + stride * w]


@jit
def merge_phases(
    g, g_base, g_image, g_row, g_height, g_width, row, column, stride, out, out_base, out_image,
    out_row, height, width, images,
):  # fmt: skip
    """The transpose of `split_phases`: each phase's pixels of out are set."""
    for j in range(g_base.size):
        rows = min(g_height, (height - row[j] + stride - 1) // stride)
        columns = min(g_width, (width - column[j] + stride - 1) // stride)
        for n in range(images):
            for h in range(rows):
                i = g_base[j] + n * g_image + h * g_row
                o = out_base[j] + n * out_image + (h * stride + row[j]) * out_row + column[j]
                if stride == 2:
                    for w in range(columns):
                        out[o + 2 * w] = g[i + w]
                else:
                    for w in range(columns):
                        out[o + stride * w] = g[i + w]
