"""Files: whole-or-nothing writes, limited reads, and the formats of tensors."""
