"""Pipelines and models as self-contained files, generated from the package by following its imports.

`source` cuts modules into definitions, `closure` gathers what a class needs, `merge` and `text` write it down, `files`
says which files there are.
"""

from .files import (
    COMPONENT_FILE,
    PIPELINES,
    files_beside_weights,
    outdated_files,
    single_files,
    write_files_beside_weights,
    write_single_files,
)


__all__ = [
    "COMPONENT_FILE",
    "PIPELINES",
    "files_beside_weights",
    "outdated_files",
    "single_files",
    "write_files_beside_weights",
    "write_single_files",
]
