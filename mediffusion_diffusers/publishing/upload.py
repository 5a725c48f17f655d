"""Upload a saved pipeline folder, with its own model card, to the Hugging Face Hub."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects

from ..atomic_files import write_text
from ..privacy import holds_token, is_local_path, require_private


# Patterns of `fnmatch`, whose `*` also crosses folders. What resumes a run, what names places on the training
# machine (the card repeats the arguments without them) and what belongs to the user's account stays at home.
IGNORE_PATTERNS = (
    *("checkpoint-*", "*/checkpoint-*", "optimizer*", "*/optimizer*", "scheduler.bin", "scaler.pt", "random_states*"),
    *("logs/*", "runs/*", "wandb/*", "*.log", "*.out", "*events.out.tfevents.*", "training_config.json"),
    *("__pycache__/*", "*/__pycache__/*", "*.tmp", "*.partial", "*.lock", "*.pkl"),
    *("token", "*/token", "*.token", "stored_tokens", "*/stored_tokens"),
    *(".*", "*/.*"),
)
_TEXT_SUFFIXES = (".csv", ".html", ".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml")


def publish_pipeline_folder(
    folder: str | os.PathLike,
    repo_id: str,
    token: str | None = None,
    private: bool = False,
    commit_message: str = "Upload a Mediffusion pipeline",
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder written by a pipeline's `save_pretrained`, together with the `README.md` in it, as one commit.

    The repository and the branch are created when they do not exist. Left out are `checkpoint-*`, logs, caches,
    optimizer states, credentials and `training_config.json`, which may name local paths. Where the configs note the
    local folder that a component was once loaded from (`_name_or_path`), the note is deleted, in the folder as well.

    Args:
        folder: holds `model_index.json`, the components and the model card as `README.md`.
        repo_id: `"organisation/name"`, or `"name"` for a repository of the user who is logged in.
        token: a token that may write to the repository; by default that of `hf auth login` or `HF_TOKEN`.
        private: whether the repository is hidden from the public.
        commit_message: title of the commit.
        revision: branch to commit to; `main` by default.
        create_pr: open a pull request against `revision` instead of committing to it.

    Returns:
        URL of the commit.

    Raises:
        ValueError: if the folder is no pipeline folder, has no card or holds a token, or if `private=True` is asked
            for a repository that is public.
        PermissionError: if nobody is logged in or the token may not write to the repository.
    """
    return _publish(Path(folder), "model_index.json", (), repo_id, token, private, commit_message, revision, create_pr)


def publish_autoencoder_folder(
    folder: str | os.PathLike,
    repo_id: str,
    token: str | None = None,
    private: bool = False,
    commit_message: str = "Upload an autoencoder",
) -> str:
    """Upload the folder of a trained autoencoder like `publish_pipeline_folder`, which says what is left out.

    The panels of `samples/` show images of patients and stay at home as well.

    Args:
        folder: holds the autoencoder's `config.json` and weights, and the model card as `README.md`.
        repo_id: see `publish_pipeline_folder`, as for the arguments that follow.
        token: a token that may write to the repository.
        private: whether the repository is hidden from the public.
        commit_message: title of the commit.

    Returns:
        URL of the commit.

    Raises:
        ValueError: as `publish_pipeline_folder`.
        PermissionError: as `publish_pipeline_folder`.
    """
    return _publish(Path(folder), "config.json", ("samples/*",), repo_id, token, private, commit_message, None, False)


def _publish(
    folder: Path,
    index_file: str,
    private_files: tuple[str, ...],
    repo_id: str,
    token: str | None,
    private: bool,
    commit_message: str,
    revision: str | None,
    create_pr: bool,
) -> str:
    _check_folder(folder, index_file, token)
    forget_local_paths(folder)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private:
            require_private(api, repo_id)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=[*IGNORE_PATTERNS, *private_files],
        )
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise PermissionError(
                f"Publishing to {repo_id} needs a login, and there is none or its token is not valid. "
                "Run `hf auth login`, set HF_TOKEN or pass `token=`."
            ) from error
        if error.response.status_code == 403:
            raise PermissionError(
                f"The token may not write to {repo_id}. Use one with the role 'write' of a user who belongs to "
                "that organisation, or choose another `repo_id`."
            ) from error
        raise
    return commit.commit_url


def _check_folder(folder: Path, index_file: str, token: str | None) -> None:
    """Raise `ValueError` unless the folder is a pipeline or a model with a card and without credentials."""
    if not (folder / index_file).is_file():
        kind = "pipeline" if index_file == "model_index.json" else "model"
        raise ValueError(
            f"`folder` must be a {kind} folder, which has a {index_file}, but {folder.name!r} has none. Save the "
            f"{kind} there with `{kind}.save_pretrained(folder)` first."
        )
    if not (folder / "README.md").is_file():
        raise ValueError(
            f"`folder` must hold its model card as README.md, but {folder.name!r} has none. "
            "Write it first: `render_model_card(...).save(folder / 'README.md')`."
        )
    for path in _published_text_files(folder):
        text = path.read_text(encoding="utf-8", errors="replace")
        if holds_token(text, token):
            raise ValueError(
                f"{path.relative_to(folder)} in `folder` holds an access token, and nothing was uploaded. "
                "Remove it from the file, and revoke it if the file was ever shared."
            )


def _published_text_files(folder: Path) -> Iterator[Path]:
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in _TEXT_SUFFIXES]
    for path in filter_repo_objects(paths, ignore_patterns=list(IGNORE_PATTERNS)):
        if (folder / path).is_file():
            yield folder / path


def forget_local_paths(folder: Path) -> None:
    """Delete the `_name_or_path` that diffusers writes into configs, where it is a path on this machine."""
    for path in _published_text_files(folder):
        if path.name not in ("model_index.json", "config.json", "scheduler_config.json"):
            continue
        config = json.loads(path.read_text(encoding="utf-8"))
        if is_local_path(config.get("_name_or_path")):
            del config["_name_or_path"]
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
