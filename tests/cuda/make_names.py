"""Write names.json: the public names of an installed CuPy and the names of their parameters. Needs no GPU.

python tests/cuda/make_names.py
"""

import inspect
import json
import re
import types
from pathlib import Path

NAMES = Path(__file__).with_name("names.json")


def parameters(function):
    """The names of the parameters, "*" among them where any number is taken; None where nobody says."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled: its first line of documentation is all there is
        first = (getattr(function, "__doc__", "") or "").strip().split("\n")[0]
        match = re.match(r"[\w.]+\((.*?)\)(?:\s*->.*)?$", first)
        if not match:
            return None
        names = [re.sub(r"[=:].*", "", part).split()[-1] for part in match[1].split(",") if part.strip()]
        return [
            name if not name.strip("*") or name[0] != "*" else "*" for name in names if name not in ("self", "/", "*")
        ]
    return ["*" if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) else p.name for p in found if p.name != "self"]


def kind(value, cupy):
    if isinstance(value, cupy.ufunc):
        return "ufunc"
    if isinstance(value, types.ModuleType):
        return "module"
    if isinstance(value, type):
        return "type"
    return {"function": parameters(value)} if callable(value) else "constant"


def main():
    import cupy

    array = {n: getattr(cupy.ndarray, n) for n in dir(cupy.ndarray) if not n.startswith("_")}
    names = {
        "version": cupy.__version__,
        "cupy": {n: kind(getattr(cupy, n), cupy) for n in dir(cupy) if not n.startswith("_")},
        "ndarray": {n: {"function": parameters(v)} if callable(v) else "attribute" for n, v in array.items()},
    }
    lines = []
    for section in ("cupy", "ndarray"):
        rows = ",\n".join(f"  {json.dumps(n)}: {json.dumps(v)}" for n, v in sorted(names[section].items()))
        lines.append(f' "{section}": {{\n{rows}\n }}')
    NAMES.write_text(f'{{\n "version": {json.dumps(names["version"])},\n' + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
