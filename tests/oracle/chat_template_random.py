"""Random templates: mostly sensible expressions over the names of chat_template_cases.CONTEXT."""

import random

from chat_template_cases import CONTEXT

LITERALS = [
    "0", "1", "-1", "2", "3", "10", "2.5", "-0.5", "1e3", "true", "false", "none", "''", "'a'", "'b,c'",
    "'  x '", "'Łódź'", "'AbC'", "'12'", "'1.5'", "[]", "[1, 2, 3]", "['b', 'A']", "()", "(1, 'x')",
    "{}", "{'a': 1}", "{'k': [1], 'j': none}", "missing",
]
NAMES = [name for name in CONTEXT if name not in ("large", "markup")]
OPERATORS = [
    "+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or",
]
TESTS = [
    "defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer",
    "float", "boolean", "true", "false", "odd", "even", "lower", "upper", "callable", "divisibleby 2",
    "eq 1", "in [1, 'a']", "sameas none", "gt 1",
]
FILTERS = [
    "trim", "length", "tojson", "tojson(indent=1)", "join", "join(', ')", "upper", "lower", "title",
    "capitalize", "replace('a', 'xy')", "replace('', '.')", "default('d')", "default('d', true)",
    "first", "last", "list", "string", "int", "int(7)", "float", "abs", "sum", "min", "max", "sort",
    "sort(reverse=true)", "sort(attribute='age')", "indent", "indent(1, true)", "round", "round(1)",
    "count", "attr('name')", "center(9)", "sum(start=1)", "dictsort", "dictsort(by='value')",
]
# Python runs these late, or never: they are made lists, to compare where their errors occur.
GENERATORS = [
    "map('string')", "map('upper')", "map('length')", "map(attribute='name')", "map(attribute=0)",
    "map('first')", "map('default', 'z')", "map('int')", "selectattr('name')",
    "selectattr('age', 'gt', 30)", "rejectattr('active')", "select", "select('string')",
    "reject('none')", "select('odd')", "items", "unique", "unique(true)", "reverse", "batch(2)",
    "slice(2)",
]
METHODS = [
    "strip()", "lstrip()", "rstrip()", "strip('a')", "split()", "split(',')", "split(none, 1)",
    "rsplit(',', 1)", "splitlines()", "startswith('a')", "endswith('x')", "replace('a', 'b')", "upper()",
    "lower()", "title()", "capitalize()", "join(['x', 'y'])", "find('b')", "rfind('a')", "count('a')",
    "items()", "keys()", "values()", "get('a')", "get('zz', 5)", "index(1)", "index('a')", "isdigit()",
    "isalpha()", "isupper()", "islower()", "zfill(4)", "partition(',')", "removeprefix('a')", "copy()",
    "append(1)", "format(1, 2)", "swapcase()", "center(6)", "isspace()", "nothing()",
]
SUBSCRIPTS = [
    "[0]", "[-1]", "[1:]", "[:-1]", "[::-1]", "[::2]", "[-2:]", "[5]", "['a']", "['name']", ".a", ".name",
    ".b.c", "[1:3]", "[:1]", "[3:0:-1]", "['missing']", ".0",
]


class Templates:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def expression(self, depth=3):
        if depth == 0:
            return self.random.choice(LITERALS if self.random.random() < 0.6 else NAMES)
        inner = self.expression(depth - 1)
        kind = self.random.randrange(12)
        if kind == 0:
            return inner
        if kind <= 3:
            return f"({inner}) | {self.random.choice(FILTERS)}"
        if kind == 11:
            return f"({inner}) | {self.random.choice(GENERATORS)} | list"
        if kind == 4:
            return f"({inner}).{self.random.choice(METHODS)}"
        if kind == 5:
            return f"({inner}){self.random.choice(SUBSCRIPTS)}"
        if kind == 6:
            return f"({inner}) is {self.random.choice(['', 'not '])}{self.random.choice(TESTS)}"
        if kind == 7:
            return f"{self.random.choice(['not ', '-', '+', '- -'])}({inner})"
        other = self.expression(depth - 1)
        if kind == 8:
            return f"[{inner}, {other}]" if self.random.random() < 0.5 else f"{{'k': {inner}, 'l': {other}}}"
        if kind == 9:
            return f"({inner}) if ({other}) else ({self.expression(0)})"
        return f"({inner}) {self.random.choice(OPERATORS)} ({other})"

    def template(self):
        shape = self.random.randrange(6)
        first, second = self.expression(self.random.randint(1, 3)), self.expression(1)
        if shape == 0:
            return ("{% for x in " + first + " %}{{ loop.index }}{{ x }}{% if loop.last %}."
                    "{% else %},{% endif %}{% else %}none{% endfor %}")
        if shape == 1:
            return "{% set v = " + first + " %}{% if v %}{{ v }}{% else %}no {{ " + second + " }}{% endif %}"
        if shape == 2:
            return ("{% macro m(a, b=" + second + ") %}{{ a }}|{{ b }}{% endmacro %}{{ m(" + first + ") }}")
        return "{{ " + first + " }}"
