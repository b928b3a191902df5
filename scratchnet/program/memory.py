"""How much memory a training step takes, and how many pictures would fit: for the message when it ran out."""

import math
from pathlib import Path

from scratchnet.trace import trace

try:
    import resource
except ImportError:  # Windows: no limit to ask for
    resource = None  # type: ignore[assignment]

# A training step's peak over the sum of all layers' float32 outputs, measured for two variants, widths 0.25 to 1.4 and
# pictures of 32 to 96 pixels: 0.67 to 0.82. Below 1, since fused layers keep no intermediate result.
SHARE = 0.8
USABLE = 0.7  # of the room: the rest goes to threads, to pictures and to what malloc keeps


def bytes_per_picture(model, shape: tuple[int, int, int]) -> float:
    """What one more picture (C, H, W) in a batch adds to the peak of a training step, in bytes; an estimate."""
    return SHARE * 4 * sum(math.prod(step.shape_out) for step in trace(model, shape))


def room() -> float | None:
    """Bytes that this process may still take, of its own limit (ulimit -v) or the machine; None where nobody says."""
    rooms = []
    if resource:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            rooms.append(limit - _kilobytes("/proc/self/status", "VmSize"))
    rooms.append(_kilobytes("/proc/meminfo", "MemAvailable") or math.inf)
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
    need = f"a step with --batch-size {batch_size} takes about {per_picture * batch_size / 2**20:,.0f} MiB"
    return f"out of memory: {asked}; {need}, {way_out}"


def _kilobytes(path, field):
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)
