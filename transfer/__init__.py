"""Encoders put to use: labelled images in, a trained model out. ``maelift.transfer("classify", ...)`` runs it."""

from ..callable_package import make_callable

make_callable(__name__)
