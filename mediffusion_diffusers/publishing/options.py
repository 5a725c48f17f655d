"""How something is published."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import check_options, option


@dataclass(frozen=True)
class PublishOptions:
    """How a folder is published.

    Raises:
        ValueError: for an empty `commit_message`, or a pull request against another branch than `main`.
    """

    private: bool = option(
        False, "Make the repository private; nothing is sent before the Hub has confirmed that it is."
    )
    commit_message: str = option("Upload with mediffusion-diffusers", "Title of the commit.")
    revision: str | None = option(None, "Branch to commit to, made if there is none; `main` by default.")
    create_pr: bool = option(False, "Open a pull request instead of committing.")
    dry_run: bool = option(False, "Send nothing, and list what would be sent.")

    def __post_init__(self) -> None:
        check_options(self)
        if not self.commit_message.strip():
            raise ValueError("`commit_message` must say something, but is empty.")
        if self.create_pr and self.revision not in (None, "main"):
            raise ValueError(
                f"`create_pr` proposes changes of `main`, but `revision` is {self.revision!r}. Give one of them."
            )
