"""One commit of files: only what the Hub does not have, and whatever fails said in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, HfApi, RepoFile

from ..hub import HUB_ERRORS, HubFailure, hub_failure
from ..privacy import without_tokens
from .contents import PublishedFile


# Answers after which the same may work: too slow, overtaken by another commit, content that arrived damaged, too many
# requests. Of those below 500 no other repeats.
_WORTH_REPEATING = (408, 412, 422, 429)


def commit_files(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    files: Sequence[PublishedFile],
    message: str,
    revision: str | None = None,
    create_pr: bool = False,
) -> tuple[str, list[PublishedFile]]:
    """Commit those of the files that the repository does not have in this form; nothing if it has them all.

    Args:
        api: with the user's token.
        repo_id: the repository, which must exist.
        repo_type: `"model"` or `"space"`.
        files: what it shall hold afterwards, besides what else it holds.
        message: title of the commit.
        revision: branch, `main` by default.
        create_pr: open a pull request instead.

    Returns:
        URL of the commit or pull request, or of the commit that holds everything already; and the files it was made
        of.
    """
    known = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in api.get_paths_info(repo_id, [file.path for file in files], revision=revision, repo_type=repo_type)
        if isinstance(entry, RepoFile)
    }
    changed = [file for file in files if known.get(file.path) not in (file.sha256, file.git_blob_id)]
    if not changed:
        head = api.repo_info(repo_id, revision=revision, repo_type=repo_type).sha
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        return f"{api.endpoint}/{prefix}{repo_id}/commit/{head}", []
    commit = api.create_commit(
        repo_id,
        operations=[CommitOperationAdd(file.path, file.source) for file in changed],
        commit_message=message,
        revision=revision,
        create_pr=create_pr,
        repo_type=repo_type,
    )
    return commit.pr_url or commit.commit_url, changed


@contextmanager
def said_in_one_line(repo_id: str, token: str | None) -> Iterator[None]:
    """Turn what the Hub's client raises into one line.

    Args:
        repo_id: what is published, as the user named it.
        token: never shown.

    Raises:
        PermissionError: without a login or the right to write.
        ValueError: for what no repetition mends.
        HubFailure: for what one may.
    """
    try:
        yield
    except (*HUB_ERRORS, ValueError, RuntimeError) as error:
        sentence, status = hub_failure(error), _status(error)
        if isinstance(error, (HubFailure, PermissionError)) or sentence is None:
            raise
        if status == 401:
            raise PermissionError(
                f"Publishing to {repo_id} needs a login, and there is none or its token is not valid. "
                "Run `hf auth login`, set HF_TOKEN or pass `token=`."
            ) from error
        if status == 403:
            raise PermissionError(
                f"The token may not write to {repo_id}. Use one with the role 'write' of a user who belongs to "
                "that organisation, or choose another `repo_id`."
            ) from error
        if status == 422:
            sentence = "A file arrived damaged, or changed while it was sent (422). Try again."
        line = without_tokens(f"{repo_id} was not published. {sentence}", token)
        is_final = status is not None and status < 500 and status not in _WORTH_REPEATING
        raise (ValueError if is_final else HubFailure)(line) from error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an answer that caused an error; `None` if no answer did."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__ or error.__context__
    return None
