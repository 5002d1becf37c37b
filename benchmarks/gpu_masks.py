"""What masking a vector costs on this machine's GPU, beside what the card's integer units need at least.

    python benchmarks/gpu_masks.py                        # needs a CUDA device
    python benchmarks/gpu_masks.py --instructions 90      # compiled for compute capability 9.0; needs none

**The limit** is measured: the additions, exclusive ors and rotations of ChaCha20 on words in registers, and nothing
else, by as many lanes as the card holds. A block of 64 bytes takes 976 of them. The pass is the kernel that rounds,
masks, multiplies for the tag and packs; the call is all that a client's step does on the device, with what goes up and
comes down; beside it the same bytes made on the processor. Medians.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from codream_clients.masking import kernels
from codream_clients.masking.vector import Vector
from codream_protocols import packing, ring
from codream_protocols.masks import add_masks, stream_pieces, word_type
from codream_protocols.tag import TagKey

SUITE, CLIP, TOP, REPEATS = "chacha20", 1.0, 4095, 20
OPERATIONS = 10 * 96 + 16  # of a block
LANES, DOUBLE_ROUNDS = 128, 4000


@triton.jit
def rounds(out, count, WIDTH: tl.constexpr):
    place = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    x0 = place.to(tl.uint32)
    x1, x2, x3, x4, x5, x6, x7 = x0 + 1, x0 + 2, x0 + 3, x0 + 4, x0 + 5, x0 + 6, x0 + 7
    x8, x9, x10, x11, x12, x13, x14, x15 = x0 + 8, x1 + 8, x2 + 8, x3 + 8, x4 + 8, x5 + 8, x6 + 8, x7 + 8
    for _ in range(count):
        x0, x4, x8, x12 = kernels._quarter_round(x0, x4, x8, x12)
        x1, x5, x9, x13 = kernels._quarter_round(x1, x5, x9, x13)
        x2, x6, x10, x14 = kernels._quarter_round(x2, x6, x10, x14)
        x3, x7, x11, x15 = kernels._quarter_round(x3, x7, x11, x15)
        x0, x5, x10, x15 = kernels._quarter_round(x0, x5, x10, x15)
        x1, x6, x11, x12 = kernels._quarter_round(x1, x6, x11, x12)
        x2, x7, x8, x13 = kernels._quarter_round(x2, x7, x8, x13)
        x3, x4, x9, x14 = kernels._quarter_round(x3, x4, x9, x14)
    mixed = x0 ^ x1 ^ x2 ^ x3 ^ x4 ^ x5 ^ x6 ^ x7 ^ x8 ^ x9 ^ x10 ^ x11 ^ x12 ^ x13 ^ x14 ^ x15
    tl.store(out + place, mixed.to(tl.int32, bitcast=True))


class Timed(Vector):
    """Tells the milliseconds of its pass."""

    milliseconds = 0.0

    def _launch(self, part: dict[str, Any]) -> None:
        self.milliseconds += of_device(lambda: super(Timed, self)._launch(part))


def of_device(work: Callable[[], object]) -> float:
    """Milliseconds that the device took."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def operations_a_second(device: torch.device) -> float:
    """Of the card, by the rounds alone."""
    programs = 64 * torch.cuda.get_device_properties(device).multi_processor_count
    out = torch.empty(programs * LANES, dtype=torch.int32, device=device)
    taken = [of_device(lambda: rounds[(programs,)](out, DOUBLE_ROUNDS, WIDTH=LANES)) for _ in range(REPEATS + 1)]
    return 96 * DOUBLE_ROUNDS * programs * LANES / (median(taken[1:]) / 1e3)


def on_processor(values: np.ndarray, bits: int, keys: list[tuple[bytes, bool]], tag_key: TagKey) -> bytes:
    """The same bytes."""
    vector = np.empty(len(values), dtype=word_type(bits))
    dither = stream_pieces("<u2", bytes(32), suite=SUITE)
    ring.encode(values, CLIP, vector, top=TOP, dither=dither)
    tag_key.of(vector)
    add_masks(vector, keys, suite=SUITE)
    vector &= vector.dtype.type((1 << bits) - 1)
    return packing.pack(vector, bits)


def measure(count: int, members: int, bits: int, device: torch.device, speed: float) -> None:
    """One line of the table."""
    values = np.random.default_rng(0).normal(0.0, 0.3, count).astype(np.float32)
    there, tag_key = torch.from_numpy(values).to(device), TagKey(bytes(32), count)
    keys = [(number.to_bytes(32, "little"), number % 2 == 0) for number in range(1, members)]
    passes, calls, frame = [], [], b""
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        vector = Timed(device, count, bits, 1)
        vector.give_numbers(there, CLIP, TOP, bytes(32))
        frame = vector.masked(keys, tag_key).frame
        calls.append(1e3 * (time.perf_counter() - begin))
        passes.append(vector.milliseconds)
    begin = time.perf_counter()
    assert on_processor(values, bits, keys, tag_key) == frame, "another vector came out than on the processor"
    beside = 1e3 * (time.perf_counter() - begin)
    blocks = (members - 1) * -(-count * (2 if bits <= 16 else 4) // 64)
    limit, taken = 1e3 * blocks * OPERATIONS / speed, median(passes[1:])
    print(
        f"{count:>10,} {members:>4} {bits:>3} {taken:>9.3f} {limit:>9.3f} {limit / taken:>6.2f} "
        f"{median(calls[1:]):>9.3f} {beside:>12.3f}"
    )


def instructions(capability: int) -> str:
    """What the inner loop of the pass is compiled to: its instructions, and how many of them touch memory."""
    kinds = dict.fromkeys(kernels.mask.arg_names, "i32") | dict.fromkeys(
        ("planes", "replaced", "keys", "signs", "columns"), "*i32"
    )
    kinds |= {"halves": "*i16", "odds": "*i16", "products": "*i64", "values": "*fp32", "scales": "*fp64"}
    fixed = {"REAL": tl.float32, "BITS": 16, "WIDTHS": (16,), "ROWS": 1}
    source = ASTSource(fn=kernels.mask, signature=kinds | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 2})
    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = Path(compiled.metadata_group[next(name for name in compiled.metadata_group if name.endswith(".cubin"))])
    text = subprocess.run([disassembler, "-sass", file], capture_output=True, text=True, check=True).stdout
    lines = [(int(at, 16), said) for at, said in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.MULTILINE)]
    loops = []
    for at, said in lines:
        back = re.search(r"BRA (?:\w+, )?0x([0-9a-f]+)", said)
        if back and int(back[1], 16) < at:
            loops.append([one for place, one in lines if int(back[1], 16) <= place <= at])
    inner = min(loops, key=len)
    memory = sum(bool(re.search(r"\b(LD|ST|ATOM|RED)[A-Z]*\b", one)) for one in inner)
    return f"inner loop: {len(inner)} instructions, {memory} of them touch memory; a double round has 96 operations"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinates", default="100000,1000000,38535168")
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--bits", default="16,21")
    parser.add_argument("--instructions", type=int, help="compile for this compute capability, times ten, and count")
    given = parser.parse_args()
    if given.instructions is not None:
        print(instructions(given.instructions))
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured; --instructions 90 counts what is compiled", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    speed = operations_a_second(device)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, triton {triton.__version__}")
    print(f"integer limit: {speed / 1e12:.2f} * 10^12 operations a second")
    print(
        f"{'d':>10} {'n':>4} {'m':>3} {'pass ms':>9} {'limit ms':>9} {'share':>6} {'call ms':>9} {'processor ms':>12}"
    )
    for count in map(int, given.coordinates.split(",")):
        for bits in map(int, given.bits.split(",")):
            measure(count, given.members, bits, device, speed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
