"""A traced training step as text: a row for each step of the plan, its numbers aligned, in 140 columns."""

import textwrap

from scratchnet.plan import aligned, ending
from scratchnet.trace import TimedStep

COLUMNS = 140
HEAD = (
    ("", "", "", "", "", "multiply", "forward", "backward", "", "= 0", "= 6", "", "|dW|", "kept"),
    ("layers", "function", "version", "in", "out", "-adds, M", "ms", "ms", "|y|", "%", "%", "|dx|", "/|W|", "KiB"),
)
FOOT = (
    "|y|, |dx|: root of the mean square of what went forward and backward. = 0, = 6: of all that ReLU and ReLU6 in it "
    "gave. |dW| / |W|: of all that it trains. Kept: from forward to backward, counted where it is kept first."
)


def table(steps: list[TimedStep]) -> str:
    """The steps of `trace_step` as a table of at most 140 columns, with the sums at its foot."""
    rows = []
    for s in steps:
        shapes = ["×".join(map(str, shape)) for shape in (s.shape_in, s.shape_out)]
        numbers = [_fixed(s.multiply_adds / 1e6, 3) if s.multiply_adds else "", _fixed(s.forward_ms, 2)]
        numbers += [_fixed(s.backward_ms, 2), _digits(s.y), _percent(s.zeros), _percent(s.sixes)]
        numbers += [_digits(s.dx), _digits(s.gradient), _fixed(s.kept / 1024, 0)]
        rows.append([_first_and_last(s.names), _beginning(s.function or s.kind, 20), _beginning(s.version, 8), *shapes])
        rows[-1] += numbers
    sums = (sum(getattr(s, what) for s in steps) for what in ("multiply_adds", "forward_ms", "backward_ms", "kept"))
    work, forward, backward, kept = sums
    ends = [_fixed(work / 1e6, 3), _fixed(forward, 2), _fixed(backward, 2), *[""] * 5, _fixed(kept / 1024, 0)]
    rows = [*map(list, HEAD), *rows, ["sum", *[""] * 4, *ends]]
    others = sum(max(map(len, column)) + 1 for column in [*zip(*rows, strict=True)][1:])
    rows = [[_whole_parts(name, COLUMNS - others), *rest] for name, *rest in rows]
    return "\n".join([aligned(rows, 9, " "), *textwrap.wrap(FOOT, COLUMNS)])


def _first_and_last(names):
    """`a.{0.0,0.1,1}` -> `a.{0.0…1}`."""
    head, brace, inside = names.partition("{")
    parts = inside.rstrip("}").split(",")
    return f"{head}{{{parts[0]}…{parts[-1]}}}" if brace and len(parts) > 2 else names


def _whole_parts(names, width):
    """The end of dotted names, from a dot on where there is one."""
    short = ending(names, width)
    head, dot, rest = short.partition(".")
    return f"…{dot}{rest}" if dot and short != names else short


def _beginning(text, width):
    return text if len(text) <= width else text[: width - 1] + "…"


def _fixed(number, places):
    return f"{number:,.{places if number < 1000 else 0}f}"


def _digits(number):
    """Three digits: 12.3, 0.0123, 1.23e-4."""
    if number is None:
        return ""
    if not 0 < number < 1e-3:
        return f"{number:#.3g}"
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _percent(share):
    return "" if share is None else f"{100 * share:.1f}"
