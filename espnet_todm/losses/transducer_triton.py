"""The kernel of :mod:`espnet_todm.losses.transducer_kernel`. Importing it needs Triton."""

# No `from __future__ import annotations`: Triton reads the annotations as values, and knows few of them.

import triton
import triton.language as tl


# Numbers that differ from batch to batch must not be compiled in.
@triton.jit(do_not_specialize=["diagonals", "lattices", "rows"])
def diagonals_of_one_lattice(alpha, moves, diagonals, lattices, rows, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program computes the anti-diagonals of one lattice one after the other; BLOCK >= rows of them at once.

    alpha (diagonals + 1, lattices, rows + 1), moves (diagonals, 2, lattices, rows): pointers to float64.
    """
    row = tl.arange(0, BLOCK)
    inside = row < rows
    source = alpha + tl.program_id(0) * (rows + 1) + row  # of the label into this row; that of the blank is one further
    move = moves + tl.program_id(0) * rows + row
    while diagonals > 0:  # Triton's interpreter has no range of such a number under numpy 2.4
        label = tl.load(source, mask=inside, other=float("-inf")) + tl.load(move, mask=inside, other=0.0)
        blank = tl.load(source + 1, mask=inside, other=float("-inf"))
        blank += tl.load(move + lattices * rows, mask=inside, other=0.0)
        largest = tl.maximum(label, blank)
        total = largest + tl.log(tl.exp(label - largest) + tl.exp(blank - largest))
        source += lattices * (rows + 1)
        move += 2 * lattices * rows
        # With two infinities, the differences above are not numbers.
        tl.store(source + 1, tl.where(largest == float("-inf"), largest, total), mask=inside)
        tl.debug_barrier()  # the next anti-diagonal reads what other threads have stored
        diagonals -= 1
