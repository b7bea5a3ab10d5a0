"""Numba kernels of sparse execution, which the forward and backward of a unit call.

A *plane* is one channel of a batch. It contains the images one after the other, with zeros after
each row and after each image (`planes.py`). A convolution is then a weighted sum of shifted planes,
one for each kept weight, and the border needs no special case. All kernels process one *tile* at a
time, which is a few images, so that all channels of a tile stay in the L2 cache between two loops.

Every kernel is compiled for float32 and float64 from the same source. Sums over a batch are
computed in this type within a tile, and in float64 over the tiles.

Arguments are passed in groups (tuples, which numba unpacks at no cost):
    planes (memory, base, step): an array, the first position of each plane in it (-1 for a plane
        that does not exist), and the distance between two tiles of one plane.
    weights (start, offset, where, flat): the kept weights, sorted by plane. Plane c has the weights
        start[c] to start[c + 1] - 1. The value of weight k is flat[where[k]]. The weight reads at
        offset[k], which is the first position of its plane plus its shift.
    norm (mode, count, bias, gamma, beta, eps, momentum, mean, var, steps): the batch norm after a
        convolution, and the bias of the convolution. mode: NO_NORM, FROZEN (running statistics) or
        TRAINING. count: number of pixels of a channel in the batch.
    grid (mask, tile, tiles, last): an array with 1 at the pixels of a tile and 0 between them, the
        number of points of a tile, the number of tiles, and the number of points of the last tile.
"""

import numpy as np

from .loops import (
    add1,
    add2,
    add4,
    add8,
    affine,
    affine_sum,
    back_add1,
    back_add2,
    back_add4,
    back_set1,
    back_set2,
    back_set4,
    constant,
    gate_in_place,
    gate_sums,
    gated,
    gated_sum,
    jit,
    masked,
    masked_sum,
    masked_sums,
    norm_input,
    only1,
    only2,
    only3,
    only4,
    product,
    scaled,
    set1,
    set2,
    set4,
    spread_where,
    sum_and_product,
    total,
)

NO_NORM, FROZEN, TRAINING = 0, 1, 2


@jit
def kept(weights, like):
    """Return the values of the kept weights, in the order of their list."""
    _, _, where, flat = weights
    values = np.empty(where.size, like.dtype)
    for k in range(where.size):
        values[k] = flat[where[k]]
    return values


# Forward.


@jit
def gather(out, x, offset, weight, first, end, at, n):
    """out = sum of weight[k] * (plane of x at offset[k]) for first <= k < end; first < end."""
    k = first
    if end - k >= 4:
        a, b, c, d = offset[k] + at, offset[k + 1] + at, offset[k + 2] + at, offset[k + 3] + at
        set4(
            out, x[a : a + n], x[b : b + n], x[c : c + n], x[d : d + n],
            weight[k], weight[k + 1], weight[k + 2], weight[k + 3],
        )  # fmt: skip
        k += 4
    elif end - k >= 2:
        a, b = offset[k] + at, offset[k + 1] + at
        set2(out, x[a : a + n], x[b : b + n], weight[k], weight[k + 1])
        k += 2
    else:
        a = offset[k] + at
        set1(out, x[a : a + n], weight[k])
        k += 1
    while end - k >= 8:
        a, b, c, d = offset[k] + at, offset[k + 1] + at, offset[k + 2] + at, offset[k + 3] + at
        e, f, g, h = offset[k + 4] + at, offset[k + 5] + at, offset[k + 6] + at, offset[k + 7] + at
        add8(
            out, x[a : a + n], x[b : b + n], x[c : c + n], x[d : d + n],
            x[e : e + n], x[f : f + n], x[g : g + n], x[h : h + n],
            weight[k], weight[k + 1], weight[k + 2], weight[k + 3],
            weight[k + 4], weight[k + 5], weight[k + 6], weight[k + 7],
        )  # fmt: skip
        k += 8
    while end - k >= 4:
        a, b, c, d = offset[k] + at, offset[k + 1] + at, offset[k + 2] + at, offset[k + 3] + at
        add4(
            out, x[a : a + n], x[b : b + n], x[c : c + n], x[d : d + n],
            weight[k], weight[k + 1], weight[k + 2], weight[k + 3],
        )  # fmt: skip
        k += 4
    if end - k >= 2:
        a, b = offset[k] + at, offset[k + 1] + at
        add2(out, x[a : a + n], x[b : b + n], weight[k], weight[k + 1])
        k += 2
    if end > k:
        a = offset[k] + at
        add1(out, x[a : a + n], weight[k])


@jit
def convolve_tile(y, acc, x, offset, weight, first, end, at, n, mask):
    """Compute the output y of one filter on one tile. Returns the sums of y and of its squares."""
    k = first
    if end - first == 1:
        a = offset[k] + at
        return only1(y, x[a : a + n], weight[k], mask)
    if end - first == 2:
        a, b = offset[k] + at, offset[k + 1] + at
        return only2(y, x[a : a + n], x[b : b + n], weight[k], weight[k + 1], mask)
    if end - first == 3:
        a, b, c = offset[k] + at, offset[k + 1] + at, offset[k + 2] + at
        return only3(
            y, x[a : a + n], x[b : b + n], x[c : c + n],
            weight[k], weight[k + 1], weight[k + 2], mask,
        )  # fmt: skip
    if end - first == 4:
        a, b, c, d = offset[k] + at, offset[k + 1] + at, offset[k + 2] + at, offset[k + 3] + at
        return only4(
            y, x[a : a + n], x[b : b + n], x[c : c + n], x[d : d + n],
            weight[k], weight[k + 1], weight[k + 2], weight[k + 3], mask,
        )  # fmt: skip
    gather(acc, x, offset, weight, first, end, at, n)
    return masked_sums(y, acc, mask)


@jit
def normalise(norm, filters, sums, stats, coef):
    """Compute the batch norm after a convolution as a map y -> a y + b.

    In train mode, the running statistics are updated.

    filters: channel of each row of sums; the output of every other channel is the bias of the
    convolution. sums: sums of the output and of its squares. stats: (C, 2), is set to the mean
    without the bias and 1 / standard deviation. coef: (C, 2), is set to a and b.
    """
    mode, count, bias, gamma, beta, eps, momentum, mean, var, steps = norm
    stats[:] = 0
    if mode == NO_NORM:
        for c in range(gamma.size):
            coef[c, 0] = 1
            coef[c, 1] = bias[c]
        return
    if mode == FROZEN:
        for c in range(gamma.size):
            stats[c, 0] = mean[c] - bias[c]
            stats[c, 1] = 1 / np.sqrt(np.float64(var[c]) + eps)
    else:
        steps[0] += 1
        for j in range(filters.size):
            c = filters[j]
            m = sums[j, 0] / count
            stats[c, 0] = m
            stats[c, 1] = max(sums[j, 1] / count - m * m, 0.0)
            if np.isnan(sums[j, 1]):
                stats[c, 1] = sums[j, 1]
        for c in range(gamma.size):
            v = stats[c, 1]
            mean[c] += momentum * (stats[c, 0] + bias[c] - mean[c])
            var[c] += momentum * (v * count / (count - 1) - var[c])
            stats[c, 1] = 1 / np.sqrt(v + eps)
    for c in range(gamma.size):
        a = gamma[c] * stats[c, 1]
        coef[c, 0] = a
        coef[c, 1] = beta[c] - stats[c, 0] * a


@jit
def convolve(source, weights, filters, out, before, norm, stats, coef, grid):
    """Compute one convolution and the affine coefficients of the batch norm after it (`normalise`).

    source (x, step): planes that are read.
    out: planes of the output y of every filter with weights. The position is -1 for a filter whose
    output is not read; its statistics are computed nevertheless.
    before (virtual, p, p_base, p_step, p_coef, p_channel, floor, x_base): the activation that is
    read, if virtual is True. It is then not stored as a whole: x contains one tile of
    max(a p + b, floor) at a time. p_channel is the row of p_coef with a and b of each plane.
    """
    x, x_step = source
    start, offset, _, _ = weights
    y, y_base, y_step = out
    virtual, p, p_base, p_step, p_coef, p_channel, floor, x_base = before
    mask, tile, tiles, last = grid
    acc = np.empty_like(mask)
    unread = np.empty(mask.size, y.dtype)
    weight = kept(weights, mask)
    sums = np.zeros((filters.size, 2))
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        m = mask[:n]
        at = t * x_step
        if virtual:
            for j in range(x_base.size):
                o = x[x_base[j] : x_base[j] + n]
                a, b = p_coef[p_channel[j], 0], p_coef[p_channel[j], 1]
                if p_base[j] >= 0:
                    q = p_base[j] + t * p_step
                    affine(o, p[q : q + n], a, b, floor, m)
                else:
                    constant(o, b, floor, m)
        for c in range(filters.size):
            i = y_base[c] + t * y_step
            o = y[i : i + n] if y_base[c] >= 0 else unread[:n]
            u, v = convolve_tile(o, acc[:n], x, offset, weight, start[c], start[c + 1], at, n, m)
            sums[c, 0] += u
            sums[c, 1] += v
    normalise(norm, filters, sums, stats, coef)


@jit
def combine(first, second, out, floor, grid):
    """out = max(a y + b + c r + d, floor), for each plane.

    first (y, base, step, coef, channel): the planes y, where a position of -1 is a plane of zeros,
    and the row of coef with a and b of each plane. second: the same for r, c and d.
    """
    y, y_base, y_step, y_coef, y_channel = first
    r, r_base, r_step, r_coef, r_channel = second
    x, x_base, x_step = out
    mask, tile, tiles, last = grid
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        m = mask[:n]
        for c in range(x_base.size):
            o = x_base[c] + t * x_step
            i = y_base[c] + t * y_step
            j = r_base[c] + t * r_step
            a, b = y_coef[y_channel[c], 0], y_coef[y_channel[c], 1] + r_coef[r_channel[c], 1]
            if y_base[c] >= 0 and r_base[c] >= 0:
                k = r_coef[r_channel[c], 0]
                affine_sum(x[o : o + n], y[i : i + n], r[j : j + n], a, b, k, floor, m)
            elif y_base[c] >= 0:
                affine(x[o : o + n], y[i : i + n], a, b, floor, m)
            elif r_base[c] >= 0:
                affine(x[o : o + n], r[j : j + n], r_coef[r_channel[c], 0], b, floor, m)
            else:
                constant(x[o : o + n], b, floor, m)


# Backward. Further argument groups:
#   behind (g, g_base, g_step, y, y_base, y_step, coef): the gradient of a convolution's output y,
#       which is coef0 g + coef1 y + coef2, where g is the gradient after its batch norm.
#   one_tile (d, d_base): memory for one tile of that gradient.
#   found (d_gamma, d_beta, coef): arrays that `normalise_backward` writes.


@jit
def normalise_backward(norm, stats, channel, sums, found):
    """Compute the gradients of a batch norm's scale and shift, and the coefficients coef.

    sums: sums of g and of g y. channel: channel of each row of sums. Without a norm, d_beta is the
    gradient of the bias of the convolution.
    """
    mode, count, _, gamma, _, _, _, _, _, _ = norm
    d_gamma, d_beta, coef = found
    for j in range(channel.size):
        c = channel[j]
        s = sums[j, 0]
        d_beta[c] = s
        coef[j, 0] = 1
        coef[j, 1] = 0
        coef[j, 2] = 0
        if mode != NO_NORM:
            # In train mode, x is zero for a filter without weights, because its output is constant.
            m = stats[c, 0]
            r = stats[c, 1]
            x = (sums[j, 1] - m * s) * r
            a = gamma[c] * r
            d_gamma[c] = x
            coef[j, 0] = a
            if mode == TRAINING:
                coef[j, 1] = -a * r * x / count
                coef[j, 2] = a * (r * m * x - s) / count


@jit
def norm_backward(gradient, y, known, totals, norm, stats, channel, found, grid):
    """Compute `normalise_backward` for the batch norm of a term of the sum of a unit.

    gradient: planes of the gradient after the norm. y: planes before the norm.
    known: whether totals contains the sum of the gradient over each channel.
    """
    g, g_base, g_step = gradient
    y, y_base, y_step = y
    _, tile, tiles, last = grid
    sums = np.zeros((channel.size, 2))
    if known:
        for c in range(channel.size):
            sums[c, 0] = totals[channel[c]]
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        for c in range(channel.size):
            i = g_base[c] + t * g_step
            j = y_base[c] + t * y_step
            if y_base[c] < 0:
                if not known:
                    sums[c, 0] += total(g[i : i + n])
            elif known:
                sums[c, 1] += product(g[i : i + n], y[j : j + n])
            else:
                u, v = sum_and_product(g[i : i + n], y[j : j + n])
                sums[c, 0] += u
                sums[c, 1] += v
    normalise_backward(norm, stats, channel, sums, found)


@jit
def fill(one_tile, behind, t, n, mask):
    """Compute one tile of the gradients of the outputs of all filters."""
    d, d_base = one_tile
    g, g_base, g_step, y, y_base, y_step, coef = behind
    for c in range(g_base.size):
        if y_base[c] < 0:
            continue
        i = g_base[c] + t * g_step
        j = y_base[c] + t * y_step
        o = d_base[c]
        a, b, e = coef[c, 0], coef[c, 1], coef[c, 2]
        if b == 0 and e == 0:
            scaled(d[o : o + n], g[i : i + n], a)
        else:
            norm_input(d[o : o + n], g[i : i + n], y[j : j + n], a, b, e, mask)


@jit
def scatter(out, x, d, offset, weight, first, end, n, dw, fresh):
    """Compute the contribution of the planes d to the gradient of one input plane x.

    The weighted sum of the shifted planes of d is added to out, or assigned to it if fresh is True.
    The sums of products of these planes with x are added to dw. Returns whether out has not been
    assigned yet.
    """
    k = first
    while end - k >= 4:
        a, b, c, e = offset[k], offset[k + 1], offset[k + 2], offset[k + 3]
        if fresh:
            s0, s1, s2, s3 = back_set4(
                out, x, d[a : a + n], d[b : b + n], d[c : c + n], d[e : e + n],
                weight[k], weight[k + 1], weight[k + 2], weight[k + 3],
            )  # fmt: skip
        else:
            s0, s1, s2, s3 = back_add4(
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
            s0, s1 = back_set2(out, x, d[a : a + n], d[b : b + n], weight[k], weight[k + 1])
        else:
            s0, s1 = back_add2(out, x, d[a : a + n], d[b : b + n], weight[k], weight[k + 1])
        fresh = False
        dw[k] += s0
        dw[k + 1] += s1
        k += 2
    if end > k:
        a = offset[k]
        if fresh:
            s0 = back_set1(out, x, d[a : a + n], weight[k])
        else:
            s0 = back_add1(out, x, d[a : a + n], weight[k])
        fresh = False
        dw[k] += s0
    return fresh


@jit
def backward_to_virtual(
    behind, one_tile, weights, dw, before, out, norm, stats, channel, found, grid
):
    """Compute the backward of a convolution that reads a virtual activation.

    The result is the gradient before the ReLU of this activation, and the backward of the batch
    norm before the ReLU (`normalise_backward`).

    dw: float64, is set to the gradients of the kept weights, in the order of their list.
    before (p, p_base, p_step, p_coef, floor): the activation is max(a p + b, floor).
    out: planes of the gradient before the ReLU.
    norm, stats, found: arguments of the batch norm before the ReLU. channel: channel of each plane.
    """
    start, offset, _, _ = weights
    d, _ = one_tile
    p, p_base, p_step, p_coef, floor = before
    o_memory, o_base, o_step = out
    mask, tile, tiles, last = grid
    acc = np.empty_like(mask)
    x = np.empty_like(mask)
    weight = kept(weights, mask)
    dw[:] = 0
    sums = np.zeros((channel.size, 2))
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        m = mask[:n]
        fill(one_tile, behind, t, n, m)
        for c in range(channel.size):
            i = o_base[c] + t * o_step
            o = o_memory[i : i + n]
            if start[c] == start[c + 1]:
                o[:] = 0
                continue
            a, b = p_coef[channel[c], 0], p_coef[channel[c], 1]
            j = p_base[c] + t * p_step
            if p_base[c] >= 0:
                affine(x[:n], p[j : j + n], a, b, floor, m)
            else:
                constant(x[:n], b, floor, m)
            scatter(acc[:n], x[:n], d, offset, weight, start[c], start[c + 1], n, dw, True)
            if p_base[c] >= 0:
                u, v = gate_sums(o, acc[:n], x[:n], p[j : j + n], floor)
                sums[c, 1] += v
            else:
                u, v = gate_sums(o, acc[:n], x[:n], m, floor)
            sums[c, 0] += u
    normalise_backward(norm, stats, channel, sums, found)


@jit
def backward_to_input(first, two, second, residual, source, out, totals, grid):
    """Compute the gradient of the planes that one or two convolutions read.

    first, second (behind, one_tile, weights, dw): the convolutions, as in
    `backward_to_virtual`. two: whether there is a second one.
    residual: planes of a gradient that is added unchanged (a residual connection).
    source (x, base, step, channel, behind_relu, floor): planes that are read, and the channel of
    each plane. behind_relu: whether they are the output of a ReLU. The result is then the gradient
    before this ReLU, which is zero where x is not above the floor.
    totals: (C,), is set to the sum of the result over each channel.
    """
    behind1, one_tile1, weights1, dw1 = first
    behind2, one_tile2, weights2, dw2 = second
    r, r_base, r_step = residual
    x, x_base, x_step, channel, behind_relu, floor = source
    o_memory, o_base, o_step = out
    mask, tile, tiles, last = grid
    start1, offset1, _, _ = weights1
    start2, offset2, _, _ = weights2
    weight1, weight2 = kept(weights1, mask), kept(weights2, mask)
    dw1[:] = 0
    dw2[:] = 0
    totals[:] = 0
    acc = np.empty_like(mask)
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        m = mask[:n]
        fill(one_tile1, behind1, t, n, m)
        if two:
            fill(one_tile2, behind2, t, n, m)
        for c in range(x_base.size):
            i = x_base[c] + t * x_step
            j = o_base[c] + t * o_step
            v, o = x[i : i + n], o_memory[j : j + n]
            fresh = scatter(
                acc[:n], v, one_tile1[0], offset1, weight1, start1[c], start1[c + 1], n, dw1, True
            )
            if two:
                fresh = scatter(
                    acc[:n], v, one_tile2[0], offset2, weight2, start2[c], start2[c + 1], n, dw2,
                    fresh,
                )  # fmt: skip
            if r_base[c] >= 0:
                k = r_base[c] + t * r_step
                if fresh and behind_relu:
                    s = gated(o, r[k : k + n], v, floor)
                elif behind_relu:
                    s = gated_sum(o, acc[:n], r[k : k + n], v, floor)
                elif fresh:
                    s = masked(o, r[k : k + n], m)
                else:
                    s = masked_sum(o, acc[:n], r[k : k + n], m)
            elif fresh:
                o[:] = 0
                continue
            elif behind_relu:
                s = gated(o, acc[:n], v, floor)
            else:
                s = masked(o, acc[:n], m)
            totals[channel[c]] += s


@jit
def dot(x, d, offset, first, end, n, dw):
    """Add the sums of products of x with planes of d to dw."""
    for k in range(first, end):
        dw[k] += product(x, d[offset[k] : offset[k] + n])


@jit
def backward_weight(behind, one_tile, weights, dw, source, grid):
    """Compute the gradients dw of the kept weights, without the gradient of the input.

    source (x, base, step): planes that are read.
    """
    start, offset, _, _ = weights
    x, x_base, x_step = source
    mask, tile, tiles, last = grid
    dw[:] = 0
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        fill(one_tile, behind, t, n, mask[:n])
        for c in range(x_base.size):
            if start[c] < start[c + 1]:
                i = x_base[c] + t * x_step
                dot(x[i : i + n], one_tile[0], offset, start[c], start[c + 1], n, dw)


# Global average pooling.


@jit
def pool(planes, channel, means, pixels):
    """Write the mean over the pixels of each image of some planes to means, (N, C).

    planes (memory, base, image): image is the distance between two images of a plane.
    channel: channel of each plane.
    """
    x, base, image = planes
    for c in range(base.size):
        for n in range(means.shape[0]):
            i = base[c] + n * image
            means[n, channel[c]] = total(x[i : i + image]) / pixels


@jit
def spread(gradient, planes, behind_relu, floor, out, channel, totals, mask, pixels):
    """Compute the transpose of `pool`, which is its backward.

    gradient: (N, C), gradient of the means. out: memory of the result, with the same layout as the
    planes. behind_relu: whether the planes are the output of a ReLU; the result is then the
    gradient before this ReLU. totals: (C,), is set to the sum of the result over each channel.
    """
    x, base, image = planes
    totals[:] = 0
    for c in range(base.size):
        for n in range(gradient.shape[0]):
            i = base[c] + n * image
            g = gradient[n, channel[c]] / mask.dtype.type(pixels)
            o = out[i : i + image]
            if behind_relu:
                totals[channel[c]] += g * spread_where(o, g, x[i : i + image], floor)
            else:
                scaled(o, mask, g)
                totals[channel[c]] += g * pixels


# Layout.


@jit
def gate(planes, x, floor, grid):
    """Set planes of a gradient to zero where the output x of a ReLU, of equal layout, is zero."""
    g, base, step = planes
    _, tile, tiles, last = grid
    for t in range(tiles):
        n = tile if t < tiles - 1 else last
        for c in range(base.size):
            i = base[c] + t * step
            gate_in_place(g[i : i + n], x[i : i + n], floor)


@jit
def split_phases(whole, phases, row, column, stride, images):
    """Copy every stride-th pixel of each plane, from (row, column) on.

    whole, phases (memory, base, distance between images, distance between rows, height, width):
    planes to read and planes to write.
    """
    x, x_base, x_image, x_row, height, width = whole
    out, out_base, out_image, out_row, out_height, out_width = phases
    for j in range(x_base.size):
        rows = min(out_height, (height - row[j] + stride - 1) // stride)
        columns = min(out_width, (width - column[j] + stride - 1) // stride)
        for n in range(images):
            for h in range(rows):
                i = x_base[j] + n * x_image + (h * stride + row[j]) * x_row + column[j]
                o = out_base[j] + n * out_image + h * out_row
                done = 0
                if stride == 2:  # the common case: eight pixels at a time, which LLVM vectorises
                    done = columns // 8 * 8
                    for w in range(0, done, 8):
                        p = out[o + w : o + w + 8]
                        q = x[i + 2 * w : i + 2 * w + 15]
                        p[0], p[1], p[2], p[3] = q[0], q[2], q[4], q[6]
                        p[4], p[5], p[6], p[7] = q[8], q[10], q[12], q[14]
                for w in range(done, columns):
                    out[o + w] = x[i + stride * w]


@jit
def merge_phases(phases, whole, row, column, stride, images):
    """Compute the transpose of `split_phases`: copy pixels of each phase to the whole planes."""
    g, g_base, g_image, g_row, g_height, g_width = phases
    out, out_base, out_image, out_row, height, width = whole
    for j in range(g_base.size):
        rows = min(g_height, (height - row[j] + stride - 1) // stride)
        columns = min(g_width, (width - column[j] + stride - 1) // stride)
        for n in range(images):
            for h in range(rows):
                i = g_base[j] + n * g_image + h * g_row
                o = out_base[j] + n * out_image + (h * stride + row[j]) * out_row + column[j]
                done = 0
                if stride == 2:
                    done = columns // 8 * 8
                    for w in range(0, done, 8):
                        p = g[i + w : i + w + 8]
                        q = out[o + 2 * w : o + 2 * w + 15]
                        q[0], q[2], q[4], q[6] = p[0], p[1], p[2], p[3]
                        q[8], q[10], q[12], q[14] = p[4], p[5], p[6], p[7]
                for w in range(done, columns):
                    out[o + stride * w] = g[i + w]
