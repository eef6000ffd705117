"""The version of the package: read from here by the build and by `hivewire --version`."""

__version__ = "0.1.0"
