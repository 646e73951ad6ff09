"""The Triton kernels themselves: tiles of ray sums and of voxels kept in registers. Imported only where they run.

A kernel takes flat arrays, first those it reads, then what it writes, then constants of the program. Arrays are those
of `xla`, volume `[z, x, y]` and images `[tilt, u, y]`; the geometry is the table of `triton.geometry`.

A row here is one ray (tilt, u), or one voxel (z, x), with `height` of its slices y: what depends on the geometry is
worked out once a row, and each thread holds a few slices of several rows. The lower the rows, the more of them a
program holds, and the more share what is in the cache.
"""

from __future__ import annotations

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import triton
import triton.language as tl


@triton.jit
def _column(table, column: tl.constexpr, tilt, tilts: tl.constexpr):
    return tl.load(table + column * tilts + tilt)


@triton.jit
def _gate(r):
    """The slope of clip(r, 0, 1); the mean of both sides at the kinks, as JAX has it."""
    return 0.5 * ((r > 0) & (r <= 1)).to(tl.float32) + 0.5 * ((r >= 0) & (r < 1)).to(tl.float32)


@triton.jit
def _sign(x):
    return (x > 0).to(tl.float32) - (x < 0).to(tl.float32)


@triton.jit
def _slices(rows, met, always: tl.constexpr, y, height: tl.constexpr, ny: tl.constexpr):
    """Rows of an array, zero where they are not `met`: what is not needed is not read."""
    if ny % height != 0:
        values = tl.load(rows, mask=met[:, None] & (y < ny)[None, :], other=0.0)
    elif always:
        values = tl.load(rows)
    else:
        values = tl.load(rows, mask=met[:, None], other=0.0)
    return values.to(tl.float32)


@triton.jit
def _by_row(table, column: tl.constexpr, first, among, tilts: tl.constexpr, tilts_tile: tl.constexpr):
    """A column of the table for every row, whose tilt is `first + among`.

    Chosen from scalars: what is loaded by rows is laid out otherwise and would pass through shared memory every plane.
    """
    value = among * 0.0
    for t in tl.static_range(tilts_tile):
        value = tl.where(among == t, tl.load(table + column * tilts + tl.minimum(first + t, tilts - 1)), value)
    return value


@triton.jit
def _crossed(start, turn, low, high):
    """From where to where, in planes from the centre, low <= start + plane · turn <= high."""
    turn = tl.where(tl.abs(turn) < 1e-6, 1e-6, turn)
    one, other = (low - start) / turn, (high - start) / turn
    return tl.minimum(one, other), tl.maximum(one, other)


@triton.jit
def _march(
    total,
    second,
    first,
    last,
    clear: tl.constexpr,
    volume,
    y,
    start,
    turn,
    sign,
    per_along,
    length,
    growth,
    planes: tl.constexpr,
    others: tl.constexpr,
    next_plane: tl.constexpr,
    next_row: tl.constexpr,
    height: tl.constexpr,
    ny: tl.constexpr,
    footprint: tl.constexpr,
    slope: tl.constexpr,
    pieces: tl.constexpr,
    index: tl.constexpr,
):
    """`total` and `second` with what the rows meet in some planes; `clear`: none is near an edge of the volume."""
    stretch = length if footprint == "trapezoid" else length * 0 + 1
    for plane in range(first, last):
        here = plane - (planes - 1) / 2
        begin = start + here * turn
        lowest = tl.floor(begin) if slope == "value" else tl.ceil(begin) - 1
        part = begin - lowest
        k = lowest.to(tl.int32)
        slices = volume + (tl.cast(plane, index) * next_plane + y)[None, :] + (k.to(index) * next_row)[:, None]
        beyond = part + (stretch - 2)  # of the stretch's end, into the third voxel
        if slope != "value":
            left, right = tl.where(part == 1, 0.5, 0.0), tl.where(beyond > 0, 1.0, tl.where(beyond == 0, 0.5, 0.0))
        for tap in tl.static_range(2 if footprint == "joseph" and slope == "value" else 3):
            if slope == "value":
                if tap == 0:
                    weight = 1 - part
                elif tap == 1:
                    weight = tl.minimum(part + (stretch - 1), 1.0)
                else:
                    weight = tl.maximum(beyond, 0.0)
                met = weight > 0
            else:
                # How much of either end is in this voxel: both halves of an end that lies between two.
                at_begin = 1 - left if tap == 0 else (left if tap == 1 else left * 0)
                at_end = right * 0 if tap == 0 else (1 - right if tap == 1 else right)
                met = at_begin + at_end > 0
                moved, away = at_end - at_begin, tl.abs(part + ((stretch - 1) / 2 - tap))
                if footprint == "joseph":
                    moved *= length
                    grown = growth * (tl.maximum(1 - away, 0.0) - (at_begin + at_end) * away)
                else:
                    grown = growth * (at_begin + at_end) * (0.5 - away / length)
                from_centre = lowest + (tap - (others - 1) / 2)
                by_shift = -per_along * moved
                by_tilt = sign * (here + from_centre * turn) * moved + grown
                weight = by_shift if slope == "shift" else by_tilt
            if not (clear and tap < 2):
                met &= (k + tap).to(tl.uint32) < others
            value = _slices(slices + tap * next_row, met, clear and tap < 2 and slope == "value", y, height, ny)
            total += weight[:, None] * value
            if slope == "both":
                second += by_shift[:, None] * value
            elif pieces == 2:
                more = slices + (tap * next_row + height)
                second += weight[:, None] * _slices(more, met, clear and tap < 2, y + height, height, ny)
    return total, second


@triton.jit
def _march_through(
    total,
    second,
    volume,
    y,
    rows,
    sign,
    offset,
    turn,
    per_along,
    length,
    growth,
    planes: tl.constexpr,
    others: tl.constexpr,
    next_plane: tl.constexpr,
    next_row: tl.constexpr,
    height: tl.constexpr,
    ny: tl.constexpr,
    footprint: tl.constexpr,
    slope: tl.constexpr,
    pieces: tl.constexpr,
    index: tl.constexpr,
):
    """`total` and `second` with what `rows` meet in all planes of their main axis; see `_sums`."""
    stretch = length if footprint == "trapezoid" else length * 0 + 1
    start = tl.where(rows, offset + (others - stretch) / 2, -4.0 * (planes + others))
    turn = tl.where(rows, turn, 0.0)
    enter, leave = _crossed(start, turn, -3.0, others + 1.0)
    first = tl.min(tl.where(rows, enter, 1e9), axis=0) + (planes - 1) / 2
    last = tl.max(tl.where(rows, leave, -1e9), axis=0) + (planes + 1) / 2
    enter, leave = _crossed(start, turn, 0.01, others - 1.01)
    inner = tl.ceil(tl.max(enter, axis=0) + (planes - 1) / 2)
    outer = tl.ceil(tl.min(leave, axis=0) + (planes - 1) / 2)
    # Whole numbers, in this order: from first to inner some row may be near an edge, from inner to outer none is.
    first = tl.minimum(tl.maximum(first, 0.0), planes + 0.0).to(tl.int32)
    last = tl.maximum(tl.minimum(tl.maximum(last, 0.0), planes + 0.0).to(tl.int32), first)
    inner = tl.minimum(tl.maximum(inner, first.to(tl.float32)), last.to(tl.float32)).to(tl.int32)
    outer = tl.minimum(tl.maximum(outer, inner.to(tl.float32)), last.to(tl.float32)).to(tl.int32)
    total, second = _march(
        total, second, first, inner, False, volume, y, start, turn, sign, per_along, length, growth,
        planes, others, next_plane, next_row, height, ny, footprint, slope, pieces, index,
    )  # fmt: skip
    total, second = _march(
        total, second, inner, outer, True, volume, y, start, turn, sign, per_along, length, growth,
        planes, others, next_plane, next_row, height, ny, footprint, slope, pieces, index,
    )  # fmt: skip
    return _march(
        total, second, outer, last, False, volume, y, start, turn, sign, per_along, length, growth,
        planes, others, next_plane, next_row, height, ny, footprint, slope, pieces, index,
    )  # fmt: skip


@triton.jit
def _sums(
    volume,
    table,
    y,
    tilts: tl.constexpr,
    width: tl.constexpr,
    nz: tl.constexpr,
    nx: tl.constexpr,
    ny: tl.constexpr,
    footprint: tl.constexpr,
    slope: tl.constexpr,
    tilts_tile: tl.constexpr,
    rays: tl.constexpr,
    height: tl.constexpr,
    pieces: tl.constexpr,
    index: tl.constexpr,
):
    """The rays of this tile, as u + width · tilt, whether they exist, and two sums Σ_xz weight · volume for each.

    In a plane of the main axis, a ray meets the stretch [q - L/2, q + L/2] of the other axis, in voxels, with
    q = (u - shift) / along - plane · across / along. Voxel k covers [k - 1/2, k + 1/2], and its weight is the overlap,
    clip((L + 1)/2 - |q - k|, 0, 1); for joseph it is L clip(1 - |q - k|, 0, 1), a stretch of 1. By q only the voxels
    in which the stretch begins and ends change.

    The second sum is that of the next slices where there are two `pieces`; and with `slope` "both", where the first
    sum is by tilt, it is that by shift.
    """
    row = tl.arange(0, tilts_tile * rays)
    first, among = tl.program_id(1) * tilts_tile, row // rays
    ray = tl.program_id(0) * rays + row % rays
    real = (first + among < tilts) & (ray < width)
    ray = tl.minimum(ray, width - 1)
    shift = _by_row(table, 2, first, among, tilts, tilts_tile)
    length = _by_row(table, 3, first, among, tilts, tilts_tile)
    growth = _by_row(table, 4, first, among, tilts, tilts_tile)
    per_along = _by_row(table, 5, first, among, tilts, tilts_tile)
    turn = _by_row(table, 6, first, among, tilts, tilts_tile)
    steep = _by_row(table, 7, first, among, tilts, tilts_tile) > 0
    offset = (ray - (width - 1) / 2 - shift) * per_along
    total = tl.zeros((tilts_tile * rays, height), tl.float32)
    second = tl.zeros((tilts_tile * rays, height), tl.float32)
    # Planes of z for the steep rows, then of x for the shallow ones: the strides swapped, and constants in both.
    total, second = _march_through(
        total, second, volume, y, steep, -1.0, offset, turn, per_along, length, growth,
        nz, nx, nx * ny, ny, height, ny, footprint, slope, pieces, index,
    )  # fmt: skip
    total, second = _march_through(
        total, second, volume, y, steep == 0, 1.0, offset, turn, per_along, length, growth,
        nx, nz, ny, nx * ny, height, ny, footprint, slope, pieces, index,
    )  # fmt: skip
    if footprint == "joseph" and slope == "value":
        total *= length[:, None]
        second *= length[:, None]
    return (first + among) * width + ray, real, total, second


@triton.jit
def ray_sums(
    volume,
    table,
    images,
    tilts: tl.constexpr,
    width: tl.constexpr,
    nz: tl.constexpr,
    nx: tl.constexpr,
    ny: tl.constexpr,
    footprint: tl.constexpr,
    slope: tl.constexpr,
    tilts_tile: tl.constexpr,
    rays: tl.constexpr,
    height: tl.constexpr,
    pieces: tl.constexpr,
    index: tl.constexpr,
):
    """images[t, u, y] = Σ_xz weight(t, u, x, z) volume[z, x, y]. Grid: tiles of u, of tilts, of y."""
    y = tl.program_id(2) * (pieces * height) + tl.arange(0, height)
    row, real, total, second = _sums(
        volume, table, y, tilts, width, nz, nx, ny, footprint, slope, tilts_tile, rays, height, pieces, index
    )
    pixel = images + row.to(index)[:, None] * ny + y[None, :]
    tl.store(pixel, total.to(images.dtype.element_ty), mask=real[:, None] & (y < ny)[None, :])
    if pieces == 2:
        tl.store(pixel + height, second.to(images.dtype.element_ty), mask=real[:, None] & (y + height < ny)[None, :])


@triton.jit
def pose_gradient(
    volume,
    images,
    table,
    partial,
    tilts: tl.constexpr,
    width: tl.constexpr,
    nz: tl.constexpr,
    nx: tl.constexpr,
    ny: tl.constexpr,
    footprint: tl.constexpr,
    tilts_tile: tl.constexpr,
    rays: tl.constexpr,
    height: tl.constexpr,
    index: tl.constexpr,
):
    """partial[p, t, u, j] = ∂Σ_y images · ray sums by tilt (p = 0) and shift (1), over the slices y of tile j."""
    y = tl.program_id(2) * height + tl.arange(0, height)
    row, real, by_tilt, by_shift = _sums(
        volume, table, y, tilts, width, nz, nx, ny, footprint, "both", tilts_tile, rays, height, 1, index
    )
    cotangent = _slices(images + row.to(index)[:, None] * ny + y[None, :], real, False, y, height, ny)
    place = partial + row * tl.num_programs(2) + tl.program_id(2)
    tl.store(place, tl.sum(by_tilt * cotangent, axis=1), mask=real)
    place += tilts * width * tl.num_programs(2)
    tl.store(place, tl.sum(by_shift * cotangent, axis=1), mask=real)


@triton.jit
def _gathered(
    total,
    images,
    offset,
    y,
    real,
    foot,
    moved,
    length,
    growth,
    clear: tl.constexpr,
    width: tl.constexpr,
    height: tl.constexpr,
    ny: tl.constexpr,
    footprint: tl.constexpr,
    slope: tl.constexpr,
    index: tl.constexpr,
):
    """`total` with the detector rows around the `foot` of every voxel; `clear`: all of them are on the detector."""
    lowest = tl.floor(foot) if slope == "value" else tl.ceil(foot) - 1
    part = foot - lowest
    k = lowest.to(tl.int32)
    slices = images + (offset + y)[None, :] + (k.to(index) * ny)[:, None]
    for tap in tl.static_range(2 if slope == "value" else 3):
        away = part - tap
        r = (1 if footprint == "joseph" else (length + 1) / 2) - tl.abs(away) * length
        share = tl.minimum(tl.maximum(r, 0.0), 1.0)
        if slope == "value":
            weight = share * length if footprint == "joseph" else share
        else:
            gate = _gate(r)
            rate = -_sign(away) * moved * length
            if slope == "tilt":
                rate += growth * ((0.0 if footprint == "joseph" else 0.5) - tl.abs(away))
            weight = gate * rate
            if footprint == "joseph":
                weight *= length
                if slope == "tilt":
                    weight += growth * share
        met = real & ((k + tap).to(tl.uint32) < width)
        total += weight[:, None] * _slices(slices + tap * ny, met, clear, y, height, ny)
    return total


@triton.jit
def voxel_sums(
    images,
    table,
    volume,
    tilts: tl.constexpr,
    width: tl.constexpr,
    nz: tl.constexpr,
    nx: tl.constexpr,
    ny: tl.constexpr,
    footprint: tl.constexpr,
    slope: tl.constexpr,
    depth: tl.constexpr,
    breadth: tl.constexpr,
    height: tl.constexpr,
    index: tl.constexpr,
):
    """volume[z, x, y] = Σ_tu weight(t, u, x, z) images[t, u, y]. Grid: tiles of x, of z, of y."""
    row = tl.arange(0, depth * breadth)
    z, x = tl.program_id(1) * depth + row // breadth, tl.program_id(0) * breadth + row % breadth
    y = tl.program_id(2) * height + tl.arange(0, height)
    real = (z < nz) & (x < nx)
    from_x, from_z = x - (nx - 1) / 2, z - (nz - 1) / 2
    middle_x = tl.program_id(0) * breadth + (breadth - nx) / 2
    middle_z = tl.program_id(1) * depth + (depth - nz) / 2
    total = tl.zeros((depth * breadth, height), tl.float32)
    for tilt in range(tilts):
        c, s, shift = _column(table, 0, tilt, tilts), _column(table, 1, tilt, tilts), _column(table, 2, tilt, tilts)
        length, growth = _column(table, 3, tilt, tilts), _column(table, 4, tilt, tilts)
        shift += (width - 1) / 2
        foot = from_x * c + (from_z * s + shift)
        moved = from_z * c - from_x * s if slope == "tilt" else foot * 0 + 1
        offset = tl.cast(tilt, index) * (width * ny)
        middle, reach = middle_x * c + middle_z * s + shift, tl.abs(c) * (breadth / 2) + tl.abs(s) * (depth / 2)
        if (middle - reach > 0) & (middle + reach < width - 1) & (slope == "value"):
            total = _gathered(
                total,
                images,
                offset,
                y,
                real,
                foot,
                moved,
                length,
                growth,
                True,
                width,
                height,
                ny,
                footprint,
                slope,
                index,
            )
        else:
            total = _gathered(
                total,
                images,
                offset,
                y,
                real,
                foot,
                moved,
                length,
                growth,
                False,
                width,
                height,
                ny,
                footprint,
                slope,
                index,
            )
    voxel = volume + (z * nx + x).to(index)[:, None] * ny + y[None, :]
    tl.store(voxel, total.to(volume.dtype.element_ty), mask=real[:, None] & (y < ny)[None, :])
