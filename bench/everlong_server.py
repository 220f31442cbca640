"""A server of this build on one model, and its client, for the measurements in this folder."""

import json
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARIES = ROOT / "build" / "release" / "bin"


class Server:
    def __init__(self, binaries, model, *options):
        self.binaries = Path(binaries)
        self.folder = tempfile.TemporaryDirectory()
        ready = Path(self.folder.name) / "ready.json"
        started = time.monotonic()
        self.process = subprocess.Popen(
            [self.binaries / "everlong-server", "--model", model, "--listen", "127.0.0.1:0",
             "--metrics-listen", "127.0.0.1:0", "--log-level", "warn", "--ready-file", ready, *options])
        while not ready.exists():
            if self.process.poll() is not None:
                raise SystemExit("the server stopped while starting")
            time.sleep(0.001)
        self.seconds_to_ready = time.monotonic() - started
        addresses = json.loads(ready.read_text())
        self.grpc, self.metrics = addresses["grpc"], addresses["metrics"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def client(self, command, *arguments, text=""):
        """What `everlong COMMAND --json` prints, a dictionary for each line."""
        run = subprocess.run(
            [self.binaries / "everlong", command, "--server", self.grpc, "--json", *arguments],
            check=True, stdout=subprocess.PIPE, text=True, input=text)
        return [json.loads(line) for line in run.stdout.splitlines()]

    def generate(self, text, *arguments):
        """The events of one request, greedy."""
        return self.client("generate", "--temperature", "0", *arguments, "-", text=text)

    def tokenize(self, text):
        return self.client("tokenize", "-", text=text)[0]["tokenIds"]

    def model(self):
        return self.client("models")[0]["models"][0]


def finished(events):
    return next(event["finished"] for event in events if "finished" in event)


def output_text(events):
    return "".join(event["output"].get("text", "") for event in events if "output" in event)


def seconds(duration):
    """Of a duration as JSON has it, "1.5s"."""
    return float(duration.rstrip("s"))
