"""Executors: they bind tensors to lowered plans and know no solver."""
