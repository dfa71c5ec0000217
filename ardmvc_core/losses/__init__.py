"""Loss functions: from tensors to a scalar or to named scalars, without network or config."""
