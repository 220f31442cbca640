// No template and no context may take more than a bounded time, memory and stack.
#include <string>
#include <vector>

#include "engine/jinja/interpreter.h"
#include "engine/jinja/parser.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/chat_template/rendering.h"

namespace everlong {
namespace {

using testing::HasSubstr;
using Json = nlohmann::ordered_json;

std::string Repeated(std::string_view text, int count) {
  std::string repeated;
  for (int i = 0; i < count; ++i) repeated += text;
  return repeated;
}

std::string RenderedWithin(std::string_view source, const jinja::Limits& limits) {
  try {
    return jinja::Render(*jinja::ParseTemplate(source), Json::object(), limits);
  } catch (const jinja::Error& error) {
    return error.what();
  }
}

TEST(ChatTemplateLimitsTest, StepsAreCounted) {
  const std::string source = "{% for x in range(100) %}{{ x }}{% endfor %}";
  EXPECT_EQ(RenderedWithin(source, {.steps = 500}), "rendering takes more than 500 steps");
  EXPECT_EQ(RenderedWithin(source, {.steps = 5000}).size(), 190);
}

TEST(ChatTemplateLimitsTest, BytesAreCounted) {
  EXPECT_EQ(RenderedWithin("{{ 'abc' * 1000 }}", {.bytes = 2000}),
            "rendering takes more than 2000 bytes");
  EXPECT_EQ(RenderedWithin("{{ 'abc' * 1000 }}", {.bytes = 8000}).size(), 3000);
}

TEST(ChatTemplateLimitsTest, NestingIsCounted) {
  EXPECT_THAT(RenderedWithin("{{ 1 + (2 + (3 + 4)) }}", {.nesting = 4}), HasSubstr("more than 4"));
  EXPECT_EQ(RenderedWithin("{{ 1 + (2 + (3 + 4)) }}", {.nesting = 5}), "10");
}

TEST(ChatTemplateLimitsTest, HostileTemplatesFail) {
  const std::string loops = "{% for a in range(100000) %}{% for b in range(100000) %}";
  const std::vector<std::string> sources = {
      loops + "{% endfor %}{% endfor %}",
      loops + "{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
      "{{ 'x' * 9999999999 }}",
      "{{ [0] * 9999999999 }}",
      "{{ ('x' * 1000000) | replace('', 'y' * 1000) }}",
      "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
      "{{ range(100000) | join('x' * 100000) }}",
      "{{ 'a\\nb' | indent(9999999999) }}",
      "{{ [[[1]]] | tojson(indent=9999999999) }}",
      "{{ 'x'.center(9999999999) }}",
      "{{ 'x'.ljust(9999999999, 'y') }}",
      "{{ '7'.zfill(9999999999) }}",
      "{{ '%9999999999d' % 1 }}",
      "{{ '%.9999999999f' % 1 }}",
      "{{ [1] | batch(9999999999, 0) | list }}",
      "{{ [1] | slice(9999999999) | list }}",
      "{{ 1.5 | round(9999999999) ~ range(9999999999) }}",
      "{{ 10 ** 9999999999 }}",
      // Sharing makes a value that is small in memory and huge to print, compare, hash or write.
      "{% set n = namespace(x=[1]) %}{% for i in range(100) %}{% set n.x = [n.x, n.x] %}{% endfor "
      "%}"
      "{{ n.x }}",
      "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(100) %}{% set n.x = [n.x, n.x] %}"
      "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
      "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(100) %}{% set n.x = [n.x, n.x] %}"
      "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x < n.y }}",
      "{% set n = namespace(x=[1]) %}{% for i in range(100) %}{% set n.x = [n.x, n.x] %}{% endfor "
      "%}"
      "{{ n.x | tojson }}",
      "{% set n = namespace(x=(1,)) %}{% for i in range(100) %}{% set n.x = (n.x, n.x) %}{% endfor "
      "%}"
      "{{ {n.x: 1} }}",
      "{% set n = namespace(x='x') %}{% for i in range(100) %}{% set n.x = n.x ~ n.x %}{% endfor "
      "%}",
      "{% set n = namespace(x=[1]) %}{% for i in range(100) %}{% set n.x = n.x + n.x %}{% endfor "
      "%}",
      "{% set n = namespace(x=[1]) %}{% for i in range(1000) %}{% set n.x = [n.x] %}{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f(x) %}{{ f(x ~ x) }}{{ f(x ~ x) }}{% endmacro %}{{ f('x') }}",
      "{{ " + Repeated("1 + ", 5000) + "1 }}",
      "{{ x" + Repeated(".x", 5000) + " }}",
      "{{ x" + Repeated(" | list", 5000) + " }}",
      "{{ " + Repeated("(", 5000) + "1" + Repeated(")", 5000) + " }}",
      "{{ " + Repeated("[", 5000) + Repeated("]", 5000) + " }}",
      "{{ " + Repeated("not ", 5000) + "1 }}",
      "{{ " + Repeated("-", 5000) + "1 }}",
      "{{ " + Repeated("1 if 1 else ", 5000) + "1 }}",
      "{% set " + Repeated("(", 5000) + "x" + Repeated(")", 5000) + " = 1 %}",
      Repeated("{% if 1 %}", 5000) + Repeated("{% endif %}", 5000),
      Repeated("{% for x in [1] %}", 5000) + Repeated("{% endfor %}", 5000),
      Repeated("x", 2 << 20),
  };
  for (const std::string& source : sources) {
    EXPECT_FALSE(Render(source, Json::object()).ok()) << source.substr(0, 200);
  }
}

// Tuples that share their parts are refused or hashed in bounded time.
TEST(ChatTemplateLimitsTest, HostileContextsFail) {
  Json deep = 1;
  for (int i = 0; i < 5000; ++i) deep = Json::array({std::move(deep)});
  EXPECT_THAT(Rendered("", {{"x", std::move(deep)}}), HasSubstr("nested"));

  const std::string text(4 << 20, 'a');
  EXPECT_THAT(Rendered("{{ x.find(y) }}", {{"x", text}, {"y", text.substr(1 << 20) + "b"}}),
              HasSubstr("steps"));
  EXPECT_THAT(Rendered("{% for a in range(9999) %}{{ x[4000000] }}{% endfor %}", {{"x", text}}),
              HasSubstr("steps"));
  EXPECT_THAT(Rendered("{% for a in range(9999) %}{{ x == y }}{% endfor %}",
                       {{"x", text + "b"}, {"y", text + "c"}}),
              HasSubstr("steps"));
}

TEST(ChatTemplateLimitsTest, LongListsOfTagsAreNotDeep) {
  EXPECT_EQ(Rendered(Repeated("{{ 1 }}", 5000)), Repeated("1", 5000));
  EXPECT_EQ(Rendered("{% if x == 0 %}" + Repeated("{% elif x == 0 %}", 5000) +
                     "{% else %}else{% endif %}"),
            "else");
  EXPECT_EQ(Rendered("{{ 1 " + Repeated("~ 1 ", 4999) + "}}"), Repeated("1", 5000));
}

TEST(ChatTemplateLimitsTest, NamespacesThatHoldThemselvesDoNoHarm) {
  EXPECT_EQ(Rendered("{% set a = namespace() %}{% set a.self = [a] %}{% macro m() %}{% endmacro %}"
                     "{% set a.m = m %}{{ a.self[0].self[0] is defined }}"),
            "True");
}

// A million tokens of chat, with room to spare.
TEST(ChatTemplateLimitsTest, LongChatsRender) {
  Json messages = Json::array();
  for (int i = 0; i < 20000; ++i) {
    messages.push_back({{"role", i % 2 == 0 ? "user" : "assistant"},
                        {"content", std::string(400, 'x') + " </think> "}});
  }
  const std::string text = Rendered(
      "{% for message in messages %}{% set content = message.content.split('</think>')[0] | trim %}"
      "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
      "{{ raise_exception('roles') }}{% endif %}"
      "{{ '<|start|>' + message['role'] + '\n' + content + '<|end|>' }}{% endfor %}",
      {{"messages", std::move(messages)}});
  EXPECT_EQ(text.size(), 10000 * (9 + 4 + 1 + 400 + 7) + 10000 * (9 + 9 + 1 + 400 + 7));
}

}  // namespace
}  // namespace everlong
