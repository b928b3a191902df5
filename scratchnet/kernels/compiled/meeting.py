"""How threads that walk one program wait for one another (program.py): a counter of parts taken, another of parts done.

An operation begins when every part of the one before is done. Whoever comes takes the next part: a thread that comes
late, or never, holds nobody up, and one that is alone does everything. While each thread has a core the wait is short:
so a thread looks SPINS times, and only then offers its core to others before it looks again.
"""

import ctypes
import functools
import threading
import time

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from scratchnet.kernels.compiled.jit import PYTHON, jit

SPINS = 4000


@functools.cache
def resting_place():
    """The address of the system's function that lets another thread run; 0 where none is found."""
    for library, name in ((None, "sched_yield"), ("kernel32", "SwitchToThread")):
        try:
            function = getattr(ctypes.CDLL(library), name)
        except (OSError, AttributeError, TypeError):  # Windows does not take None
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


if PYTHON:
    _one_by_one = threading.Lock()

    def finish(counter):
        """Say that one more part is done."""
        with _one_by_one:
            counter[1] += 1

    def done(counter):
        """How many parts are."""
        return counter[1]

    def rest(address):
        """Let another thread run."""
        time.sleep(0)

else:

    def _second(context, builder, signature, arguments):
        first = make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(first, [ir.IntType(64)(1)])

    @intrinsic
    def finish(typing_context, counter):
        """Say that one more part is done: whoever sees it sees what the part wrote."""

        def code(context, builder, signature, arguments):
            builder.atomic_rmw("add", _second(context, builder, signature, arguments), ir.IntType(64)(1), "release")
            return context.get_dummy_value()

        return types.void(counter), code

    @intrinsic
    def done(typing_context, counter):
        """How many parts are."""

        def code(context, builder, signature, arguments):
            return builder.load_atomic(_second(context, builder, signature, arguments), "acquire", 8)

        return types.int64(counter), code

    @intrinsic
    def rest(typing_context, address):
        """Let another thread run, by the function at an address."""

        def code(context, builder, signature, arguments):
            function = ir.FunctionType(ir.IntType(32), [])
            with builder.if_then(builder.icmp_signed("!=", arguments[0], ir.IntType(64)(0))):
                builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [])
            return context.get_dummy_value()

        return types.void(types.int64), code


@jit
def wait(counter, parts, address):
    """Until so many parts are done."""
    looks = 0
    while done(counter) < parts:
        looks += 1
        if looks > SPINS:
            rest(address)
