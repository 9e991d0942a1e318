"""The explanation of a mixed installation; imported only if `import libhoney` has failed.

The published `libhoney` owns the same files as this distribution's package of that name. `pip`
writes one over the other, and uninstalling either removes what both have in common.
"""

from __future__ import annotations

import importlib.util
import os
import re

from beeline.version import VERSION

_VERSION_LINE = re.compile(r"""^VERSION\s*=\s*["']([^"']*)["']""", re.MULTILINE)

_EXPLANATION = (
    "beeline {version} needs the package libhoney that belongs to it, but found {found}: another "
    "distribution, probably the published libhoney, has replaced or removed files of "
    "honeycomb-beeline ({error}). Run: python -m pip uninstall -y libhoney && python -m pip "
    "install --force-reinstall --no-deps honeycomb-beeline=={version} (from where you installed "
    "it). If another distribution requires libhoney, install libhoney=={version} as well: it comes "
    "with honeycomb-beeline and is empty."
)


def check_installation(error: Exception) -> None:
    """Raise an ImportError that says what to run, if `error` comes from mixed or missing files.

    `error` was raised by `import libhoney`, or by the comparison of the two versions.
    """
    folder = _find_libhoney()
    version = _read_version(folder)
    is_of_libhoney = str(getattr(error, "name", None)).partition(".")[0] == "libhoney"
    if version == VERSION and not is_of_libhoney:
        return
    if folder is None:
        found = "none at all"
    elif version is None:
        found = f"an incomplete or foreign one in {folder}"
    elif version == VERSION:
        found = f"one with foreign or missing files in {folder}"
    else:
        found = f"libhoney {version} in {folder}"
    raise ImportError(
        _EXPLANATION.format(version=VERSION, found=found, error=error), name="libhoney"
    ) from error


def _find_libhoney() -> str | None:
    """Return the folder of the package `libhoney`; None if there is none."""
    try:
        spec = importlib.util.find_spec("libhoney")
        return next(iter(spec.submodule_search_locations or ())) if spec is not None else None
    except (StopIteration, ValueError):  # a module, or one without a spec
        return None


def _read_version(folder: str | None) -> str | None:
    """Return the version that `libhoney` states; None if it states none."""
    try:
        with open(os.path.join(folder or "", "version.py"), encoding="utf-8") as file:
            found = _VERSION_LINE.search(file.read())
    except (OSError, ValueError):
        return None
    return found[1] if found is not None else None
