"""The version of maelift."""

__version__ = "0.1.0"
