"""Rules that every source file keeps: which modules it may include, no traces of a machine, one format."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OUR_DIRECTORIES = [".ci", "bench", "client", "deploy", "docs", "engine", "kernels", "proto", "scripts",
                   "server", "tests"]

NETWORK = r"grpc|google/protobuf|everlong/v1|google/rpc|prometheus"
CUDA = r"cuda|cublas"
KERNELS_INTERFACE = r"kernels/\w+\.h"
GENERATED = r"everlong/|google/rpc/"  # From proto/.

# Directory (the longest that matches a file counts): the project's headers that it may include, and
# the libraries that it may not.
RULES = {
    "kernels": (r"kernels/", rf"{NETWORK}|spdlog|{CUDA}"),
    "kernels/cuda": (r"kernels/", rf"{NETWORK}|spdlog"),
    "engine": (rf"engine/|{KERNELS_INTERFACE}", rf"{NETWORK}|spdlog|{CUDA}"),
    "server": (rf"server/|engine/|{KERNELS_INTERFACE}|{GENERATED}", CUDA),
    "client": (rf"client/|engine/text\.h|{GENERATED}", rf"prometheus|{CUDA}"),
}
# CUDA sources stay readable to nvcc: the data half of the contract and its checks, nothing of the rest.
CUDA_SOURCE_RULE = (r"kernels/(args|check)\.h|kernels/cuda/", rf"{NETWORK}|spdlog|absl|fmt")


def files(*suffixes):
    found = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".git")]
    for directory in OUR_DIRECTORIES:
        found += (ROOT / directory).rglob("*")
    return sorted(path for path in found
                  if path.is_file() and "__pycache__" not in path.parts
                  and (not suffixes or path.suffix in suffixes))


def rule_of(name):
    if name.endswith((".cu", ".cuh")):
        return CUDA_SOURCE_RULE
    directories = [d for d in RULES if name.startswith(d + "/")]
    return RULES[max(directories, key=len)] if directories else None


def forbidden_includes(name, text):
    allowed, forbidden_libraries = rule_of(name)
    ours = rf"(kernels|engine|server|client|tests|bench)/|{GENERATED}"
    for include in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', text, re.MULTILINE):
        if re.match(ours, include) and not re.match(allowed, include):
            yield include
        elif re.match(forbidden_libraries, include):
            yield include


def test_modules_include_only_what_lies_below_them():
    sources = [str(path.relative_to(ROOT)) for path in files(".h", ".cc", ".cu", ".cuh")]
    governed = [name for name in sources if rule_of(name)]
    assert len(governed) > 40
    offences = [f"{name} includes {include}" for name in governed
                for include in forbidden_includes(name, (ROOT / name).read_text())]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("name, include", [
    ("kernels/cpu/x.cc", "engine/engine.h"),
    ("kernels/reference/x.cc", "cuda_runtime.h"),
    ("kernels/cuda/x.cu", "kernels/kernels.h"),
    ("engine/x.cc", "grpcpp/server.h"),
    ("engine/x.cc", "kernels/cpu/attention.h"),
    ("engine/kv/x.h", "server/metrics.h"),
    ("server/x.cc", "client/client.h"),
    ("server/x.cc", "kernels/cpu/attention.h"),
    ("client/x.cc", "engine/engine.h"),
])
def test_a_forbidden_include_is_found(name, include):
    assert list(forbidden_includes(name, f'#include <vector>\n#include "{include}"\n')) == [include]


def test_no_file_names_a_path_or_a_registry_of_one_machine():
    traces = re.compile(r"/(?:root|home|work|Users)/\w|/tmp/\w|\b(?:index|extra-index)-url\b|"
                        r"https?://[^\s\"')>]*(?:pypi|pythonhosted|artifactory|nexus|mirror)")
    offences = [f"{path.relative_to(ROOT)}: {found.group()}" for path in files()
                if path.name != "source_rules_test.py" and "corpus" not in path.parts
                for found in [traces.search(path.read_text(errors="replace"))] if found]
    assert not offences, "\n".join(offences)


def test_sources_are_formatted():
    formatter = shutil.which("clang-format-14")
    if not formatter:
        pytest.skip("clang-format-14 is not installed")
    sources = files(".h", ".cc")
    run = subprocess.run([formatter, "--dry-run", "--Werror", *sources], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
