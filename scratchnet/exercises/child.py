"""A learner's code runs in a process of its own: whatever it does, the answer is a sentence and a line number.

The child judges and writes what it found into a file. A loop that does not end is stopped by faulthandler's watchdog, which
also says at which line it was; it needs no cooperation from the code that runs. A crash leaves its line in the same way.
"""

import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

MEMORY = 4 << 30  # bytes that a learner's code may ask for, beyond what is in use
GRACE = 30  # seconds that a child has beyond its limit, to start and to say where it was
START = """
import json, sys
sys.path = json.loads(sys.argv[1])
from scratchnet.exercises.child import main
main(*sys.argv[2:])
"""
LINE = re.compile(r'^  File "(.*)", line (\d+) in ', re.M)


class Found(NamedTuple):
    """What came back from the child.

    Attributes:
        rows: [holds, what, said] for each property.
        more: lines below them.
        written: False where the body still is to be written; `more` says where.
        printed: what the learner's code printed.
        warned: numerical warnings of its lines.
    """

    rows: list
    more: list
    written: bool = True
    printed: str = ""
    warned: list = []

    @property
    def passed(self):
        """Whether all properties hold."""
        return self.written and bool(self.rows) and all(holds for holds, *_ in self.rows)


def run(name, file, seconds):
    """Judge a learner's file in another process, which has so many seconds; returns what was `Found`."""
    file = Path(file).resolve()
    with tempfile.TemporaryDirectory() as folder:
        result, trace = Path(folder, "result.json"), Path(folder, "trace.txt")
        paths = json.dumps([os.path.abspath(path) for path in sys.path])
        command = [sys.executable, "-c", START, paths, name, *map(str, (file, result, trace, seconds))]
        with Path(folder, "output.txt").open("wb") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = child.wait(seconds + GRACE)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(child)
        if result.exists():
            return Found(**json.loads(result.read_text(encoding="utf-8")))
        said = trace.read_text(encoding="utf-8", errors="replace") if trace.exists() else ""
        printed = Path(folder, "output.txt").read_text(encoding="utf-8", errors="replace")
    return _ended(code, said, file, seconds, printed)


def _end(child):
    """End the child, and what it may have started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    else:
        child.kill()
    child.wait()


def _ended(code, trace, file, seconds, printed):
    """What to say of a child that ended without a word."""
    number = next((int(line) for path, line in LINE.findall(trace) if path == str(file)), None)
    where = f"line {number}: " if number else ""
    lines = _line_of(file, number)
    if "Timeout" in trace or code is None:
        said = f"does not end: after {seconds:g} seconds it was here (--timeout 60 would give it a minute)"
    elif code == -getattr(signal, "SIGKILL", 9):
        said = "was killed from outside: did it ask for more memory than there is?"
    elif code < 0 or "Fatal" in trace:
        said = f"crashes Python itself ({signal.Signals(-code).name if code < 0 else 'fatal error'})"
    else:
        said = f"ends Python (os._exit, exit code {code}) before it could be judged"
        lines += printed.strip().splitlines()[-3:]
    return Found([[False, "runs", where + said]], lines)


def _line_of(file, number):
    text = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [f"    {text[number - 1].strip()}"] if number and number <= len(text) else []


def main(name, file, result, trace, seconds):
    """The child: judge, write what was found, end."""
    sys.dont_write_bytecode = True
    with open(trace, "w", encoding="utf-8") as watched:
        faulthandler.enable(watched)
        import scratchnet as sn
        from scratchnet.exercises.catalogue import COURSE
        from scratchnet.exercises.judge import judge
        from scratchnet.exercises.learner import Learner, Problem

        _limit_memory()
        sn.use_kernels(False)  # what stands in the layers' files runs, and nothing has to be compiled
        sn.set_num_threads(1)  # and BLAS takes one: all arrays are small
        faulthandler.dump_traceback_later(float(seconds), exit=True, file=watched)
        learner = None
        try:
            learner = Learner(Path(file), name)
            rows, more, written = judge(COURSE[name], learner)
        except Problem as problem:
            rows, more, written = [(False, "reads", problem.sentence)], list(problem.lines), True
        except BaseException as error:  # it is told, and not left to be guessed from an exit code
            rows, more, written = [(False, "check", f"stops by itself: {type(error).__name__}: {error}")], [], True
        seen = {"printed": learner.printed, "warned": learner.warned} if learner else {}
        found = {"rows": [list(row) for row in rows], "more": list(more), "written": written, **seen}
        text = json.dumps(found)
        Path(result + ".part").write_text(text, encoding="utf-8")
        os.replace(result + ".part", result)
        os._exit(0)  # whatever threads the learner's code has started


def _limit_memory():
    """A learner's array of a wrong size is to be a MemoryError, not the end of the machine."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass  # no such limit on this system
