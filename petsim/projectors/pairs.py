"""Sums over pairs of neighboring values at scattered places, the inner loops of the list-mode projector.

They are written in LLVM's vector instructions (through numba's intrinsics), because the compiler loads the two values of
a pair one by one, which takes nearly twice as long. Arrays are contiguous: values and weights float32, places uint32.
Nothing is checked.
"""

from llvmlite import ir
from numba.core import cgutils, types

from petsim.projectors.rows import vector_loop

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_PAIR = ir.VectorType(_FLOAT, 2)
_ZERO = ir.Constant(_PAIR, [0.0, 0.0])

SUMS = 4
"""Independent sums: a single one would wait for each addition."""


def _pointers(context, builder, signature, args):
    """Data of the arrays `values`, `place` and `weights`."""
    return [context.make_array(signature.args[i])(context, builder, args[i]).data for i in range(3)]


def _index(value):
    return ir.Constant(ir.IntType(32), value)


def _address(builder, pointer, offset):
    return builder.bitcast(builder.gep(pointer, [offset]), _PAIR.as_pointer())


def _at_step(builder, pointers, step):
    """Address of the pair of values at a step, and its weights."""
    values, place, weights = pointers
    offset = builder.zext(builder.load(builder.gep(place, [step])), _INT)
    weight = builder.load(_address(builder, weights, builder.shl(step, ir.Constant(_INT, 1))), align=4)
    return _address(builder, values, offset), weight


def _fma(builder, x, y, z):
    kind = ir.FunctionType(_PAIR, [_PAIR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v2f32"), [x, y, z])


@vector_loop
def sum_pairs(typingctx, values, place, weights, count):
    """Sum over s < count of weights[2 s] values[place[s]] + weights[2 s + 1] values[place[s] + 1]."""
    signature = types.float32(values, place, weights, types.intp)

    def codegen(context, b, signature, args):
        pointers = _pointers(context, b, signature, args)
        count = args[3]
        sums = [cgutils.alloca_once_value(b, _ZERO) for _ in range(SUMS)]
        for total in sums:
            b.store(_ZERO, total)

        def add(step, total):
            pair, weight = _at_step(b, pointers, step)
            b.store(_fma(b, weight, b.load(pair, align=4), b.load(total)), total)

        rounds = b.udiv(count, ir.Constant(_INT, SUMS))
        done = b.mul(rounds, ir.Constant(_INT, SUMS))
        with cgutils.for_range(b, rounds) as loop:
            step = b.mul(loop.index, ir.Constant(_INT, SUMS))
            for k, total in enumerate(sums):
                add(b.add(step, ir.Constant(_INT, k)), total)
        with cgutils.for_range(b, b.sub(count, done)) as loop:
            add(b.add(done, loop.index), sums[0])
        result = b.load(sums[0])
        for total in sums[1:]:
            result = b.fadd(result, b.load(total))
        return b.fadd(b.extract_element(result, _index(0)), b.extract_element(result, _index(1)))

    return signature, codegen


@vector_loop
def spread_pairs(typingctx, values, place, weights, count, factor):
    """Transpose of `sum_pairs`: adds factor x weights to the values."""
    signature = types.void(values, place, weights, types.intp, types.float32)

    def codegen(context, b, signature, args):
        pointers = _pointers(context, b, signature, args)
        count, factor = args[3:]
        both = b.insert_element(b.insert_element(_ZERO, factor, _index(0)), factor, _index(1))
        with cgutils.for_range(b, count) as loop:
            pair, weight = _at_step(b, pointers, loop.index)
            b.store(_fma(b, weight, both, b.load(pair, align=4)), pair, align=4)
        return context.get_dummy_value()

    return signature, codegen
