"""How a run computes: the precision of the forward pass, and how processes share the work, as keys name them."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""The dtype of the forward pass; auto: see ``device.autocast``."""
Parallel = Literal["ddp", "fsdp"]
"""How several processes share the work: each has the full model (DDP), or a shard of its parameters (FSDP2)."""
