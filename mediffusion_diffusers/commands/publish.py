"""Publish a pipeline with its card, or an autoencoder, in the Hugging Face Hub, as one commit.

mediffusion publish runs/cxr-2pct org/mediffusion-cxr --private
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..option_parser import OptionParser
from ..options import check_options, option, required
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
    private: bool = option(False, "Make the repository private; a public one is refused.")
    commit_message: str = option("Upload a Mediffusion pipeline", "Title of the commit.")
    revision: str | None = option(None, "Branch to commit to; by default main.")
    create_pr: bool = option(False, "Open a pull request instead of committing.")

    def __post_init__(self) -> None:
        check_options(self)


def run(options: Options, result_options: ResultOptions) -> None:
    """Publish, and say where. The token is that of `hf auth login` or HF_TOKEN.

    Raises:
        ValueError: if the folder cannot be published.
        PermissionError: without a login, or without the right to write.
    """
    from ..publishing.upload import publish_autoencoder_folder, publish_pipeline_folder

    if (options.folder / "model_index.json").is_file() or not (options.folder / "config.json").is_file():
        url = publish_pipeline_folder(
            options.folder,
            options.repo_id,
            private=options.private,
            commit_message=options.commit_message,
            revision=options.revision,
            create_pr=options.create_pr,
        )
    elif options.revision is not None or options.create_pr:
        raise ValueError("`revision` and `create_pr` are for pipelines; an autoencoder goes to main.")
    else:
        url = publish_autoencoder_folder(
            options.folder, options.repo_id, private=options.private, commit_message=options.commit_message
        )
    if result_options.json:
        say_result({"url": url})
    else:
        print(url)


COMMAND = Command(OptionParser(Options, ResultOptions, description=first_paragraph(__doc__)), run)
main = COMMAND.main
