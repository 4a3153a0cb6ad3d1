"""Masked autoencoding: images in, an encoder file out. ``maelift.pretrain(...)`` runs it."""

from ..callable_package import make_callable

make_callable(__name__)
