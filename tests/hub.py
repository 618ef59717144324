"""A hub on loopback, as far as huggingface_hub's own code asks one: repositories of models in memory, over HTTP."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """Repositories by name: commits, the newest last, each a name and its files."""

    url: str = ""
    repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes to say of files instead of their own."""

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        commits = self.repositories[name]
        return commits[-1] if revision == "main" else dict((c[0], c) for c in commits)[revision]

    def routes(self) -> list[Route]:
        api, repo = "/api/models/{owner}/{name}", "/{owner}/{name}"
        return [
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/api/validate-yaml", _fine, methods=["POST"]),
            Route(f"{api}/preupload/{{revision}}", self._preupload, methods=["POST"]),
            Route(f"{api}/commit/{{revision}}", self._commit, methods=["POST"]),
            Route(f"{api}/revision/{{revision}}", self._info),
            Route(api, self._info),
            Route(f"{api}/tree/{{revision}}", self._tree),
            Route(f"{repo}.git/info/lfs/objects/batch", self._batch, methods=["POST"]),
            Route("/objects/{oid}", self._put, methods=["PUT"]),
            Route(f"{repo}/resolve/{{revision}}/{{path:path}}", self._resolve),
        ]

    async def _create(self, request: Request) -> Response:
        if refused := _refused(request):
            return refused
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        self.repositories.setdefault(name, [("0" * 40, {})])
        return JSONResponse({"url": f"{self.url}/{name}", "id": name, "name": name})

    async def _preupload(self, request: Request) -> Response:
        files = (await request.json())["files"]
        return JSONResponse(
            {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "regular"
                        if each["path"].endswith((".json", ".md"))
                        else "lfs",
                        "shouldIgnore": False,
                    }
                    for each in files
                ]
            }
        )

    async def _batch(self, request: Request) -> Response:
        objects = (await request.json())["objects"]
        for each in objects:
            each["actions"] = {"upload": {"href": f"{self.url}/objects/{each['oid']}"}}
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _put(self, request: Request) -> Response:
        content = await request.body()
        assert hashlib.sha256(content).hexdigest() == request.path_params["oid"]
        self.objects[request.path_params["oid"]] = content
        return Response()

    async def _commit(self, request: Request) -> Response:
        if refused := _refused(request):
            return refused
        name = "{owner}/{name}".format(**request.path_params)
        files = dict(self.at(name, request.path_params["revision"])[1])
        for line in (await request.body()).splitlines():
            asked = json.loads(line)
            value = asked["value"]
            if asked["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif asked["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif asked["key"] == "deletedFile":
                del files[value["path"]]
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories[name].append((commit, files))
        url = f"{self.url}/{name}/commit/{commit}"
        return JSONResponse({"success": True, "commitOid": commit, "commitUrl": url})

    def _listed(self, files: dict[str, bytes]) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": path,
                "rfilename": path,
                "oid": hashlib.sha1(content).hexdigest(),
            }
            | {"size": self.sizes.get(path, len(content))}
            for path, content in files.items()
        ]

    async def _info(self, request: Request) -> Response:
        name = "{owner}/{name}".format(**request.path_params)
        try:
            commit, files = self.at(name, request.path_params.get("revision", "main"))
        except KeyError as exc:
            missing = "RepoNotFound" if exc.args == (name,) else "RevisionNotFound"
            return JSONResponse({"error": "none"}, 404, {"X-Error-Code": missing})
        return JSONResponse({"id": name, "sha": commit, "siblings": self._listed(files)})

    async def _tree(self, request: Request) -> Response:
        name = "{owner}/{name}".format(**request.path_params)
        return JSONResponse(self._listed(self.at(name, request.path_params["revision"])[1]))

    async def _resolve(self, request: Request) -> Response:
        name = "{owner}/{name}".format(**request.path_params)
        commit, files = self.at(name, request.path_params["revision"])
        content = files[request.path_params["path"]]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return Response(content, headers={"X-Repo-Commit": commit, "ETag": etag})


def _refused(request: Request) -> Response | None:
    known = request.headers.get("authorization") == f"Bearer {TOKEN}"
    return None if known else JSONResponse({"error": "Invalid credentials"}, 401)


async def _fine(request: Request) -> Response:
    return JSONResponse({"errors": [], "warnings": []})


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a hub on a free port of loopback."""
    hub = Hub()
    config = uvicorn.Config(Starlette(routes=hub.routes()), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    hub.url = f"http://127.0.0.1:{port}"
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()
