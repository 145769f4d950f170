"""Dense detection maths of FCOS (arXiv 1904.01355): pure functions of tensors, and small frozen records."""
