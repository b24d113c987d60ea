"""Stages for Stokehold pipelines in Python, fed through shared memory without copies."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("stokehold")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
