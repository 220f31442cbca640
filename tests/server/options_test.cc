#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>

namespace everlong {
namespace {

using ::testing::HasSubstr;

class OptionsTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::optional<ServerOptions>> Parse(std::vector<std::string> arguments) {
    const auto getenv = [this](const char* name) {
      const auto it = environment_.find(name);
      return it == environment_.end() ? nullptr : it->second.c_str();
    };
    return ParseOptions(std::move(arguments), getenv, out_);
  }

  ServerOptions ParseOk(std::vector<std::string> arguments) {
    auto options = Parse(std::move(arguments));
    EXPECT_TRUE(options.ok()) << options.status();
    return options.ok() ? options->value() : ServerOptions();
  }

  std::string Error(std::vector<std::string> arguments) {
    const auto options = Parse(std::move(arguments));
    EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(options.status().message());
  }

  // Path of a file with this text.
  std::string Yaml(const std::string& text) {
    const std::string path = ::testing::TempDir() + "/everlong_options.yaml";
    std::ofstream(path) << text;
    return path;
  }

  std::map<std::string, std::string> environment_;
  std::ostringstream out_;
};

TEST_F(OptionsTest, DefaultsAreThoseOfTheTable) {
  const ServerOptions options = ParseOk({"--model", "m"});
  EXPECT_EQ(options.model, "m");
  EXPECT_EQ(options.listen, "127.0.0.1:50051");
  EXPECT_EQ(options.device, "auto");
  EXPECT_EQ(options.drain, absl::Seconds(30));
  EXPECT_EQ(options.max_message_bytes, 64 << 20);
  const EngineOptions engine;
  EXPECT_EQ(options.engine.max_batch_tokens, engine.max_batch_tokens);
  EXPECT_EQ(options.engine.max_running, engine.max_running);
  EXPECT_EQ(options.engine.max_waiting, engine.max_waiting);
  EXPECT_EQ(options.engine.kv_type, engine.kv_type);
  EXPECT_EQ(options.weight_type, std::nullopt);
}

TEST_F(OptionsTest, FlagBeforeEnvironmentBeforeFileBeforeDefault) {
  const std::string file = Yaml(
      "model: file\nmax_context: 100\nmax-running: 5\nmax-waiting: 6\nkv_device_bytes: 1GiB\n");
  environment_ = {{"EVERLONG_MAX_CONTEXT", "200"}, {"EVERLONG_MAX_RUNNING", "7"}};
  const ServerOptions options = ParseOk({"--config", file, "--max-context", "300"});
  EXPECT_EQ(options.model, "file");
  EXPECT_EQ(options.engine.max_context, 300);
  EXPECT_EQ(options.engine.max_running, 7);
  EXPECT_EQ(options.engine.max_waiting, 6);
  EXPECT_EQ(options.engine.kv_device_bytes, int64_t{1} << 30);
  EXPECT_EQ(options.engine.max_batch_tokens, 0);
}

TEST_F(OptionsTest, EveryOptionCanBeGivenInAllThreeWays) {
  const std::map<std::string, std::string> other = {{"model", "x"},
                                                    {"listen", "[::1]:0"},
                                                    {"metrics-listen", "localhost:9"},
                                                    {"device", "cpu"},
                                                    {"kv-type", "bf16"},
                                                    {"weight-type", "fp8"},
                                                    {"ready-file", "r"},
                                                    {"log-level", "debug"},
                                                    {"attention", "dense"},
                                                    {"preset", "5k"},
                                                    {"selector", "hip"},
                                                    {"positions", "true"},
                                                    {"refresh", "8,4"},
                                                    {"stages", "64:128,8:64"},
                                                    {"chunk-score", "last"},
                                                    {"head-reduction", "all"},
                                                    {"index-bits", "2"},
                                                    {"attention-layers", "0-2 mode=dense"}};
  for (const Option& option : OptionTable()) {
    const auto it = other.find(option.name);
    const std::string value = it == other.end() ? "4096" : it->second;
    environment_ = {{"EVERLONG_MODEL", "m"}};
    EXPECT_TRUE(Parse({"--" + option.name, value}).ok()) << option.name;
    EXPECT_TRUE(Parse({"--config", Yaml(option.name + ": '" + value + "'\n")}).ok()) << option.name;
    environment_[EnvironmentName(option)] = value;
    EXPECT_TRUE(Parse({}).ok()) << option.name;
    EXPECT_TRUE(EnvironmentName(option).starts_with("EVERLONG_"));
  }
}

TEST_F(OptionsTest, AttentionIsSetForAllLayersAndForSome) {
  const ServerOptions options =
      ParseOk({"--model", "m", "--attention", "infinite_hip", "--preset", "3k-fast", "--budget",
               "1024", "--sinks", "64", "--window", "512", "--positions", "clipped", "--refresh",
               "16,8,2", "--attention-layers", "0,4-5 mode=dense; 7 selector=scan budget=4096"});
  const AttentionOverrides& all = options.engine.attention.all;
  EXPECT_EQ(all.mode, AttentionMode::kInfiniteHip);
  EXPECT_EQ(all.preset, "3k-fast");
  EXPECT_EQ(all.budget, 1024);
  EXPECT_EQ(all.num_sinks, 64);
  EXPECT_EQ(all.window, 512);
  EXPECT_EQ(all.positions, PositionRule::kClipped);
  EXPECT_EQ(all.refresh, (std::vector<int32_t>{16, 8, 2}));
  const auto& layers = options.engine.attention.layers;
  ASSERT_EQ(layers.size(), 2u);
  EXPECT_EQ(layers[0].first, (std::vector<int32_t>{0, 4, 5}));
  EXPECT_EQ(layers[0].second.mode, AttentionMode::kDense);
  EXPECT_EQ(layers[1].first, std::vector<int32_t>{7});
  EXPECT_EQ(layers[1].second.selector, SelectorName::kScan);
  EXPECT_EQ(layers[1].second.budget, 4096);
}

TEST_F(OptionsTest, SelectorsAreSetInTheFileAndForSomeLayers) {
  const ServerOptions options = ParseOk(
      {"--model", "m", "--config",
       Yaml("stages: 256:32768:pool,32:8192:every-key:pool,8:2048\n"
            "chunk-score: last\nhead-reduction: all\ndilation: 2\nrerank: 4\nsieve: 16\n"
            "attention-layers: 3 head-reduction=kv_head chunk-score=path stages=64:4096,8:512\n")});
  const AttentionOverrides& all = options.engine.attention.all;
  const std::vector<StageSettings> stages = {{.chunk = 256, .keep = 32768, .pool_rows = true},
                                             {32, 8192, true, true},
                                             {.chunk = 8, .keep = 2048}};
  EXPECT_EQ(all.stages, stages);
  EXPECT_EQ(all.last_probe, true);
  EXPECT_EQ(all.all_heads, true);
  EXPECT_EQ(all.dilation, 2);
  EXPECT_EQ(all.rerank, 4);
  EXPECT_EQ(all.sieve, 16);
  const AttentionOverrides& third = options.engine.attention.layers.at(0).second;
  EXPECT_EQ(third.stages, (std::vector<StageSettings>{{64, 4096}, {8, 512}}));
  EXPECT_EQ(third.last_probe, false);
  EXPECT_EQ(third.all_heads, false);
}

TEST_F(OptionsTest, AttentionErrorsNameTheChoices) {
  const auto error = [this](const char* flag, const char* value) {
    return Error({"--model", "m", flag, value});
  };
  EXPECT_THAT(error("--attention", "sparse"), HasSubstr("auto, dense, infinite_hip"));
  EXPECT_THAT(error("--preset", "9k"), HasSubstr("default, 3k"));
  EXPECT_THAT(error("--stages", "256"), HasSubstr("--stages: '256' is not CHUNK:KEEP"));
  EXPECT_THAT(error("--stages", "256:x"), HasSubstr("'x' is not a number"));
  EXPECT_THAT(error("--stages", "8:8:all"), HasSubstr("'all' is not one of pool, every-key"));
  EXPECT_THAT(error("--chunk-score", "best"), HasSubstr("'best' is not one of path, last"));
  EXPECT_THAT(error("--head-reduction", "x"), HasSubstr("'x' is not one of kv_head, all"));
  EXPECT_THAT(error("--budget", "x"), HasSubstr("--budget: 'x' is not a number"));
  EXPECT_THAT(error("--refresh", "8,,x"), HasSubstr("'x' is not a number"));
  EXPECT_THAT(error("--attention-layers", "mode=dense"), HasSubstr("names no layer"));
  EXPECT_THAT(error("--attention-layers", "5-2 mode=dense"), HasSubstr("'5-2' is no range"));
  EXPECT_THAT(error("--attention-layers", "1 depth=2"), HasSubstr("'depth' is not one of mode"));
  EXPECT_THAT(error("--attention-layers", "1 budget=x"), HasSubstr("'x' is not a number"));
}

TEST_F(OptionsTest, TheConfigurationMayBeNamedInTheEnvironment) {
  environment_["EVERLONG_CONFIG"] = Yaml("model: file\n");
  EXPECT_EQ(ParseOk({}).model, "file");
}

TEST_F(OptionsTest, ErrorsNameWhereTheValueCameFrom) {
  EXPECT_THAT(Error({}), HasSubstr("--model"));
  EXPECT_THAT(Error({"--model", "m", "--max-context", "12x"}),
              HasSubstr("--max-context: '12x' is not a number"));
  EXPECT_THAT(Error({"--model", "m", "--drain-seconds", "-1"}), HasSubstr("[0, 86400]"));
  EXPECT_THAT(Error({"--model", "m", "--drain-seconds", "nan"}), HasSubstr("outside"));
  EXPECT_THAT(Error({"--model", "m", "--device", "tpu"}), HasSubstr("cpu, cuda, auto"));
  EXPECT_THAT(Error({"--model", "m", "--listen", "50051"}), HasSubstr("HOST:PORT"));
  EXPECT_THAT(Error({"--model", "m", "--listen", "host:70000"}), HasSubstr("[0, 65535]"));
  EXPECT_THAT(Error({"--model", "m", "--kv-type", "f64"}), HasSubstr("f32, f16, bf16, fp8"));
  EXPECT_THAT(Error({"--model", "m", "--weight-type", "f16"}), HasSubstr("not one of bf16, fp8"));
  EXPECT_THAT(Error({"--model", "m", "--max-message-bytes", "4GiB"}), HasSubstr("2147483647"));
  EXPECT_THAT(Error({"--no-such-flag"}), HasSubstr("--no-such-flag"));
  EXPECT_THAT(Error({"stray"}), HasSubstr("stray"));
  EXPECT_THAT(Error({"--config", "/no/such/file"}), HasSubstr("/no/such/file"));
  environment_["EVERLONG_THREADS"] = "many";
  EXPECT_THAT(Error({"--model", "m"}), HasSubstr("EVERLONG_THREADS: 'many'"));
}

TEST_F(OptionsTest, YamlErrorsNameTheLine) {
  EXPECT_THAT(Error({"--config", Yaml("model: m\n\nmax_contxt: 5\n")}),
              HasSubstr(".yaml:3: unknown key 'max_contxt'"));
  EXPECT_THAT(Error({"--config", Yaml("model: m\nmax_context: 5x\n")}),
              HasSubstr(".yaml:2: max_context: '5x'"));
  EXPECT_THAT(Error({"--config", Yaml("model: m\nmodel: n\n")}), HasSubstr(":2: key 'model'"));
  EXPECT_THAT(Error({"--config", Yaml("threads: 1\nmodel: [a, b]\n")}), HasSubstr(":2: model"));
  EXPECT_THAT(Error({"--config", Yaml("model:\n")}), HasSubstr(":1: model"));
  EXPECT_THAT(Error({"--config", Yaml("- model\n")}), HasSubstr("KEY: VALUE"));
  EXPECT_THAT(Error({"--config", Yaml("model: [a\n")}), HasSubstr(".yaml:"));
  EXPECT_THAT(Error({"--config", Yaml("config: x\n")}), HasSubstr("unknown key 'config'"));
}

TEST_F(OptionsTest, HelpAndVersionAreAnswers) {
  auto options = Parse({"--help"});
  ASSERT_TRUE(options.ok());
  EXPECT_FALSE(options->has_value());
  for (const Option& option : OptionTable()) {
    EXPECT_THAT(out_.str(), HasSubstr("--" + option.name));
  }
  options = Parse({"--version"});
  ASSERT_TRUE(options.ok());
  EXPECT_FALSE(options->has_value());
  EXPECT_THAT(out_.str(), HasSubstr("everlong-server " EVERLONG_VERSION));
}

TEST(ParseSizeTest, UnitsAreBinary) {
  EXPECT_EQ(*ParseSize("0"), 0);
  EXPECT_EQ(*ParseSize("4096"), 4096);
  EXPECT_EQ(*ParseSize("64KiB"), 64 << 10);
  EXPECT_EQ(*ParseSize("512MiB"), 512 << 20);
  EXPECT_EQ(*ParseSize("4GiB"), int64_t{4} << 30);
  EXPECT_EQ(*ParseSize("2TiB"), int64_t{2} << 40);
  EXPECT_EQ(*ParseSize("9223372036854775807"), INT64_MAX);
}

TEST(ParseSizeTest, AnythingElseIsRefusedWithExamples) {
  for (const char* text : {"", "GiB", "4GB", "4 GiB", "-1", "1.5GiB", "0x10", "9223372036854775808",
                           "8388608TiB", "4GiBGiB", "+4"}) {
    const auto size = ParseSize(text);
    EXPECT_FALSE(size.ok()) << text;
    EXPECT_THAT(std::string(size.status().message()), HasSubstr("4GiB")) << text;
  }
}

}  // namespace
}  // namespace everlong
