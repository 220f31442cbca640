#include "engine/chat_template.h"

#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/chat_template/rendering.h"

namespace everlong {
namespace {

using testing::HasSubstr;
using Json = nlohmann::ordered_json;

struct Case {
  std::string_view source;
  std::string_view expected;
};

void ExpectRendered(const std::vector<Case>& cases, const Json& context = Json::object()) {
  for (const Case& c : cases) EXPECT_EQ(Rendered(c.source, context), c.expected) << c.source;
}

TEST(ChatTemplateTest, RendersAChatMlConversation) {
  const Json context = Json::parse(R"({
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße"}],
    "add_generation_prompt": true})");
  EXPECT_EQ(
      Rendered("{% for message in messages %}"
               "{{'<|im_start|>' + message['role'] + '\n' + message.content + '<|im_end|>\n'}}"
               "{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
               context),
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGrüße<|im_end|>\n"
      "<|im_start|>assistant\n");
}

TEST(ChatTemplateTest, TagsOnTheirOwnLineLeaveNoWhiteSpace) {
  ExpectRendered({
      {"a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"},
      {"a {{ 1 }} \n", "a 1 "},
      {"a \n {{- 1 -}} \n b", "a1b"},
      {"a\n  {%+ if true +%}\nb{% endif %}", "a\n  \nb"},
      {"a\n  {# comment #}\nb", "a\nb"},
      {"\r\na\rb\r\n", "\na\nb"},
      {"\u00a0{%- set x = 1 -%}\u3000{{ x }}", "1"},
  });
}

TEST(ChatTemplateTest, RawBlocksAreText) {
  ExpectRendered({
      {"{% raw %}{{ a }}{% b %}{# c #}{% endraw %}", "{{ a }}{% b %}{# c #}"},
      {"  {%- raw -%}  x  {%- endraw -%}  y", "xy"},
  });
}

TEST(ChatTemplateTest, NumbersFollowPython) {
  ExpectRendered({
      {"{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7 / 2 }} {{ 6 / 3 }}",
       "3 -4 2 -2 3.5 2.0"},
      {"{{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }}", "1024 0.5 4 64"},
      {"{{ -7.5 // 2 }} {{ -7.5 % 2 }} {{ 0.1 + 0.2 }}", "-4.0 0.5 0.30000000000000004"},
      {"{{ 1e16 }} {{ 123456789012345680.0 }} {{ 1e-5 }} {{ 1.0 }} {{ -0.0 }}",
       "1e+16 1.2345678901234568e+17 1e-05 1.0 -0.0"},
      {"{{ true + 1 }} {{ 1 == true }} {{ 1_000 }}", "2 True 1000"},
      {"{{ 2.5 | round }} {{ 2.675 | round(2) }} {{ 42.55 | round(1, 'floor') }}", "2.0 2.67 42.5"},
      {"{{ '12.7' | int }} {{ 'ff' | int(base=16) }} {{ 'x' | int(5) }} {{ '1e3' | float }}",
       "12 255 5 1000.0"},
  });
}

TEST(ChatTemplateTest, IntegersPastSixtyFourBitsFailAndDoNotWrap) {
  for (const char* source :
       {"{{ 9223372036854775807 + 1 }}", "{{ 3 ** 50 }}", "{{ -9223372036854775807 - 2 }}",
        "{{ 4611686018427387904 * 2 }}", "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ -(-9223372036854775807 - 1) }}", "{{ (-9223372036854775807 - 1) | abs }}",
        "{{ '9223372036854775808' | int }}", "{{ 1e300 | int }}", "{{ 9223372036854775808 }}"}) {
    EXPECT_FALSE(Render(source, Json::object()).ok()) << source;
  }
  EXPECT_EQ(Rendered("{{ x }}", {{"x", 18446744073709551615U}}),
            "chat template: 18446744073709551615 in the context is too large: integers have 64 "
            "bits");
  EXPECT_EQ(Rendered("{{ (-9223372036854775807 - 1) % -1 }}"), "0");
}

TEST(ChatTemplateTest, ValuesPrintLikePython) {
  const Json context = Json::parse(
      R"({"all": [1, 2.0, "it's", "say \"hi\"", "\n\u200b\\", true, null, {"k": [1]}, []]})");
  EXPECT_EQ(Rendered("{{ all }}", context),
            "[1, 2.0, \"it's\", 'say \"hi\"', '\\n\\u200b\\\\', True, None, {'k': [1]}, []]");
  ExpectRendered({
      {"{{ (1,) }} {{ () }} {{ (1, 'a') }}", "(1,) () (1, 'a')"},
      {"{{ {'a': 1}.items() }}", "dict_items([('a', 1)])"},
      {"{{ missing }}|{{ [missing] }}|{{ none }}", "|[Undefined]|None"},
      {"{{ 'a' ~ 1 ~ none ~ missing }}", "a1None"},
  });
}

TEST(ChatTemplateTest, WritesJsonLikePython) {
  const Json context =
      Json::parse(R"({"x": {"b": [1, 2.0, "é\"\u001f"], "a": {}, "c": null, "d": true}})");
  EXPECT_EQ(Rendered("{{ x | tojson }}", context),
            R"({"b": [1, 2.0, "é\"\u001f"], "a": {}, "c": null, "d": true})");
  EXPECT_EQ(Rendered("{{ x | tojson(ensure_ascii=true, sort_keys=true) }}", context),
            R"({"a": {}, "b": [1, 2.0, "\u00e9\"\u001f"], "c": null, "d": true})");
  EXPECT_EQ(Rendered("{{ x | tojson(indent=2) }}", context),
            "{\n  \"b\": [\n    1,\n    2.0,\n    \"é\\\"\\u001f\"\n  ],\n  \"a\": {},\n"
            "  \"c\": null,\n  \"d\": true\n}");
  EXPECT_EQ(Rendered("{{ x.b | tojson(separators=(',', ':')) }}", context),
            R"([1,2.0,"é\"\u001f"])");
  EXPECT_EQ(Rendered("{{ '😀' | tojson(true) }}"), R"("\ud83d\ude00")");
}

TEST(ChatTemplateTest, TextIsMadeOfCharacters) {
  ExpectRendered({
      {"{{ 'Łódź' | length }}{{ 'Łódź'[1] }}{{ 'Łódź'[-1] }}{{ 'Łódź'[1:3] }}", "4óźód"},
      {"{{ 'Łódź'[::-1] }} {{ 'abc'[5:] }} {{ 'abc'[-2:] }} {{ 'abc'[::2] }}", "źdóŁ  bc ac"},
      {"{{ 'straße' | upper }} {{ 'ÉÀŁ' | lower }} {{ 'łódź' | capitalize }}", "STRASSE éàł Łódź"},
      {"{{ ' \u00a0x\u3000' | trim }}", "x"},
      {"{{ 'éaé'.strip('é') }}", "a"},
      {"{{ 'ééb'.find('b') }}", "2"},
      {"{{ '\\u00e9\\x41\\101\\U0001F600' }}", "éAA😀"},
  });
}

TEST(ChatTemplateTest, TextMethods) {
  ExpectRendered({
      {"{{ 'a,b,,c'.split(',') }}{{ 'a b  c '.split(none, 1) }}",
       "['a', 'b', '', 'c']['a', 'b  c ']"},
      {"{{ 'a,b,c'.rsplit(',', 1) }}{{ ' a  b '.rsplit() }}", "['a,b', 'c']['a', 'b']"},
      {"{{ 'x</think>y'.split('</think>')[-1] }}", "y"},
      {"{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'c')) }}", "TrueTrue"},
      {"{{ 'aXbX'.replace('X', '-', 1) }}{{ 'ab'.replace('', '.') }}", "a-bX.a.b."},
      {"{{ '-'.join(['a', 'b']) }}{{ 'banana'.count('an') }}", "a-b2"},
      {"{{ \"it's a dog\".title() }} {{ \"it's a dog\" | title }}", "It'S A Dog It's A Dog"},
      {"{{ 'a-b'.partition('-') }}{{ '7'.zfill(3) }}{{ 'ab'.center(5) }}|",
       "('a', '-', 'b')007  ab |"},
      {"{{ '{} {b} {0[1]}'.format([1, 2], b='x') }}", "[1, 2] x 2"},
      {"{{ '%05.1f|%-3s|%x' % (2.25, 'a', 255) }}", "002.2|a  |ff"},
  });
}

TEST(ChatTemplateTest, SafeTextEscapesWhatIsAddedToIt) {
  ExpectRendered({
      {"{{ '<a>' | e }}", "&lt;a&gt;"},
      {"{{ ('<a>' | safe) + '<b>' }}", "<a>&lt;b&gt;"},
      {"{{ '<b>' ~ ('<a>' | safe) }}", "<b><a>"},
  });
}

TEST(ChatTemplateTest, ListsAndDictionaries) {
  ExpectRendered({
      {"{{ [1, 2, 3][::-1] }}{{ [1, 2, 3][-2:] }}{{ [1] + [2] }}{{ [0] * 2 }}",
       "[3, 2, 1][2, 3][1, 2][0, 0]"},
      {"{{ {'a': 1, 'b': 2}.get('c', 3) }}{{ {'a': 1}['a'] }}{{ {'a': 1}.a }}", "311"},
      {"{{ {'items': 1}.items() | list }}{{ {'items': 1}['items'] }}", "[('items', 1)]1"},
      {"{{ 'a' in {'a': 1} }}{{ 2 not in [1] }}{{ 1 < 2 < 3 }}{{ [1] == [1.0] }}",
       "TrueTrueTrueTrue"},
      {"{{ range(5, 0, -2) | list }}{{ range(3)[-1] }}", "[5, 3, 1]2"},
      {"{{ dict(a=1, b=2) }}{{ dict([['k', 'v']]) }}", "{'a': 1, 'b': 2}{'k': 'v'}"},
  });
}

TEST(ChatTemplateTest, NothingCanBeChanged) {
  for (const char* source :
       {"{{ [1].append(2) }}", "{{ {'a': 1}.pop('a') }}", "{{ {'update': 1}.update({}) }}",
        "{% set x = {} %}{% set x.a = 1 %}", "{{ ''.__class__() }}", "{{ [1].sort() }}"}) {
    EXPECT_FALSE(Render(source, Json::object()).ok()) << source;
  }
}

TEST(ChatTemplateTest, SequenceFilters) {
  const Json context = Json::parse(R"({"people": [
    {"name": "Ann", "age": 31, "home": {"city": "Oslo"}}, {"name": "bob", "age": 25, "ok": true},
    {"name": "Cid", "age": 31, "ok": false}]})");
  ExpectRendered(
      {
          {"{{ people | map(attribute='name') | join(', ') }}", "Ann, bob, Cid"},
          {"{{ people | map(attribute='home.city', default='?') | list }}", "['Oslo', '?', '?']"},
          {"{{ people | selectattr('ok') | map(attribute='name') | list }}", "['bob']"},
          {"{{ people | rejectattr('ok', 'defined') | map(attribute='name') | first }}", "Ann"},
          {"{{ people | selectattr('age', 'gt', 30) | list | length }}", "2"},
          {"{{ people | sort(attribute='age,name', reverse=true) | map(attribute='name') | list }}",
           "['Cid', 'Ann', 'bob']"},
          {"{{ people | sum(attribute='age') }} {{ (people | max(attribute='age')).name }}",
           "87 Ann"},
          {"{{ ['b', 'A', 'a'] | sort }}{{ ['b', 'A', 'a'] | unique | list }}",
           "['A', 'a', 'b']['b', 'A']"},
          {"{{ {'b': 1, 'A': 2} | dictsort }}{{ {'a': 2, 'b': 1} | dictsort(by='value') }}",
           "[('A', 2), ('b', 1)][('b', 1), ('a', 2)]"},
          {"{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}",
           "[[1, 2], [3, 0]][[1, 2], [3]]"},
          {"{{ [1, 2, 3] | select('odd') | list }}{{ [3, 1] | reverse | list }}", "[1, 3][1, 3]"},
          {"{{ 'a\nb\n\nc' | indent(2) }}", "a\n  b\n\n  c"},
          {"{{ missing | default('d') }}{{ '' | d('e', true) }}{{ none | d('f') }}", "deNone"},
      },
      context);
}

TEST(ChatTemplateTest, AGeneratorRunsOnceAndIsAlwaysTrue) {
  ExpectRendered({
      {"{% set g = [1, 2] | map('string') %}{{ g | list }}{{ g | list }}", "['1', '2'][]"},
      {"{% set g = [1, 2, 3] | select %}{{ g | first }}{{ g | list }}", "1[2, 3]"},
      {"{% if [] | select %}true{% endif %}", "true"},
  });
  EXPECT_FALSE(Render("{{ [1] | map('string') | length }}", Json::object()).ok());
}

TEST(ChatTemplateTest, Tests) {
  ExpectRendered({
      {"{{ x is defined }}{{ x is undefined }}{{ none is none }}{{ 1 is not none }}",
       "FalseTrueTrueTrue"},
      {"{{ 'a' is string }}{{ {} is mapping }}{{ [] is sequence }}{{ 'a' is iterable }}",
       "TrueTrueTrueTrue"},
      {"{{ true is number }}{{ true is integer }}{{ 1 is integer }}{{ 1.0 is float }}",
       "TrueFalseTrueTrue"},
      {"{{ true is boolean }}{{ 1 is true }}{{ false is false }}{{ 4 is even }}{{ 3 is odd }}",
       "TrueFalseTrueTrueTrue"},
      {"{{ 9 is divisibleby 3 }}{{ 1 is in [1] }}{{ 1 is eq 1 }}{{ 2 is gt(1) }}",
       "TrueTrueTrueTrue"},
      {"{{ not 1 is odd }}{{ 'a' if x is not defined and true else 'b' }}", "Falsea"},
  });
}

TEST(ChatTemplateTest, UndefinedPrintsAsNothingAndFailsOnUse) {
  ExpectRendered({
      {"{{ x }}{{ x ~ 'a' }}{{ x | upper }}{{ x | length }}{% for y in x %}{% endfor %}", "a0"},
      {"{{ x.y }}", "chat template, line 1: x is undefined"},
      {"{{ {'a': 1}.b.c }}", "chat template, line 1: b is undefined"},
      {"{{ x + 1 }}", "chat template, line 1: x is undefined"},
      {"{{ x() }}", "chat template, line 1: x is undefined"},
      {"{{ x | tojson }}", "chat template, line 1: a Undefined cannot be written as JSON"},
      {"{{ [][0] }}{{ 'a' if false }}", ""},
  });
}

TEST(ChatTemplateTest, Loops) {
  ExpectRendered({
      {"{% for x in 'abc' %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}"
       "{{ loop.last }}{{ loop.length }} {% endfor %}",
       "103TrueFalse3 212FalseFalse3 321FalseTrue3 "},
      {"{% for x in [1, 2] %}{{ loop.previtem }}<{{ x }}<{{ loop.nextitem }} {% endfor %}",
       "<1<2 1<2< "},
      {"{% for x in [1, 2, 3] if x is odd %}{{ loop.index }}/{{ loop.length }} {% endfor %}",
       "1/2 2/2 "},
      {"{% for x in [] %}{% else %}none{% endfor %}", "none"},
      {"{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "123"},
      {"{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"},
      {"{% for x in range(9) %}{% if x == 1 %}{% continue %}{% endif %}"
       "{% if x == 3 %}{% break %}{% endif %}{{ x }}{% endfor %}",
       "02"},
      {"{% for x in [1, 2, 3] %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x // 2) }} {% endfor %}",
       "aTrue bTrue aFalse "},
  });
}

TEST(ChatTemplateTest, AssignmentsStayInTheirScope) {
  ExpectRendered({
      {"{% set x = 1 %}{% for y in [2] %}{% set x = y %}{{ x }}{% endfor %}{{ x }}", "21"},
      {"{% if true %}{% set x = 1 %}{% endif %}{{ x }}", "1"},
      {"{% set n = namespace(x=0) %}{% for y in [1, 2] %}{% set n.x = n.x + y %}{% endfor %}{{ n.x "
       "}}",
       "3"},
      {"{% set x | upper %}a{{ 'b' }}{% endset %}{{ x }}", "AB"},
      {"{% set a, b = 1, 2 %}{{ a }}{{ b }}", "12"},
      {"{% with a = 1 %}{{ a }}{% endwith %}{{ a }}", "1"},
      {"{% filter upper | trim %} a {% endfilter %}", "A"},
      {"{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x }}", "a"},
  });
}

TEST(ChatTemplateTest, Macros) {
  ExpectRendered({
      {"{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, c=3) }}",
       "121 123"},
      {"{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}", "False"},
      {"{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, *[2], x=3, **{'y': 4}) }}",
       "(1, 2){'x': 3, 'y': 4}"},
      {"{% macro m() %}[{{ caller(1) }}]{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}",
       "[1]"},
      {"{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
       "3210"},
      {"{% macro m() %}{{ later }}{% endmacro %}{% set later = 1 %}{{ m() }}", "1"},
      {"{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
       "chat template, line 1: the macro m takes at most 1 arguments, 2 were given"},
  });
}

TEST(ChatTemplateTest, GlobalFunctions) {
  ExpectRendered({
      {"{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
       "1212"},
      {"{% set j = joiner() %}{% for x in 'ab' %}{{ j() }}{{ x }}{% endfor %}", "a, b"},
      {"{{ strftime_now('%Y') | length }}", "4"},
      {"{{ raise_exception('stop: ' ~ 1) }}", "chat template, line 1: stop: 1"},
  });
}

TEST(ChatTemplateTest, ErrorsNameTheLineAndTheReason) {
  ExpectRendered({
      {"a\nb\n{{ 1 + }}", "chat template, line 3: expected an expression, got '}}'"},
      {"\n{% if x %}\n\n", "chat template, line 3: the tag 'endif' is missing"},
      {"\n{% nonsense %}", "chat template, line 2: the tag 'nonsense' is unknown or out of place"},
      {"\n{% for x in [1] %}\n{{ x\n  .y.z }}{% endfor %}",
       "chat template, line 4: y is undefined"},
      {"{{ 'abc", "chat template, line 1: a string is not closed"},
      {"\n{# abc", "chat template, line 2: a comment is not closed"},
      {"{{ (1] }}", "chat template, line 1: ']' closes nothing"},
      {"{{ a ? b }}", "chat template, line 1: unexpected character '?'"},
      {"{{ 1 | nope }}", "chat template, line 1: there is no filter 'nope'"},
      {"{{ 1 is nope }}", "chat template, line 1: there is no test 'nope'"},
      {"{{ 'a' | replace('a') }}", "chat template, line 1: replace needs the argument 'new'"},
      {"{{ 'a' | trim(x=1) }}", "chat template, line 1: trim takes no argument 'x'"},
      {"{{ 'a' + 1 }}", "chat template, line 1: str + int is not possible"},
      {"{{ 'a' < 1 }}", "chat template, line 1: str and int have no order"},
      {"{{ 1 / 0 }}", "chat template, line 1: division by zero"},
      {"{% include 'x' %}", "chat template, line 1: the tag 'include' is unknown or out of place"},
      {"{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n\n{{ m() }}",
       "chat template, line 2: division by zero"},
      {"\n\n{{ raise_exception('no\nway') }}", "chat template, line 3: no\nway"},
  });
}

TEST(ChatTemplateTest, AllErrorsAreInvalidArgument) {
  EXPECT_EQ(ChatTemplate::Parse("{% if %}").status().code(), absl::StatusCode::kInvalidArgument);
  const auto parsed = ChatTemplate::Parse("{{ x.y }}");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ((*parsed)->Render(Json::object()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*parsed)->Render(Json::array()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ChatTemplateTest, RefusesWhatIsNotUtf8) {
  EXPECT_EQ(Rendered("a\xFF"), "chat template: not valid UTF-8 at byte 1");
  EXPECT_THAT(Rendered("{{ x }}", {{"x", "ab\xC3"}}), HasSubstr("not valid UTF-8 at byte 2"));
  EXPECT_THAT(Rendered("", {{"x", {{"k\x80", 1}}}}), HasSubstr("not valid UTF-8 at byte 1"));
}

TEST(ChatTemplateTest, RendersInSeveralThreadsAtOnce) {
  const auto parsed = ChatTemplate::Parse("{% for x in range(n) %}{{ x }}{% endfor %}");
  ASSERT_TRUE(parsed.ok());
  std::vector<std::thread> threads;
  for (int n = 1; n <= 4; ++n) {
    threads.emplace_back([&parsed, n] {
      for (int i = 0; i < 200; ++i) {
        const auto text = (*parsed)->Render({{"n", n}});
        ASSERT_TRUE(text.ok());
        EXPECT_EQ(*text, std::string("0123").substr(0, static_cast<size_t>(n)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace everlong
