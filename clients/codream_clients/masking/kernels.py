"""Rounding, mask streams, the tag's products and packing in one pass over a vector, as Triton kernels.

Bit for bit what `codream_protocols` makes of the same keys in numpy and `cryptography`: ChaCha20 (RFC 8439) as `masks`
lays out its pieces, rounding as in `ring`, planes as in `packing`, rows times columns as in `tag`. `device` launches
these and holds them to it before it trusts them. Nothing here branches, or reads memory, by a secret.

A program takes `ROWS` rows of the tag's matrix, 2,048 elements each. A lane makes one block of each stream, 64 bytes:
32 elements where a mask's words have 16 bits (`NARROW`), else 16. All streams meet in registers; of the vector nothing
is written but what is packed. What a program and its neighbour both write to is written by atomic integer operations,
whose order changes nothing. uint32 is int32 at torch's side.
"""

import triton
import triton.language as tl

COLUMNS = tl.constexpr(2048)
LIMBS = tl.constexpr(8)
_BLOCK_BYTES = 64
_NUMBERS = ["pairs", "start", "stop", "count", "second", "third", "middle", "fine"]  # one program fits all
DITHER_BLOCKS = tl.constexpr((1 << 17) // _BLOCK_BYTES)  # 2^16 numbers of 16 bits
PIECE_BLOCKS = tl.constexpr((1 << 18) // _BLOCK_BYTES)  # of one nonce


@triton.jit
def _quarter_round(a, b, c, d):
    a += b
    d ^= a
    d = (d << 16) | (d >> 16)
    c += d
    b ^= c
    b = (b << 12) | (b >> 20)
    a += b
    d ^= a
    d = (d << 8) | (d >> 24)
    c += d
    b ^= c
    b = (b << 7) | (b >> 25)
    return a, b, c, d


@triton.jit
def _word(key, place):
    return tl.load(key + place).to(tl.uint32, bitcast=True)


@triton.jit
def _block(key, counter, piece):
    """The 16 words of a block of each lane: block counter `counter`, nonce `piece` (RFC 8439, section 2.3)."""
    zero = tl.zeros_like(counter)
    k0, k1, k2, k3 = _word(key, 0), _word(key, 1), _word(key, 2), _word(key, 3)
    k4, k5, k6, k7 = _word(key, 4), _word(key, 5), _word(key, 6), _word(key, 7)
    x0, x1, x2, x3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    x4, x5, x6, x7 = zero + k0, zero + k1, zero + k2, zero + k3
    x8, x9, x10, x11 = zero + k4, zero + k5, zero + k6, zero + k7
    x12, x13, x14, x15 = counter, piece, zero, zero
    for _ in range(10):
        x0, x4, x8, x12 = _quarter_round(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter_round(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter_round(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter_round(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter_round(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter_round(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter_round(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter_round(x3, x4, x9, x14)
    a = (x0 + 0x61707865, x1 + 0x3320646E, x2 + 0x79622D32, x3 + 0x6B206574)
    b, c = (x4 + k0, x5 + k1, x6 + k2, x7 + k3), (x8 + k4, x9 + k5, x10 + k6, x11 + k7)
    return a, b, c, (x12 + counter, x13 + piece, x14, x15)


@triton.jit
def _four_added(sums, words, sign, SHIFT: tl.constexpr):
    return (
        sums[0] + (words[0] >> SHIFT) * sign,
        sums[1] + (words[1] >> SHIFT) * sign,
        sums[2] + (words[2] >> SHIFT) * sign,
        sums[3] + (words[3] >> SHIFT) * sign,
    )


@triton.jit
def _added(sums, words, sign, SHIFT: tl.constexpr):
    """Each of 16 sums and its word, moved down by `SHIFT` bits and times 1 or -1."""
    return (
        _four_added(sums[0], words[0], sign, SHIFT),
        _four_added(sums[1], words[1], sign, SHIFT),
        _four_added(sums[2], words[2], sign, SHIFT),
        _four_added(sums[3], words[3], sign, SHIFT),
    )


@triton.jit
def _every_second(a, b, c, d, FIRST: tl.constexpr):
    """Of 16 words, in fours, every second one; `join` puts its two beside each other, so the halves are joined last."""
    return tl.join(
        tl.join(tl.join(a[FIRST], c[FIRST]), tl.join(b[FIRST], d[FIRST])),
        tl.join(tl.join(a[FIRST + 2], c[FIRST + 2]), tl.join(b[FIRST + 2], d[FIRST + 2])),
    )


@triton.jit
def _in_a_row(words):
    """16 words of each lane, shape (lanes, 16)."""
    a, b, c, d = words
    return tl.reshape(tl.join(_every_second(a, b, c, d, 0), _every_second(a, b, c, d, 1)), [a[0].shape[0], 16])


@triton.jit(do_not_specialize=["blocks"])
def dither(out, key, blocks, LANES: tl.constexpr):
    """The dither of one key, in int32 words, 16 a block: of each piece of a mask's stream the first half."""
    block = tl.program_id(0) * LANES + tl.arange(0, LANES)
    piece, counter = block // DITHER_BLOCKS, block % DITHER_BLOCKS
    words = _in_a_row(_block(key, counter.to(tl.uint32), piece.to(tl.uint32)))
    places = block[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + places, words.to(tl.int32, bitcast=True), mask=(block < blocks)[:, None])


@triton.jit
def _mask_sums(keys, signs, pairs, lane, NARROW: tl.constexpr):
    """The sum of all streams, of each lane its 16 or 32 elements; below 2^16 or 2^32 the lower bits count."""
    block = lane.to(tl.uint32)
    piece, counter = block // PIECE_BLOCKS, block % PIECE_BLOCKS
    zero = tl.zeros_like(counter)
    four = (zero, zero, zero, zero)
    lower = (four, four, four, four)
    upper = lower
    for pair in range(pairs):
        sign, words = _word(signs, pair), _block(keys + 8 * pair, counter, piece)
        lower = _added(lower, words, sign, 0)
        if NARROW:  # the lower half of a word is an element, and what it carries into the upper half is not
            upper = _added(upper, words, sign, 16)
    sums = _in_a_row(lower)
    if NARROW:
        sums = tl.reshape(tl.join(sums, _in_a_row(upper)), [lane.shape[0], 32])
    return sums


@triton.jit
def _rounded(values, places, inside, scales, odds, replaced, middle, fine, REAL: tl.constexpr):
    """See `ring.encode`: what is rounded to the nearest part of a step ends in an integer, so no order matters."""
    value = tl.load(values + places, mask=inside, other=0.0)
    if tl.float32 == REAL:
        finite = tl.abs(value) < float("inf")
    else:
        value = value.to(tl.float64)
        finite = tl.abs(value / tl.load(scales + 2)) < float("inf")
    scaled = tl.where(finite, value * tl.load(scales).to(REAL), 0.0)
    size = tl.minimum(tl.abs(scaled), tl.load(scales + 1).to(REAL))
    whole = size.to(tl.int32)
    rest = size - whole.to(REAL)  # exact; a half goes to the even one
    whole += ((rest > 0.5) | ((rest == 0.5) & (whole % 2 == 1))).to(tl.int32)
    steps = tl.where(scaled < 0.0, -whole, whole)
    odd = tl.load(odds + places, mask=inside, other=0).to(tl.int32) & 0xFFFF
    tl.atomic_add(replaced + tl.zeros_like(places), 1, mask=inside & ~finite, sem="relaxed")
    return (steps + (odd >> (16 - fine)) + middle) >> fine


@triton.jit
def _pack_plane(planes, halves, places, elements, inside, count, begin, SHIFT: tl.constexpr, WIDTH: tl.constexpr):
    """Bits `SHIFT` to `SHIFT + WIDTH - 1` of each element into the plane at `begin` (in int32); see `packing`."""
    bits = elements >> SHIFT
    if WIDTH == 16:
        tl.store(halves + 2 * begin + places, bits.to(tl.int16), mask=inside)
    else:
        words = (count + (16 // WIDTH - 1)) // (16 // WIDTH)
        part, word = places // words, places % words
        one = (bits & ((1 << WIDTH) - 1)) << (part * WIDTH + word % 2 * 16).to(tl.uint32)
        tl.atomic_or(planes + begin + word // 2, one.to(tl.int32, bitcast=True), mask=inside, sem="relaxed")


@triton.jit(do_not_specialize=_NUMBERS)
def mask(
    planes,
    halves,
    products,
    replaced,
    values,
    scales,
    odds,
    keys,
    signs,
    columns,
    pairs,
    start,
    stop,
    count,
    second,
    third,
    middle,
    fine,
    REAL: tl.constexpr,
    BITS: tl.constexpr,
    WIDTHS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Elements `start` to `stop - 1` of a vector of `count`, from the row of the first one on.

    Args:
        planes: int32, zeros: the packed planes, each from a whole int32 on.
        halves: the same memory as int16.
        products: int64, zeros, (rows of the whole vector, 8): X b in limbs, added to.
        replaced: int32, one number: how many values were not finite, added to.
        values: from `start` on: float32 or float64, or ring elements as int32.
        scales: float64: factor, bound and clip of `ring.encode`; of ring elements nothing is read.
        odds: int16, one a value: what `dither` made.
        keys: int32, (pairs, 8).
        signs: int32, 1 or -1 for each pair.
        columns: int32, (8, 2048): limbs of b.
        pairs: how many streams there are.
        start: the first element.
        stop: the end.
        count: elements of the whole vector.
        second: where the second plane begins, in int32.
        third: where the third one does.
        middle: see `ring.encode`.
        fine: the same.
        REAL: float32 or float64, as `ring.encode` scales; None for ring elements.
        BITS: m.
        WIDTHS: of the planes, the lowest first.
        ROWS: rows of a program.
    """
    NARROW: tl.constexpr = BITS <= 16
    EACH: tl.constexpr = 32 if NARROW else 16
    LANES: tl.constexpr = ROWS * COLUMNS // EACH
    row = start // COLUMNS + tl.program_id(0) * ROWS
    lane = row * (COLUMNS // EACH) + tl.arange(0, LANES)
    places = lane[:, None] * EACH + tl.arange(0, EACH)[None, :]
    inside = (places >= start) & (places < stop)
    sums = _mask_sums(keys, signs, pairs, lane, NARROW)
    if REAL is None:
        own = tl.load(values + (places - start), mask=inside, other=0)
    else:
        own = _rounded(values, places - start, inside, scales, odds, replaced, middle, fine, REAL)
        own = tl.where(inside, own, 0)
    matrix = tl.reshape(own, [ROWS, COLUMNS]).to(tl.int64)
    rows = row + tl.arange(0, ROWS)
    for limb in tl.static_range(LIMBS):
        column = tl.load(columns + limb * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
        product = tl.sum(matrix * column[None, :], axis=1)
        tl.atomic_add(products + rows * LIMBS + limb, product, mask=rows * COLUMNS < stop, sem="relaxed")
    elements = own.to(tl.uint32, bitcast=True) + sums
    _pack_plane(planes, halves, places, elements, inside, count, 0, 0, WIDTHS[0])
    if len(WIDTHS) > 1:
        _pack_plane(planes, halves, places, elements, inside, count, second, WIDTHS[0], WIDTHS[1])
    if len(WIDTHS) > 2:
        _pack_plane(planes, halves, places, elements, inside, count, third, WIDTHS[0] + WIDTHS[1], WIDTHS[2])
