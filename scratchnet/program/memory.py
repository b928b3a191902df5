"""How much memory a training step takes, and what would fit: before a run begins, and where memory ran out all the same."""

import math
from pathlib import Path

from scratchnet.summary import bytes_per_picture
from scratchnet.trace import trace

try:
    import resource
except ImportError:  # Windows: no limit to ask for
    resource = None  # type: ignore[assignment]

COPIES = 8  # of every parameter: itself, gradient, optimizer, average, and those that a checkpoint is written from
USABLE = 0.7  # of the room: the rest goes to threads, to pictures and to what malloc keeps
PROBE = (
    1.0,
    64,
)  # width and side up to which a network is looked at itself; a larger one's numbers are scaled up from it


def too_large(
    make_model, width: float, image_size: int, batch_size: int, free: float | None, testing=False, ranks=1
) -> str | None:
    """One line that says what a run would need and what would fit, where it needs more than `free` bytes; else None.

    Nothing of the size in question is made for that: activations grow with the width and the picture's area,
    parameters with the width squared.

    Args:
        make_model: width -> network.
        width, image_size, batch_size: of the run.
        free: `room`.
        testing: whether nothing is trained, so that no more than one layer's input and output are there at a time, and
            what branches keep.
        ranks: processes that share the room, each with all parameters, and together with one batch; each with a whole one
            in testing.
    """
    small, side = min(width, PROBE[0]), min(image_size, PROBE[1])
    model = make_model(small)
    if testing:
        layers = trace(model, (3, side, side))
        picture = ranks * 4.0 * max(math.prod(step.shape_in) + math.prod(step.shape_out) + step.kept for step in layers)
    else:
        picture = bytes_per_picture(model, (3, side, side))
    picture *= (width / small) * (image_size / side) ** 2
    parameters = ranks * COPIES * 4 * model.num_parameters() * (width / small) ** 2
    needs = parameters + batch_size * picture
    if free is None or needs <= free:
        return None
    usable = USABLE * free
    if parameters > usable / 2:
        fits = f"--width {_below(width * math.sqrt(usable / parameters / 2), 0.1):g}"
    elif (pictures := int((usable - parameters) / picture)) > 1:
        fits = f"--batch-size {min(pictures, batch_size - 1)}"
    else:
        fits = f"--image-size {_below(image_size * math.sqrt((usable - parameters) / (batch_size * picture)), 1):.0f}"
    what = f"--width {width:g}, --image-size {image_size} and --batch-size {batch_size}"
    what += f" on {ranks} ranks" if ranks > 1 else ""
    return f"a batch with {what} takes about {_size(needs)}, and {_size(free)} are free: about {fits} fits"


def make_fitting(make_model, width: float, weights: dict):
    """`make_model(width)`, where about as much is in `weights`: a forged width takes no memory.

    Raises:
        ValueError: it has other sizes.
    """
    small = min(width, PROBE[0])
    expected = make_model(small).num_parameters() * (width / small) ** 2
    held = sum(array.size for array in weights.values())
    if expected > 2 * held:
        raise ValueError(
            f"at width {width:g} there are about {expected:,.0f} parameters, and it holds {held:,} numbers"
        )
    return make_model(width)


def room() -> float | None:
    """Bytes that this process may still take: of its limit, its container's, the machine's; None if that is unknown."""
    rooms = []
    if resource:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            rooms.append(limit - 1024 * _number("/proc/self/status", "VmSize:"))
    if container := _number("/sys/fs/cgroup/memory.max"):
        rooms.append(container - _number("/sys/fs/cgroup/memory.stat", "anon"))
    rooms.append(1024 * _number("/proc/meminfo", "MemAvailable:") or math.inf)
    least = min(rooms)
    return least if math.isfinite(least) else None


def out_of_memory(error: MemoryError, batch_size: int, per_picture: float, room_before: float | None) -> str:
    """One line: what was asked for, at which batch size, and which one would fit.

    Args:
        error: what was raised; NumPy's says the size and the shape of the buffer asked for.
        batch_size: of the run.
        per_picture: `bytes_per_picture`.
        room_before: `room` before the first step.
    """
    asked = " ".join(str(error).split()) or "no more memory"
    fits = batch_size // 2 if room_before is None else min(int(USABLE * room_before / per_picture), batch_size // 2)
    way_out = f"about --batch-size {fits} fits" if fits > 1 else "try a smaller --width or --image-size"
    need = f"a step with --batch-size {batch_size} takes about {_size(per_picture * batch_size)}"
    return f"out of memory: {asked}; {need}, {way_out}"


def _size(count):
    return f"{count / 2**20:,.0f} MiB" if count < 10 * 2**30 else f"{count / 2**30:,.0f} GiB"


def _below(value, unit):
    """The largest multiple of `unit` that is not above `value`, but at least one `unit`."""
    return max(1, math.floor(value / unit)) * unit


def _number(path, field=""):
    """The number behind `field` at the start of a line; 0 where there is none."""
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return 0
    found = (words[-1] if not field else words[1] for words in lines if words and words[0] == (field or words[0]))
    value = next(found, "")
    return int(value) if value.isdigit() else 0
