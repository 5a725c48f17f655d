"""Publish a pipeline with its card, an autoencoder, or an app as a Space, in the Hugging Face Hub, as one commit.

mediffusion publish runs/cxr-2pct org/mediffusion-cxr --private
"""

from __future__ import annotations

import sys
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

    folder: Path = required("Folder of a pipeline or an autoencoder, with its card as README.md.", positional=True)
    repo_id: str = required("Repository, as organisation/name.", positional=True)
    space: bool = option(False, "The folder holds an app: publish it as a Space.")

    def __post_init__(self) -> None:
        check_options(self)


def run(options: Options, publish_options: PublishOptions, result_options: ResultOptions) -> None:
    """Publish, and say where. The token is that of `hf auth login` or HF_TOKEN.

    Raises:
        ValueError: if the folder cannot be published.
        PermissionError: without a login, or without the right to write.
        HubFailure: if the Hub cannot be reached or fails.
    """
    from ..publishing.upload import publish_autoencoder_folder, publish_pipeline_folder, publish_space

    has_index = (options.folder / "model_index.json").is_file()
    if options.space:
        publish = publish_space
    elif has_index or not (options.folder / "config.json").is_file():
        publish = publish_pipeline_folder
    else:
        publish = publish_autoencoder_folder
    published = publish(options.folder, options.repo_id, publish_options)
    if result_options.json:
        say_result(published.to_dict())
    elif published.url is None:
        print(published)
    else:
        print(published, file=sys.stderr)
        print(published.url)


COMMAND = Command(OptionParser(Options, PublishOptions, ResultOptions, description=first_paragraph(__doc__)), run)
main = COMMAND.main
