"""Open the page: pick an image, see what the model sees in it, and what would have to change.

    mediffusion app --model org/mediffusion-cxr

It is served to this machine alone, sends nothing to anybody, and keeps nothing on the disk. Ctrl-C ends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from ..options import Range, check_options, option
from .command import Command
from .input_images import EXAMPLE, ModelOptions


@dataclass(frozen=True)
class Options:
    """Where the page is served, and to how many at a time.

    Raises:
        ValueError: for an option outside its range.
    """

    server_name: str = option(
        "127.0.0.1", "Address to listen at; 0.0.0.0 is every address of this machine, for everybody who can reach it."
    )
    server_port: Annotated[int | None, Range(at_least=1, below=2**16)] = option(
        None, "By default the first free one from 7860."
    )
    num_parallel: Annotated[int, Range(at_least=1)] = option(2, "Explanations made at the same time; others wait.")

    def __post_init__(self) -> None:
        check_options(self)


def run(options: Options, model: ModelOptions, device_options: DeviceOptions) -> None:
    """Serve until Ctrl-C.

    Raises:
        ValueError: for a checkpoint that cannot be used.
        ImportError: if gradio is not installed.
        OSError: if the port is taken, or the Hub cannot be reached.
    """
    from ..app import boxed_examples, launch
    from ..pipelines import MediffusionCounterfactualPipeline

    device, dtype = device_options.choose()
    launch(
        model.load(MediffusionCounterfactualPipeline, dtype, device),
        boxed_examples() if model.pretrained_model_name_or_path in (None, EXAMPLE) else (),
        num_parallel=options.num_parallel,
        server_name=options.server_name,
        server_port=options.server_port,
    )


COMMAND = Command(
    OptionParser(Options, ModelOptions, DeviceOptions, description="\n\n".join((__doc__ or "").split("\n\n")[::2])),
    run,
)
main = COMMAND.main
