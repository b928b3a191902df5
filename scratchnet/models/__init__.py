"""Networks built from scratchnet's layers.

Their files are the folder `models/` of a checkout, and a wheel has them beside this one (setup.py). They have this name in
both; in a checkout `models` is another name for the same modules.
"""

from pathlib import Path

if not Path(__file__).with_name("mobilenetv2.py").exists():
    __path__ = [str(Path(__file__).parents[2] / "models")]

from .mobilenetv2 import MobileNetV2

__all__ = ["MobileNetV2"]
