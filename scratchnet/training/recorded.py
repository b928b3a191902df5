"""The recorded step: what a GPU is to do in a step, taken down once as a CUDA graph and then started as a whole.

A step is hundreds of launches, each of which takes Python longer than it takes the card. A graph has them all, with the
addresses of their arrays, and one call starts it. So whatever lies at those addresses must stay there: a recording has a
memory pool of its own, which lives as long as the graph. What is new in every step is written into the same arrays before:
pictures, labels, dropout's mask. What is a number in Python is as it was when it was recorded, so the optimizer, whose rate
changes, stays outside (it is two launches).

The first call computes as ever, which compiles kernels and fills the pool. The second is taken down, which computes
nothing, and started, as all that follow are. Every call is one step, and has the bits that it would have without.
"""

from contextlib import suppress
from typing import Any

from scratchnet import kernels
from scratchnet.array import as_images, as_maps, drawing
from scratchnet.device import device_of, get_array_module, tf32_enabled
from scratchnet.kernels.cuda import products
from scratchnet.module import Parameter
from scratchnet.parallel import ranks

KEPT = 4  # recordings: batches of two sizes, of both kinds
_PASSING = {
    "_cache",
    "_plan",
    "_signature",
    "_held",
    "_frozen",
}  # known for a while: no recording depends on it
_NOTHING = object()


class Recorded:
    """A function of arrays that computes with modules, recorded on a GPU; elsewhere it is simply called.

    Args:
        function: takes arrays, returns a tuple of arrays; it waits for nothing and has no numbers from outside.
        modules: all that it computes with. One that has changed since (a mode, a parameter's array, what is frozen)
            is recorded anew.

    Attributes:
        why_not: why nothing is recorded, as half a sentence, once something on a GPU was not; else None.
    """

    why_not: str | None = None

    def __init__(self, function, *modules):
        self._function, self._modules, self._recordings = function, modules, []

    def __call__(self, *arrays):
        """What the function returns, in arrays that no later call changes."""
        if device_of(arrays[0]) == "cpu" or not self._may_record():
            return self._function(*arrays)
        asked = _circumstances(arrays)
        for recording in self._recordings:
            if recording.circumstances == asked and recording.still_holds():
                return recording(arrays)
        # Those of the same arrays do not hold any more; their memory is given back before the new one wants some.
        kept = [recording for recording in self._recordings if recording.circumstances != asked]
        self._recordings = kept[1 - KEPT :]
        made = _Recording(self._function, self._modules, asked, get_array_module(arrays[0]))
        self._recordings.append(made)
        return made(arrays)

    def _may_record(self):
        if ranks.size > 1:
            # Ranks exchange sums in the middle of a step, through the host: a graph cannot wait for another process.
            return False
        if self.why_not is None:
            self.why_not = products.why_eager() or next((r.failed for r in self._recordings if r.failed), None)
            if self.why_not:
                self._recordings = []
        return self.why_not is None


class RecordedStep(Recorded):
    """A training step but for its update, recorded on a GPU: `loss, logits = step(x, labels)`, then `optimizer.step()`.

    It does what `train_step` does before the update, with the same bits; on a CPU, and over several ranks, in the same way.
    Batches of another size, another mode, other arrays of the network (an optimizer made since) are recorded anew.

    Args:
        model, criterion: as `train_step` takes them.

    Raises:
        ValueError, TypeError: as model and criterion do.
    """

    def __init__(self, model, criterion):
        def step(x, labels):
            model.zero_grad()
            logits = model(x)
            loss = criterion(logits, labels)
            model.backward(criterion.backward())
            ranks.sum_gradients(model.parameters())
            return loss, logits

        super().__init__(step, model, criterion)


class RecordedForward(Recorded):
    """`logits = forward(x)`, as the model computes them in the mode in which it is, recorded on a GPU."""

    def __init__(self, model):
        super().__init__(lambda x: (model(x),), model)

    def __call__(self, x):
        """The logits, in an array that no later call changes."""
        return super().__call__(x)[0]


class _Recording:
    """One graph, its pool, and the arrays that it reads and writes."""

    failed: str | None = None

    def __init__(self, function, modules, circumstances, cupy):
        self.circumstances, self._function, self._cupy = circumstances, function, cupy
        self._modules = [module for whole in modules for _, module in whole.named_modules()]
        self._pool, self._stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        self._calls = 0
        self._graph: Any = None
        self._asked: list = []  # what the step draws
        self._held: list = []  # what the modules had
        self._arrays: list = []  # and their parameters
        self._inputs: tuple = ()
        self._outputs: tuple = ()
        self._drawn: list = []

    def still_holds(self):
        """Whether all modules have what they had when the step was learnt."""
        return all(
            module.training is training
            and module.saves is saves
            and all(vars(module).get(key, _NOTHING) is value for key, value in own)
            for module, training, saves, own in self._held
        ) and all(
            p.data is data and p.grad is grad and p.requires_grad is wanted for p, data, grad, wanted in self._arrays
        )

    def __call__(self, arrays):
        self._calls += 1
        if self._calls == 1 or self.failed:
            return self._eager(arrays)
        if self._graph is None:
            try:
                self._record(arrays)
            except Exception as error:  # a layer of someone else's may do what cannot be recorded
                self.failed = f"{type(error).__name__} while it was recorded: {error}"
                return self._eager(arrays)
        for fixed, array in zip(self._inputs, arrays, strict=True):
            fixed[...] = array
        for fixed, draw in self._drawn:
            fixed[...] = self._cupy.asarray(draw())
        self._graph.launch()  # into the stream in use, behind what made the inputs and before what reads the outputs
        return tuple(map(_copy, self._outputs))

    def _eager(self, arrays):
        """As ever, but with the stream and the pool that the recording will have, which so is full by then."""
        self._cupy.cuda.get_current_stream().synchronize()
        products.prepare(self._cupy)
        with self._cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            with drawing() as learnt:
                outputs = self._function(*arrays)
            self._stream.synchronize()
        self._asked = learnt.asked
        self._remember()
        return tuple(map(_copy, outputs))

    def _record(self, arrays):
        # What is written before a replay must not lie in the pool, which has it from an array that is freed in the step.
        self._inputs = tuple(map(_copy, arrays))
        fixed = [self._cupy.empty(shape, dtype) for _, shape, dtype in self._asked]
        self._cupy.cuda.get_current_stream().synchronize()
        with self._cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            self._stream.begin_capture()
            try:
                with drawing(fixed) as asked:
                    outputs = self._function(*self._inputs)
            except BaseException:
                with suppress(Exception):  # CUDA may say once more that this recording is void
                    self._stream.end_capture()
                raise
            self._graph = self._stream.end_capture()
        self._outputs = outputs
        self._drawn = [(array, draw) for array, (draw, *_) in zip(fixed, asked.asked, strict=True)]
        self._remember()

    def _remember(self):
        self._held = [
            (module, module.training, module.saves, [(k, v) for k, v in vars(module).items() if k not in _PASSING])
            for module in self._modules
        ]
        self._arrays = [
            (value, value.data, value.grad, value.requires_grad)
            for _, _, _, own in self._held
            for _, value in own
            if isinstance(value, Parameter)
        ]


def _circumstances(arrays):
    """What a recording depends on, beside the modules."""
    return tuple((x.shape, x.strides, x.dtype) for x in arrays), tf32_enabled(), kernels.enabled()


def _copy(x):
    """A copy in the same memory order: C-contiguous or channel-major."""
    return as_images(as_maps(x).copy()) if x.ndim > 1 and not x.flags.c_contiguous else x.copy()
