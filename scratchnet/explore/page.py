"""The page: what a training step was, put into one HTML file that needs nothing else."""

import json
import re
from pathlib import Path

import numpy as np

from scratchnet.explore.check import check_layers, check_loss
from scratchnet.explore.column import column_of
from scratchnet.explore.pack import pack_array, pack_change, packed
from scratchnet.explore.step import is_classifier, probabilities, take_step
from scratchnet.explore.text import texts_of
from scratchnet.training.atomic import atomic_file

HERE = Path(__file__).parent
SCRIPTS = "maps.js", "panels.js", "page.js"
MOST_BYTES = 14_000_000
CHANNELS = (
    10**9,
    64,
    48,
    32,
    24,
    20,
    16,
    14,
    12,
    10,
    8,
    7,
    6,
    5,
    4,
    3,
    2,
    1,
)  # of each array, until the page is small enough


def write_page(subject, path, shown=4, most_bytes=MOST_BYTES):
    """Take a training step and write what it was.

    Args:
        subject: a `Subject`.
        path: of the file.
        shown: how many of its pictures.
        most_bytes: the size of the file; so many channels are kept as fit.

    Returns:
        (bytes, channels kept of each array).

    Raises:
        FloatingPointError: a number of the step is not finite.
        OSError: the file could not be written.
    """
    taken = take_step(subject.model, subject.criterion, subject.x, subject.target, subject.lr)
    shown = min(shown, len(subject.x))
    facts = facts_of(subject, taken, shown)
    sizes = [array[0].size // array.shape[1] for array in taken.arrays]
    wanted = [array.shape[1] for array in taken.arrays]
    for channels in CHANNELS:
        numbers = sum(size * min(channels, count) for size, count in zip(sizes, wanted, strict=True)) * shown
        if numbers > 1.6 * most_bytes and channels != CHANNELS[-1]:
            continue  # even deflated it would not fit
        html = assembled(facts | {"arrays": pack_arrays(taken, shown, channels), "channels": channels})
        if len(html) <= most_bytes:
            break
    with atomic_file(path) as file:
        file.write(html)
    return len(html), channels


def pack_arrays(taken, shown, channels):
    """Each of `taken.arrays`, packed."""
    gradients = {taken.dlogits} | {number for layer in taken.layers for number in (layer.dy, layer.dx)}
    return [pack_array(array, shown, channels, k in gradients) for k, array in enumerate(taken.arrays)]


def facts_of(subject, taken, shown):
    """All that the page says, but for activations and gradients, as JSON can hold it."""
    texts: dict = {}  # (derivation, code) -> number: many layers are of one kind

    def text_of(*args):
        derivation, code = texts_of(*args)
        return texts.setdefault((derivation, tuple(code)), len(texts))

    layers = []
    for seen, check in zip(taken.layers, check_layers(subject.model, taken), strict=True):
        own = [name for name, _ in seen.step.parameters()]
        layers.append({
            "name": seen.name, "kind": seen.kind, "says": repr(seen.layer) if seen.is_layer else "", "step": seen.step.place
            if not seen.is_layer else "", "x": seen.x, "y": seen.y, "dy": seen.dy, "dx": seen.dx,
            "text": text_of(seen.layer, None if seen.is_layer else seen.step), "check": check and check._asdict(),
            "parameters": [f"{seen.name}.{name}" if seen.name else name for name in own],
        })  # fmt: skip
    classes = is_classifier(subject.criterion)
    loss = {
        "kind": subject.criterion.name, "before": taken.loss, "after": taken.after, "dlogits": taken.dlogits,
        "losses": taken.losses[:shown], "losses_after": taken.losses_after[:shown],
        "check": check_loss(subject.criterion, taken.logits, subject.target)._asdict(), "text": text_of(subject.criterion),
    }  # fmt: skip
    if classes:
        loss["smoothing"] = subject.criterion.label_smoothing
        for name, values in (("logits", taken.logits), ("logits_after", taken.logits_after)):
            loss[name] = values[:shown].astype(float).tolist()
        loss["p"], loss["p_after"] = (probabilities(z)[:shown].tolist() for z in (taken.logits, taken.logits_after))
    return {
        "title": subject.title, "source": subject.source, "lr": subject.lr, "batch": len(subject.x), "notes": subject.notes,
        "classes": subject.classes, "names": subject.names, "numbers": [int(k) for k in subject.numbers[:shown]],
        "labels": [int(k) for k in subject.labels[:shown]], "side": subject.pictures.shape[2],
        "pictures": packed(np.empty(0), subject.pictures[:shown].transpose(0, 2, 3, 1)),
        "layers": layers, "column": column_of(subject.model, taken.layers), "loss": loss,
        "parameters": {name: pack_change(change) for name, change in taken.changes.items()},
        "texts": [{"derivation": derivation, "code": code} for derivation, code in texts],
    }  # fmt: skip


def assembled(facts):
    """The bytes of the file: the template with style, script and data in their places."""
    data = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    html = (HERE / "page.html").read_text(encoding="utf-8")
    title = facts["title"].replace("&", "&amp;").replace("<", "&lt;")
    parts = {"TITLE": title, "STYLE": _file("page.css"), "SCRIPT": "\n\n".join(map(_file, SCRIPTS)), "DATA": data}
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda place: parts[place[1]], html).encode()


def _file(name):
    return (HERE / name).read_text(encoding="utf-8").strip()
