"""How one vector an image is made of a backbone's features."""

from __future__ import annotations

from typing import Literal

Pooling = Literal["mean", "class_token", "both", "head"]
"""The mean of the patch tokens, the class token, or the two side by side, after the final norm; or what the model's own
classifier gets."""
