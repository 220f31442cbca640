"""A real Prometheus scrapes the server, and promtool reads its exposition."""

import json
import shutil
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from conftest import wait_until

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy" / "prometheus.yml"
CONFIGURATION = """
global: {{scrape_interval: 500ms}}
scrape_configs:
  - job_name: everlong
    static_configs: [{{targets: ["{target}"]}}]
"""


def program(name):
    """From the environment that scripts/install-deps makes, else the system's."""
    path = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    assert path, f"{name} is not installed; run scripts/install-deps test"
    return path


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def query(server, tmp_path_factory):
    """A function from a PromQL expression to its value; None where it has none yet."""
    directory = tmp_path_factory.mktemp("prometheus")
    address = free_address()
    (directory / "prometheus.yml").write_text(CONFIGURATION.format(target=server.metrics))
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [program("prometheus"), f"--config.file={directory}/prometheus.yml",
             f"--storage.tsdb.path={directory}/data", f"--web.listen-address={address}"],
            stdout=log, stderr=subprocess.STDOUT)

    def run(expression):
        url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                result = json.load(response)["data"]["result"]
        except OSError:
            assert process.poll() is None, (directory / "log").read_text()
            return None
        return float(result[0]["value"][1]) if result else None

    try:
        wait_until(lambda: run("up") == 1, 60, "a successful scrape")
        yield run
    finally:
        process.kill()
        process.wait()


def test_promtool_accepts_the_exposition(server):
    check = subprocess.run([program("promtool"), "check", "metrics"], input=server.exposition(),
                           capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_promtool_accepts_the_configuration_that_is_deployed():
    check = subprocess.run([program("promtool"), "check", "config", DEPLOYED], capture_output=True,
                           text=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_counters_after_a_request_come_back_from_the_query_api(server, query, inference, pb):
    names = ["everlong_prompt_tokens_total", "everlong_generation_tokens_total",
             "sum(everlong_request_success_total)", "everlong_time_to_first_token_seconds_count",
             "everlong_e2e_request_latency_seconds_count"]
    before = [query(name) or 0 for name in names]

    request = pb.GenerateRequest(text="The terms of this licence", sampling=pb.Sampling(temperature=0))
    request.stopping.max_output_tokens = 9
    request.stopping.ignore_eos = True
    usage = list(inference.Generate(request))[-1].finished.usage

    expected = [usage.prompt_tokens, 9, 1, 1, 1]
    wait_until(lambda: [(query(name) or 0) - start for name, start in zip(names, before)] == expected,
               20, f"{names} grown by {expected}")


def test_refused_requests_are_counted_by_code(server, query, inference, pb):
    failures = 'everlong_request_failure_total{code="INVALID_ARGUMENT"}'
    before = query(failures) or 0
    with pytest.raises(Exception):
        list(inference.Generate(pb.GenerateRequest(text="x", priority=1000)))
    wait_until(lambda: query(failures) == before + 1, 20, "one more refused request")


@pytest.mark.parametrize("expression, value", [
    ("everlong_num_requests_running", 0),
    ("everlong_num_requests_waiting", 0),
    ('everlong_kv_cache_usage_ratio{tier="device"}', 0),
    ("count(everlong_build_info)", 1),
    ('count(everlong_time_to_first_token_seconds_bucket{le="2560"})', 1),
])
def test_an_idle_server_reports(query, expression, value):
    wait_until(lambda: query(expression) == value, 20, f"{expression} == {value}")
