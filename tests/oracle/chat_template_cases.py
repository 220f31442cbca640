"""Templates that use each construct of the language, rendered with CONTEXT."""

CONTEXT = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "add_generation_prompt": True,
    "text": "  Grüße aus Łódź, straße 7  ",
    "words": "the quick  brown\tfox\njumps",
    "lines": "one\n\ntwo\r\nthree\n",
    "number": 7,
    "negative": -7,
    "half": 2.5,
    "large": 1e16,
    "small": 0.00001,
    "whole_float": 3.0,
    "yes": True,
    "no": False,
    "nothing": None,
    "empty": "",
    "list": [3, 1, 2],
    "names": ["beta", "Alpha", "gamma", "alpha"],
    "nested": [[1, 2], [3, [4, 5]], []],
    "mixed": [1, "a", None, True, 2.5, [1], {"k": "v"}],
    "pairs": [["a", 1], ["b", 2]],
    "dict": {"b": 1, "a": {"c": [1, 2, {"d": "e"}]}, "A": None, "items": "shadowed", "update": 5},
    "people": [
        {"name": "Ann", "age": 31, "tags": ["x"], "address": {"city": "Oslo"}},
        {"name": "bob", "age": 25, "active": True, "address": {"city": "Bergen"}},
        {"name": "Cid", "age": 31, "active": False, "address": {}},
    ],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <b>there</b> & \"you\" 'all' 😀"},
        {"role": "assistant", "content": "Hello.\n", "tool_calls": [
            {"type": "function", "id": "1", "function": {
                "name": "f", "arguments": {"x": 1.0, "y": "ü\u2028\u00a0", "z": [True, None]}}}]},
    ],
    "quotes": "it's \"both\" \\ \t \x7f \u200b é 😀",
    "markup": "<a href='x'>&amp;</a>",
    "unicode": "ŉ ß ﬁ İ ǆ Σας 日本語 ΐ",
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4
(1 + 2) * 3
7 // 2
-7 // 2
7 % 3
-7 % 3
7 % -3
7.5 // 2
-7.5 % 2
7 / 2
6 / 3
2 ** 10
2 ** -1
-2 ** 2
2 ** 3 ** 2
2.0 ** 0.5
1e3
1.5e-7
1_000
0.1 + 0.2
1e16 + 0
1e22
123456789012345680.0
1 / 3
100000.0
-0.0
true + 1
true * 3
1 / 0
1 // 0
1.0 % 0
0 ** -1
9223372036854775807
"a" + 1
1 + "a"
"a" * 3
3 * "ab"
"a" * -1
[1] * 2
[1] + [2]
[1] + (2,)
(1,) + (2,)
"a" "b" 'c'
"a" ~ 1 ~ none ~ true ~ 2.5 ~ [1, "x"]
1 ~ 2
'%s and %s' % ('a', 1)
'%d%%' % 50
'%05d|%-5s|%5s|%.2f|%x|%X|%o|%+d|% d' % (42, 'ab', 'cd', 3.14159, 255, 255, 8, 5, 5)
'%s' % none
'a' % missing
'%s' % missing
'a' % 1
'a' % [1]
'a' % {'b': 1}
'%s' % {'b': 1}
'%s' % [1, 2]
'%(a)s' % {'a': 1}
'%d' % 'x'
'%s %s' % ('a',)
'%s' % ('a', 'b')
'%r' % 'it'
'%.3s' % 'abcdef'
'%e' % 12345.678
'%g' % 0.0001
'%5.1f' % 2.25
'%i' % 3.9
'%#x' % 255
"{} {}".format(1, 'a')
"{0} {1} {0}".format('x', 'y')
"{a} {b[k]} {c.x}".format(a=1, b={'k': 2}, c={'x': 3})
"{{}}".format()
"{!r}".format('a')
"{} {}".format(1)
"{".format(1)
"}".format(1)
1 < 2 < 3
1 < 3 < 2
3 > 2 >= 2 != 1
1 == 1.0
1 == true
"1" == 1
"a" < "b"
"a" < 1
none < 1
[1, 2] < [1, 3]
[1] == [1]
[1] == (1,)
(1, 2) == (1, 2)
{'a': 1} == {'a': 1.0}
{'a': 1} == {'b': 1}
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
1 in [1, 2]
1.0 in [1, 2]
"ell" in "hello"
"" in "hello"
1 in "hello"
"a" in {'a': 1}
"z" not in {'a': 1}
[] in {'a': 1}
1 in 5
1 in none
not 1 in [2]
not not 1
none is none
not none
1 and 0
0 or "x"
"" or none or []
1 and 2 and 3
yes and no or number
"a" if yes else "b"
"a" if no else "b"
"a" if no
("a" if no) is undefined
1 if no else 2 if no else 3
missing
missing is defined
missing.attribute
missing['item']
missing[1:]
missing()
missing + 1
1 + missing
missing ~ "x"
missing == missing
missing == none
missing != other_missing
missing < 1
missing in [1]
1 in missing
not missing
missing | length
missing | list
missing | join(",")
missing | default("d")
missing | upper
missing | trim
missing | tojson
missing | int
missing | float
missing | string | length
missing | abs
missing | first
missing | last
missing | reverse | list
missing | items | list
missing | sort
missing | dictsort
missing | indent
missing | replace("a", "b")
missing | map("upper") | list
missing | selectattr("a") | list
missing is string
missing is iterable
missing is sequence
missing is mapping
missing is none
missing is callable
missing is number
[missing]
{'a': missing}
-missing
+missing
dict
dict.b
dict.a.c[2].d
dict['a']['c'][0]
dict.missing
dict.missing.more
dict['missing'] is defined
dict.items is callable
dict['items']
dict.items() | list
dict.update
dict.update is defined
dict['update']
dict.keys() | list
dict.values() | list
dict.keys() | length
dict.keys()
dict.items()
dict.values()
dict.keys()[0]
"b" in dict.keys()
dict.get("b")
dict.get("zz")
dict.get("zz", "fallback")
dict.get()
dict.get([])
dict.pop("b")
dict.clear()
dict.__class__
dict._private
dict | length
dict | list
dict | first
dict | last
dict | join(",")
dict | items | list
dict | tojson
dict | dictsort
dict | dictsort(true)
dict | dictsort(by='value')
{'x': 2, 'y': 1} | dictsort(false, 'value')
{'x': 2, 'y': 1} | dictsort(reverse=true)
{'x': 2, 'y': 1} | dictsort(by='z')
{1: 'a', 'b': 2.5, none: 3, true: 4, 1.5: 5}
{1: 'a', 1.0: 'b', true: 'c'}
{[1]: 2}
{(1, 2): 3}
{'a': 1, 'a': 2}
{1: 2} | tojson
{none: 1, true: 2, 1.5: 3} | tojson
{(1,): 1} | tojson
list
list[0]
list[-1]
list[5]
list[-4]
list["0"]
list[true]
list.0
list[1:]
list[:-1]
list[::-1]
list[::2]
list[5:]
list[-2:]
list[2:0:-1]
list[::0]
list["a":]
list[missing:]
list[none:2]
list[1.0]
list[99999999999:]
list[:-99999999999:-1]
list.append(1)
list.append is defined
list.sort()
list.index(1)
list.index(9)
list.count(1)
list | sort
list | sort(reverse=true)
list | sort(true)
names | sort
names | sort(case_sensitive=true)
mixed | sort
people | sort(attribute="age") | map(attribute="name") | list
people | sort(attribute="age,name") | map(attribute="name") | list
people | sort(attribute="age", reverse=true) | map(attribute="name") | list
people | sort(attribute="zz") | map(attribute="name") | list
list | sum
list | sum(start=10)
people | sum(attribute="age")
people | sum("age", 1)
["a"] | sum
nested | sum(start=[])
[1.5, 2] | sum
list | min
list | max
names | min
names | max
names | max(case_sensitive=true)
[] | min
[] | max is undefined
people | max(attribute="age")
people | min(attribute="address.city")
names | unique | list
names | unique(true) | list
people | unique(attribute="age") | map(attribute="name") | list
[[1], [1]] | unique | list
list | first
list | last
[] | first
[] | last
[] | first is undefined
"abc" | first
"abc" | last
list | reverse | list
"abc" | reverse
list | reverse | first
list | reverse | last
list | length
list | count
"Łódź" | length
5 | length
none | length
list | map("string") | list
list | map("string") | length
list | map("string") | join("-")
names | map("upper") | list
names | map("replace", "a", "X") | list
names | map("zz") | list
names | map | list
people | map(attribute="name") | join(", ")
people | map(attribute="address.city") | list
people | map(attribute="address.city", default="none") | list
people | map(attribute="tags.0") | list
people | map(attribute="name", foo=1) | list
people | map(attribute="missing.more") | list
[[1, 2], [3, 4]] | map(attribute=1) | list
[[1, 2], [3, 4]] | map("first") | list
[[1, 2], [3, 4]] | map("sum") | list
people | selectattr("active") | map(attribute="name") | list
people | rejectattr("active") | map(attribute="name") | list
people | selectattr("active", "defined") | map(attribute="name") | list
people | selectattr("age", "equalto", 31) | map(attribute="name") | list
people | selectattr("age", "gt", 30) | map(attribute="name") | list
people | selectattr("name", "in", ["Ann", "bob"]) | map(attribute="age") | list
people | selectattr("age", "zz") | list
people | selectattr | list
people | selectattr("active") | length
(people | selectattr("zz")) and "generator is true"
list | select("odd") | list
list | reject("odd") | list
list | select("greaterthan", 1) | list
list | select | list
mixed | select("string") | list
mixed | reject("none") | list
list | select("divisibleby", 3) | list
list | batch(2) | list
list | batch(2, "x") | list
list | slice(2) | list
list | slice(2, "x") | list
list | slice(0) | list
list | join
list | join(", ")
mixed | join("|")
people | join(", ", attribute="name")
"abc" | join("-")
5 | join
none | join
[missing, 1] | join(",")
"abc" | list
dict | list
5 | list
range(5) | list
range(2, 8, 3) | list
range(5, 0, -2) | list
range(0)  | list
range(3)[1]
range(3)[-1]
range(3)[1:] | list
range(3) | length
range(3) is sequence
range(3) == range(3)
range(3) == [0, 1, 2]
range(3) | sum
range(1, 2, 0)
range("a")
range()
range(1, 2, 3, 4)
range(200000) | length
range(100000) | length
range(3) | tojson
range(3) + [1]
"a,b,,c".split(",")
"a,b,,c".split(",", 1)
"a,b,,c".rsplit(",", 1)
"a b".split("")
words.split()
words.split(none, 1)
" a b  ".split(none, 1)
" a b  ".rsplit(none, 1)
"  ".split()
words.split(maxsplit=2)
words.split(sep=" ")
"".split(",")
"".split()
"a<sep>b<sep>c".split("<sep>")[-1]
"a<sep>b<sep>c".rsplit("<sep>", 1)
lines.splitlines()
lines.splitlines(true)
"abc".startswith("ab")
"abc".startswith(("x", "a"))
"abc".startswith("b", 1)
"abc".endswith("bc")
"abc".endswith("b", 0, 2)
"abc".endswith(["c"])
"abc".startswith(1)
text.strip()
text.lstrip()
text.rstrip()
"xxaxx".strip("x")
"xyaxy".lstrip("yx")
"xyaxy".rstrip("yx")
"éaé".strip("é")
"a".strip(1)
"aXbX".replace("X", "-")
"aXbX".replace("X", "-", 1)
"abc".replace("", "-")
"abc".replace("", "-", 2)
"abc".replace("b")
"abc".replace(1, 2)
"abc".upper()
"ABC".lower()
"hello wORLD it's 3d".title()
"hello wORLD".capitalize()
"ßtraße".capitalize()
"ŉ ß ﬁ ǆ ΐ ᾀ".title()
"aBc".swapcase()
unicode.upper()
unicode.lower() is string
unicode | upper
"İ" | lower | length
"éàü łß".upper()
"ÉÀÜ ŁẞЖ".lower()
"ab".join(["1", "2", "3"])
",".join([1])
",".join("abc")
",".join(missing)
"banana".find("an")
"banana".rfind("an")
"banana".find("x")
"banana".index("x")
"éébanana".find("b")
"banana".find("an", 2)
"banana".count("a")
"banana".count("a", 2)
"banana".count("")
"abc".isdigit()
"123".isdigit()
"".isdigit()
"abc".isalpha()
"ab1".isalnum()
"  ".isspace()
"abc".islower()
"ABC".isupper()
"A1".isupper()
"7".zfill(3)
"-7".zfill(4)
"a".center(5)
"ab".center(5)
"a".center(4, "*")
"a".ljust(3) ~ "|"
"a".rjust(3)
"a-b-c".partition("-")
"a-b-c".rpartition("-")
"abc".partition("x")
"abc".rpartition("x")
"prefix-a".removeprefix("prefix-")
"a.suffix".removesuffix(".suffix")
"abc".nope
"abc".nope()
"abc"[0]
"abc"[-1]
"abc"[3]
"abc"[1:]
"abc"[::-1]
"Łódź"[1]
"Łódź"[1:3]
"Łódź"[::-2]
"Łódź"[-1]
"abc"["upper"]()
"abc".__class__
text | trim
text | trim | length
"xxaxx" | trim("x")
5 | trim
none | trim
text | upper
text | lower
"hello-world (foo) [bar] it's" | title
"hello wORLD" | capitalize
none | upper
5 | upper
"aXbX" | replace("X", "-")
"aXbX" | replace("X", "-", 1)
"a1b1" | replace(1, 2)
515 | replace(5, "x")
"abc" | replace("b")
"a\nb\n\nc" | indent
"a\nb\n\nc" | indent(2)
"a\nb\n\nc" | indent(2, true)
"a\nb\n\nc" | indent(2, true, true)
"a\nb\n" | indent(2)
"a\nb\n" | indent(2, blank=true)
"a\nb" | indent("> ")
"" | indent(2, true)
5 | indent
"ab" | center(6)
markup | e
markup | escape
markup | escape | escape
markup | forceescape
markup | safe
(markup | safe) + "<b>"
"<b>" + (markup | safe)
(markup | safe) ~ "<b>"
(markup | e) | upper
("<" | e) * 2
["<a>" | safe, "<b>"] | join("<c>")
"x" | string
5 | string + "5"
none | string
"12" | int
"12.7" | int
" 12 " | int
"1_000" | int
"_1" | int
"+5" | int
"-5" | int
"0x1F" | int
"0x1F" | int(base=16)
"ff" | int(0, 16)
"101" | int(base=2)
"0b101" | int(base=0)
"z" | int
"z" | int(5)
"z" | int("d")
"" | int
none | int
12.9 | int
-12.9 | int
true | int
[1] | int
"1e3" | int
"inf" | int
"nan" | int
"12.5" | float
"1e3" | float
"  3 " | float
"z" | float
"z" | float(1.5)
"inf" | float
"-inf" | float
"1_0.5" | float
"0x10" | float
none | float
7 | float
true | float
"nan" | float
-5 | abs
-5.5 | abs
"a" | abs
true | abs
2.5 | round
3.5 | round
2.675 | round(2)
42.55 | round(1, 'floor')
42.51 | round(1, 'ceil')
42 | round
42 | round(1, 'floor')
1.23456 | round(3)
1e300 | round(2)
2.5 | round(method='zz')
"%s-%s" | format("a", 1)
"%(x)s" | format(x=1)
"%s" | format
nothing | default("d")
nothing | default("d", true)
empty | default("d", true)
0 | d("z", boolean=true)
missing | d
dict | attr("b")
dict | attr("keys") is callable
"abc" | attr("upper") is callable
text | tojson
quotes | tojson
quotes | tojson(ensure_ascii=true)
messages | tojson
messages | tojson(indent=2)
messages | tojson(indent=0)
messages | tojson(indent="--")
messages | tojson(separators=(',', ':'))
messages | tojson(separators=(',', ':'), indent=1)
dict | tojson(sort_keys=true)
{} | tojson(indent=2)
[] | tojson(indent=2)
[[], {}] | tojson(indent=2)
nested | tojson(indent=4)
{1: 1, "a": 2} | tojson(sort_keys=true)
[1, 2.0, 1e20, 1e-7, true, none, "x"] | tojson
"nan" | float | tojson
("inf" | float, -("inf" | float)) | tojson
dict.items() | tojson
range | tojson
(1, 2) | tojson
number
half
large
small
whole_float
yes
nothing
list
mixed
nested
pairs
people
quotes
[quotes]
["it's"]
['say "hi"']
["both ' and \""]
["\\ \n \r \t \x00 \x1f é ü \u200b \u2028 😀 \ue000"]
()
(1,)
(1, 2)
1, 2
[]
{}
[()]
"\x41\u00e9\U0001F600\101\0"
'\'"\"'
"a\
b"
"\q"
"\u12"
yes is true
no is false
1 is true
yes is boolean
1 is boolean
1 is number
true is number
1.5 is number
"1" is number
1 is integer
true is integer
1.0 is integer
1.0 is float
1 is float
"a" is string
1 is string
dict is mapping
list is mapping
list is sequence
"abc" is sequence
dict is sequence
5 is sequence
dict.items() is sequence
(list | map("string")) is sequence
(list | map("string")) is iterable
list is iterable
5 is iterable
none is iterable
none is none
1 is not none
3 is odd
4 is even
3 is even
9 is divisibleby 3
9 is divisibleby(2)
9 is divisibleby 0
"a" is odd
1 is eq 1
1 is equalto(1)
1 is ne 2
1 is lt 2
2 is gt 1
1 is le 1
1 is ge 2
1 is sameas 1
true is sameas true
1 is sameas true
dict is sameas dict
1 is in [1, 2]
"a" is in "abc"
1 is in 5
range is callable
"a" is callable
"upper" is filter
"zz" is filter
"odd" is test
"abc" is lower
"ABC" is upper
markup is escaped
(markup | safe) is escaped
1 is zz
1 | zz
"x" if no and (1 | zz) else "y"
1 is divisibleby
1 is not
not 1 is odd
1 is odd is true
1 is odd and 2 is even
missing is not defined or true
5 is not string
namespace(a=1).a
namespace({'a': 2}).a
namespace(a=1)['a']
namespace(a=1).b
namespace(a=1).b is defined
namespace(_a=1)
namespace(1)
dict is defined
cycler("a", "b").next()
cycler()
joiner()()
joiner("-")()
raise_exception("failed: " ~ 1)
raise_exception()
strftime_now("%Y") | length
strftime_now()
range(3, stop=5)
"abc".upper(1)
"abc" | upper(1)
"abc" | join(1, 2, 3)
"abc" | center(width=9)
"abc" | center(wide=9)
[1, 2, 3] | join(d="-")
none()
5()
"a"()
none.x
none.x.y
none["x"]
none[0]
nothing[1:]
dict[1:]
5[0]
5.5.x
true.x
[1, 2,]
[1 2]
{'a' 1}
{'a': 1,}
(1
1 +
+ 1
- 1
+"a"
-"a"
--1
-(-1)
not
a.
a.1.b
[[1, 2], [3, 4]].1.0
"a" if
if
in
a b
a == == b
@
a ! b
"unclosed
{{ nested }}
1;2
f(a=1, 2)
f(**{}, *[])
range(*[1, 4]) | list
range(**{'stop': 1})
"{a}{b}".format(**{'a': 1, 'b': 2})
"{}{}{}".format(*[1, 2], c=3)
"-".join(*[["a", "b"]])
f(1,)
list[1:2:3:4]
list[1, 2]
dict[(1, 2)]
1.foo
1_0.5
01
00
0
1.
.5
1e
1e5
1E5
text is string and text is not mapping
(text | length) > 5
text|trim|length == 25
-5 | abs
2 ** -5 | abs
(2 ** 3) | string | length
"a" in "abc" and "b" in "abc"
"a" ~ "b" in "xab"
1 + 1 ~ 1 + 1
"b" ~ 1 * 2
names | map("lower") | unique | list | length
messages | selectattr("role", "equalto", "user") | list | length
messages[1:] | map(attribute="role") | join("/")
messages[-1].role
messages[-1]["tool_calls"][0].function.arguments | tojson
messages | last | attr("role")
(messages | last).role
(messages | first)["content"]
messages[0].content.split()[0]
messages[1].content | e
messages[0]
""".strip("\n").split("\n")
# A string may go on in the next line, which the list above splits.
EXPRESSIONS = "\n".join(EXPRESSIONS).replace("\\\nb\"", "\\\x00b\"").split("\n")
EXPRESSIONS = [expression.replace("\x00", "\n") for expression in EXPRESSIONS]

TEMPLATES = [
    # White space around tags.
    "a {% if yes %} b {% endif %} c",
    "a\n{% if yes %}\nb\n{% endif %}\nc\n",
    "a\n  {% if yes %}\n  b\n  {% endif %}\nc\n\n",
    "a\n  {%- if yes -%}\n  b\n  {%- endif -%}\nc",
    "a\n  {%+ if yes +%}\n  b\n  {%+ endif %}\nc",
    "a \t {{- 1 -}} \n b",
    "a  {{ 1 }}  \n  {{ 2 }}\n",
    "  {{+ 1 }}",
    "a {# comment #} b\n{# c #}\nd\n  {# e #}\n  {#- f -#}  \n g {#+ h +#}\n i",
    "{#}#}x{##}{#-#}y{#--#}",
    "{# a {{ b }} {% if %} #}x",
    "  {% set a = 1 %}  {% set b = 2 %}\n  {{ a }}{{ b }}",
    "{% set a = 1 %}\n\n{{ a }}\n\n",
    "{%set a=1%}{{a}}{%-set b=2-%}{{b}}",
    "{{ 1 }}\n{{ 2 }}\n",
    "line\r\nline\rline\n\r\n",
    "{{ 'a\r\nb' }}",
    "\u00a0{%- if yes %} x{% endif %}",
    "x\n\u00a0{% if yes %}x{% endif %}",
    "{% raw %}{{ a }}{% if %}{# b #}{% endraw %}",
    "  {% raw %}\n  x {{\n  {% endraw %}\n y",
    "  {%- raw -%}\n  x {{\n  {%- endraw -%}\n y",
    "{% raw %}{% endraw %}{% raw %}a{%endraw%}",
    "{% raw %}unclosed",
    "{% rawish %}",
    "{% raw x %}{% endraw %}",
    "{ { x } } {x} {",
    "{% if yes %}{{ 1 }}{% else %}{{ 2 }}{% endif %}",
    "",
    "\n",
    "\n\n",
    # If.
    "{% if no %}1{% elif number == 7 %}2{% elif yes %}3{% else %}4{% endif %}",
    "{% if no %}1{% elif no %}2{% else %}4{% endif %}",
    "{% if no %}1{% endif %}|",
    "{% if missing %}1{% else %}2{% endif %}",
    "{% if missing.x %}1{% endif %}",
    "{% if yes: %}x{% endif %}",
    "{% if %}x{% endif %}",
    "{% if yes %}x",
    "{% if yes %}x{% endfor %}",
    "{% if yes %}x{% else %}y{% else %}z{% endif %}",
    "{% if yes %}x{% else %}y{% elif no %}z{% endif %}",
    "{% if 1, %}x{% endif %}",
    "{% if () %}x{% else %}y{% endif %}",
    "{% endif %}",
    "{% else %}",
    "{% nonsense %}",
    "{% %}",
    "{%",
    "{{",
    "{{ }}",
    "{{ 1 }",
    "{% if yes }}x{% endif %}",
    # For.
    "{% for x in list %}{{ x }},{% endfor %}",
    "{% for x in [] %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in list %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in list %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}"
    "{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for x in list %}{{ loop.previtem }}<{{ x }}<{{ loop.nextitem }}|{% endfor %}",
    "{% for x in list %}{{ loop.previtem is defined }}{{ loop.nextitem is undefined }}{% endfor %}",
    "{% for x in list %}{{ loop.previtem.x }}{% endfor %}",
    "{% for x in list %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in list %}{{ loop.cycle() }}{% endfor %}",
    "{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }}{% endfor %}",
    "{% for x in list %}{{ loop.nope }}{{ loop.nope is defined }}{% endfor %}",
    "{% for x in list %}{{ loop.nope.x }}{% endfor %}",
    "{% for x in list if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% endfor %}",
    "{% for x in list if x > 5 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in list if loop.index > 1 %}{{ x }}{% endfor %}",
    "{% for a, b in pairs %}{{ a }}={{ b }} {% endfor %}",
    "{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for (a, b) in pairs %}{{ a }}={{ b }} {% endfor %}",
    "{% for a, in [[1], [2]] %}{{ a }}{% endfor %}",
    "{% for a, b in list %}{{ a }}{% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}{{ a }}{% endfor %}",
    "{% for a, b in ['xy'] %}{{ a }}-{{ b }}{% endfor %}",
    "{% for k, v in dict.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in dict | items %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in dict | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in dict %}{{ k }};{% endfor %}",
    "{% for c in 'Łódź' %}{{ c }}.{% endfor %}",
    "{% for x in missing %}x{% else %}none{% endfor %}",
    "{% for x in none %}x{% endfor %}",
    "{% for x in 5 %}x{% endfor %}",
    "{% for x in range(3) %}{% for y in range(x) %}{{ loop.index }}{{ x }}{{ y }} {% endfor %}{% endfor %}",
    "{% for x in range(3) %}{% set outer = loop %}{% for y in range(2) %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "{% for x in list %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in list %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in list %}{% for y in list %}{% break %}{% endfor %}{{ x }}{% endfor %}",
    "{% break %}",
    "{% if yes %}{% continue %}{% endif %}",
    "{% for x in list %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}",
    "{% for x in list %}{% endfor %}{{ x }}",
    "{{ loop }}",
    "{% for loop in list %}{% endfor %}",
    "{% for x in list %}{% set loop = 1 %}{% endfor %}",
    "{% set loop = 1 %}{{ loop }}",
    "{% for 1 in list %}{% endfor %}",
    "{% for true in list %}{% endfor %}",
    "{% for x.y in list %}{% endfor %}",
    "{% for x in %}{% endfor %}",
    "{% for x list %}{% endfor %}",
    "{% for x in list %}",
    "{% for x in (1, 2) %}{{ x }}{% endfor %}",
    "{% for x in 1, 2 %}{{ x }}{% endfor %}",
    "{% for x in list | sort %}{{ x }}{% endfor %}",
    "{% for x in list if x is odd %}{{ x }}{% endfor %}",
    "{% for x in (list if yes else []) %}{{ x }}{% endfor %}",
    "{% for x in list | map('string') %}{{ x }}{{ loop.length }}{% endfor %}",
    "{% set g = list | map('string') %}{{ g | list }}{{ g | list }}",
    "{% set g = list | map('string') %}{{ g | first }}{{ g | list }}",
    "{% for x in messages[::-1] %}{{ x.role }} {% endfor %}",
    # Scopes.
    "{% set x = 1 %}{% for y in list %}{% set x = y %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if yes %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% for y in list %}{% if y == 1 %}{% set found = y %}{% endif %}{{ found }}{% endfor %}{{ found }}",
    "{% set ns = namespace(x=1) %}{% for y in list %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{% set ns.b = ns.a + 1 %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{% set ns.a = 1 %}",
    "{% set dict.a = 1 %}",
    "{% set x = 5 %}{% set x.a = 1 %}",
    "{% set ns = namespace(a=1) %}{% set ns.a %}block{% endset %}{{ ns.a }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set (a, b) = [1, 2] %}{{ a }}{{ b }}",
    "{% set a, b = [1] %}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set ns = namespace() %}{% set ns.a, b = 1, 2 %}{{ ns.a }}{{ b }}",
    "{% set none = 1 %}",
    "{% set 'a' = 1 %}",
    "{% set a[0] = 1 %}",
    "{% set a %}text {{ number }}{% endset %}{{ a | upper }}",
    "{% set a | upper | replace('T', 'x') %}text {{ number }}{% endset %}{{ a }}",
    "{% set a %}{% set inner = 1 %}{{ inner }}{% endset %}{{ a }}{{ inner }}",
    "{% set a %}unclosed",
    "{% set a = %}",
    "{% set messages = messages[1:] %}{{ messages | length }}",
    "{% set messages = messages + [{'role': 'x'}] %}{{ messages[-1].role }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with %}{% set a = 1 %}{{ a }}{% endwith %}{{ a }}",
    "{% filter upper %}a{{ 'b' }}{% endfilter %}",
    "{% filter upper | replace('A', 'x') %}abc{% endfilter %}",
    "{% filter zz %}abc{% endfilter %}",
    "{% filter indent(2) %}a\nb{% endfilter %}",
    "{% generation %}a{{ number }}{% endgeneration %}",
    "{%- generation -%}  a  {%- endgeneration -%}  b",
    "{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a }}",
    "{% for x in list %}{% generation %}{{ x }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "{% for x in list %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{% generation %}",
    "{{ x }}{% set x = 1 %}{{ x }}",
    # Macros.
    "{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c='y') }}{{ m(b=1, a=2) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}",
    "{% macro m(a) %}{{ a }}|{{ a is defined }}{% endmacro %}{{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}",
    "{% macro m() %}{{ varargs | join(',') }}{% endmacro %}{{ m(1, 2) }}{{ m(*list) }}",
    "{% macro m(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ m(**{'a': 1, 'b': 2}) }}",
    "{% macro m(a, a) %}{% endmacro %}",
    "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m %}{% endmacro %}",
    "{% macro m() %}{{ number }}{% set number = 1 %}{{ number }}{% endmacro %}{{ m() }}{{ number }}",
    "{% macro m() %}{{ later }}{% endmacro %}{% set later = 5 %}{{ m() }}",
    "{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{% set x = 2 %}{{ m() }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}b{% endmacro %}{{ a() }}",
    "{{ m() }}{% macro m() %}{% endmacro %}",
    "{% macro m() %}  x  {% endmacro %}{{ m() | trim }}{{ m() | length }}",
    "{% macro m() %}{% endmacro %}{{ m.name }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}body{% endcall %}",
    "{% macro m() %}[{{ caller(1, 2) }}]{% endmacro %}{% call(a, b=5) m() %}{{ a }}{{ b }}{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}x{% endmacro %}{% call m() %}body{% endcall %}",
    "{% call 5 %}x{% endcall %}",
    "{% for x in list %}{% macro m(y) %}{{ x }}{{ y }}{% endmacro %}{{ m(loop.index) }} {% endfor %}",
    "{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}{% endmacro %}{{ outer() }}{{ inner is defined }}",
    "{% macro m(x) %}{% for i in x %}{{ i }}{{ loop.index }}{% endfor %}{% endmacro %}{{ m(list) }}",
    "{% macro m(message) %}{{ '<|' ~ message.role ~ '|>' }}\n{{ message.content }}{% endmacro %}{% for message in messages %}{{ m(message) }}{% endfor %}",
    "{% set m = 1 %}{% macro m() %}x{% endmacro %}{{ m() }}",
    # Others.
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}",
    "{% set j = joiner(', ') %}{% for x in list %}{{ j() }}{{ x }}{% endfor %}",
    "{{ namespace(dict(a=1)).a }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% do list.append(1) %}",
    "{% if false %}{{ 1 | zz }}{% endif %}ok",
    "{% if false %}{{ 1 is zz }}{% endif %}ok",
    "{{ raise_exception('stop') }}",
    "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}",
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
]
