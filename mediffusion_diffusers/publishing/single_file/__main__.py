"""Write the self-contained pipelines and models into a folder, or check that they are up to date there."""

import argparse
import sys
from pathlib import Path

from .files import outdated_files, write_single_files


def main() -> None:
    """Write or compare the files of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="Change nothing; exit with 1 if a file is out of date.")
    arguments = parser.parse_args()
    if not arguments.check:
        write_single_files(arguments.folder)
    elif outdated := outdated_files(arguments.folder):
        sys.exit(f"{', '.join(outdated)} in {arguments.folder} differ from the package. Run `make bundle`.")


if __name__ == "__main__":
    main()
