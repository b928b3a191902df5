"""What a gradient check says: a table when all is well, and what an error looks like when it is not."""

from typing import NamedTuple

import numpy as np


class GradientMismatch(AssertionError):
    """Backward and the numeric derivative disagree: the message says where, by how much, and what it looks like."""


class NotComplex(TypeError):
    """Forward cannot compute on complex numbers, so that the complex step says nothing."""


def not_complex(title, why):
    """The error that sends to differences."""
    what = "np.abs, np.sign, np.maximum, np.var, np.vdot, .real and casts are not complex-differentiable"
    return NotComplex(f"{title} cannot compute on complex numbers ({why}; {what}): use method='finite-difference'")


class Row(NamedTuple):
    """One array's outcome: its worst relative error, and where."""

    name: str
    shape: tuple
    checked: int
    error: float
    where: tuple[int, ...]


class GradcheckReport(NamedTuple):
    """What was checked, as rows; prints as a table."""

    title: str
    method: str
    rtol: float
    rows: list

    @property
    def worst(self):
        """The largest relative error of all rows."""
        return max(row.error for row in self.rows)

    def __str__(self):
        lines = [f"{self.title}, {self.method}, rtol {self.rtol:.0e}"]
        lines.append(f"  {'name':<36} {'shape':<18} {'checked':>8} {'worst error':>12}  where")
        for row in self.rows:
            where = str(tuple(map(int, row.where))) if row.where else ""
            lines.append(f"  {row.name:<36} {row.shape!s:<18} {row.checked:>8} {row.error:>12.1e}  {where}")
        return "\n".join(lines)


def describe(title, row, claimed, numeric, bad, rtol):
    """One element's two values, and what the array's difference looks like."""
    got, want = claimed[bad], numeric[bad]
    index = tuple(map(int, row.where))
    ratio = got / want if want else np.inf
    return (
        f"{title}: the gradient of {row.name} {row.shape} is wrong at {index}: "
        f"backward says {got:.15g}, the numeric derivative is {want:.15g} "
        f"(ratio {ratio:.6g}, error {row.error:.1e} of the largest, allowed {rtol:.0e}). {_hint(claimed, numeric)}"
    )


def _hint(claimed, numeric):
    """What the mismatch looks like: the usual culprits."""
    if not np.isfinite([claimed, numeric]).all():
        return "Not every element is finite: a division by 0, or an overflow?"
    if not claimed.any():
        return "It is 0 everywhere: not connected, or never added to .grad?"
    if np.allclose(claimed, -numeric, rtol=1e-6, atol=0):
        return "Only the sign is wrong."
    ratio = (claimed * numeric).sum() / (numeric * numeric).sum() if numeric.any() else np.nan
    if np.allclose(claimed, numeric, rtol=0, atol=1e-6 * np.abs(numeric).max()):
        return "It is right but for rounding: is rtol below what this depth allows?"
    if np.allclose(claimed, ratio * numeric, rtol=1e-6, atol=1e-9 * np.abs(claimed).max()):
        return f"Every element is {ratio:.6g} times too large: mean or sum? counted twice?"
    if np.allclose(np.sort(claimed, axis=None), np.sort(numeric, axis=None), rtol=1e-6):
        return "The same numbers stand in other places: transposed, flipped or shifted?"
    wrong = np.count_nonzero(~np.isclose(claimed, numeric, rtol=1e-6, atol=1e-9 * np.abs(numeric).max()))
    return f"{wrong} of {claimed.size} elements differ: is a term missing, or a border treated differently?"
