"""What the oracle tests share: this build's server, on models/needle-7m if no other model is named, and
stubs made from proto/."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDLE = ROOT / "models" / "needle-7m"
BUILD = Path(os.environ.get("EVERLONG_BUILD", ROOT / "build" / "release"))
PROTOS = ["everlong/v1/inference.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"]


def wait_until(condition, seconds, what):
    """Returns condition()'s first true value; fails, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


@dataclass
class Server:
    process: subprocess.Popen
    grpc: str  # host:port
    metrics: str

    def exposition(self):
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as response:
            return response.read().decode()

    def metric(self, series):
        """The value of one series, as it stands in the exposition: name{label="value"}."""
        for line in self.exposition().splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        raise KeyError(series)

    def is_idle(self):
        return all(self.metric(series) == 0 for series in (
            "everlong_num_requests_running", "everlong_num_requests_waiting",
            'everlong_kv_cache_usage_ratio{tier="device"}'))

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def start_server(directory, *options, model=NEEDLE):
    ready = directory / "ready.json"
    log = directory / "server.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [BUILD / "bin" / "everlong-server", "--model", model, "--listen", "127.0.0.1:0",
             "--metrics-listen", "127.0.0.1:0", "--ready-file", ready, *options],
            stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, 60, "server ready")
        assert process.poll() is None, log.read_text()
        return Server(process, **json.loads(ready.read_text()))
    except BaseException:
        process.kill()
        raise


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    # Longer than the model was trained for: room for requests that outlast a test.
    running = start_server(tmp_path_factory.mktemp("server"), "--max-context", "65536")
    yield running
    assert running.terminate() == 0


@pytest.fixture(scope="session")
def protos(tmp_path_factory):
    """The directory of the modules generated from proto/, importable."""
    directory = tmp_path_factory.mktemp("proto")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}",
         f"--python_out={directory}", f"--grpc_python_out={directory}", *PROTOS], check=True)
    sys.path.insert(0, str(directory))
    return directory


@pytest.fixture(scope="session")
def pb(protos):
    return importlib.import_module("everlong.v1.inference_pb2")


@pytest.fixture(scope="session")
def inference(protos, server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield importlib.import_module("everlong.v1.inference_pb2_grpc").InferenceStub(channel)
