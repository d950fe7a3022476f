"""Jupyter kernels on a fixed set of machines over nothing but SSH."""
