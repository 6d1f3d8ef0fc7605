"""Put the packages that the measurements import, and that a machine with torch may lack, into a zip file.

They have no compiled code, so they run with any Python and processor. Prints their names and the file's size.
"""

from __future__ import annotations

import argparse
import zipfile
from importlib.util import find_spec
from pathlib import Path

from espnet_todm.errors import UserError
from espnet_todm.util.files import atomic_path

# ESPnet's modules and what they import beside torch, numpy, scipy and PyYAML.
PACKAGES = ("espnet", "espnet2", "packaging", "typeguard")


def add(archive: zipfile.ZipFile, package: str) -> int:
    """Add the package's Python files, and ESPnet's version.txt, which it reads when imported. Returns their number.

    Raises UserError if the package is not installed as a folder.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package}: not installed here; make venv installs it")
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted([*folder.rglob("*.py"), *folder.glob("version.txt")])
    for file in files:
        archive.write(file, file.relative_to(folder.parent))
    return len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(options.output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        counts = {package: add(archive, package) for package in PACKAGES}
    told = ", ".join(f"{package} ({count} files)" for package, count in counts.items())
    print(f"{options.output}: {options.output.stat().st_size / 2**20:.1f} MiB: {told}")


if __name__ == "__main__":
    main()
