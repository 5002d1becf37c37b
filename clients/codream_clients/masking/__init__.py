"""Masking a vector on the GPU that its numbers lie on."""
