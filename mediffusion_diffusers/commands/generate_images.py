"""Generate images of wanted findings: a PNG each, and all of them side by side.

mediffusion generate --towards Effusion --guidance_scale 0 10 20 30 --num_images 4 --output_dir effusion
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..choices import OwnGuidanceMode
from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from ..options import Range, check_options, option
from ..output_folder import claimed_folder
from .command import Command, ResultOptions, first_paragraph
from .input_images import ModelOptions
from .results import say_result, write_results
from .study_options import Seed


GRID_FILE = "grid.png"


@dataclass(frozen=True)
class Options:
    """What is drawn, and how.

    Raises:
        ValueError: for an option outside its range.
    """

    towards: list[str] = option([], "Findings to show.")
    away: list[str] = option([], "Findings to avoid.")
    output_dir: Path = option(Path("generated"), f"Folder for the images and {GRID_FILE}.")
    num_images: Annotated[int, Range(at_least=1, at_most=2**12)] = option(4, "How many images, at each scale.")
    num_inference_steps: Annotated[int, Range(at_least=1)] = option(50, "Denoising steps over the whole schedule.")
    guidance_scale: Annotated[list[float], Range(at_least=0)] = option(
        [], "Scale s of Eq. 2; several draw the same noise at each (Fig. 7). By default the checkpoint's, else 10."
    )
    guidance_mode: OwnGuidanceMode | None = option(None, "Where the classifier is asked; by default the checkpoint's.")
    eta: Annotated[float, Range(at_least=0, at_most=1)] = option(0.0, "Share of fresh noise of DDIM.")
    seed: Seed = option(0, "Seed of the noise.")

    def __post_init__(self) -> None:
        check_options(self)


def run(options: Options, model: ModelOptions, device_options: DeviceOptions, result_options: ResultOptions) -> None:
    """Generate and write.

    Raises:
        ValueError: for arguments that cannot be used.
        OSError: if a file cannot be read or written, or the Hub cannot be reached.
    """
    import numpy as np
    import torch

    from ..pipelines import MediffusionGuidedPipeline
    from ..reports.pictures.drawing import save_picture
    from ..reports.pictures.grid import image_grid

    device, dtype = device_options.choose()
    with claimed_folder(options.output_dir) as folder:
        pipe = model.load(MediffusionGuidedPipeline, dtype, device)
        pipe.set_progress_bar_config(disable=False)
        output = pipe(
            towards=options.towards or None,
            away=options.away or None,
            num_images=options.num_images,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale or None,
            guidance_mode=options.guidance_mode,
            eta=options.eta,
            generator=[torch.Generator().manual_seed(options.seed + index) for index in range(options.num_images)],
        )

        # With scales, everything comes once per scale.
        images = [image for each in output.images for image in each] if options.guidance_scale else output.images
        probabilities = np.concatenate(output.probabilities) if options.guidance_scale else output.probabilities

        def write(place: Path) -> list[Path]:
            paths = [place / f"image-{number}.png" for number in range(1, len(images) + 1)]
            for image, path in zip(images, paths, strict=True):
                save_picture(image, path)
            save_picture(image_grid(images, options.num_images), place / GRID_FILE)
            return paths

        paths = write_results(write, folder)
    rows = [
        {"image": str(path), "probabilities": dict(zip(output.label_names, map(float, each), strict=True))}
        for path, each in zip(paths, probabilities, strict=True)
    ]
    if result_options.json:
        say_result({"grid": str(folder / GRID_FILE), "images": rows})
    else:
        print(f"{len(rows)} images: {folder / GRID_FILE}")


COMMAND = Command(
    OptionParser(Options, ModelOptions, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)), run
)
main = COMMAND.main
