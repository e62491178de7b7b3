"""Triton kernels, each beside its torch reference; importable as `mmfast.kernels`.

Nothing here needs the native extension `mmfast._mmfast`, so a machine without it can run them.
"""
