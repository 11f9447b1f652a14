"""An API server of Kubernetes for a real kubectl: discovery, and objects that the published schemas admit.

    with ApiServer() as server:
        server.write_config(path)          # for KUBECONFIG
        ...
        server.objects                     # what was created, by path

It refuses unknown fields, as a real one does with `fieldValidation=Strict`, and has no controllers: nothing starts.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

SCHEMAS = "1.31"
JOBSET = "jobset.x-k8s.io/v1alpha2"
KINDS = {
    "v1": {"secrets": "Secret", "services": "Service", "configmaps": "ConfigMap"},
    "apps/v1": {"deployments": "Deployment"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    JOBSET: {"jobsets": "JobSet"},
}


def refusal(manifest: dict[str, Any]) -> str:
    """Returns why the published schemas do not admit an object, or ""."""
    if manifest["apiVersion"] == JOBSET:
        return "" if JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest else "unknown or invalid field"
    try:
        kubernetes_validate.validate(manifest, SCHEMAS, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return ""


class ApiServer:
    """The server, on a free port of this host; a context manager."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))

    def __enter__(self) -> "ApiServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write_config(self, path: Path) -> None:
        """Writes the configuration of kubectl for this server."""
        host, port = self._server.server_address[:2]
        cluster = {"name": "here", "cluster": {"server": f"http://{host}:{port}"}}
        context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        path.write_text(yaml.safe_dump(config | {"users": [{"name": "me"}], "current-context": "here"}))

    def answer(self, path: str) -> dict[str, Any] | None:
        """Returns what a GET gets, or None: the lists of discovery, or an object."""
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [_group(version) for version in KINDS if "/" in version]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path == "/openapi/v3":
            return {"paths": {_root(v)[1:]: {"serverRelativeURL": f"/openapi/v3{_root(v)}"} for v in KINDS}}
        for version, kinds in KINDS.items():
            if path == _root(version):
                verbs = ["create", "delete", "get", "list", "patch"]
                resources = [
                    {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs}
                    for name, kind in kinds.items()
                ]
                return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
            if path == f"/openapi/v3{_root(version)}":
                return {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": _patches(version, kinds)}
        return self.objects.get(path)


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer

    def do_GET(self) -> None:  # noqa: N802 (http.server's name)
        found = self.api.answer(self.path.partition("?")[0])
        self._send(200 if found else 404, found or _status(404, "NotFound", "not found"))

    def do_POST(self) -> None:  # noqa: N802
        manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path, _, options = self.path.partition("?")
        if "fieldValidation=Strict" in options and (why := refusal(manifest)):
            self._send(400, _status(400, "BadRequest", f"strict decoding error: {manifest['kind']}: {why}"))
            return
        self.api.objects[f"{path}/{manifest['metadata']['name']}"] = manifest
        self._send(201, manifest)

    def _send(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _group(version: str) -> dict[str, Any]:
    entry = {"groupVersion": version, "version": version.split("/")[1]}
    return {"name": version.split("/")[0], "versions": [entry], "preferredVersion": entry}


def _patches(version: str, kinds: dict[str, str]) -> dict[str, Any]:
    """Returns the descriptions by which kubectl sees that the server validates fields."""
    group, _, number = version.rpartition("/")
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    return {
        f"/{name}/{{name}}": {
            "patch": {
                "parameters": [parameter],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
            }
        }
        for name, kind in kinds.items()
    }


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        **{"kind": "Status", "apiVersion": "v1", "status": "Failure"},
        **{"reason": reason, "code": code, "message": message},
    }
