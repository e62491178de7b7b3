# Signatures of the native extension; checked against the binary by mypy.stubtest.
__version__: str
# Profile, target and compiler, for people: `release x86_64-linux, rustc 1.95.0 (…)`.
__build__: str
