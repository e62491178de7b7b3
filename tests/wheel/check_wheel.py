"""Opens a built wheel and sdist and checks what is inside: `check_wheel.py DIST_FOLDER`.

The kernels live behind a directory link, which build tools silently leave out when they are not told
about it; this is the check that would notice. Ends with a `N passed, N failed` line.
"""

import sys
import tarfile
import zipfile
from pathlib import Path

MAX_WHEEL_BYTES = 5 * 2**20
REPOSITORY = Path(__file__).resolve().parents[2]


def expected_files() -> set[str]:
    """Every Python source, preset and template of the package, kernels included."""
    package = REPOSITORY / "python" / "mmfast"
    kernels = REPOSITORY / "kernels" / "triton"
    files = {
        f"mmfast/{p.relative_to(package)}"
        for p in package.rglob("*")
        if p.suffix in {".py", ".pyi", ".yaml", ".typed", ".html", ".css"}
    }
    return files | {f"mmfast/kernels/{p.relative_to(kernels)}" for p in kernels.rglob("*.py")}


def main() -> int:
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    (sdist,) = Path(sys.argv[1]).glob("*.tar.gz")
    inside = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        source = {
            name.partition("/")[2]
            for name in archive.getnames()
            if archive.getmember(name).isfile()
        }
    top = {name.split("/")[0] for name in inside}
    missing_in_sdist = {
        f for f in expected_files() if f"python/{f}" not in source and f not in source
    }
    checks = {
        "wheel is abi3 for Python 3.11 and later": "-cp311-abi3-" in wheel.name,
        "native extension is inside": "mmfast/_mmfast.abi3.so" in inside
        or "mmfast/_mmfast.pyd" in inside,
        f"no package file is missing: {sorted(expected_files() - inside)[:5]}": expected_files()
        <= inside,
        f"sdist misses nothing: {sorted(missing_in_sdist)[:5]}": not missing_in_sdist,
        f"top level holds mmfast alone: {sorted(top)}": all(
            t == "mmfast" or t.endswith((".dist-info", ".libs")) for t in top
        ),
        "licence travels along": any(name.endswith("licenses/LICENSE") for name in inside),
        f"wheel is below {MAX_WHEEL_BYTES} bytes: {wheel.stat().st_size}": wheel.stat().st_size
        <= MAX_WHEEL_BYTES,
    }
    failed = [name for name, passed in checks.items() if not passed]
    for name in failed:
        print(f"FAILED {wheel.name}: {name}")
    print(f"{len(checks) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
