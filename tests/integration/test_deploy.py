"""The manifests of ``deploy/``: held against the official schemas, and their command lines run as processes here.

There is neither Docker nor a cluster in the tests. What a container would find is laid out in a folder instead, from
the manifest's own mounts, and the paths of its command line are looked up there: one that nothing mounts is not found.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import trustme
import yaml
from tests.commands import dimec
from tests.misbehaving import free_port
from tests.servers import TierServer, run, tier_server

from dimec.bundle import Bundle
from dimec.core.errors import OptionError
from dimec.runtime.device.device import Device
from dimec.runtime.server.settings import ServerSettings, read_token, tls_context

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"
KUSTOMIZATIONS = sorted(KUBERNETES.glob("*/kustomization.yaml"))
MANIFESTS = sorted(path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml")
KUBERNETES_VERSIONS = ("1.30", "1.34", kubernetes_validate.latest_version())
"""From the oldest that the manifests are for: its preStop can sleep."""
TOKEN = "a-token-that-nobody-guesses"
SERVERS = ("edge", "cloud")
CLOSING_S = 5.0
"""What a server may take beyond its drain limit."""


# --- reading the manifests


def compose(**variables: str) -> Any:
    """Read the compose file, with variables or their defaults put in."""

    def value(match: re.Match[str]) -> str:
        return variables.get(match["name"], match["default"])

    text = re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, COMPOSE.read_text())
    assert "$" not in text
    return yaml.safe_load(text)


def kubernetes() -> dict[tuple[str, str], Any]:
    """Read every Kubernetes resource, by kind and name."""
    found: dict[tuple[str, str], Any] = {}
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            key = (document["kind"], document["metadata"]["name"])
            assert key not in found
            found[key] = document
    return found


def pod(resources: Mapping[tuple[str, str], Any], name: str) -> Any:
    kind = "Job" if name == "device" else "Deployment"
    return resources[kind, name]["spec"]["template"]["spec"]


@dataclass
class Container:
    """A container's command line, and a folder that stands for its file system."""

    root: Path
    arguments: list[str]
    hosts: dict[str, str] = field(default_factory=dict)
    """Where the servers that it names are found here."""

    def mount(self, target: str, source: Path) -> None:
        assert source.exists(), f"{target}: {source} is not there"
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)

    def here(self) -> list[str]:
        """Return the command line as it is run here: in the folder, and on a free port."""
        return [self._here(argument) for argument in self.arguments]

    def _here(self, argument: str) -> str:
        option, equals, value = argument.rpartition("=")
        if option == "--port":
            assert int(value) == ServerSettings.model_fields["port"].default
            value = "0"
        elif value.startswith("/"):
            place = self.root / value.lstrip("/")
            assert place.exists(), f"{argument}: nothing is mounted there"
            value = str(place)
        elif "://" in value:
            value = self.hosts[value]
        return option + equals + value


@contextlib.contextmanager
def served(container: Container) -> Iterator[TierServer]:
    """Run a server's command line."""
    command, tier, bundle, *options = container.here()
    assert command == "serve"
    with tier_server(tier, Path(bundle), *options) as server:
        scheme, port = server.url.partition(":")[0], server.ready["port"]
        server.ready["url"] = f"{scheme}://127.0.0.1:{port}"  # it listens everywhere
        yield server


def classified(container: Container) -> list[dict[str, Any]]:
    """Run a device's command line and return its answers."""
    return [json.loads(line) for line in dimec(*container.here()).stdout.splitlines()]


def check_answers(answers: list[dict[str, Any]], texts: list[str], bundle: Bundle) -> None:
    with Device(bundle) as device:
        expected = [(a.index, a.label, a.tier) for a in device.classify(texts)]
    assert [(a["index"], a["label"], a["tier"]) for a in answers] == expected
    assert {answer["degraded"] for answer in answers} == {None}


# --- what schemas say


def test_compose_fits_the_official_schema() -> None:
    done = run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(COMPOSE),
        ]
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_manifests_fit_the_official_schemas(version: str) -> None:
    for resource in kubernetes().values():
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_manifests_that_fit_too() -> None:
    images = set()
    for kustomization in KUSTOMIZATIONS:
        built = run(["kubectl", "kustomize", str(kustomization.parent)])
        assert built.returncode == 0, built.stderr
        for resource in yaml.safe_load_all(built.stdout):
            kubernetes_validate.validate(resource, KUBERNETES_VERSIONS[-1], strict=True)
        images |= set(re.findall(r"image: (\S+)", built.stdout))
    assert images == {"dimec-edge:1", "dimec-cloud:1", "dimec-mobile:1"}


# --- what schemas cannot say: that the program takes it


def test_the_services_of_compose_run_as_they_are_written(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    shutil.copy(DEPLOY / "texts.txt", texts)
    (tmp_path / "token").write_text(TOKEN)
    document = compose(
        DIMEC_BUNDLE=str(tiny_bundle.folder),
        DIMEC_TEXTS=str(texts),
        DIMEC_TOKEN_FILE=str(tmp_path / "token"),
    )

    def container(name: str) -> Container:
        service = document["services"][name]
        made = Container(tmp_path / name, service["command"])
        for volume in service["volumes"]:
            assert volume["read_only"]
            made.mount(volume["target"], Path(volume["source"]))
        for secret in service["secrets"]:
            made.mount(f"/run/secrets/{secret}", Path(document["secrets"][secret]["file"]))
        return made

    device = container("device")
    with contextlib.ExitStack() as stack:
        for name in SERVERS:
            server = stack.enter_context(served(container(name)))
            device.hosts[f"http://{name}:8100"] = server.url
            health = document["services"][name]["healthcheck"]["test"]
            assert healthy(health, server.ready["port"])
            assert not healthy(health, free_port())
        check_answers(classified(device), texts.read_text().splitlines(), tiny_bundle)


def healthy(test: list[str], port: int) -> bool:
    """Run a health check against another port than it names."""
    kind, program, *arguments = test
    assert (kind, program) == ("CMD", "python")
    moved = [argument.replace(":8100/", f":{port}/") for argument in arguments]
    assert moved != arguments
    done = subprocess.run([sys.executable, *moved], check=False, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def test_the_pods_run_as_they_are_written(tiny_bundle: Bundle, tmp_path: Path) -> None:
    resources = kubernetes()
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "edge.dimec.svc", "cloud.dimec.svc")
    values = {
        "token": TOKEN,
        "tls.crt": b"".join(blob.bytes() for blob in certificate.cert_chain_pems).decode(),
        "tls.key": certificate.private_key_pem.bytes().decode(),
        "ca.crt": authority.cert_pem.bytes().decode(),
    }

    def volume(described: Any, folder: Path) -> Path:
        """Lay out a volume as a folder."""
        if "configMap" in described:
            held = resources["ConfigMap", described["configMap"]["name"]]["data"]
        else:
            secret = described["secret"]
            keys = set(resources["Secret", secret["secretName"]]["stringData"])
            wanted = {item["key"]: item["path"] for item in secret.get("items", ())}
            assert set(wanted) <= keys
            held = {
                path: values[key]
                for key, path in (wanted or dict(zip(keys, keys, strict=True))).items()
            }
        folder.mkdir(parents=True)
        for name, content in held.items():
            (folder / name).write_text(content)
        return folder

    def container(name: str) -> Container:
        spec = pod(resources, name)
        (described,) = spec["containers"]
        made = Container(tmp_path / name, described["args"])
        tier = described["image"].removeprefix("dimec-")  # what its Dockerfile stage copies
        made.mount(f"/bundle/{tier}", tiny_bundle.folder / tier)
        volumes = {each["name"]: each for each in spec["volumes"]}
        for mount in described["volumeMounts"]:
            assert mount["readOnly"]
            laid = volume(volumes[mount["name"]], tmp_path / "volumes" / name / mount["name"])
            made.mount(mount["mountPath"], laid)
        return made

    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    device = container("device")
    with contextlib.ExitStack() as stack:
        for name in SERVERS:
            server = stack.enter_context(served(container(name)))
            service = resources["Service", name]
            template = resources["Deployment", name]["spec"]["template"]
            (described,) = template["spec"]["containers"]
            (port,) = described["ports"]
            (offered,) = service["spec"]["ports"]
            assert offered["targetPort"] == port["name"]
            assert f"--port={port['containerPort']}" in described["args"]
            assert service["spec"]["selector"] == template["metadata"]["labels"]
            at = f"https://{name}.{resources['Namespace', 'dimec']['metadata']['name']}.svc"
            device.hosts[f"{at}:{offered['port']}"] = server.url
            with httpx.Client(base_url=server.url, verify=trusting) as client:
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    asked = described[probe]["httpGet"]
                    assert (asked["port"], asked["scheme"]) == (port["name"], "HTTPS")
                    assert client.get(asked["path"]).status_code == 200
                told = template["metadata"]["annotations"]
                assert told["prometheus.io/port"] == str(port["containerPort"])
                assert told["prometheus.io/scheme"] == "https"
                page = told["prometheus.io/path"]
                assert client.get(page).status_code == 401
                allowed = {"Authorization": f"Bearer {TOKEN}"}
                assert "dimec_ready 1.0" in client.get(page, headers=allowed).text
        texts = resources["ConfigMap", "texts"]["data"]["texts.txt"].splitlines()
        check_answers(classified(device), texts, tiny_bundle)


def test_a_server_has_the_time_to_answer_what_it_took() -> None:
    document, resources = compose(), kubernetes()

    def drain_s(arguments: list[str]) -> float:
        (given,) = [each for each in arguments if each.startswith("--drain-limit-s=")]
        return float(given.partition("=")[2])

    for name in SERVERS:
        service = document["services"][name]
        grace_s = float(service["stop_grace_period"].removesuffix("s"))
        assert grace_s >= drain_s(service["command"]) + CLOSING_S
        spec = pod(resources, name)
        (described,) = spec["containers"]
        sleep_s = described["lifecycle"]["preStop"]["sleep"]["seconds"]
        drained_s = sleep_s + drain_s(described["args"])
        assert spec["terminationGracePeriodSeconds"] >= drained_s + CLOSING_S


def test_nothing_runs_as_root_writes_or_is_open_to_others() -> None:
    document = compose()
    assert document["networks"] == {"tiers": {"internal": True}}
    for service in document["services"].values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert not {"ports", "privileged", "user"} & set(service)
        assert "--insecure" not in service["command"]
    (user,) = re.findall(r"^USER (\d+):\d+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    resources = kubernetes()
    for name in (*SERVERS, "device"):
        spec = pod(resources, name)
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == int(user)
        (described,) = spec["containers"]
        own = described["securityContext"]
        assert own["readOnlyRootFilesystem"] and own["capabilities"] == {"drop": ["ALL"]}
        assert not own["allowPrivilegeEscalation"]
        assert not {"--insecure", "--plain-token"} & set(described["args"])


def test_the_template_of_the_secrets_opens_no_server(tmp_path: Path) -> None:
    resources = kubernetes()
    for name in ("dimec-token", "dimec-tls"):
        for key, value in resources["Secret", name]["stringData"].items():
            (tmp_path / key).write_text(value)
    settings = ServerSettings(
        tier="edge",
        bundle=tmp_path,
        token_file=tmp_path / "token",
        tls_certificate=tmp_path / "tls.crt",
        tls_key=tmp_path / "tls.key",
    )
    with pytest.raises(OptionError, match="at least 16"):
        read_token(settings.token_file, {})
    with pytest.raises(OptionError, match="cannot be used"):
        tls_context(settings)
    listed = {
        kustomization.parent / name
        for kustomization in KUSTOMIZATIONS
        for name in yaml.safe_load(kustomization.read_text())["resources"]
    }
    # applying one never overwrites a secret of yours
    assert listed == set(MANIFESTS) - {KUBERNETES / "secret.example.yaml"}


def test_the_image_is_made_of_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        name
        for names in re.findall(r"^COPY ((?!--from)\S.*) \S+$", text, re.MULTILINE)
        for name in names.split()
    }
    assert copied == allowed
    assert all((DEPLOY.parent / name).exists() for name in copied)
    assert f"EXPOSE {ServerSettings.model_fields['port'].default}\n" in text
    (health,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    for name in SERVERS:
        assert compose()["services"][name]["healthcheck"]["test"] == ["CMD", *json.loads(health)]
    assert "*.whl[" not in text  # the base install alone
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    services = compose()["services"].values()
    assert {service["build"]["target"] for service in services} <= set(stages)
