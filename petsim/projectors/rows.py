"""Vector loops over contiguous rows, the inner loops of the CPU projectors.

Each works on samples p = 0 ... lanes - 1 that lie side by side in memory:

- `combine`: out[p] = sum over t of coef[t] x buffer[offset[t] + p], and `spread`, its transpose;
- `shear`: the same for many rows of two terms each, and `unshear`;
- `integrate`: running sums over steps of an interpolated image, and `differentiate`, its transpose.

They are written in LLVM's vector instructions (through numba's intrinsics), because the sums have to stay in registers
over all terms and a compiler cannot know that the arrays do not overlap. LLVM splits the vectors where the processor's are
shorter. Arrays are contiguous and addressed flat; values are float32, offsets int64. Nothing is checked.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)

COMBINE_TILES = ((16, 4, 2), (16, 2, 4), (16, 1, 4), (8, 1, 4), (1, 1, 4))
"""(width, vectors, terms at a time): enough independent sums to hide the latency of a multiply-add."""

LONG_TILES = ((16, 4), (16, 2), (16, 1), (8, 1), (1, 1))


def vector_loop(build: Callable) -> Any:
    """`intrinsic`, whose functions are called without their first argument; that is beyond type checkers."""
    return intrinsic(build)


def _const(n):
    return ir.Constant(_INT, n)


class _Code:
    """The few vector instructions needed, for one width."""

    def __init__(self, builder, width):
        self.b, self.width = builder, width
        self.type = ir.VectorType(_FLOAT, width) if width > 1 else _FLOAT

    def zero(self):
        return ir.Constant(self.type, [0.0] * self.width if self.width > 1 else 0.0)

    def splat(self, scalar):
        if self.width == 1:
            return scalar
        undefined = ir.Constant(self.type, ir.Undefined)
        index = ir.IntType(32)
        one = self.b.insert_element(undefined, scalar, ir.Constant(index, 0))
        return self.b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(index, self.width), [0] * self.width))

    def _address(self, pointer, offset):
        return self.b.bitcast(self.b.gep(pointer, [offset]), self.type.as_pointer())

    def load(self, pointer, offset):
        return self.b.load(self._address(pointer, offset), align=4)

    def store(self, value, pointer, offset):
        self.b.store(value, self._address(pointer, offset), align=4)

    def running(self):
        """A running sum for `add_to`, set to zero."""
        pair = cgutils.alloca_once(self.b, self.type), cgutils.alloca_once(self.b, self.type)
        for place in pair:
            self.b.store(self.zero(), place)
        return pair

    def add_to(self, running, term):
        """Add to a running sum of (value, what rounding took from it), after Kahan (doi 10.1145/363707.363723).

        The double sum of n plain float32 sums would be off by some n^2.5 roundings of one term.
        """
        total, rest = running
        before = self.b.load(total)
        missing = self.b.fsub(term, self.b.load(rest))
        after = self.b.fadd(before, missing)
        self.b.store(self.b.fsub(self.b.fsub(after, before), missing), rest)
        self.b.store(after, total)
        return after

    def fma(self, x, y, z):
        name = f"llvm.fma.v{self.width}f32" if self.width > 1 else "llvm.fma.f32"
        function = cgutils.get_or_insert_function(self.b.module, ir.FunctionType(self.type, [self.type] * 3), name)
        return self.b.call(function, [x, y, z])


def _pointers(context, builder, signature, args, places):
    return [context.make_array(signature.args[i])(context, builder, args[i]).data for i in places]


def _tiled(builder, lanes, tiles, emit):
    """Cut `lanes` into tiles, the largest first; `emit(tile, start)` writes the code of one."""
    done = cgutils.alloca_once_value(builder, _const(0))
    for tile in tiles:
        size = tile[0] * tile[1]
        blocks = [builder.append_basic_block(name) for name in ("more", "tile", "next")]
        builder.branch(blocks[0])
        builder.position_at_end(blocks[0])
        left = builder.sub(lanes, builder.load(done))
        builder.cbranch(builder.icmp_signed(">=", left, _const(size)), blocks[1], blocks[2])
        builder.position_at_end(blocks[1])
        emit(tile, builder.load(done))
        builder.store(builder.add(builder.load(done), _const(size)), done)
        builder.branch(blocks[0])
        builder.position_at_end(blocks[2])


@vector_loop
def combine(typingctx, out, at, buffer, base, offsets, coefs, first, stride, terms, lanes, add):
    """out[at + p] = (out[at + p] if add) + sum of coefs[first + t stride] x buffer[base + offsets[t] + p].

    There are `terms` values t.
    """
    signature = types.void(out, types.intp, buffer, types.intp, offsets, coefs, *([types.intp] * 5))

    def codegen(context, b, signature, args):
        target, source, offset, coef = _pointers(context, b, signature, args, (0, 2, 4, 5))
        at, base, first, stride, terms, lanes, add = (args[i] for i in (1, 3, 6, 7, 8, 9, 10))

        def emit(tile, start):
            width, vectors, unroll = tile
            code = _Code(b, width)
            places = [b.add(b.add(at, start), _const(v * width)) for v in range(vectors)]
            sums = [[cgutils.alloca_once_value(b, code.zero()) for _ in range(vectors)] for _ in range(unroll)]
            for row in sums:
                for total in row:
                    b.store(code.zero(), total)
            with b.if_then(b.icmp_signed("!=", add, _const(0))):
                for total, place in zip(sums[0], places, strict=True):
                    b.store(code.load(target, place), total)

            def term(t, row):
                begin = b.add(b.add(base, start), b.load(b.gep(offset, [t])))
                c = code.splat(b.load(b.gep(coef, [b.add(first, b.mul(t, stride))])))
                for v, total in enumerate(row):
                    b.store(code.fma(c, code.load(source, b.add(begin, _const(v * width))), b.load(total)), total)

            rounds = b.udiv(terms, _const(unroll))
            with cgutils.for_range(b, rounds) as loop:
                for u, row in enumerate(sums):
                    term(b.add(b.mul(loop.index, _const(unroll)), _const(u)), row)
            rest = b.mul(rounds, _const(unroll))
            with cgutils.for_range(b, b.sub(terms, rest)) as loop:
                term(b.add(rest, loop.index), sums[0])
            for v, place in enumerate(places):
                total = b.load(sums[0][v])
                for row in sums[1:]:
                    total = b.fadd(total, b.load(row[v]))
                code.store(total, target, place)

        _tiled(b, lanes, COMBINE_TILES, emit)
        return context.get_dummy_value()

    return signature, codegen


@vector_loop
def spread(typingctx, buffer, base, offsets, coefs, terms, values, at, lanes):
    """buffer[base + offsets[t] + p] += coefs[t] x values[at + p]; the transpose of `combine`."""
    signature = types.void(buffer, types.intp, offsets, coefs, types.intp, values, types.intp, types.intp)

    def codegen(context, b, signature, args):
        target, offset, coef, source = _pointers(context, b, signature, args, (0, 2, 3, 5))
        base, terms, at, lanes = (args[i] for i in (1, 4, 6, 7))

        def emit(tile, start):
            width, vectors = tile
            code = _Code(b, width)
            held = [code.load(source, b.add(b.add(at, start), _const(v * width))) for v in range(vectors)]
            with cgutils.for_range(b, terms) as loop:
                begin = b.add(b.add(base, start), b.load(b.gep(offset, [loop.index])))
                c = code.splat(b.load(b.gep(coef, [loop.index])))
                places = [b.add(begin, _const(v * width)) for v in range(vectors)]
                sums = [code.fma(c, x, code.load(target, place)) for x, place in zip(held, places, strict=True)]
                for total, place in zip(sums, places, strict=True):
                    code.store(total, target, place)

        _tiled(b, lanes, LONG_TILES, emit)
        return context.get_dummy_value()

    return signature, codegen


@vector_loop
def shear(typingctx, out, at, out_stride, buffer, base, low, high, fraction, rows, lanes):
    """out[at + r out_stride + p] = (1 - fraction[r]) buffer[base + low[r] + p] + fraction[r] buffer[base + high[r] + p]."""
    signature = types.void(out, types.intp, types.intp, buffer, types.intp, low, high, fraction, types.intp, types.intp)

    def codegen(context, b, signature, args):
        target, source, lower, upper, weight = _pointers(context, b, signature, args, (0, 3, 5, 6, 7))
        at, out_stride, base, rows, lanes = (args[i] for i in (1, 2, 4, 8, 9))

        def emit(tile, start):
            width, vectors = tile
            code = _Code(b, width)
            begin = b.add(base, start)
            with cgutils.for_range(b, rows) as loop:
                lo, hi = (b.add(begin, b.load(b.gep(x, [loop.index]))) for x in (lower, upper))
                f = code.splat(b.load(b.gep(weight, [loop.index])))
                place = b.add(b.add(at, start), b.mul(loop.index, out_stride))
                for v in range(vectors):
                    shift = _const(v * width)
                    x, y = code.load(source, b.add(lo, shift)), code.load(source, b.add(hi, shift))
                    code.store(code.fma(f, b.fsub(y, x), x), target, b.add(place, shift))

        _tiled(b, lanes, LONG_TILES, emit)
        return context.get_dummy_value()

    return signature, codegen


@vector_loop
def unshear(typingctx, buffer, base, low, high, fraction, rows, values, at, value_stride, lanes):
    """Transpose of `shear`: adds to the buffer."""
    signature = types.void(
        buffer, types.intp, low, high, fraction, types.intp, values, types.intp, types.intp, types.intp
    )  # fmt: skip

    def codegen(context, b, signature, args):
        target, lower, upper, weight, source = _pointers(context, b, signature, args, (0, 2, 3, 4, 6))
        base, rows, at, value_stride, lanes = (args[i] for i in (1, 5, 7, 8, 9))

        def emit(tile, start):
            width, vectors = tile
            code = _Code(b, width)
            begin = b.add(base, start)
            with cgutils.for_range(b, rows) as loop:
                lo, hi = (b.add(begin, b.load(b.gep(x, [loop.index]))) for x in (lower, upper))
                f = code.splat(b.load(b.gep(weight, [loop.index])))
                place = b.add(b.add(at, start), b.mul(loop.index, value_stride))
                shifts = [_const(v * width) for v in range(vectors)]
                values = [code.load(source, b.add(place, shift)) for shift in shifts]
                parts = [b.fmul(f, value) for value in values]
                for shift, value, part in zip(shifts, values, parts, strict=True):
                    rest = b.fsub(value, part)
                    code.store(b.fadd(code.load(target, b.add(lo, shift)), rest), target, b.add(lo, shift))
                for shift, part in zip(shifts, parts, strict=True):
                    code.store(b.fadd(code.load(target, b.add(hi, shift)), part), target, b.add(hi, shift))

        _tiled(b, lanes, LONG_TILES, emit)
        return context.get_dummy_value()

    return signature, codegen


@vector_loop
def integrate(typingctx, image, low, high, fraction, count, at, below, above, rows, row_at, row, c_at, d_at, lanes):
    """Running sums over `count` steps of an image interpolated across a line, and of its second difference.

    With P[s] = (1 - fraction[s]) image[low[s] + at + p] + fraction[s] image[high[s] + at + p] and Q its second difference,
    whose neighbors lie at `below` and `above` in place of `at`: C is the sum of P and D that of C; they are stored at
    rows[c_at + p] and rows[d_at + p]. The sum of the sum of Q up to step s goes to rows[row_at + (s + 1) row + p].
    """
    ints = [types.intp] * 5
    signature = types.void(image, low, high, fraction, *ints[:4], rows, *ints)

    def codegen(context, b, signature, args):
        source, lower, upper, weight, target = _pointers(context, b, signature, args, (0, 1, 2, 3, 8))
        count, at, below, above = args[4:8]
        row_at, row, c_at, d_at, lanes = args[9:14]

        def emit(tile, start):
            width, vectors = tile
            code = _Code(b, width)
            shifts = [_const(v * width) for v in range(vectors)]
            sums = [[code.running() for _ in range(4)] for _ in range(vectors)]
            two = code.splat(ir.Constant(_FLOAT, -2.0))
            with cgutils.for_range(b, count) as loop:
                ends = [b.add(b.load(b.gep(x, [loop.index])), start) for x in (lower, upper)]
                f = code.splat(b.load(b.gep(weight, [loop.index])))
                out = b.add(b.add(row_at, start), b.mul(b.add(loop.index, _const(1)), row))
                for shift, (c, d, cq, dq) in zip(shifts, sums, strict=True):
                    here, beside = [], []
                    for end in ends:
                        x, lo, hi = (code.load(source, b.add(b.add(end, shift), k)) for k in (at, below, above))
                        here.append(x)
                        beside.append(code.fma(two, x, b.fadd(lo, hi)))
                    for (x, y), single, double in ((here, c, d), (beside, cq, dq)):
                        code.add_to(double, code.add_to(single, code.fma(f, b.fsub(y, x), x)))
                    code.store(b.load(dq[0]), target, b.add(out, shift))
            for shift, (c, d, _, _) in zip(shifts, sums, strict=True):
                code.store(b.load(c[0]), target, b.add(b.add(c_at, start), shift))
                code.store(b.load(d[0]), target, b.add(b.add(d_at, start), shift))

        _tiled(b, lanes, ((16, 2), (16, 1), (8, 1), (1, 1)), emit)
        return context.get_dummy_value()

    return signature, codegen


@vector_loop
def differentiate(typingctx, image, low, high, fraction, count, at, rows, here, below, above, row, c_at, d_at, lanes):
    """Transpose of `integrate` for one phase: adds to the image.

    `here`, `below` and `above` are the places in a row of the samples p and of those beside them.
    """
    ints = [types.intp] * 7
    signature = types.void(image, low, high, fraction, *ints[:2], rows, *ints)

    def codegen(context, b, signature, args):
        target, lower, upper, weight, source = _pointers(context, b, signature, args, (0, 1, 2, 3, 6))
        count, at = args[4:6]
        here, below, above, row, c_at, d_at, lanes = args[7:14]

        def emit(tile, start):
            width, vectors = tile
            code = _Code(b, width)
            shifts = [_const(v * width) for v in range(vectors)]
            sums = [[code.running() for _ in range(2)] for _ in range(vectors)]
            for shift, (c, d) in zip(shifts, sums, strict=True):
                b.store(code.load(source, b.add(b.add(c_at, start), shift)), c[0])
                b.store(code.load(source, b.add(b.add(d_at, start), shift)), d[0])
            two = code.splat(ir.Constant(_FLOAT, -2.0))
            with cgutils.for_range(b, count) as loop:
                back = b.sub(count, loop.index)
                step = b.sub(back, _const(1))
                ends = [b.add(b.add(b.load(b.gep(x, [step])), at), start) for x in (lower, upper)]
                f = code.splat(b.load(b.gep(weight, [step])))
                begin = b.add(start, b.mul(back, row))
                parts = []
                for shift, (c, d) in zip(shifts, sums, strict=True):
                    x, lo, hi = (code.load(source, b.add(b.add(begin, shift), k)) for k in (here, below, above))
                    whole = code.add_to(c, code.add_to(d, code.fma(two, x, b.fadd(lo, hi))))
                    part = b.fmul(f, whole)
                    parts.append((b.fsub(whole, part), part))
                for e, end in enumerate(ends):
                    for shift, pair in zip(shifts, parts, strict=True):
                        where = b.add(end, shift)
                        code.store(b.fadd(code.load(target, where), pair[e]), target, where)

        _tiled(b, lanes, LONG_TILES, emit)
        return context.get_dummy_value()

    return signature, codegen
