"""The endpoints of the Hub's HTTP API that `huggingface_hub` uses with `HF_HUB_DISABLE_XET=1`."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

from .handler import HubError, HubRequestHandler
from .repository import (
    REPO_URL_PREFIXES,
    Commit,
    Repository,
    StoredFile,
    git_blob_id,
    is_lfs_path,
    is_valid_path,
    is_valid_ref_name,
)
from .state import HubState


def _card_metadata(readme: str) -> dict[str, Any] | None:
    """Return the YAML block at the head of a README, `None` without one; raises `yaml.YAMLError`."""
    match = re.match(r"---\n(.*?)\n---", readme, re.S)
    return (yaml.safe_load(match[1]) or {}) if match else None


def _file_item(path: str, file: StoredFile) -> dict[str, Any]:
    item = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    if file.lfs_oid:
        item["lfs"] = {"oid": file.lfs_oid, "size": file.size, "pointerSize": 130}
    return item


def _sibling(path: str, file: StoredFile) -> dict[str, Any]:
    item: dict[str, Any] = {"rfilename": path, "blobId": file.oid, "size": file.size}
    if file.lfs_oid:
        item["lfs"] = {"sha256": file.lfs_oid, "size": file.size, "pointerSize": 130}
    return item


def _folder_item(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": git_blob_id(path.encode()), "size": 0}


class HubEndpoints(HubRequestHandler):
    """Each method answers one endpoint; `ROUTES` says which."""

    def dispatch(self, path: str) -> None:
        for methods, pattern, endpoint in ROUTES:
            if self.command in methods.split() and (match := re.fullmatch(pattern, path)):
                return endpoint(self, *[unquote(group) if group else "" for group in match.groups()])
        raise HubError(404, f"The emulator has no route {self.command} {path}.", "RepoNotFound")

    # ---- who may do what

    def _repository(self, repo_type: str, repo_id: str, write: bool = False) -> Repository:
        repository = self.state.repositories.get((repo_type, repo_id))
        if repository is None or (repository.private and not self.may_read):
            raise HubError(404 if self.may_read else 401, "Repository not found", "RepoNotFound")
        if write:
            self._require_write(repo_id.split("/")[0])
        return repository

    def _require_write(self, namespace: str) -> None:
        if not self.may_read:
            raise HubError(401, "Invalid username or password.")
        if self.bearer != self.state.write_token or namespace not in self.state.namespaces:
            raise HubError(403, f"You don't have the rights to write to the namespace {namespace}.")

    @staticmethod
    def _commit(repository: Repository, revision: str) -> Commit:
        commit = repository.resolve(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- users and repositories

    def whoami(self) -> None:
        if not self.may_read:
            raise HubError(401, "Invalid credentials in Authorization header")
        role = "write" if self.bearer == self.state.write_token else "read"
        user, *organisations = self.state.namespaces
        self.reply(
            {
                "type": "user",
                "id": "user",
                "name": user,
                "orgs": [{"name": name} for name in organisations],
                "auth": {"accessToken": {"role": role, "displayName": "test"}},
            }
        )

    def _named_repository(self) -> tuple[str, str]:
        namespace = self.payload.get("organization") or self.state.namespaces[0]
        self._require_write(namespace)
        return self.payload.get("type") or "model", f"{namespace}/{self.payload['name']}"

    def create_repository(self) -> None:
        repo_type, repo_id = self._named_repository()
        url = f"{self.base_url}/{REPO_URL_PREFIXES[repo_type]}{repo_id}"
        if (repo_type, repo_id) in self.state.repositories:
            return self.reply({"error": "You already created this repo", "url": url}, status=409)
        private = self.payload.get("visibility") == "private" or bool(self.payload.get("private"))
        self.state.repositories[repo_type, repo_id] = Repository(repo_id, repo_type, private)
        self.reply({"url": url, "name": repo_id, "id": repo_id})

    def delete_repository(self) -> None:
        if self.state.repositories.pop(self._named_repository(), None) is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        self.reply({})

    def repository_info(self, repo_type: str, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_type, repo_id)
        commit = self._commit(repository, revision or "main")
        readme = commit.files.get("README.md")
        card = _card_metadata((readme.content or b"").decode()) if readme else None
        self.reply(
            {
                "_id": repo_id,
                "id": repo_id,
                "modelId": repo_id,
                "author": repo_id.split("/")[0],
                "sha": commit.oid,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": (card or {}).get("tags", []),
                "cardData": card,
                "library_name": (card or {}).get("library_name"),
                "pipeline_tag": (card or {}).get("pipeline_tag"),
                "createdAt": repository.history()[-1].date,
                "lastModified": commit.date,
                "siblings": [_sibling(path, file) for path, file in sorted(commit.files.items())],
            }
        )

    # ---- uploading

    def validate_yaml(self) -> None:
        try:
            metadata = _card_metadata(self.payload["content"])
        except yaml.YAMLError as error:
            return self.reply({"errors": [{"message": str(error)}], "warnings": []}, status=400)
        if metadata is not None and not isinstance(metadata, dict):
            return self.reply({"errors": [{"message": "metadata is not a mapping"}], "warnings": []}, status=400)
        warnings = [{"message": "empty or missing yaml metadata in repo card"}] if metadata is None else []
        self.reply({"errors": [], "warnings": warnings})

    def preupload(self, repo_type: str, repo_id: str, revision: str) -> None:
        commit = self._commit(self._repository(repo_type, repo_id, write=True), revision)
        answers = []
        for upload in self.payload["files"]:
            mode = "lfs" if is_lfs_path(upload["path"], upload["size"]) else "regular"
            answer = {"path": upload["path"], "uploadMode": mode, "shouldIgnore": False}
            if existing := commit.files.get(upload["path"]):
                answer["oid"] = existing.lfs_oid or existing.oid
            answers.append(answer)
        self.reply({"files": answers})

    def lfs_batch(self, repo_type: str, repo_id: str) -> None:
        self._repository(repo_type or "model", repo_id, write=True)
        objects = []
        for wanted in self.payload["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.state.lfs_objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.base_url}/_lfs/{wanted['oid']}", "header": {}},
                    "verify": {"href": f"{self.base_url}/_lfs_verify", "header": {}},
                }
            objects.append(answer)
        self.reply({"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json")

    def lfs_upload(self, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise HubError(422, "The content does not have the SHA-256 under which it was sent.")
        self.state.lfs_objects[sha256] = self.body
        self.reply()

    def lfs_verify(self) -> None:
        content = self.state.lfs_objects.get(self.payload["oid"])
        if content is None or len(content) != self.payload["size"]:
            raise HubError(404, "no object")
        self.reply({})

    def create_commit(self, repo_type: str, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_type, repo_id, write=True)
        if revision not in repository.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = self._commit(repository, revision)
        files, title = dict(head.files), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                title = value.get("summary", "")
                if value.get("parentCommit") not in (None, "", head.oid):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif not is_valid_path(value["path"]):
                raise HubError(422, f"Invalid path in commit: {value['path']}")
            elif kind == "file":
                files[value["path"]] = StoredFile.regular(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                if value["oid"] not in self.state.lfs_objects:
                    raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value['oid']}")
                files[value["path"]] = StoredFile.lfs(value["oid"], len(self.state.lfs_objects[value["oid"]]))
            elif kind == "deletedFile":
                files.pop(value["path"], None)
            elif kind == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: file for path, file in files.items() if not path.startswith(folder)}
        url = f"{self.base_url}/{REPO_URL_PREFIXES[repo_type]}{repo_id}"
        answer = {"success": True, "hookOutput": ""}
        branch = revision
        if self.query.get("create_pr") == ["1"]:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            branch = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        commit = repository.commit(branch, files, title, parent=head.oid)
        self.reply({**answer, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"})

    # ---- branches and tags

    def create_branch(self, repo_type: str, repo_id: str, name: str) -> None:
        repository = self._repository(repo_type, repo_id, write=True)
        start = self.payload.get("startingPoint") or "main"
        self._create_ref(repository, repository.branches, "heads", name, start)

    def create_tag(self, repo_type: str, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_type, repo_id, write=True)
        self._create_ref(repository, repository.tags, "tags", self.payload["tag"], revision)

    def _create_ref(self, repository: Repository, refs: dict[str, str], kind: str, name: str, revision: str) -> None:
        if name in refs:
            raise HubError(409, f"Reference already exists: refs/{kind}/{name}")
        if not is_valid_ref_name(name):
            raise HubError(400, f"Invalid reference name: {name}")
        refs[name] = self._commit(repository, revision).oid
        self.reply({})

    def delete_ref(self, repo_type: str, repo_id: str, kind: str, name: str) -> None:
        repository = self._repository(repo_type, repo_id, write=True)
        if (kind, name) == ("branch", "main"):
            raise HubError(403, "Cannot delete the protected branch main")
        refs = repository.branches if kind == "branch" else repository.tags
        if refs.pop(name, None) is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        self.reply({})

    def list_refs(self, repo_type: str, repo_id: str) -> None:
        repository = self._repository(repo_type, repo_id)
        pull_requests = {name: oid for name, oid in repository.branches.items() if name.startswith("refs/pr/")}
        branches = {
            f"refs/heads/{name}": oid for name, oid in repository.branches.items() if name not in pull_requests
        }
        tags = {f"refs/tags/{name}": oid for name, oid in repository.tags.items()}

        def items(refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": oid} for ref, oid in refs.items()]

        self.reply(
            {"branches": items(branches), "tags": items(tags), "pullRequests": items(pull_requests), "converts": []}
        )

    def list_commits(self, repo_type: str, repo_id: str, revision: str) -> None:
        history = self._repository(repo_type, repo_id).history(revision)
        self.reply(
            [
                {"id": commit.oid, "title": commit.title, "message": "", "date": commit.date, "authors": []}
                for commit in history
            ]
        )

    # ---- reading files

    def list_tree(self, repo_type: str, repo_id: str, revision: str, folder: str) -> None:
        commit = self._commit(self._repository(repo_type, repo_id), revision)
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        recursive = self.query.get("recursive", [""])[0].lower() == "true"
        folders, items = set(), []
        for path, file in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            *parents, _ = path.removeprefix(prefix).split("/")
            depth = len(parents) if recursive else min(1, len(parents))
            folders |= {prefix + "/".join(parents[:end]) for end in range(1, depth + 1)}
            if recursive or not parents:
                items.append(_file_item(path, file))
        if prefix and not items and not folders:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        self.reply([_folder_item(path) for path in sorted(folders)] + items)

    def paths_info(self, repo_type: str, repo_id: str, revision: str) -> None:
        files = self._commit(self._repository(repo_type, repo_id), revision).files
        is_json = "json" in (self.headers.get("Content-Type") or "")
        wanted = self.payload["paths"] if is_json else parse_qs(self.body.decode())["paths"]
        items = [_file_item(path, files[path]) for path in wanted if path in files]
        items += [_folder_item(path) for path in wanted if any(file.startswith(f"{path}/") for file in files)]
        self.reply(items)

    def resolve_file(self, repo_type: str, repo_id: str, revision: str, path: str) -> None:
        commit = self._commit(self._repository(repo_type or "model", repo_id), revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{file.oid}"'
        if file.content is not None:
            return self.reply(file.content, content_type="text/plain", headers=headers)
        headers |= {
            "Location": f"{self.storage_url}/_lfs/{file.lfs_oid}",
            "X-Linked-Etag": f'"{file.lfs_oid}"',
            "X-Linked-Size": str(file.size),
        }
        self.reply(status=302, headers=headers)

    def lfs_download(self, sha256: str) -> None:
        content = self.state.lfs_objects.get(sha256)
        if content is None:
            raise HubError(404, "no object", "EntryNotFound")
        headers = {"ETag": f'"{sha256}"'}
        status = 200
        if match := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        self.reply(content, status, "application/octet-stream", headers)


_TYPE = r"(model|dataset|space)s"
_URL_TYPE = r"(?:(dataset|space)s/)?"
_ID = r"([^/]+/[^/]+?)"
_SHA256 = r"([0-9a-f]{64})"
# (methods, pattern of the path, endpoint), the first that matches answers. A slash inside a revision arrives as %2F.
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", HubEndpoints.whoami),
    ("POST", r"/api/validate-yaml", HubEndpoints.validate_yaml),
    ("POST", r"/api/repos/create", HubEndpoints.create_repository),
    ("DELETE", r"/api/repos/delete", HubEndpoints.delete_repository),
    ("POST", rf"/api/{_TYPE}/{_ID}/preupload/([^/]+)", HubEndpoints.preupload),
    ("POST", rf"/{_URL_TYPE}{_ID}\.git/info/lfs/objects/batch", HubEndpoints.lfs_batch),
    ("PUT", rf"/_lfs/{_SHA256}", HubEndpoints.lfs_upload),
    ("POST", r"/_lfs_verify", HubEndpoints.lfs_verify),
    ("GET HEAD", rf"/_lfs/{_SHA256}", HubEndpoints.lfs_download),
    ("POST", rf"/api/{_TYPE}/{_ID}/commit/([^/]+)", HubEndpoints.create_commit),
    ("POST", rf"/api/{_TYPE}/{_ID}/branch/([^/]+)", HubEndpoints.create_branch),
    ("POST", rf"/api/{_TYPE}/{_ID}/tag/([^/]+)", HubEndpoints.create_tag),
    ("DELETE", rf"/api/{_TYPE}/{_ID}/(branch|tag)/([^/]+)", HubEndpoints.delete_ref),
    ("GET", rf"/api/{_TYPE}/{_ID}/refs", HubEndpoints.list_refs),
    ("GET", rf"/api/{_TYPE}/{_ID}/commits/([^/]+)", HubEndpoints.list_commits),
    ("GET", rf"/api/{_TYPE}/{_ID}/tree/([^/]+)(/.*)?", HubEndpoints.list_tree),
    ("POST", rf"/api/{_TYPE}/{_ID}/paths-info/([^/]+)", HubEndpoints.paths_info),
    ("GET", rf"/api/{_TYPE}/{_ID}(?:/revision/([^/]+))?", HubEndpoints.repository_info),
    ("GET HEAD", rf"/{_URL_TYPE}{_ID}/resolve/([^/]+)/(.+)", HubEndpoints.resolve_file),
]


def make_handler(state: HubState) -> type[HubEndpoints]:
    """Return the request handler class of one Hub."""
    return type("Handler", (HubEndpoints,), {"state": state})
