"""
A Hub of one's own on loopback: the part of the Hub's HTTP API that huggingface_hub 2.4 uses to create a repo, upload
to it and download from it, and `datasets` to read one, without Xet (HF_HUB_DISABLE_XET=1).

Status codes, X-Error-Code and other headers are those that huggingface_hub's own sources read: a repo that doesn't
exist and a private one look alike, 401 to a visitor without token and 404 to one whose token doesn't fit; an unknown
token is 401 everywhere. Repos and blobs live in memory; `requests` holds what was asked for, in order.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status, message, code=None, commit=None, **content):
        super().__init__(message)
        self.status, self.content = status, {"error": message, **content}
        self.headers = {"X-Error-Message": message}
        self.headers |= {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Repo-Commit": commit} if commit else {}


@dataclass
class Repo:
    """Commits are whole trees, {path: content}; refs name the newest of each branch."""

    owner: str
    private: bool
    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    def commit(self, branch, tree, message):
        sha = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits[sha], self.refs[branch] = tree, sha
        self.messages.append(message)
        return sha

    def resolve(self, revision):
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


def oid_of(path, content):
    """How the Hub names a content: its sha256 where it is kept by LFS, else git's blob id."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1. `tokens` maps a token to its user and role ("read" or "write")."""

    daemon_threads = True

    def __init__(self, tokens):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens, self.repos, self.lfs, self.requests = tokens, {}, {}, []
        self.lock = threading.Lock()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage(self):
        """Where large files are downloaded from: to a client, another host than the Hub, as on the Hub."""
        return f"http://localhost:{self.server_port}"

    def environment(self, home, token=None):
        """Environment variables that send huggingface_hub here, with an empty cache in `home`."""
        variables = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        variables |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
        return variables | {"HF_TOKEN": token or "", **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")}

    def files(self, name, revision="main"):
        """What lies in a repo: {path: content}."""
        repo = self.repos[name]
        return repo.commits[repo.resolve(revision)]


@contextmanager
def running_hub(tokens):
    """A HubServer that answers until the block ends."""
    server = HubServer(tokens)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request: who asks, which route, which answer."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Stays silent."""

    def do_GET(self):
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self._read_body()
        try:
            with self.server.lock:
                self.server.requests.append((self.command, unquote(url.path)))
                for method, pattern, action in ROUTES:
                    match = re.fullmatch(pattern, url.path)
                    if match and self.command in method.split("|"):
                        groups = {name: unquote(value) for name, value in match.groupdict().items()}
                        return self._answer(*action(self, body, **groups))
            raise Refused(404, f"No route for {self.command} {url.path}")
        except Refused as refusal:
            self._answer(refusal.status, refusal.content, refusal.headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def _read_body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status=200, content=None, headers=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # --- who may do what

    def _user(self):
        """Name and role of who asks; (None, None) for a visitor without token."""
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None, None
        token = authorization.removeprefix("Bearer ")
        if token not in self.server.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.server.tokens[token]

    def _repo(self, name, write=False):
        user, role = self._user()
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and user != repo.owner):
            if user is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Refused(401, "Invalid username or password.")
        if write and (user != repo.owner or role != "write"):
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        return repo

    # --- routes: each takes the body and the parts of the path, and returns what _answer takes

    def whoami(self, body):
        user, role = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
        return 200, {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": token}

    def create(self, body):
        user, role = self._user()
        request = json.loads(body)
        if user is None:
            raise Refused(401, "Invalid username or password.")
        owner = request.get("organization") or user
        if owner != user or role != "write":
            raise Refused(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        name = f"{owner}/{request['name']}"
        url = {"url": f"{self.server.endpoint}/{name}", "name": name}
        if name in self.server.repos:
            raise Refused(409, "You already created this model repo", **url)
        repo = self.server.repos[name] = Repo(owner, private=request.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return 200, url

    def validate_yaml(self, body):
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        return 200, {"errors": [], "warnings": errors}

    def info(self, body, repo, revision="main"):
        name, repo = repo, self._repo(repo)
        sha = repo.resolve(revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        return 200, {"_id": "0", "id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}

    def branch(self, body, repo, revision):
        repo = self._repo(repo, write=True)
        if revision in repo.refs:
            raise Refused(409, f"Reference already exists: {revision}")
        repo.refs[revision] = repo.resolve(json.loads(body or b"{}").get("startingPoint", "main"))
        return 200, {}

    def tree(self, body, repo, revision, folder=""):
        repo = self._repo(repo)
        sha = repo.resolve(revision)
        within = folder and f"{folder}/"
        found = {path: blob for path, blob in repo.commits[sha].items() if path.startswith(within)}
        if folder and not found:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound", sha)
        folders = {str(parent) for path in found for parent in PurePosixPath(path).parents} - {"."}
        entries = [{"type": "directory", "path": path, "oid": oid_of("", path.encode())} for path in sorted(folders)]
        entries += [self._entry(path, content) for path, content in found.items()]
        if self.query.get("recursive", "").lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"][len(within) :]]
        return 200, [entry for entry in entries if entry["path"].startswith(within)]

    @staticmethod
    def _entry(path, content):
        entry = {"type": "file", "path": path, "size": len(content), "oid": oid_of("", content)}
        if path.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"oid": oid_of(path, content), "size": len(content), "pointerSize": 134}
        return entry

    def preupload(self, body, repo, revision):
        repo = self._repo(repo, write=True)
        tree = repo.commits[repo.resolve(revision)]
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            oid = oid_of(path, tree[path]) if path in tree else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files, "commitOid": repo.resolve(revision)}

    def lfs_batch(self, body, repo):
        self._repo(repo, write=True)
        objects = []
        for wanted in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}"},
                "verify": {"href": f"{self.server.endpoint}/{repo}.git/info/lfs/verify"},
            }
            known = wanted["oid"] in self.server.lfs
            objects.append({**wanted, "authenticated": True, **({} if known else {"actions": actions})})
        return 200, {"transfer": "basic", "objects": objects}

    def lfs_put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "The content doesn't have the sha256 that was announced")
        self.server.lfs[oid] = body
        return 200, b""

    def lfs_verify(self, body, repo):
        self._repo(repo, write=True)
        wanted = json.loads(body)
        if len(self.server.lfs.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, "The object was not uploaded")
        return 200, {"message": "Object verified"}

    def commit(self, body, repo, revision):
        name, repo = repo, self._repo(repo, write=True)
        header, *operations = [json.loads(line) for line in body.splitlines()]
        tree = dict(repo.commits[repo.resolve(revision)])
        for key, value in ((operation["key"], operation["value"]) for operation in operations):
            if key == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.server.lfs:
                tree[value["path"]] = self.server.lfs[value["oid"]]
            elif key == "deletedFile" and value["path"] in tree:
                del tree[value["path"]]
            else:
                raise Refused(400, f"The operation {key} on {value['path']} can't be done")
        answer = {"success": True}
        if "create_pr" in self.query:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.server.endpoint}/{name}/discussions/{number}"
        sha = repo.commit(revision, tree, header["value"]["summary"])
        return 200, {**answer, "commitOid": sha, "commitUrl": f"{self.server.endpoint}/{name}/commit/{sha}"}

    def resolve(self, body, repo, revision, path):
        repo = self._repo(repo)
        sha = repo.resolve(revision)
        if path not in repo.commits[sha]:
            raise Refused(404, "Entry not found", "EntryNotFound", sha)
        content = repo.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{oid_of(path, content)}"', "Accept-Ranges": "bytes"}
        if not path.endswith(LFS_SUFFIXES):
            return 200, content, headers
        linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": len(content)}
        location = {"Location": f"{self.server.storage}/lfs/{oid_of(path, content)}"}
        return 302, b"", headers | linked | location

    def lfs_get(self, body, oid):
        if "Authorization" in self.headers:
            raise Refused(400, "Only one auth mechanism allowed")  # as S3 answers to a token beside a signed URL
        return 200, self.server.lfs[oid], {"ETag": f'"{oid}"'}


API = rf"/api/(?:models|datasets)/{REPO}"
REVISION = r"/(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", API, Handler.info),
    ("GET", f"{API}/revision{REVISION}", Handler.info),
    ("POST", f"{API}/branch{REVISION}", Handler.branch),
    ("GET", f"{API}/tree{REVISION}", Handler.tree),
    ("GET", f"{API}/tree{REVISION}/(?P<folder>.+)", Handler.tree),
    ("POST", f"{API}/preupload{REVISION}", Handler.preupload),
    ("POST", f"{API}/commit{REVISION}", Handler.commit),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", f"/{REPO}.git/info/lfs/verify", Handler.lfs_verify),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("HEAD|GET", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_get),
    ("HEAD|GET", f"(?:/datasets)?/{REPO}/resolve{REVISION}/(?P<path>.+)", Handler.resolve),
]
