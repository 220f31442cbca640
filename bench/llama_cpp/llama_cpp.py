"""Builds llama.cpp, once, and runs it through the programs beside this file."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SDIST = "llama-cpp-python==0.3.36"  # carries llama.cpp's sources
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "everlong" / "llama.cpp"


def build(cache=CACHE, program="llama_cpp_driver"):
    """The program's path. Takes some ten minutes on two cores where it is not built yet."""
    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    source = cache / "llama_cpp_python-{}".format(SDIST.split("==")[1])
    with open(cache / "build.log", "w") as log:

        def step(*command):
            print("+", *command, file=sys.stderr)
            if subprocess.run(command, stdout=log, stderr=log).returncode != 0:
                raise SystemExit(f"building llama.cpp failed; see {log.name}")

        if not source.exists():
            step("python3", "-m", "venv", cache / "venv")
            step(cache / "venv/bin/pip", "download", "--no-deps", "--no-binary", ":all:",
                 "--dest", cache, SDIST)
            step("tar", "-xzf", f"{source}.tar.gz", "-C", cache)
        if not (cache / "build" / program).exists():
            step("cmake", "-S", HERE, "-B", cache / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                 f"-DLLAMA_CPP_SOURCE={source / 'vendor' / 'llama.cpp'}")
        step("cmake", "--build", cache / "build", "--target", program)
    return cache / "build" / program


class LlamaCpp:
    """One sequence of tokens on one model; the driver's comment says what its commands do."""

    def __init__(self, driver, model, threads, context):
        self.process = subprocess.Popen([driver, model, str(threads), str(context)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("llama.cpp's driver stopped, as said above")
        return line.strip()

    def _command(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return self._answer()

    def read(self, tokens):
        """Seconds."""
        return float(self._command("read", *tokens))

    def decode(self, count):
        """Seconds."""
        return float(self._command("decode", count))

    def keep(self, count):
        self._command("keep", count)

    def append_logits(self, file):
        self._command("logits", file)

    def tokenize(self, text):
        escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
        return [int(token) for token in self._command("tokenize", escaped).split()]

    def stop(self):
        self.process.stdin.close()
        self.process.wait()
