"""What a command is given: images as files, folders or patterns; a model as a folder, a repository or the example."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..options import option
from .results import note
from .study_options import MODEL_ALIASES


if TYPE_CHECKING:
    import numpy as np

EXAMPLE = "example"
IMAGES_HELP = "Pictures or DICOM files, folders of them, or patterns such as 'scans/*.dcm'."


@dataclass(frozen=True)
class ModelOptions:
    """Which checkpoint."""

    pretrained_model_name_or_path: str | None = option(
        None,
        f"Folder of a pipeline, its repository on the Hub, or '{EXAMPLE}': the phantom checkpoint that comes with the "
        "package and knows drawn chests alone, which is also taken where none is named.",
        aliases=MODEL_ALIASES,
    )
    revision: str | None = option(None, "Branch, tag or commit of the repository.")

    def load(self, pipeline_class: Any, dtype: Any, device: Any) -> Any:
        """Load a pipeline, which shows no progress of its own.

        Args:
            pipeline_class: one of the three.
            dtype: precision of the weights.
            device: where it computes.

        Raises:
            ValueError: if the name cannot be one.
            OSError: if the checkpoint cannot be read, or the Hub cannot be reached.
        """
        name = self.pretrained_model_name_or_path
        if name is None:
            note("No --model is named: the example's is used. It knows drawn chests alone, and no person's.")
        source = example_checkpoint() if name in (None, EXAMPLE) else name
        pipe = pipeline_class.from_pretrained(source, revision=self.revision, dtype=dtype)
        pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def example_checkpoint() -> Path:
    """The folder of the checkpoint that comes with the package."""
    from .. import examples

    return examples.checkpoint()


def find_images(places: Sequence[Path]) -> list[Path]:
    """The files that a command line names.

    Args:
        places: files, folders (all pictures and DICOM files below them) and patterns.

    Returns:
        The files in the order of the command line, each once; of a folder or pattern in the order of their names.

    Raises:
        ValueError: for a place that is not there or holds no image, naming it.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            files = _in_folder(place)
        elif place.exists() or not glob.has_magic(os.fspath(place)):
            files = [place]  # whatever is wrong with it is said where it is read
        else:
            files = [Path(name) for name in sorted(glob.glob(os.fspath(place), recursive=True))]
            files = [file for each in files for file in (_in_folder(each) if each.is_dir() else [each])]
        if not files:
            raise ValueError(f"`images` must name pictures or DICOM files, but there is none in {os.fspath(place)!r}.")
        found.update(dict.fromkeys(files))
    return list(found)


def read_images(places: Sequence[Path], channels: int) -> tuple[list[np.ndarray], list[Path], list[str]]:
    """Read all images that a command line names.

    Args:
        places: see `find_images`.
        channels: of the model.

    Returns:
        The images as float arrays in [0, 1], their files, and a sentence for each file that cannot be read.

    Raises:
        ValueError: as `find_images`, or if none of the files can be read.
    """
    from ..data.pictures import open_image
    from ..image_processor import pil_to_float_array

    images, read, problems = [], [], []
    for path in find_images(places):
        try:
            images.append(pil_to_float_array(open_image(path), channels))
            read.append(path)
        except (OSError, ValueError, ImportError) as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if not images:
        raise ValueError(f"None of the images can be read: {problems[0]}")
    return images, read, problems


def _in_folder(folder: Path) -> list[Path]:
    """The pictures and DICOM files below a folder."""
    from ..data.dicom import may_be_dicom
    from ..data.listing import PICTURE_SUFFIXES, list_files

    files = list_files(folder).files.values()
    return [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES or may_be_dicom(path)]
