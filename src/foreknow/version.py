"""The version of foreknow."""

__version__ = "0.1.0"
