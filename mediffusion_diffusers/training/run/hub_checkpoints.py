"""Checkpoints on the Hub while training goes on, and resuming from there on an empty disk.

The newest checkpoint lies on the branch `checkpoints` of the model's repository, as `checkpoint-{step}/` beside the
metrics up to that step; every commit of the branch is one checkpoint, so that `organisation/name@<commit>` names any
of them. The branch `main` holds the pipeline alone.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from ...digests import sha256_of
from ...hub import HUB_ERRORS, hub_access
from ...privacy import require_private, without_tokens
from ...publishing.retries import with_retries
from .checkpoints import MANIFEST, DamagedCheckpoint, discard_checkpoint, find_checkpoint, load_checkpoint


logger = logging.get_logger(__name__)

CHECKPOINT_BRANCH = "checkpoints"
_REVISION = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)@(?P<revision>.+)")
_FILE = re.compile(rf"checkpoint-(\d+)/{re.escape(MANIFEST)}")


def hub_source(resume_from: str | None, hub_model_id: str | None) -> tuple[str, str] | None:
    """Repository and revision that `--resume_from_checkpoint` names; `None` for a local one.

    Args:
        resume_from: `"hub"` is the newest checkpoint of `hub_model_id`; `"organisation/name@revision"` is that of a
            branch, tag or commit.
        hub_model_id: the run's own repository.

    Raises:
        ValueError: for `"hub"` without `hub_model_id`.
    """
    if resume_from == "hub":
        if hub_model_id is None:
            raise ValueError("`resume_from_checkpoint='hub'` needs `hub_model_id`: the repository of the run.")
        return hub_model_id, CHECKPOINT_BRANCH
    match = _REVISION.fullmatch(resume_from or "")
    return None if match is None or Path(resume_from or "").is_dir() else (match["repo_id"], match["revision"])


def fetch_checkpoint(
    output_dir: Path, repo_id: str, revision: str, token: str | None = None, newer_than: int = -1
) -> Path | None:
    """Download the newest checkpoint of a revision into a run's folder, with its metrics if there are none.

    Args:
        output_dir: folder of the run.
        repo_id: repository.
        revision: branch, tag or commit.
        token: a token that may read it.
        newer_than: leave it there unless it has more steps than this.

    Returns:
        `output_dir/checkpoint-{step}`, or `None` if the repository, the revision or a newer checkpoint do not exist.

    Raises:
        OSError: if the Hub cannot be reached or may not be read.
        DamagedCheckpoint: if what was downloaded is not what was uploaded, or cannot be used.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(token=token)
    with hub_access(repo_id, revision, token):
        try:
            info = api.model_info(repo_id, revision=revision, files_metadata=True)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if error.response.status_code != 404:  # it may be there, hidden from whoever asks
                raise
            return None
    files = info.siblings or []
    steps = [int(match[1]) for file in files if (match := _FILE.fullmatch(file.rfilename))]
    if not steps or max(steps) <= newer_than:
        return None
    name = f"checkpoint-{max(steps)}"
    stage = output_dir / ".hub-download.partial"
    shutil.rmtree(stage, ignore_errors=True)
    # The commit and not the branch, which may move meanwhile.
    patterns = [f"{name}/*", "metrics.jsonl"]
    with hub_access(repo_id, revision, token):
        api.snapshot_download(repo_id, revision=info.sha, allow_patterns=patterns, local_dir=stage)
    try:
        for file in files:
            path = stage / file.rfilename
            if file.lfs is not None and path.is_file() and sha256_of(path) != file.lfs.sha256:
                raise DamagedCheckpoint(stage / name, f"{path.name} has another SHA-256 than on the Hub")
        load_checkpoint(stage / name)
    except DamagedCheckpoint as error:
        shutil.rmtree(stage)
        raise DamagedCheckpoint(Path(f"{repo_id}@{info.sha}") / name, error.reason) from error
    discard_checkpoint(output_dir / name)
    os.replace(stage / name, output_dir / name)
    metrics = output_dir / "metrics.jsonl"
    if (stage / "metrics.jsonl").is_file() and not metrics.exists():
        os.replace(stage / "metrics.jsonl", metrics)
    shutil.rmtree(stage)
    return output_dir / name


def fetch_newest_usable(output_dir: Path, repo_id: str, token: str | None = None) -> None:
    """Download the newest checkpoint of the branch `checkpoints` that is not damaged, if it is newer than the disk's.

    Args:
        output_dir: folder of the run.
        repo_id: repository of the run.
        token: a token that may read it.

    Raises:
        OSError: if the Hub cannot be reached or may not be read.
    """
    from huggingface_hub import HfApi

    own, _ = find_checkpoint(output_dir, "latest")
    newer_than = int(own.name.rpartition("-")[2]) if own is not None else 0
    try:
        fetch_checkpoint(output_dir, repo_id, CHECKPOINT_BRANCH, token, newer_than)
        return
    except DamagedCheckpoint as error:
        logger.warning(f"{error.path} is not used: {error.reason}.")
    with hub_access(repo_id, CHECKPOINT_BRANCH, token):
        older = HfApi(token=token).list_repo_commits(repo_id, revision=CHECKPOINT_BRANCH)[1:]
    for commit in older:
        try:
            fetch_checkpoint(output_dir, repo_id, commit.commit_id, token, newer_than)
            return
        except DamagedCheckpoint as error:
            logger.warning(f"{error.path} is not used: {error.reason}.")


def download_for_resuming(output_dir: Path, resume_from: str, hub_model_id: str | None, token: str | None) -> str:
    """Make a checkpoint of the Hub a local one.

    Returns:
        What to resume from instead: `"latest"` for `"hub"`, which takes the newer one of disk and Hub; the path of
        the checkpoint for a named revision.

    Raises:
        ValueError: if a named revision has no checkpoint, or a damaged one.
    """
    source = hub_source(resume_from, hub_model_id)
    if source is None:
        return resume_from
    if resume_from == "hub":
        fetch_newest_usable(output_dir, source[0], token)
        return "latest"
    path = fetch_checkpoint(output_dir, *source, token=token)
    if path is None:
        raise ValueError(
            f"`resume_from_checkpoint` must name a revision that holds a checkpoint, but {source[0]} has none at "
            f"{source[1]!r}. Runs with `--hub_strategy every_save` write the branch '{CHECKPOINT_BRANCH}'."
        )
    return str(path)


def refuse_public_repository(repo_id: str, token: str | None = None) -> None:
    """Refuse, before the training begins, to upload to a public repository what shall be private.

    A repository that is not there yet will be made private; one that cannot be asked for now is asked again before
    each upload.

    Raises:
        ValueError: if it is public.
    """
    from huggingface_hub import HfApi

    if "/" not in repo_id:  # the user's own, whose whole name the Hub knows at the first upload
        return
    with suppress(*HUB_ERRORS):
        require_private(HfApi(token=token), repo_id)


class HubUploads:
    """Uploads checkpoints in the background; a failed upload is tried again and never stops the training.

    While one upload runs, a newer checkpoint takes the place of one that still waits.

    Args:
        repo_id: the run's repository.
        token: a token that may write to it.
        private: whether a new repository is private.
    """

    def __init__(self, repo_id: str, token: str | None = None, private: bool = False):
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # they would tear the training's own
        self.repo_id, self.token, self.private = repo_id, token, private
        self._waiting: tuple[Path, int] | None = None
        self._is_off = False
        self._changed = threading.Condition()
        self._is_working = False

    def submit(self, checkpoint: Path, write_pipeline: Callable[[Path], None] | None = None) -> None:
        """Take a snapshot of a checkpoint and upload it when the line is free.

        Args:
            checkpoint: folder `checkpoint-{step}` of a run; it may be deleted afterwards.
            write_pipeline: writes the pipeline with its card into the folder that it is called with.
        """
        if self._is_off:
            return
        step = int(checkpoint.name.rpartition("-")[2])
        stage = checkpoint.with_name(f".hub-{step}.partial")
        shutil.rmtree(stage, ignore_errors=True)
        shutil.copytree(checkpoint, stage / "state" / checkpoint.name, copy_function=_link)
        metrics = checkpoint.with_name("metrics.jsonl")
        if metrics.is_file():
            shutil.copy(metrics, stage / "state")
        if write_pipeline is not None:
            write_pipeline(stage / "pipeline")
            if metrics.is_file():
                shutil.copy(metrics, stage / "pipeline")
        with self._changed:
            if self._waiting is not None:
                shutil.rmtree(self._waiting[0], ignore_errors=True)
            self._waiting = (stage, step)
            if not self._is_working:
                self._is_working = True
                threading.Thread(target=self._work, name="hub-uploads", daemon=True).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to upload; whether that came true within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_working, timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._waiting is None:
                    self._is_working = False
                    self._changed.notify_all()
                    return
                (stage, step), self._waiting = self._waiting, None
            try:
                with_retries(partial(self._upload, stage, step), f"Uploading checkpoint-{step}", self.token)
            except (PermissionError, ValueError) as error:
                self._is_off = True
                logger.warning(f"Nothing more is uploaded while training: {without_tokens(str(error), self.token)}")
            except Exception as error:
                text = without_tokens(str(error), self.token)
                logger.warning(f"checkpoint-{step} was not uploaded, and training goes on: {text}")
            shutil.rmtree(stage, ignore_errors=True)

    def _upload(self, stage: Path, step: int) -> None:
        from huggingface_hub import HfApi

        from ...publishing.options import PublishOptions
        from ...publishing.upload import publish_pipeline_folder

        if (stage / "pipeline" / "README.md").is_file():
            options = PublishOptions(self.private, f"Upload the pipeline after {step} training steps")
            publish_pipeline_folder(stage / "pipeline", self.repo_id, options, self.token, num_attempts=1)
        api = HfApi(token=self.token)
        repo_id = api.create_repo(self.repo_id, private=self.private, exist_ok=True).repo_id
        if self.private:
            require_private(api, repo_id)
        api.create_branch(repo_id, branch=CHECKPOINT_BRANCH, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=stage / "state",
            revision=CHECKPOINT_BRANCH,
            commit_message=f"checkpoint-{step}",
            delete_patterns="*",
        )


def _link(source: str, target: str) -> Any:
    """A hard link, which costs no space; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
    return target
