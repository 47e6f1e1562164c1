"""The objects that are shipped for Kubernetes, by kustomize and by Helm: they load, fit each other, and give nothing away.

`nox -s deploy` brings `kubectl` and `helm`; elsewhere those of the `PATH` are used, and what needs them is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hostler.gateway.auth import keys
from hostler.gateway.config import Configuration, read
from hostler.gateway.host_address import joins_cluster, unreachable_reason
from hostler.gateway.preflight import startup_check

KUBERNETES = Path(__file__).parent.parent / "deploy" / "kubernetes"
CHART = KUBERNETES / "chart"

Object = dict[str, Any]


def run(*command: str | Path) -> str:
    """The output of `kubectl` or `helm`. Skips the test if there is none."""
    program = shutil.which(
        str(command[0]), path=f"{os.environ.get('HOSTLER_KUBERNETES_TOOLS', '')}:{os.environ['PATH']}"
    )
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([program, *map(str, command[1:])], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(done.stderr + done.stdout)
    return done.stdout


def parsed(text: str) -> list[Object]:
    # A chart writes what Kubernetes reads: YAML 1.1, where 0440 is an octal number.
    yaml = YAML(typ="safe")
    yaml.version = (1, 1)
    return [each for each in yaml.load_all(text) if each is not None]


def files_of_the_base() -> list[Object]:
    """What kustomize makes of the base, but for the labels that it adds."""
    base = KUBERNETES / "base"
    kustomization = parsed((base / "kustomization.yaml").read_text())[0]
    objects = [each for name in kustomization["resources"] for each in parsed((base / name).read_text())]
    for generated in kustomization["configMapGenerator"]:
        data = {}
        for entry in generated["files"]:
            key, _, file = entry.partition("=")
            data[key] = (base / file).read_text()
        objects.append({"kind": "ConfigMap", "metadata": {"name": generated["name"]}, "data": data})
    return objects


def with_kustomize() -> list[Object]:
    return parsed(run("kubectl", "kustomize", KUBERNETES / "example"))


def with_helm(*values: str) -> list[Object]:
    options = [option for value in values for option in ("--set", value)]
    return parsed(run("helm", "template", "llm", CHART, "--namespace", "team", *options))


WAYS: dict[str, Callable[[], list[Object]]] = {
    "files": files_of_the_base,
    "kustomize": with_kustomize,
    "helm": with_helm,
    "helm-everything": lambda: with_helm("monitoring.enabled=true", "gateway.ingress.enabled=true"),
    "helm-own-store": lambda: with_helm("store.enabled=false", "store.url=redis://:${env:STORE_PASSWORD}@valkey"),
}


@pytest.fixture(params=WAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return WAYS[request.param]()


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def workloads(objects: list[Object]) -> dict[str, Object]:
    """What runs pods, by its component."""
    found = of_kind(objects, "Deployment", "DaemonSet")
    return {each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in found}


def pod(workload: Object) -> Object:
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def settings(objects: list[Object], component: str, tmp_path: Path) -> Configuration:
    """The configuration file of a component, read with its pod's environment and files."""
    spec = pod(workloads(objects)[component])
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    name = volumes["settings"]["configMap"]["name"]
    [text] = [
        each["data"]["hostler.yaml"] for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"] == name
    ]
    (tmp_path / "secrets").mkdir(exist_ok=True)
    for key in secret_keys(text) | {"keys"}:
        (tmp_path / "secrets" / key).write_text("" if key == "keys" else "a-secret-of-some-length")
    if not keys.read(tmp_path / "secrets" / "keys"):
        keys.add(tmp_path / "secrets" / "keys", "alice", ["infer"])
    (tmp_path / "hostler.yaml").write_text(text.replace("/run/secrets/hostler/", f"{tmp_path}/secrets/"))
    environ = {
        each["name"]: "10.0.0.7" if each["name"] == "POD_IP" else "team" for each in spec["containers"][0]["env"]
    }
    return read(tmp_path / "hostler.yaml", environ=environ)


def secret_keys(text: str) -> set[str]:
    """The files of the Secret that a configuration names."""
    return set(re.findall(r"/run/secrets/hostler/([\w-]+)", text))


@pytest.mark.parametrize("component", ["gateway", "supervisor"])
def test_the_settings_load_with_what_the_pod_has(objects: list[Object], component: str, tmp_path: Path) -> None:
    read = settings(objects, component, tmp_path)
    if component == "gateway":
        assert read.settings.cluster is not None
        assert read.settings.gateway.listen == ("0.0.0.0:8000",)
        assert read.settings.gateway.api_keys_file
    else:
        assert read.settings.supervisor.listen == "0.0.0.0:8080"
        assert read.profiles


def test_supervisors_join_the_cluster_of_the_gateways(objects: list[Object], tmp_path: Path) -> None:
    gateway = settings(objects, "gateway", tmp_path).settings
    supervisor = settings(objects, "supervisor", tmp_path).settings
    assert gateway.cluster is not None and supervisor.cluster is not None
    assert supervisor.cluster.name == gateway.cluster.name
    assert supervisor.cluster.store == gateway.cluster.store
    assert supervisor.cluster.token_file == gateway.cluster.token_file
    assert gateway.backends == {}
    assert joins_cluster(supervisor)
    assert unreachable_reason(supervisor.cluster, supervisor.supervisor) is None
    assert not startup_check("gateway")(settings(objects, "gateway", tmp_path))


def test_each_node_with_a_gpu_has_one_supervisor_with_an_identity_of_its_own(objects: list[Object]) -> None:
    supervisor = workloads(objects)["supervisor"]
    assert supervisor["kind"] == "DaemonSet"
    assert supervisor["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1}
    spec = pod(supervisor)
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    [container] = spec["containers"]
    names = {each["name"]: each["valueFrom"].get("fieldRef", {}).get("fieldPath") for each in container["env"]}
    assert names["NODE_NAME"] == "spec.nodeName"
    # The host's id is in the image's state directory, and belongs to the node's machine.
    paths = {each["name"]: each.get("hostPath", {}) for each in spec["volumes"]}
    mounts = {each["mountPath"]: paths[each["name"]] for each in container["volumeMounts"]}
    assert mounts["/var/lib/hostler"] == {"path": "/var/lib/hostler", "type": "DirectoryOrCreate"}
    assert mounts["/etc/machine-id"] == {"path": "/etc/machine-id", "type": "File"}
    assert "XDG_STATE_HOME=/var/lib/hostler/state" in (KUBERNETES.parent / "Dockerfile.gpu").read_text()


def test_all_members_reach_the_store(objects: list[Object]) -> None:
    pods = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in workloads(objects).items()}
    if "store" not in pods:
        return  # one of the user's own
    sources = [
        source["podSelector"]["matchLabels"].items()
        for policy in of_kind(objects, "NetworkPolicy")
        if policy["spec"]["podSelector"]["matchLabels"].items() <= pods["store"].items()
        for rule in policy["spec"]["ingress"]
        for source in rule["from"]
    ]
    for component in ("gateway", "supervisor"):
        assert any(labels <= pods[component].items() for labels in sources), component


def test_each_file_of_a_secret_that_a_configuration_names_is_mounted(objects: list[Object]) -> None:
    for component in ("gateway", "supervisor"):
        spec = pod(workloads(objects)[component])
        [secret] = [each["secret"] for each in spec["volumes"] if each["name"] == "secrets"]
        [name] = [each["configMap"]["name"] for each in spec["volumes"] if each["name"] == "settings"]
        [text] = [
            each["data"]["hostler.yaml"] for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"] == name
        ]
        wanted = secret_keys("\n".join(line.partition("#")[0] for line in text.splitlines()))
        if "items" in secret:
            assert wanted == {each["path"] for each in secret["items"]}


def test_each_mounted_volume_exists(objects: list[Object]) -> None:
    for workload in workloads(objects).values():
        spec = pod(workload)
        mounted = {mount["name"] for each in containers(spec) for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def containers(spec: Object) -> Iterator[Object]:
    yield from spec["containers"]
    yield from spec.get("initContainers", ())


def test_pods_are_locked_down(objects: list[Object]) -> None:
    for component, workload in workloads(objects).items():
        spec = pod(workload)
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for each in containers(spec):
            context = each["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            assert set(context["capabilities"].get("add", ())) <= ({"CHOWN"} if component == "supervisor" else set())


def test_no_secret_is_in_a_pods_description(objects: list[Object]) -> None:
    for workload in workloads(objects).values():
        for each in containers(pod(workload)):
            for variable in each.get("env", ()):
                assert "value" not in variable


def test_answers_in_progress_have_time_to_end(objects: list[Object], tmp_path: Path) -> None:
    spec = pod(workloads(objects)["gateway"])
    pause = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = settings(objects, "gateway", tmp_path).settings.gateway.drain_s
    assert spec["terminationGracePeriodSeconds"] > pause + drain
    drain = settings(objects, "supervisor", tmp_path).settings.supervisor.drain_s
    assert pod(workloads(objects)["supervisor"])["terminationGracePeriodSeconds"] > drain


def test_probes_need_no_key(objects: list[Object]) -> None:
    for component in ("gateway", "supervisor"):
        container = pod(workloads(objects)[component])["containers"][0]
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["path"] == "/healthz"
            assert container[probe]["httpGet"]["port"] in ports


def test_gateways_are_on_different_machines_and_one_always_stays(objects: list[Object]) -> None:
    gateway = workloads(objects)["gateway"]
    assert gateway["spec"]["replicas"] >= 2
    [preferred] = pod(gateway)["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    [budget] = of_kind(objects, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    labels = gateway["spec"]["template"]["metadata"]["labels"]
    for selector in (preferred["podAffinityTerm"]["labelSelector"], budget["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels.items()


def test_services_and_policies_select_pods_that_exist(objects: list[Object]) -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in workloads(objects).values()]
    selectors = [each["spec"]["selector"] for each in of_kind(objects, "Service")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(objects, "NetworkPolicy")]
    assert selectors
    for selector in selectors:
        assert sum(selector.items() <= each.items() for each in labels) == 1


def test_gateways_alone_reach_the_supervisors_and_all_their_engines(objects: list[Object], tmp_path: Path) -> None:
    gateway, supervisor = (
        workloads(objects)[each]["spec"]["template"]["metadata"]["labels"] for each in ("gateway", "supervisor")
    )
    section = settings(objects, "supervisor", tmp_path).settings.supervisor
    first, last = map(int, (section.engine_ports or "").split("-"))
    allowed = []
    for policy in of_kind(objects, "NetworkPolicy"):
        if not policy["spec"]["podSelector"]["matchLabels"].items() <= supervisor.items():
            continue
        for rule in policy["spec"]["ingress"]:
            for source in rule["from"]:
                if source["podSelector"]["matchLabels"].items() <= gateway.items():
                    allowed += [(port["port"], port.get("endPort", port["port"])) for port in rule["ports"]]
                else:
                    assert [port["port"] for port in rule["ports"]] == ["supervisor"], "Prometheus reads metrics only"
    assert (8080, 8080) in allowed
    assert (first, last) in allowed


def test_the_secrets_that_are_used_are_documented(objects: list[Object]) -> None:
    used = {key for each in of_kind(objects, "ConfigMap") for key in secret_keys(each["data"]["hostler.yaml"])}
    page = (KUBERNETES / "README.md").read_text()
    for key in used - {"openrouter"}:
        assert f"--from-file={key}" in page


def test_the_chart_says_what_is_wrong_with_its_values() -> None:
    with pytest.raises(AssertionError, match=r"store\.url is required"):
        with_helm("store.enabled=false")
    with pytest.raises(AssertionError, match="additional properties 'replica' not allowed"):
        with_helm("gateway.replica=3")


def test_a_chart_without_supervisors_has_the_backends_of_its_values(tmp_path: Path) -> None:
    cloud = "gateway.settings.backends.cloud"
    objects = with_helm("supervisor.enabled=false", f"{cloud}.kind=openai", f"{cloud}.url=http://vllm.models/v1")
    assert set(settings(objects, "gateway", tmp_path).settings.backends) == {"cloud"}


def test_the_chart_is_clean() -> None:
    assert "0 chart(s) failed" in run("helm", "lint", "--strict", CHART)


def test_what_the_chart_sets_wins_over_the_values(tmp_path: Path) -> None:
    objects = with_helm("gateway.settings.gateway.api_keys_file=/tmp/x", "gateway.settings.gateway.drain_s=200")
    section = settings(objects, "gateway", tmp_path).settings.gateway
    assert str(section.api_keys_file).endswith("/secrets/keys")
    assert section.drain_s == 200
    assert pod(workloads(objects)["gateway"])["terminationGracePeriodSeconds"] > 205
