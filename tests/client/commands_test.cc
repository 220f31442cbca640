#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "client/stream_printer.h"
#include "tests/client/fake_server.h"
#include "tests/client/run_client.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class TokenizeTest : public ::testing::Test {
 protected:
  Outcome Tokenize(std::vector<std::string> args, const std::string& input = "",
                   Terminals terminals = {}) {
    args.insert(args.begin(), {"tokenize", "--server", server_.address()});
    return RunEverlong(args, input, terminals);
  }

  FakeServer server_;
};

TEST_F(TokenizeTest, PrintsIdsOnALine) {
  EXPECT_EQ(Tokenize({"ab"}).out, "1 97 98\n");
  EXPECT_EQ(Tokenize({"ab", "--no-special-tokens"}).out, "97 98\n");
  EXPECT_EQ(Tokenize({"-"}, "a\n").out, "1 97 10\n");
}

TEST_F(TokenizeTest, DecodesWhatItPrints) {
  const std::string text = "naïve 深\n\ttext";
  const Outcome ids = Tokenize({text, "--no-special-tokens"});
  EXPECT_EQ(Tokenize({"--decode", "-"}, ids.out).out, text);
}

TEST_F(TokenizeTest, DecodesJsonArrays) {
  EXPECT_EQ(Tokenize({"--decode", "[1, 97,\n98]"}).out, "<s>ab");
  EXPECT_EQ(Tokenize({"--decode", "1 97", "--no-special-tokens"}).out, "a");
}

TEST_F(TokenizeTest, EndsTheLineOnATerminalOnly) {
  EXPECT_EQ(Tokenize({"--decode", "97"}, "", {.out = true}).out, "a\n");
  EXPECT_EQ(Tokenize({"--decode", "97"}).out, "a");
}

TEST_F(TokenizeTest, JsonParsesBackToTheResponse) {
  v1::TokenizeResponse ids;
  ASSERT_TRUE(
      google::protobuf::util::JsonStringToMessage(Tokenize({"a", "--json"}).out, &ids).ok());
  EXPECT_EQ(ids.ShortDebugString(), "token_ids: 1 token_ids: 97");
  v1::DetokenizeResponse text;
  ASSERT_TRUE(
      google::protobuf::util::JsonStringToMessage(Tokenize({"97", "--decode", "--json"}).out, &text)
          .ok());
  EXPECT_EQ(text.text(), "a");
}

TEST_F(TokenizeTest, WrongIdsAreWrongUsage) {
  for (const char* ids : {"12x", "x", "1.5", "99999999999"}) {
    const Outcome outcome = Tokenize({"--decode", std::string("3 ") + ids});
    EXPECT_EQ(outcome.code, 2);
    EXPECT_EQ(outcome.err, std::string("everlong: '") + ids + "' is no token id\n");
  }
}

TEST_F(TokenizeTest, FailuresComeFromTheServer) {
  server_.unary_ending = {absl::StatusCode::kOutOfRange, "token_ids[0]: 300 is not below 256", {}};
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{"a"}, std::vector<std::string>{"--decode", "300"}}) {
    const Outcome outcome = Tokenize(args);
    EXPECT_EQ(outcome.code, 1);
    EXPECT_EQ(outcome.err, "everlong: OUT_OF_RANGE: token_ids[0]: 300 is not below 256\n");
  }
}

TEST(ModelsTest, PrintsATable) {
  const FakeServer server;
  const Outcome outcome = RunEverlong({"models", "--server", server.address()});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.out,
            "NAME   ARCHITECTURE      LAYERS  HEADS Q/KV x DIM  VOCABULARY  TRAINED LENGTH  SERVED "
            "LENGTH  KV BYTES/TOKEN  CHAT  DEVICE\n"
            "bytes  LlamaForCausalLM  2       4/2 x 16          256         4096            2048   "
            "        512             yes   cpu\n");
}

TEST(ModelsTest, JsonParsesBackToTheResponse) {
  const FakeServer server;
  const Outcome outcome = RunEverlong({"models", "--server", server.address(), "--json"});
  v1::ListModelsResponse models;
  ASSERT_TRUE(google::protobuf::util::JsonStringToMessage(outcome.out, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).DebugString(), server.model.DebugString());
}

TEST(UsageTest, NoCommandPrintsHelp) {
  const Outcome outcome = RunEverlong({});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("Usage: everlong"));
  EXPECT_EQ(outcome.out, "");
}

TEST(UsageTest, MistakesAreOneSentence) {
  const Outcome unknown = RunEverlong({"generat"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_EQ(unknown.err,
            "everlong: The following argument was not expected: generat; see `everlong --help`\n");
  const Outcome value = RunEverlong({"generate", "hi", "--top-k", "many"});
  EXPECT_EQ(value.code, 2);
  EXPECT_EQ(value.err,
            "everlong: Could not convert: --top-k = many; see `everlong generate --help`\n");
}

TEST(UsageTest, HelpOfEachCommand) {
  for (const char* command : {"generate", "chat", "tokenize", "models", "bench"}) {
    const Outcome outcome = RunEverlong({command, "--help"});
    EXPECT_EQ(outcome.code, 0);
    EXPECT_THAT(outcome.out, HasSubstr("--server"));
    EXPECT_EQ(outcome.err, "");
  }
}

TEST(UsageTest, PrintsTheVersion) {
  EXPECT_THAT(RunEverlong({"--version"}).out, StartsWith("everlong "));
}

TEST(ServerOptionTest, AddressNeedsAPort) {
  for (const char* server : {"localhost", "http://localhost:50051", ""}) {
    const Outcome outcome = RunEverlong({"models", "--server", server});
    EXPECT_EQ(outcome.code, 2);
    EXPECT_THAT(outcome.err, HasSubstr("is no address; give HOST:PORT"));
  }
}

TEST(ServerOptionTest, AnUnreachableServerIsExplained) {
  std::string address;
  {
    const FakeServer server;
    address = server.address();
  }
  for (const std::vector<std::string>& args : {std::vector<std::string>{"models"},
                                               {"generate", "hi"},
                                               {"tokenize", "hi"},
                                               {"bench"},
                                               {"chat"}}) {
    std::vector<std::string> with_server = args;
    with_server.insert(with_server.end(), {"--server", address});
    const Outcome outcome = RunEverlong(with_server);
    EXPECT_EQ(outcome.code, 1);
    EXPECT_EQ(outcome.err, "everlong: UNAVAILABLE: no connection to " + address +
                               " (Connection refused); start a server with `everlong-server "
                               "--model PATH` or name another with --server HOST:PORT\n");
  }
}

TEST(ServerOptionTest, EnvironmentNamesTheServerUnlessTheOptionDoes) {
  const FakeServer server;
  ASSERT_EQ(setenv("EVERLONG_SERVER", server.address().c_str(), 1), 0);
  EXPECT_EQ(RunEverlong({"models"}).code, 0);
  ASSERT_EQ(setenv("EVERLONG_SERVER", "127.0.0.1:1", 1), 0);
  EXPECT_EQ(RunEverlong({"models"}).code, 1);
  EXPECT_EQ(RunEverlong({"models", "--server", server.address()}).code, 0);
  ASSERT_EQ(unsetenv("EVERLONG_SERVER"), 0);
}

TEST(ProgressLineTest, FillsInProportionAndTellsTheRest) {
  v1::Prefill prefill;
  prefill.set_total_tokens(1'000'000);
  EXPECT_EQ(ProgressLine(prefill, 0), "[                    ] 0/1000000 tokens");
  prefill.set_done_tokens(500'000);
  EXPECT_EQ(ProgressLine(prefill, 5000),
            "[##########          ] 500000/1000000 tokens, 5000 tokens/s, 1m40s left");
  prefill.set_done_tokens(1'000'000);
  EXPECT_EQ(ProgressLine(prefill, 0), "[####################] 1000000/1000000 tokens");
}

TEST(ProgressLineTest, SurvivesNonsense) {
  v1::Prefill prefill;
  prefill.set_done_tokens(9);
  EXPECT_EQ(ProgressLine(prefill, 0), "[####################] 1/1 tokens");
  prefill.set_done_tokens(-9);
  EXPECT_EQ(ProgressLine(prefill, 0), "[                    ] 0/1 tokens");
}

}  // namespace
}  // namespace everlong
