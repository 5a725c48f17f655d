"""What of a folder goes to the Hub: never what resumes a run, names places on this machine or opens an account."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects

from ..atomic_files import read_json, write_bytes
from ..digests import sha256_of
from ..privacy import holds_token, is_local_path


# Patterns of `fnmatch`, whose `*` also crosses folders. What resumes a run, what names places on the training
# machine (the card repeats the arguments without them) and what belongs to the user's account stays at home.
IGNORE_PATTERNS = (
    *("checkpoint-*", "*/checkpoint-*", "optimizer*", "*/optimizer*", "scheduler.bin", "scaler.pt", "random_states*"),
    *("logs/*", "runs/*", "wandb/*", "*.log", "*.out", "*events.out.tfevents.*", "training_config.json"),
    *("__pycache__/*", "*/__pycache__/*", "*.tmp", "*.partial", "*.lock", "*.pkl"),
    *("token", "*/token", "*.token", "stored_tokens", "*/stored_tokens"),
    *(".*", "*/.*"),
)
_WEIGHTS = ".safetensors"  # alone can hold no text that somebody wrote
_CONFIG_NAMES = ("model_index.json", "config.json", "scheduler_config.json")


@dataclass(frozen=True)
class PublishedFile:
    """One file of a commit.

    Args:
        path: its name in the repository.
        source: the file here, or the content itself.
    """

    path: str
    source: Path | bytes

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """As 64 hexadecimal digits; what the Hub calls a large file by."""
        return hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes) else sha256_of(self.source)

    @property
    def git_blob_id(self) -> str:
        """What git, and so the Hub, calls a file by that is no large one."""
        content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def __str__(self) -> str:
        return f"{self.sha256}  {self.size:>12,}  {self.path}"


def contents_of(
    folder: Path, ignore: Iterable[str] = (), generated: Mapping[str, str] | None = None, token: str | None = None
) -> list[PublishedFile]:
    """The files of a commit, by name. The folder stays as it is.

    Where a config notes the local folder that a component was once loaded from (`_name_or_path`), the published one
    leaves that out.

    Args:
        folder: what is published.
        ignore: patterns to leave out besides `IGNORE_PATTERNS`.
        generated: files besides those of the folder, or in their place: texts by path.
        token: the user's, which no file may hold.

    Raises:
        ValueError: if a file holds an access token or is a damaged config, naming it, or a link leads to a folder.
    """
    paths = sorted(folder.rglob("*"))
    if links := [path.relative_to(folder).as_posix() for path in paths if path.is_symlink() and path.is_dir()]:
        raise ValueError(
            f"`folder` must hold what is published, but {links[0]} is a link to another folder. Copy what is there, "
            "or remove it."
        )
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    kept = filter_repo_objects(names, ignore_patterns=[*IGNORE_PATTERNS, *ignore])
    files = {name: PublishedFile(name, _source(folder / name)) for name in kept}
    files |= {name: PublishedFile(name, text.encode()) for name, text in (generated or {}).items()}
    for name, file in files.items():
        if name.endswith(_WEIGHTS):
            continue
        content = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
        if holds_token(content.decode("utf-8", errors="replace"), token):
            raise ValueError(
                f"{name} in `folder` holds an access token, and nothing was uploaded. Remove it from the file, and "
                "revoke it if the file was ever shared."
            )
    return [files[name] for name in sorted(files)]


def forget_local_paths(folder: Path) -> None:
    """Delete the `_name_or_path` that diffusers writes into configs, where it is a path on this machine."""
    for path in folder.rglob("*.json"):
        source = _source(path)
        if isinstance(source, bytes):
            write_bytes(path, source)


def _source(path: Path) -> Path | bytes:
    """The file, or its content without the local path in it."""
    if path.name not in _CONFIG_NAMES:
        return path
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object of JSON, but holds {type(config).__name__}. Save it anew.")
    if not is_local_path(config.get("_name_or_path")):
        return path
    del config["_name_or_path"]
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
