"""What pyproject.toml cannot say: a wheel has the files of models/ in scratchnet/models/.

An editable install needs no copy: there scratchnet/models/__init__.py finds the folder itself.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Finds the modules of `scratchnet.models` in two folders."""

    def find_package_modules(self, package, package_dir):
        """(package, module, file) for each module of a package."""
        found = super().find_package_modules(package, package_dir)
        if package == "scratchnet.models":
            files = sorted(path for path in Path("models").glob("*.py") if path.stem != "__init__")
            found += [(package, path.stem, str(path)) for path in files]
        return found


setup(cmdclass={"build_py": BuildPy})
