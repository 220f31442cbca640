"""Chat templates: engine/chat_template.h renders, and fails, where transformers' Jinja does.

The oracle is transformers' own environment. The driver reads one request a line and answers each.
"""

import importlib.util
import json
import subprocess
import unicodedata
from pathlib import Path

import pytest
from chat_template_cases import CONTEXT, EXPRESSIONS, TEMPLATES
from chat_template_chats import contexts
from chat_template_random import Templates
from conftest import BUILD
from transformers.utils.chat_template_utils import _compile_jinja_template


class Driver:
    def __init__(self):
        self.process = subprocess.Popen(
            [BUILD / "bin" / "chat_template_driver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, encoding="utf-8")

    def render(self, template, context):
        request = json.dumps({"template": template, "context": context}, ensure_ascii=False)
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=10) == 0


@pytest.fixture(scope="module")
def driver():
    driver = Driver()
    yield driver
    driver.close()


def oracle(template, context):
    try:
        return {"text": _compile_jinja_template(template).render(**context)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def check(driver, template, context):
    """Fails with both answers where they are not the same text, or not both errors."""
    theirs = oracle(template, context)
    ours = driver.render(template, context)
    assert ours.get("text") == theirs.get("text"), (
        f"\ntemplate: {template!r}\ncontext:  {json.dumps(context, ensure_ascii=False)[:2000]}"
        f"\nours:     {ours}\ntheirs:   {theirs}")
    return theirs


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression(driver, expression):
    check(driver, "{{ " + expression + " }}", CONTEXT)


@pytest.mark.parametrize("template", TEMPLATES)
def test_template(driver, template):
    check(driver, template, CONTEXT)


# All that has case, and the characters of the first planes as repr() shows them: the two sides may
# follow different versions of Unicode, which only add characters.
CASED = " ".join(chr(code) for code in range(0x20000) if chr(code).swapcase() != chr(code))
ASSIGNED = "".join(chr(code) for code in range(0x1D000)
                   if unicodedata.category(chr(code)) not in ("Cn", "Cs"))


@pytest.mark.parametrize("template", [
    "{{ x | upper }}", "{{ x | lower }}", "{{ x | title }}", "{{ x.swapcase() }}",
    "{% for c in x.split() %}{{ c.isupper() }}{{ c.islower() }}{% endfor %}"])
def test_case_of_every_character(driver, template):
    check(driver, template, {"x": CASED})


@pytest.mark.parametrize("template", ["{{ [x] }}", "{{ x | tojson(true) }}", "{{ x | trim | length }}",
                                      "{{ x.split() | length }}", "{{ x.splitlines() | length }}",
                                      "{% for c in x %}{{ c.isalpha() }}{{ c.isalnum() }}{% endfor %}"])
def test_every_character(driver, template):
    check(driver, template, {"x": ASSIGNED})


# Python prints functions with their address. Slices of numbers that are constants are undefined, as
# Jinja's optimizer evaluates them, where those of other numbers fail.
UNCOMPARED = (" at 0x", "has no slices")


@pytest.mark.parametrize("seed", range(10))
def test_random_templates(driver, seed):
    templates = Templates(seed)
    for _ in range(200):
        template = templates.template()
        answers = str(oracle(template, CONTEXT)) + str(driver.render(template, CONTEXT))
        if not any(text in answers for text in UNCOMPARED):
            check(driver, template, CONTEXT)


# Packages that carry the templates of published checkpoints, and where.
PUBLISHERS = {"trl": "chat_templates", "axolotl": "utils/chat_templates/templates"}


def published_templates():
    for package, folder in PUBLISHERS.items():
        root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
        for path in sorted((root / folder).glob("*.jinja")):
            yield pytest.param(path, id=f"{package}-{path.stem}")


@pytest.mark.parametrize("path", published_templates())
def test_published_template(driver, path):
    template = path.read_text(encoding="utf-8")
    outcomes = [check(driver, template, context) for _, context in contexts()]
    assert sum("text" in outcome for outcome in outcomes) > len(outcomes) // 5


def test_enough_templates_are_published():
    assert len(list(published_templates())) > 100
