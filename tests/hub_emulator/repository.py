"""What a Hub keeps: repositories whose commits are complete, immutable snapshots of content-addressed files."""

import hashlib
import json
import re
import time
from dataclasses import dataclass, field


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".png", ".jpg", ".arrow", ".npz", ".tar")
LFS_MIN_BYTES = 10 * 2**20
REPO_URL_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def git_blob_id(content: bytes) -> str:
    """Return the object id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: its content for a regular file, the address of its content for an LFS file.

    Attributes:
        oid: git's id of the file (of the pointer, for an LFS file).
        size: number of bytes of the content.
        content: the bytes of a regular file; `None` for an LFS file.
        lfs_oid: SHA-256 of the content of an LFS file; `None` for a regular file.
    """

    oid: str
    size: int
    content: bytes | None = None
    lfs_oid: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> "StoredFile":
        return cls(oid=git_blob_id(content), size=len(content), content=content)

    @classmethod
    def lfs(cls, sha256: str, size: int) -> "StoredFile":
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(oid=git_blob_id(pointer.encode()), size=size, lfs_oid=sha256)


@dataclass(frozen=True)
class Commit:
    """One snapshot: all files of the repository by path, and where it came from."""

    oid: str
    title: str
    files: dict[str, StoredFile]
    parent: str | None
    date: str


@dataclass
class Repository:
    """A model, dataset or space repository.

    Attributes:
        commits: every commit by its id.
        branches: branch name to commit id; pull requests are branches named `refs/pr/N`.
        tags: tag name to commit id.
    """

    repo_id: str
    repo_type: str = "model"
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.commit("main", {".gitattributes": StoredFile.regular(attributes.encode())}, "initial commit")

    def commit(self, branch: str, files: dict[str, StoredFile], title: str, parent: str | None = None) -> Commit:
        """Put a snapshot on top of a branch (or on top of `parent`, for a new branch) and return it."""
        parent = self.branches.get(branch, parent)
        identity = [parent, title, time.time_ns(), sorted((path, file.oid) for path, file in files.items())]
        commit = Commit(
            oid=hashlib.sha1(json.dumps(identity).encode()).hexdigest(),
            title=title,
            files=dict(files),
            parent=parent,
            date=time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
        )
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def resolve(self, revision: str) -> Commit | None:
        """Return the commit that a branch, tag or commit id names, or `None`."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def history(self, revision: str = "main") -> list[Commit]:
        """Return the commits from `revision` back to the first, newest first."""
        commits, commit = [], self.resolve(revision)
        while commit is not None:
            commits.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return commits

    def paths(self, revision: str = "main") -> list[str]:
        """Return the sorted paths of the files at `revision`; empty when the revision does not exist."""
        commit = self.resolve(revision)
        return sorted(commit.files) if commit else []


def is_lfs_path(path: str, size: int) -> bool:
    """Whether the Hub wants this file by LFS: by its suffix, as in `.gitattributes`, or by its size in bytes."""
    return path.endswith(LFS_SUFFIXES) or size > LFS_MIN_BYTES


def is_valid_path(path: str) -> bool:
    """Whether a path may stand in a commit: relative, without `.` or `..` parts and without backslashes."""
    return re.search(r"\\|(^|/)\.\.?(/|$)|^/", path) is None


def is_valid_ref_name(name: str) -> bool:
    """Whether git takes this as the name of a branch or tag."""
    return re.fullmatch(r"[\w.\-/]+", name) is not None and re.search(r"\.\.|^[-/.]|[/.]$", name) is None
