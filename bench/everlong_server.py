"""A server of this build on one model, and its client, for the measurements in this folder."""

import json
import re
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARIES = ROOT / "bin"  # of a package
if not BINARIES.is_dir():
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

    def decode_steps(self):
        """Number of decode steps so far, and the seconds they took."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as response:
            text = response.read().decode()
        return [float(re.search(rf'^everlong_step_seconds_{part}{{phase="decode"}} (\S+)$', text,
                                re.MULTILINE)[1]) for part in ("count", "sum")]

    def bench(self, *arguments):
        """What `everlong bench` measures, with the mean seconds of a decode step meanwhile."""
        count, total = self.decode_steps()
        report = self.client("bench", *arguments)[0]
        count_after, total_after = self.decode_steps()
        report["step_seconds"] = (total_after - total) / max(count_after - count, 1)
        return report

    def model(self):
        return self.client("models")[0]["models"][0]


def finished(events):
    return next(event["finished"] for event in events if "finished" in event)


def output_text(events):
    return "".join(event["output"].get("text", "") for event in events if "output" in event)


def seconds(duration):
    """Of a duration as JSON has it, "1.5s"."""
    return float(duration.rstrip("s"))
