"""What the documentation says of the programs is what they do."""

import os
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("EVERLONG_BUILD", ROOT / "build" / "release"))
CLIENT = BUILD / "bin" / "everlong"


def help_of(*command):
    return subprocess.run([*command, "--help"], check=True, capture_output=True, text=True).stdout


def flags(text):
    return set(re.findall(r"--([a-z][a-z-]+)", text)) - {"help", "version"}


def test_the_configuration_table_has_every_option_and_its_default():
    table = re.findall(r"^\| `([a-z-]+)` \| (?:`(.*?)`)? *\|",
                       (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE)
    options = re.findall(r"^  --([a-z-]+) \S+?(?:=(\S+))?\s",
                         help_of(BUILD / "bin" / "everlong-server"), re.MULTILINE)
    assert sorted(table) == sorted(option for option in options if option[0] != "config")


def test_commands_in_the_readme_exist_with_their_flags():
    commands = re.findall(r"everlong ([a-z]+)(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = [(name, rest) for name, rest in commands if "--" in rest or name in ("models", "tokenize")]
    assert len(shown) >= 4
    for name, rest in shown:
        assert flags(rest) <= flags(help_of(CLIENT, name)), name


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_deployments_set_options_that_exist():
    options = set(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "configuration.md").read_text(),
                             re.MULTILINE))
    for path in [ROOT / "Dockerfile", *(ROOT / "deploy").iterdir()]:
        for name in re.findall(r"\bEVERLONG_([A-Z_]+)\b(?=[=,])", path.read_text()):
            assert name in ("TESTS", "BENCH") or name.lower().replace("_", "-") in options, name


def test_kubernetes_waits_for_the_drain():
    text = (ROOT / "deploy" / "kubernetes.yaml").read_text()
    deployment, service = yaml.safe_load_all(text)
    pod = deployment["spec"]["template"]["spec"]
    container, = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > int(environment["EVERLONG_DRAIN_SECONDS"])
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
