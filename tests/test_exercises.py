"""The exercises: the library's backward passes each, typical mistakes are named, and a learner's code may do anything."""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from answers import RIGHT, WRONG

import scratchnet as sn
from models.mobilenetv2 import inverted_residual
from scratchnet.exercises import worked
from scratchnet.exercises.catalogue import COURSE
from scratchnet.exercises.child import run
from scratchnet.exercises.command import check, main
from scratchnet.exercises.judge import judge
from scratchnet.exercises.learner import Learner, Problem
from scratchnet.exercises.source import formula, solution, write

EACH = pytest.mark.parametrize("name", COURSE)
FIXED = ["linear", "relu6", "cross_entropy", "global_avg_pool", "conv2d", "depthwise", "batch_norm", "residual"]


@pytest.fixture(autouse=True)
def plain_functions(all_kernels):
    """As the child does: what is read is what runs."""
    sn.use_kernels(False)
    if sn.get_num_threads() != 1:
        sn.set_num_threads(1)


def text_of(name, solved=True):
    return write(COURSE[name], list(COURSE).index(name) + 1, len(COURSE), solved)


def judged(tmp_path, name, text):
    file = tmp_path / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    return judge(COURSE[name], Learner(file, name))


def changed(name, *changes):
    """The solved file with parts of its lines exchanged."""
    text = text_of(name)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


# Right ones -------------------------------------------------------------------------------------------------------------


def test_the_course_has_twelve_in_order():
    assert len(COURSE) == 12
    assert [name for name in COURSE if name in FIXED] == FIXED
    assert list(COURSE)[-1] == "mobilenetv2_block"
    assert [exercise.chapter for exercise in COURSE.values()] == sorted(e.chapter for e in COURSE.values())
    assert all(len(exercise.hints) == 3 and len(exercise.teaches) <= 84 for exercise in COURSE.values())


@EACH
def test_the_librarys_own_backward_passes(name, tmp_path):
    verdict = judged(tmp_path, name, text_of(name))
    assert verdict.passed, verdict
    said = dict((row.what, row.said) for row in verdict.rows)
    assert re.fullmatch(r"right to 1[1-6] digits", said["dlogits" if name == "cross_entropy" else "dx"])
    assert {"complex step", "differences", "reference.py"} <= set(said)


@pytest.mark.parametrize("title", RIGHT)
def test_other_right_answers_pass_too(title, tmp_path):
    name, body = RIGHT[title]
    text = text_of(name, solved=False)
    (line,) = (line for line in text.splitlines(keepends=True) if "NotImplementedError" in line)
    indent = line[: len(line) - len(line.lstrip())]
    verdict = judged(tmp_path, name, text.replace(line, textwrap.indent(body, indent)))
    assert verdict.passed, verdict


@EACH
def test_the_body_is_removed_and_what_is_given_are_the_librarys_lines(name, tmp_path):
    exercise, text = COURSE[name], text_of(name, solved=False)
    verdict = judged(tmp_path, name, text)
    assert not verdict.written and not verdict.passed
    number = text[: text.index("raise NotImplementedError")].count("\n") + 1
    assert verdict.more == [f"line {number}: not written yet"]
    library = Path(exercise.library.__file__).read_text(encoding="utf-8").splitlines()
    code = text.split("\n\n\n", 1)[1].split('if __name__ == "__main__"')[0]
    foreign = [line for line in code.splitlines() if line not in library]
    assert [line.strip() for line in foreign] == ['raise NotImplementedError("to be written")']
    place, lines = solution(exercise)[0]
    assert exercise.library.__file__.endswith(place.split(":")[0])
    function = next(
        node for node in ast.walk(ast.parse(text)) if getattr(node, "name", "") == exercise.todo.split(".")[-1]
    )
    said, *kept, last = map(ast.unparse, function.body)
    assert last == "raise NotImplementedError('to be written')" and len(lines) > len(kept) + 2
    assert all(line.endswith(" = cache") for line in kept)


@EACH
def test_every_hint_has_words_and_its_formulas_are_the_librarys(name):
    tags = re.findall(r"\[\[(.+?)\]\]", "".join(COURSE[name].hints))
    assert all(f"({tag})" in formula(tag) for tag in tags)
    if name not in ("module", "residual", "mobilenetv2_block"):
        assert tags


def test_a_tag_that_is_nowhere_derived_is_no_hint():
    with pytest.raises(LookupError, match=r"\(LIN.9\)"):
        formula("LIN.9")


def test_the_shortcut_worked_out_is_the_librarys():
    rng = np.random.default_rng(0)
    body = sn.Sequential(sn.Conv2d(4, 4, 3, padding=1, rng=rng, dtype=np.float64), sn.ReLU6())
    for shortcut in (None, sn.Conv2d(4, 4, 1, rng=rng, dtype=np.float64)):
        ours, library = worked.Residual(body, shortcut), sn.Residual(body, shortcut=shortcut)
        x, dy = rng.standard_normal((2, 2, 4, 5, 3))
        results = []
        for layer in (ours, library):
            body.zero_grad()
            results.append((layer(x), layer.backward(dy), body[0].weight.grad.copy()))
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize(("outs", "stride"), [(2, 1), (3, 1), (3, 2)])
def test_the_block_worked_out_is_mobilenetv2s(outs, stride):
    rng = np.random.default_rng(1)
    block = inverted_residual(2, outs, 3, stride, True, dtype=np.float64, rng=rng)
    values = [parameter.data for parameter in block.parameters()]
    for value in values:
        value[...] = rng.standard_normal(value.shape)
    x = rng.standard_normal((3, 2, 5, 4))
    y, cache = worked.block_forward(x, *values, stride)
    dy = rng.standard_normal(y.shape)
    np.testing.assert_allclose(block(x), y, rtol=1e-12, atol=1e-12)
    dx, *gradients = worked.block_backward(dy, cache)
    np.testing.assert_allclose(block.backward(dy), dx, rtol=1e-11, atol=1e-11)
    for parameter, gradient in zip(block.parameters(), gradients, strict=True):
        np.testing.assert_allclose(parameter.grad, gradient, rtol=1e-11, atol=1e-11)


# Wrong ones -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(title, tmp_path):
    name, changes, where, pattern = WRONG[title]
    verdict = judged(tmp_path, name, changed(name, *changes))
    assert verdict.written and not verdict.passed
    wrong = [row for row in verdict.rows if not row.holds]
    said = " | ".join(row.said for row in wrong if re.fullmatch(where, row.what))
    assert re.search(pattern, said), wrong


def test_each_exercise_has_typical_mistakes():
    counts = [sum(name == exercise for name, *_ in WRONG.values()) for exercise in COURSE]
    assert min(counts) >= 4 and len(WRONG) >= 70


# A learner's code may do anything ---------------------------------------------------------------------------------------

LINE = "    dweight = grad @ columns.T if wants[0] else None  # (LIN.3)\n"
HOSTILE = {
    "a loop without end": ("    while True:\n        pass\n", r"line \d+: does not end: after 2 seconds it was here"),
    "exit": ("    raise SystemExit(0)\n", r"line \d+: the program is ended here \(exit\)"),
    "os._exit": ("    __import__('os')._exit(0)\n", "ends Python .os._exit, exit code 0. before it could be judged"),
    "a crash": ("    __import__('ctypes').string_at(0)\n", r"line \d+: crashes Python itself \(SIGSEGV\)"),
    "memory": ("    junk = np.empty(1 << 30)\n", r"line \d+: .*(Unable to allocate|MemoryError)"),
}


def child(tmp_path, body, seconds=20.0):
    file = tmp_path / "linear.py"
    file.write_text(changed("linear", (LINE, body + LINE)), encoding="utf-8")
    return run("linear", file, seconds)


@pytest.mark.skipif(os.name == "nt", reason="signals and limits of memory are POSIX's")
@pytest.mark.parametrize("title", HOSTILE)
def test_code_that_takes_python_with_it_is_one_sentence(title, tmp_path):
    body, pattern = HOSTILE[title]
    found = child(tmp_path, body, 2.0 if "loop" in title else 20.0)
    ((holds, what, said),) = found.rows
    assert not found.passed and not holds and what == "runs"
    assert re.match(pattern, said), said
    if "line" in said:
        number = int(re.match(r"line (\d+)", said)[1])
        assert (tmp_path / "linear.py").read_text(encoding="utf-8").splitlines()[number - 1].strip() in found.more[0]


def test_code_that_stops_the_watchdog_is_ended_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("scratchnet.exercises.child.GRACE", 3)
    found = child(
        tmp_path, "    __import__('faulthandler').cancel_dump_traceback_later()\n    while True:\n        pass\n", 1
    )
    assert re.match("does not end: after 1 seconds", found.rows[0][2])


FOREIGN = {
    "a division in a helper": (
        "    helper = lambda: 1 / 0\n    helper()\n",
        r"line \d+: ZeroDivisionError: division by zero",
    ),
    "a division by zero": ("    1 / 0\n", r"line \d+: ZeroDivisionError: division by zero"),
    "without end": (
        "    return linear_backward(dy, cache)\n",
        r"line \d+: RecursionError: it calls itself without end",
    ),
    "a name": ("    columms.sum()\n", r"line \d+: NameError: name 'columms' is not defined"),
    "an interrupt": ("    raise KeyboardInterrupt\n", r"line \d+: KeyboardInterrupt"),
    "an error without words": ("    raise ValueError\n", r"line \d+: ValueError"),
    "an error of many lines": ("    raise ValueError('a\\nb')\n", r"line \d+: ValueError: a$"),
    "None": ("    return None\n", "backward returns nothing: end it with a return of dx, dweight, dbias"),
    "one array": ("    return dy\n", r"backward returns an array of shape \(4, 5\); wanted is dx, dweight, dbias"),
    "two": ("    return dy, dy\n", "backward returns 2 things; wanted is"),
    "a generator": ("    return (x for x in [1])\n", "backward returns a generator; wanted is"),
}


@pytest.mark.parametrize("title", FOREIGN)
def test_what_goes_wrong_in_a_learners_code_is_one_sentence_with_its_line(title, tmp_path):
    body, pattern = FOREIGN[title]
    text = changed("linear", (LINE, body + LINE))
    verdict = judged(tmp_path, "linear", text)
    assert not verdict.passed and not verdict.rows[0].holds
    assert re.match(pattern, verdict.rows[0].said), verdict.rows
    if "line" in pattern:
        number = int(re.match(r"line (\d+)", verdict.rows[0].said)[1])
        assert text.splitlines()[number - 1].strip() == verdict.more[0].strip()
    if title == "a division in a helper":
        assert "1 / 0" in verdict.more[0]
    if title == "a division by zero":
        assert verdict.more[1] == "Shapes there: dy (4, 5); x (4, 7); weight (5, 7); bias (5,); cache: (7, 4), (5, 7)."


def test_gradients_that_are_none_lists_or_whole_numbers_are_refused(tmp_path):
    for value, pattern in (
        ("None", "dx is None"),
        ("[1]", "dx must be an array, got a list"),
        ("dy.astype(int)", "must hold floats"),
    ):
        verdict = judged(tmp_path, "linear", changed("linear", ("return as_images(dx)", f"return {value}")))
        assert any(row.what == "dx" and re.search(pattern, row.said) for row in verdict.rows), verdict
        assert any(row.what == "dweight" and row.holds for row in verdict.rows)


STRANGE = (
    "'a'",
    "{}",
    "np",
    "NotImplemented",
    "(dy, (dy,))",
    "np.matrix([[1.0]])",
    "np.ma.masked_array(np.ones((4, 5)))",
    "np.float32(2)",
    "np.array([None])",
    "np.full((4, 5), np.nan)",
    "np.full((4, 7), np.inf)",
    "np.ones((0,))",
    "np.ones((4, 5), complex)",
    "[[1.0]]",
    "np.ones((1,) * 40)",
    "np.ones((3, 4, 5, 2)) * 1e300",
    "np.broadcast_to(1.0, (5, 7))",
    "np.ones(1 << 20)",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["linear", "batch_norm", "residual", "cross_entropy"])
def test_whatever_comes_back_there_is_a_verdict(name, tmp_path):
    count = len(COURSE[name].returns)
    for value in STRANGE:
        for said in (value, f"({', '.join([value] * count)},)"):
            text = text_of(name, solved=False).replace('raise NotImplementedError("to be written")', f"return {said}")
            verdict = judged(tmp_path, name, text)
            assert not verdict.passed and any(not row.holds for row in verdict.rows)


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    text = text_of("linear")
    for content, pattern in (
        (text.replace("return as_images(y)", "retrun as_images(y)"), r"line \d+: .*: Python cannot read the file"),
        ("\0", "Python cannot read the file"),
        (
            text.replace("import numpy as np", "import numpi as np"),
            r"line \d+: ModuleNotFoundError: No module named 'numpi'",
        ),
        ("raise SystemExit\n", "line 1: the program is ended here"),
    ):
        with pytest.raises(Problem, match=pattern):
            judged(tmp_path, "linear", content)
    (tmp_path / "linear.py").write_bytes(b"\xff\xfe = 1\n")
    with pytest.raises(Problem, match="Python cannot read the file"):
        Learner(tmp_path / "linear.py", "linear")


def test_a_forward_that_was_changed_or_removed_is_noticed(tmp_path):
    verdict = judged(tmp_path, "linear", changed("linear", ("y = y + bias[:, None]", "y = y - bias[:, None]")))
    assert "it has been changed, put the given lines back" in verdict.rows[0].said
    verdict = judged(tmp_path, "linear", changed("linear", ("def linear_backward", "def backward")))
    assert verdict.rows[0].said.startswith("there is no linear_backward in ")


def test_what_is_kept_between_calls_is_noticed(tmp_path):
    unpack = "    columns, weight, has_bias = cache\n"
    counted = ("dx = weight.T @ grad", "dx = weight.T @ grad * (1 + (len(CALLS) > 5))")
    text = changed("linear", (unpack, unpack + "    CALLS.append(1)\n"), counted)
    verdict = judged(
        tmp_path, "linear", text.replace("import numpy as np\n", "import numpy as np\n\nCALLS: list = []\n")
    )
    assert "something is kept between calls" in dict((row.what, row.said) for row in verdict.rows)["hands off"]


def test_dy_in_another_memory_order_is_asked(tmp_path):
    text = changed("batch_norm", ("grad = as_matrix(dy)", "grad = dy.ravel(order='K').reshape(dy.shape[1], -1)"))
    verdict = judged(tmp_path, "batch_norm", text)
    assert "depends on how dy lies in memory" in dict((row.what, row.said) for row in verdict.rows)["memory"]


def test_what_it_prints_and_warns_of_is_shown_once(tmp_path):
    found = child(tmp_path, "    print('grad', grad.shape)\n    np.zeros(1) / np.zeros(1)\n")
    assert found.passed and found.printed == "grad (5, 4)\n"
    assert len(found.warned) == 1 and re.match(r"line \d+: RuntimeWarning: invalid value", found.warned[0])
    found = child(tmp_path, "    print('x' * 100000)\n    input()\n")
    assert found.printed.endswith("(more was printed)\n") and len(found.printed) < 5000
    assert "EOFError" in found.rows[0][2]


# The command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_set_up_check_solve_and_the_list(here, capsys):
    assert main(["relu6"]) == 0
    file = here / "exercises/relu6/relu6.py"
    assert file.read_text(encoding="utf-8") == text_of("relu6", solved=False)
    assert main(["check", "relu6"]) == 1
    assert re.search(r"relu6: exercises/relu6/relu6.py, line \d+: not written yet\.", capsys.readouterr().out)
    file.write_text(changed("relu6", ("(y.real >= 6)", "(y.real > 6)")), encoding="utf-8")
    assert main(["check", "relu6"]) == 1
    said = capsys.readouterr().out
    assert "relu6: dx is not right yet." in said and "  NO   dx            right but for" in said
    assert main([]) == 0
    assert re.search(r" 2  relu6 .* begun\n", capsys.readouterr().out)
    file.write_text(text_of("relu6"), encoding="utf-8")
    assert check("relu6", file) == 0
    said = capsys.readouterr().out
    assert "relu6: solved. All is right." in said and "Next: cross_entropy" in said
    assert re.search(r"scratchnet/layers/activation.py:\d+\n    def relu6_backward\(dy, cache\):\n", said)
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert re.search(r" 2  relu6 .* solved\n", said) and "1 of 12 are solved here" in said
    file.write_text(text_of("relu6") + "\n# more\n", encoding="utf-8")
    assert main(["list", "exercises"]) == 0
    assert re.search(r" 2  relu6 .* solved, changed since\n", capsys.readouterr().out)


def test_a_learners_work_is_never_written_over(here, capsys):
    assert main(["linear", "mine"]) == 0
    file = here / "mine/linear.py"
    file.write_text("# my work\n", encoding="utf-8")
    assert main(["linear", "mine"]) == 2
    assert "is there already and stays as it is" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "# my work\n"
    for k in (1, 2):
        assert main(["linear", "mine", "--force"]) == 0
        assert f"is now {Path('mine', f'linear.{k}.py')}" in capsys.readouterr().out
        assert file.read_text(encoding="utf-8") == text_of("linear", solved=False)
    assert (here / "mine/linear.1.py").read_text(encoding="utf-8") == "# my work\n"


def test_hints_come_one_by_one(here, capsys):
    main(["linear"])
    for count in (1, 2, 3, 3):
        capsys.readouterr()
        assert main(["hint", "linear"]) == 0
        said = capsys.readouterr().out
        assert said.count("Hint ") == count and ("That was the last." in said) == (count == 3)
    assert "    dW = dY · Xᵀ since ∂Y[o, n]/∂W[o, f] = X[f, n] (LIN.3)" in said
    assert json.loads((here / "exercises/linear/.exercise.json").read_text()) == {"hints": 3}
    (here / "exercises/linear/.exercise.json").write_text("{")
    assert main(["hint", "linear"]) == 0 and capsys.readouterr().out.count("Hint ") == 1
    assert main(["hint", "conv2d", "--level", "2"]) == 0 and capsys.readouterr().out.count("Hint ") == 2
    assert not (here / "exercises/conv2d").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["linaer"], "there is no exercise 'linaer' (did you mean linear?)"),
        (["check"], "`check` of which exercise?"),
        (["check", "conv"], "there is no exercise 'conv' (did you mean conv2d?)"),
        (["check", "conv2d"], "there is no exercises/conv2d/conv2d.py: set it up with"),
        (["hint", "conv2d"], "there is no exercises/conv2d/conv2d.py"),
        (["linear", "a", "b"], "one folder is expected, got a b"),
        (["linear", "file/below"], "file"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(words, said, here, capsys):
    (here / "file").write_text("")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_file_is_found_from_inside_its_folder_and_runs_by_itself(here, capsys, monkeypatch):
    main(["linear"])
    monkeypatch.chdir(here / "exercises/linear")
    assert main(["check", "linear"]) == 1
    assert "not written yet" in capsys.readouterr().out
    assert main(["check", "linear", "linear.py"]) == 1
    root = str(Path(sn.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "linear.py"], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert done.returncode == 1 and "not written yet" in done.stdout, done.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["linear.py"]
