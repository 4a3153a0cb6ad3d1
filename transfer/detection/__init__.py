"""Detection: boxes, and masks, of objects."""
