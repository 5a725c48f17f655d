"""To the Hugging Face Hub: a pipeline with the code that runs it anywhere, an autoencoder, or the app as a Space."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, metadata_load
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..item_boundary import reason
from ..models.model_folder import PIPELINE_PARTS, check_pipeline_folder
from ..privacy import require_private
from .commit import commit_files, said_in_one_line
from .contents import PublishedFile, contents_of
from .options import PublishOptions
from .retries import NUM_ATTEMPTS, with_retries
from .single_file import files_beside_weights


_REQUIREMENTS, _PACKAGE = "requirements.txt", "mediffusion-diffusers"


@dataclass(frozen=True)
class Publication:
    """What was published.

    Args:
        repo_id: `"organisation/name"`.
        url: of the commit or pull request, or of the commit that holds it all already; `None` for a dry run.
        files: all that belongs to it, by name.
        sent: those of them that the Hub did not have; all of them for a dry run, which does not ask.
    """

    repo_id: str
    url: str | None
    files: Sequence[PublishedFile]
    sent: Sequence[PublishedFile]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "repo_id": self.repo_id,
            "url": self.url,
            "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in self.files],
            "sent": [file.path for file in self.sent],
        }

    def __str__(self) -> str:
        if self.url is None:
            total = sum(file.size for file in self.files)
            lines = [f"{len(self.files)} files with {total:,} bytes would be sent to {self.repo_id}:"]
            return "\n".join([*lines, *map(str, self.files)])
        if not self.sent:
            return f"{self.repo_id} has all {len(self.files)} files already: {self.url}"
        return f"{len(self.sent)} of {len(self.files)} files sent to {self.repo_id}: {self.url}"


def publish_pipeline_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    options: PublishOptions | None = None,
    token: str | None = None,
    num_attempts: int = NUM_ATTEMPTS,
) -> Publication:
    """Upload a folder written by a pipeline's `save_pretrained`, with the `README.md` in it, as one commit.

    Beside the weights goes code that runs them where this package is not installed; see `single_file`. Left out are
    `checkpoint-*`, logs, caches, optimizer states, credentials, local paths and `training_config.json`, which may name
    some. Files of an earlier publish that the folder no longer has stay. What the Hub has already is not sent again,
    and where it has everything there is no commit.

    Args:
        folder: holds `model_index.json`, the components and the model card as `README.md`; it is not changed.
        repo_id: `"organisation/name"`, or `"name"` for a repository of the user who is logged in; made if it is new.
        options: see [`PublishOptions`].
        token: a token that may write to the repository; by default that of `hf auth login` or `HF_TOKEN`.
        num_attempts: how often to try where the network or the Hub fails.

    Returns:
        What was, or would be, sent, and where it is.

    Raises:
        ValueError: if the folder is no pipeline folder, has no card or holds a token, if a repository is public that
            shall be private, or if the Hub has no such repository or branch.
        PermissionError: if nobody is logged in or the token may not write to the repository.
        HubFailure: if the Hub cannot be reached or fails, after `num_attempts`.
    """
    folder = Path(folder)
    _require(folder, "model_index.json", "Save the pipeline there with `pipeline.save_pretrained(folder)` first.")
    _require(folder, "README.md", "Write the card first: `render_model_card(...).save(folder / 'README.md')`.")
    check_pipeline_folder(folder)
    if lacking := sorted(part for part in PIPELINE_PARTS if not (folder / part).is_dir()):
        raise ValueError(f"`folder` must hold a whole pipeline, but {folder.name!r} lacks {', '.join(lacking)}.")
    files = contents_of(folder, generated=files_beside_weights(folder), token=token)
    return _publish(files, repo_id, "model", options, token, num_attempts)


def publish_autoencoder_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    options: PublishOptions | None = None,
    token: str | None = None,
    num_attempts: int = NUM_ATTEMPTS,
) -> Publication:
    """Upload the folder of a trained autoencoder like `publish_pipeline_folder`, which says what is left out.

    The panels of `samples/` show images of patients and stay at home as well.

    Args:
        folder: holds the autoencoder's `config.json` and weights, and the model card as `README.md`.
        repo_id: see `publish_pipeline_folder`, as for the arguments that follow.
        options: see [`PublishOptions`].
        token: a token that may write to the repository.
        num_attempts: how often to try.

    Returns:
        As `publish_pipeline_folder`.

    Raises:
        ValueError: as `publish_pipeline_folder`, as for the other errors.
    """
    folder = Path(folder)
    _require(folder, "config.json", "Save the autoencoder there with `vae.save_pretrained(folder)` first.")
    _require(folder, "README.md", "Write the card first: `render_autoencoder_card(...).save(folder / 'README.md')`.")
    files = contents_of(folder, ignore=["samples/*"], token=token)
    return _publish(files, repo_id, "model", options, token, num_attempts)


def publish_space(
    folder: str | os.PathLike[str],
    repo_id: str,
    options: PublishOptions | None = None,
    token: str | None = None,
    num_attempts: int = NUM_ATTEMPTS,
    package: str | None = None,
) -> Publication:
    """Upload a folder with an app as a Space, which the Hub then builds and runs.

    Args:
        folder: holds the app, and a `README.md` whose front matter names its `sdk` (`gradio`, `docker` or `static`).
        repo_id: the Space, `"organisation/name"`; see `publish_pipeline_folder`, as for the arguments that follow.
        options: see [`PublishOptions`].
        token: a token that may write to the Space.
        num_attempts: how often to try.
        package: address of a git repository (`git+https://...`) or wheel (`https://...whl`) from which the Space
            installs this package; by default as its `requirements.txt` says. The folder stays as it is.

    Returns:
        As `publish_pipeline_folder`.

    Raises:
        ValueError: if the README names no `sdk`, or `package` is no such address or no requirement of the folder; and
            as `publish_pipeline_folder`, as for the other errors.
    """
    folder = Path(folder)
    _require(folder, "README.md", "A Space needs one, whose front matter names its `sdk`.")
    try:
        sdk = (metadata_load(folder / "README.md") or {}).get("sdk")
    except Exception as error:  # of a parser of YAML, of text, or of the Hub's library
        raise ValueError(f"The front matter of {folder.name}/README.md cannot be read: {reason(error)}.") from None
    if sdk not in ("gradio", "docker", "static"):
        raise ValueError(
            f"README.md of a Space must name its `sdk` (gradio, docker or static) in the front matter, but that of "
            f"{folder.name!r} says {sdk!r}."
        )
    generated = {} if package is None else {_REQUIREMENTS: _requirements_from(folder, package)}
    files = contents_of(folder, generated=generated, token=token)
    return _publish(files, repo_id, "space", options, token, num_attempts, sdk)


def _requirements_from(folder: Path, package: str) -> str:
    """The folder's requirements, with this package from an address."""
    if not re.fullmatch(r"(git\+https://|https://\S+\.whl$)\S*", package):
        raise ValueError(
            f"`package` must be the address of a git repository (git+https://...) or of a wheel (https://...whl), but "
            f"got {package!r}."
        )
    _require(folder, _REQUIREMENTS, "It says what the Space installs.")
    text = (folder / _REQUIREMENTS).read_text(encoding="utf-8")
    found = re.search(rf"^({_PACKAGE}(?:\[[^\]]*\])?).*$", text, flags=re.MULTILINE)
    if found is None:
        raise ValueError(f"`package` needs a line {_PACKAGE} in {_REQUIREMENTS} of `folder`, which has none.")
    return f"{text[: found.start()]}{found[1]} @ {package}{text[found.end() :]}"


def _require(folder: Path, name: str, what_to_do: str) -> None:
    if not (folder / name).is_file():
        raise ValueError(f"`folder` must hold {name}, but {folder.name!r} does not. {what_to_do}")


def _publish(
    files: Sequence[PublishedFile],
    repo_id: str,
    repo_type: str,
    options: PublishOptions | None,
    token: str | None,
    num_attempts: int,
    space_sdk: str | None = None,
) -> Publication:
    options = options or PublishOptions()
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`repo_id` must be organisation/name, but got {repo_id!r:.200}. {error}") from None
    if options.dry_run:
        return Publication(repo_id, None, files, files)
    api = HfApi(token=token)

    def send() -> Publication:
        with said_in_one_line(repo_id, token):
            name = api.create_repo(
                repo_id, private=options.private, exist_ok=True, repo_type=repo_type, space_sdk=space_sdk
            ).repo_id
            if options.private:
                require_private(api, name, repo_type)
            if options.revision is not None and not options.revision.startswith("refs/"):
                api.create_branch(name, branch=options.revision, exist_ok=True, repo_type=repo_type)
            message, revision = options.commit_message, options.revision
            url, sent = commit_files(api, name, repo_type, files, message, revision, options.create_pr)
        return Publication(name, url, files, sent)

    # A pull request whose answer was lost may be open: to ask again would open another.
    return with_retries(send, f"Publishing to {repo_id}", token, 1 if options.create_pr else num_attempts)
