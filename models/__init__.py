"""Networks built from scratchnet's layers: in a checkout another name for `scratchnet.models`, whose files these are."""

import sys

import scratchnet.models  # noqa: F401 (below it is found by its name)

for _name, _module in list(sys.modules.items()):  # the package and each file in it: one module, by whatever name
    if f"{_name}.".startswith("scratchnet.models."):
        sys.modules[_name.removeprefix("scratchnet.")] = _module
