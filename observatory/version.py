"""The version of this distribution."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("observatory-fleet")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0"
