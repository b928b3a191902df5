"""What forward saves for backward, once; and errors that say where in a network they come from."""

from scratchnet import device


class OneShotCache:
    """What one forward saves and one backward takes."""

    saves = True
    _cache = None

    @property
    def name(self):
        """The class name, which opens every message; containers put the dotted path before it."""
        return type(self).__name__

    def save_cache(self, cache, y):
        """Keep what backward needs, unless in eval mode; y says which dy will fit."""
        self._cache = (cache, y.shape, y.dtype) if self.saves else None

    def take_cache(self, dy=None):
        """What forward saved, once; dy is checked against the y that forward returned (None: a scalar, nothing to check).

        Raises:
            RuntimeError: no forward that saves came since the last backward.
            ValueError, TypeError: dy is not of the shape or dtype of the y that forward returned.
        """
        if self._cache is None:
            why = (
                "the last forward ran in eval mode, which saves nothing" if not self.saves else "no forward came before"
            )
            raise RuntimeError(
                f"{self.name}: nothing saved for backward ({why}): each forward in training mode, or after "
                "eval(save=True), serves one backward"
            )
        cache, shape, dtype = self._cache
        if dy is not None:
            self._require_gradient(dy, shape, dtype)
        self._cache = None
        return cache

    def drop_cache(self):
        """Forget what forward saved, since it no longer fits the mode, dtype or device."""
        self._cache = None

    def _require_gradient(self, dy, shape, dtype):
        if not device.is_array(dy):
            raise TypeError(f"{self.name}: expected dy to be an array of shape {shape}, got {type(dy).__name__}")
        if dy.shape != shape:
            raise ValueError(f"{self.name}: expected dy of shape {shape}, as forward returned, got {dy.shape}")
        if dy.dtype != dtype:
            raise TypeError(f"{self.name}: expected dy of dtype {dtype}, as forward returned, got {dy.dtype}")


class located:  # noqa: N801 (it is called like a function)
    """Put a layer's name before the message of any error that passes: "4 Conv2d: …", then "features.4 Conv2d: …".

    A network as a whole has the name "", which says nothing.
    """

    __slots__ = ("_place",)

    def __init__(self, name):
        self._place = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, (ValueError, TypeError, RuntimeError)):
            seen = vars(error)  # a wrapped message remembers its path and its text
            seen.setdefault("text", str(error))
            seen["path"] = [self._place, *seen.get("path", [])] if self._place else seen.get("path", [])
            error.args = (f"{'.'.join(seen['path'])} {seen['text']}".lstrip(),)
