"""The version of the installed package."""

from importlib import metadata

try:
    __version__ = metadata.version("dimec")
except metadata.PackageNotFoundError:  # a source tree on the path that nobody installed
    __version__ = "0+uninstalled"
