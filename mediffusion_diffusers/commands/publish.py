"""Publish a pipeline with its card, an autoencoder, or the app as a Space, in the Hugging Face Hub, as one commit.

mediffusion publish runs/cxr-2pct org/mediffusion-cxr --private --dry_run
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..option_parser import OptionParser
from ..options import check_options, option, required
from ..publishing.options import PublishOptions
from .command import Command, ResultOptions, first_paragraph
from .results import say_result


@dataclass(frozen=True)
class Options:
    """What goes where.

    Raises:
        ValueError: for an option that is not what its type says.
    """

    folder: Path = required("Folder of a pipeline or autoencoder with its card, or of an app.", positional=True)
    repo_id: str = required("Repository, as organisation/name.", positional=True)
    space: bool = option(False, "The folder holds an app, which becomes a Space.")
    package: str | None = option(
        None, "With --space: address of a git repository or wheel that the Space installs this package from."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.package is not None and not self.space:
            raise ValueError("`package` is for a Space, which installs it: give `space` too, or leave it out.")


def run(options: Options, publish_options: PublishOptions, result_options: ResultOptions) -> None:
    """Publish, and say what was sent. The token is that of `hf auth login` or HF_TOKEN.

    Raises:
        ValueError: if the folder cannot be published.
        OSError: without a login or the right to write, or if the Hub cannot be reached.
    """
    from ..publishing.upload import publish_autoencoder_folder, publish_pipeline_folder, publish_space

    if options.space:
        publication = publish_space(options.folder, options.repo_id, publish_options, package=options.package)
    else:
        is_model = (options.folder / "config.json").is_file() and not (options.folder / "model_index.json").is_file()
        publish = publish_autoencoder_folder if is_model else publish_pipeline_folder
        publication = publish(options.folder, options.repo_id, publish_options)
    if result_options.json:
        say_result(publication.to_dict())
    else:
        print(publication)


COMMAND = Command(OptionParser(Options, PublishOptions, ResultOptions, description=first_paragraph(__doc__)), run)
main = COMMAND.main
