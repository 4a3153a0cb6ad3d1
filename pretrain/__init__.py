"""Masked autoencoding: images in, an encoder file out. ``maelift.pretrain(...)`` runs it."""

from ..api import make_callable

make_callable(__name__)
