#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "google/rpc/error_details.pb.h"
#include "tests/client/fake_server.h"
#include "tests/client/run_client.h"

namespace everlong {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;

const std::vector<std::string> kHello = {
    "accepted { request_id: 7 model: 'bytes' prompt_tokens: 2 }",
    "prefill { done_tokens: 2 total_tokens: 2 }",
    "output { text: 'Hel' token_ids: [72, 101, 108] }",
    "output { text: 'lo' token_ids: [108, 111] }",
    "sample_finished { reason: FINISH_REASON_LENGTH }",
    "finished { usage { prompt_tokens: 2 output_tokens: 5 } timings { queue { nanos: 1000000 } "
    "first_token { nanos: 250000000 } per_token { nanos: 20000000 } } }"};

class GenerateTest : public ::testing::Test {
 protected:
  Outcome Generate(std::vector<std::string> args, const std::string& input = "",
                   Terminals terminals = {}) {
    args.insert(args.begin(), {"generate", "--server", server_.address()});
    return RunEverlong(args, input, terminals, &interrupts_);
  }

  v1::GenerateRequest OnlyRequest() {
    const auto requests = server_.generate_requests();
    EXPECT_EQ(requests.size(), 1u);
    return requests.empty() ? v1::GenerateRequest() : requests.front();
  }

  FakeServer server_;
  Interrupts interrupts_;
};

// A file of this test's own, gone at its end.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content)
      : path_(::testing::TempDir() + "/everlong_client_test." + std::to_string(getpid())) {
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

TEST_F(GenerateTest, PrintsTheTextAndNothingElseIntoAPipe) {
  server_.script = Answer(kHello);
  const Outcome outcome = Generate({"hi"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.out, "Hello");
  EXPECT_EQ(outcome.err, "");
}

TEST_F(GenerateTest, EndsTheLineAndSummarizesOnATerminal) {
  server_.script = Answer(kHello);
  const Outcome outcome = Generate({"hi"}, "", kAllTerminals);
  EXPECT_EQ(outcome.out, "Hello\n");
  EXPECT_EQ(
      outcome.err,
      "prompt 2 tokens (0 cached), output 5 tokens; waited 0.001 s, first token after 0.250 s, "
      "50.0 tokens/s; ended by length\n");
}

TEST_F(GenerateTest, VerboseSummarizesIntoAPipe) {
  server_.script = Answer(kHello);
  EXPECT_THAT(Generate({"hi", "--verbose"}).err, HasSubstr("output 5 tokens"));
}

TEST_F(GenerateTest, SummaryNamesWhatEndedEachSample) {
  server_.script =
      Answer({"sample_finished { sample: 0 reason: FINISH_REASON_STOP_TOKEN "
              "stop_token: 2 }",
              "sample_finished { sample: 1 reason: FINISH_REASON_STOP_STRING "
              "stop_string: 'a\\nb' }",
              "finished {}"});
  EXPECT_THAT(Generate({"hi", "--samples", "2", "-v"}).err,
              HasSubstr("ended by token 2, stop string \"a\\nb\"\n"));
}

TEST_F(GenerateTest, SendsNoFieldThatWasNotAskedFor) {
  Generate({"hi"});
  v1::GenerateRequest expected;
  expected.set_text("hi");
  expected.mutable_sampling();
  expected.mutable_stopping();
  EXPECT_EQ(OnlyRequest().DebugString(), expected.DebugString());
}

TEST_F(GenerateTest, SendsEveryOption) {
  Generate({"--prompt",
            "hi",
            "--model",
            "bytes",
            "--max-output-tokens",
            "9",
            "--min-output-tokens",
            "3",
            "--temperature",
            "0",
            "--top-k",
            "40",
            "--top-p",
            "0.5",
            "--min-p",
            "0.25",
            "--repetition-penalty",
            "1.5",
            "--presence-penalty",
            "-1",
            "--frequency-penalty",
            "0.5",
            "--seed",
            "18446744073709551615",
            "--stop",
            "a",
            "--stop",
            "--b",
            "--ignore-eos",
            "--logprobs",
            "3",
            "--prompt-logprobs",
            "--samples",
            "4",
            "--attention",
            "infinite_hip",
            "--preset",
            "3k",
            "--selector",
            "scan",
            "--positions",
            "clipped",
            "--budget",
            "1024",
            "--sinks",
            "64",
            "--window",
            "512",
            "--refresh",
            "8",
            "--dilation",
            "2",
            "--rerank",
            "4",
            "--sieve",
            "16",
            "--fidelity-every",
            "16"});
  v1::GenerateRequest expected;
  expected.set_model("bytes");
  expected.set_text("hi");
  v1::Attention& attention = *expected.mutable_attention();
  attention.set_mode(v1::ATTENTION_MODE_INFINITE_HIP);
  attention.set_preset("3k");
  attention.set_selector(v1::ATTENTION_SELECTOR_SCAN);
  attention.set_positions(v1::ATTENTION_POSITIONS_CLIPPED);
  attention.set_budget(1024);
  attention.set_sinks(64);
  attention.set_window(512);
  attention.add_refresh(8);
  attention.set_dilation(2);
  attention.set_rerank(4);
  attention.set_sieve(16);
  attention.set_fidelity_every(16);
  v1::Sampling& sampling = *expected.mutable_sampling();
  sampling.set_temperature(0);
  sampling.set_top_k(40);
  sampling.set_top_p(0.5F);
  sampling.set_min_p(0.25F);
  sampling.set_repetition_penalty(1.5F);
  sampling.set_presence_penalty(-1);
  sampling.set_frequency_penalty(0.5F);
  sampling.set_seed(18446744073709551615U);
  v1::Stopping& stopping = *expected.mutable_stopping();
  stopping.set_max_output_tokens(9);
  stopping.set_min_output_tokens(3);
  stopping.add_stop("a");
  stopping.add_stop("--b");
  stopping.set_ignore_eos(true);
  expected.mutable_logprobs()->set_output(true);
  expected.mutable_logprobs()->set_prompt(true);
  expected.mutable_logprobs()->set_top(3);
  expected.set_num_samples(4);
  EXPECT_EQ(OnlyRequest().DebugString(), expected.DebugString());
}

TEST_F(GenerateTest, ReadsThePromptFromStandardInputAsItIs) {
  Generate({"-"}, "line\r\n\n nul:\0end\n");
  EXPECT_EQ(OnlyRequest().text(), "line\r\n\n nul:\0end\n");
}

TEST_F(GenerateTest, ReadsThePromptFromAFileAsItIs) {
  const std::string text("\xEF\xBB\xBF a\0b\r\n", 9);
  const TemporaryFile file(text);
  EXPECT_EQ(Generate({"--prompt-file", file.path()}).code, 0);
  EXPECT_EQ(OnlyRequest().text(), text);
}

TEST_F(GenerateTest, ChatSendsThePromptAsAMessage) {
  Generate({"--chat", "hi"});
  ASSERT_EQ(OnlyRequest().chat().messages_size(), 1);
  EXPECT_EQ(OnlyRequest().chat().messages(0).role(), "user");
  EXPECT_EQ(OnlyRequest().chat().messages(0).content(), "hi");
}

TEST_F(GenerateTest, SystemMessageComesFirst) {
  Generate({"--system", "be brief", "hi"});
  ASSERT_EQ(OnlyRequest().chat().messages_size(), 2);
  EXPECT_EQ(OnlyRequest().chat().messages(0).role(), "system");
  EXPECT_EQ(OnlyRequest().chat().messages(0).content(), "be brief");
}

TEST_F(GenerateTest, JsonLinesParseBackToTheEvents) {
  server_.script = Answer(kHello);
  const Outcome outcome = Generate({"hi", "--json"}, "", kAllTerminals);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.err, "");
  std::istringstream lines(outcome.out);
  std::vector<std::string> parsed;
  for (std::string line; std::getline(lines, line);) {
    v1::GenerateEvent event;
    ASSERT_TRUE(google::protobuf::util::JsonStringToMessage(line, &event).ok()) << line;
    parsed.push_back(event.DebugString());
  }
  std::vector<std::string> sent;
  for (const std::string& event : kHello) sent.push_back(Event(event).DebugString());
  EXPECT_EQ(parsed, sent);
}

TEST_F(GenerateTest, PrintsInterleavedSamplesOneAfterTheOther) {
  server_.script =
      Answer({"output { sample: 1 text: 'b1' token_ids: 1 }",
              "output { sample: 0 text: 'a1' token_ids: 1 }",
              "output { sample: 2 text: 'c1' token_ids: 1 }",
              "output { sample: 1 text: 'b2\\n' token_ids: 1 }",
              "sample_finished { sample: 1 reason: FINISH_REASON_LENGTH }",
              "output { sample: 0 text: 'a2' token_ids: 1 }",
              "sample_finished { sample: 0 reason: FINISH_REASON_LENGTH }",
              "sample_finished { sample: 2 reason: FINISH_REASON_LENGTH }", "finished {}"});
  EXPECT_EQ(Generate({"hi", "--samples", "3"}).out,
            "--- sample 0 ---\na1a2\n--- sample 1 ---\nb1b2\n--- sample 2 ---\nc1\n");
}

TEST_F(GenerateTest, ProgressBarShowsOnATerminalOnly) {
  server_.script = Answer({"accepted { queue_position: 3 prompt_tokens: 1000 }",
                           "prefill { done_tokens: 250 total_tokens: 1000 }",
                           "prefill { done_tokens: 1000 total_tokens: 1000 }",
                           "output { text: 'x' token_ids: 120 }",
                           "sample_finished { reason: FINISH_REASON_LENGTH }", "finished {}"});
  const Outcome terminal = Generate({"hi"}, "", {.err = true});
  EXPECT_EQ(terminal.out, "x");
  EXPECT_THAT(terminal.err, EndsWith("; ended by length\n"));
  EXPECT_THAT(terminal.err, HasSubstr("\r\033[K\nprompt 0 tokens"));
  EXPECT_THAT(terminal.err, HasSubstr("\r\033[Kwaiting, 3 ahead"
                                      "\r\033[K[#####               ] 250/1000 tokens"
                                      "\r\033[K"));
  EXPECT_EQ(Generate({"hi"}, "", {.in = true, .out = true}).err, "");
  EXPECT_EQ(Generate({"hi", "--json"}, "", kAllTerminals).err, "");
}

TEST_F(GenerateTest, WarningsOfTheServerGoToStandardError) {
  server_.script = Answer({"accepted { prompt_tokens: 9 warning: 'too far' }",
                           "output { text: 'x' token_ids: 120 }",
                           "sample_finished { reason: FINISH_REASON_LENGTH }", "finished {}"});
  const Outcome outcome = Generate({"hi"});
  EXPECT_EQ(outcome.out, "x");
  EXPECT_EQ(outcome.err, "warning: too far\n");
  const Outcome json = Generate({"hi", "--json"});
  EXPECT_THAT(json.out, HasSubstr("\"warning\":\"too far\""));
  EXPECT_EQ(json.err, "");
}

TEST_F(GenerateTest, AFailureClearsTheProgressBarFirst) {
  server_.script = [](const v1::GenerateRequest&, EventWriter& writer) {
    writer.Write(Event("prefill { done_tokens: 1 total_tokens: 2 }"));
    return Ending{absl::StatusCode::kInternal, "the device is lost", {}};
  };
  const Outcome outcome = Generate({"hi"}, "", kAllTerminals);
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, EndsWith("\r\033[Keverlong: INTERNAL: the device is lost\n"));
}

TEST_F(GenerateTest, LogprobTablesFollowOnStandardError) {
  server_.script =
      Answer({"prefill { done_tokens: 1 total_tokens: 3 }",
              "prefill { done_tokens: 3 total_tokens: 3 "
              "prompt_logprobs { chosen { token: 105 logprob: -0.5 } } "
              "prompt_logprobs { chosen { token: 10 logprob: -12.25 } top { token: 105 logprob: "
              "-0.125 } } }",
              "output { text: 'i' token_ids: 105 logprobs { chosen { token: 105 logprob: -1 } "
              "top { token: 34 logprob: -0.25 } top { token: 105 logprob: -1 } } }",
              "sample_finished { reason: FINISH_REASON_LENGTH }", "finished {}"});
  const Outcome outcome = Generate({"hi", "--logprobs", "2", "--prompt-logprobs"});
  EXPECT_EQ(outcome.out, "i");
  EXPECT_EQ(outcome.err,
            "prompt\n"
            "position    token   logprob  text\n"
            "       1      105   -0.5000  \"i\"\n"
            "       2       10  -12.2500  \"\\n\"              most likely: \"i\" -0.1250\n"
            "sample 0\n"
            "position    token   logprob  text\n"
            "       0      105   -1.0000  \"i\"               most likely: \"\\\"\" -0.2500 \"i\" "
            "-1.0000\n");
  EXPECT_EQ(server_.num_detokenize_calls(), 3) << "each token's text is asked for once";
}

TEST_F(GenerateTest, FailureNamesCodeMessageAndDetails) {
  server_.script = [](const v1::GenerateRequest&, EventWriter&) {
    Ending ending{absl::StatusCode::kResourceExhausted, "the queue is full:\nlimit 4", {}};
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_nanos(1'500'000'000 - 1'000'000'000);
    retry.mutable_retry_delay()->set_seconds(1);
    ending.details.add_details()->PackFrom(retry);
    google::rpc::ErrorInfo info;
    info.set_reason("QUEUE_FULL");
    (*info.mutable_metadata())["waiting"] = "4";
    (*info.mutable_metadata())["limit"] = "4";
    ending.details.add_details()->PackFrom(info);
    return ending;
  };
  const Outcome outcome = Generate({"hi"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(outcome.err,
            "everlong: RESOURCE_EXHAUSTED: the queue is full: limit 4 [try again in 1.5 s] "
            "[QUEUE_FULL limit=4 waiting=4]\n");
}

TEST_F(GenerateTest, FieldViolationsAddOnlyWhatTheMessageLacks) {
  server_.script = [](const v1::GenerateRequest&, EventWriter&) {
    Ending ending{absl::StatusCode::kInvalidArgument, "sampling.top_p: 2 is not in (0, 1]", {}};
    google::rpc::BadRequest bad_request;
    auto* said = bad_request.add_field_violations();
    said->set_field("sampling.top_p");
    said->set_description("2 is not in (0, 1]");
    auto* unsaid = bad_request.add_field_violations();
    unsaid->set_field("sampling.min_p");
    unsaid->set_description("-1 is below 0");
    ending.details.add_details()->PackFrom(bad_request);
    return ending;
  };
  const Outcome outcome = Generate({"hi"});
  EXPECT_EQ(outcome.code, 1) << "the server refused it: not wrong usage of the command";
  EXPECT_EQ(outcome.err,
            "everlong: INVALID_ARGUMENT: sampling.top_p: 2 is not in (0, 1] "
            "[sampling.min_p: -1 is below 0]\n");
}

TEST_F(GenerateTest, TextBeforeAFailureIsKept) {
  server_.script = [](const v1::GenerateRequest&, EventWriter& writer) {
    writer.Write(Event("output { text: 'par' token_ids: 1 }"));
    return Ending{absl::StatusCode::kUnavailable, "the server is shutting down", {}};
  };
  const Outcome outcome = Generate({"hi"}, "", {.out = true});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_EQ(outcome.out, "par\n");
  EXPECT_EQ(outcome.err, "everlong: UNAVAILABLE: the server is shutting down\n");
}

TEST_F(GenerateTest, TimeoutBecomesTheDeadline) {
  server_.script = [](const v1::GenerateRequest&, EventWriter& writer) {
    EXPECT_TRUE(writer.WaitForCancel());
    return Ending{};
  };
  const Outcome outcome = Generate({"hi", "--timeout", "0.1"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("everlong: DEADLINE_EXCEEDED: "));
}

TEST_F(GenerateTest, CtrlCCancelsTheCall) {
  server_.script = [this](const v1::GenerateRequest&, EventWriter& writer) {
    writer.Write(Event("output { text: 'a' token_ids: 97 }"));
    EXPECT_TRUE(interrupts_.Raise());
    EXPECT_TRUE(writer.WaitForCancel());
    return Ending{absl::StatusCode::kCancelled, "", {}};
  };
  const Outcome outcome = Generate({"hi"});
  EXPECT_EQ(outcome.code, kExitInterrupted);
  EXPECT_EQ(outcome.err, "");
  EXPECT_FALSE(interrupts_.Raise()) << "nobody watches after the command";
}

// Fails once it was given `capacity` bytes, as a full disk does.
class FullDisk : public std::streambuf {
 public:
  explicit FullDisk(int capacity) : capacity_(capacity) {}

 protected:
  int_type overflow(int_type c) override { return capacity_-- > 0 ? c : traits_type::eof(); }

 private:
  int capacity_;
};

TEST_F(GenerateTest, StopsTheCallWhereOutputCannotBeWritten) {
  server_.script = [](const v1::GenerateRequest&, EventWriter& writer) {
    const auto event = Event("output { text: 'abc' token_ids: 97 }");
    for (int i = 0; i < 3; ++i) writer.Write(event);
    EXPECT_TRUE(writer.WaitForCancel());
    return Ending{};
  };
  FullDisk disk(5);
  std::istringstream in;
  std::ostream out(&disk);
  std::ostringstream err;
  Console console{.in = in, .out = out, .err = err, .interrupts = interrupts_};
  EXPECT_EQ(RunClient({"generate", "hi", "--server", server_.address()}, console), 1);
  EXPECT_EQ(err.str(), "everlong: cannot write to standard output\n");
}

TEST_F(GenerateTest, InvalidUtf8IsFoundBeforeAnythingIsSent) {
  const TemporaryFile file("ab\xC0\xAF");
  const Outcome from_file = Generate({"--prompt-file", file.path()});
  EXPECT_EQ(from_file.code, 2);
  EXPECT_EQ(from_file.err,
            "everlong: --prompt-file " + file.path() + ": invalid UTF-8 at byte 2 (0xC0)\n");
  EXPECT_EQ(Generate({"-"}, "\xED\xA0\x80").err,
            "everlong: standard input: invalid UTF-8 at byte 0 (0xED)\n");
  EXPECT_THAT(Generate({"a\xFF"}).err, HasSubstr("prompt: invalid UTF-8 at byte 1"));
  EXPECT_THAT(Generate({"a", "--stop", "b\xFF"}).err, HasSubstr("--stop: invalid UTF-8 at byte 1"));
  EXPECT_THAT(Generate({"a", "--system", "\xFF"}).err, HasSubstr("--system: invalid UTF-8"));
  EXPECT_TRUE(server_.generate_requests().empty());
}

TEST_F(GenerateTest, ExactlyOnePromptIsRequired) {
  const TemporaryFile file("b");
  EXPECT_EQ(Generate({}).code, 2);
  EXPECT_THAT(Generate({}).err, HasSubstr("everlong: no prompt; give one of"));
  EXPECT_EQ(Generate({"a", "--prompt", "b"}).code, 2);
  EXPECT_THAT(Generate({"-", "--prompt-file", file.path()}).err, HasSubstr("more than one prompt"));
}

TEST_F(GenerateTest, UnreadablePromptFilesAreWrongUsage) {
  const Outcome missing = Generate({"--prompt-file", "no/such/file"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_EQ(missing.err, "everlong: --prompt-file no/such/file: No such file or directory\n");
  const Outcome directory = Generate({"--prompt-file", "/"});
  EXPECT_EQ(directory.code, 2);
  EXPECT_EQ(directory.err, "everlong: --prompt-file /: Is a directory\n");
}

TEST_F(GenerateTest, EmptyPromptIsTheServersToJudge) {
  EXPECT_EQ(Generate({"--prompt", ""}).code, 0);
  EXPECT_EQ(OnlyRequest().input_case(), v1::GenerateRequest::kText);
}

TEST(MessageSizeTest, APromptLongerThanTheServersLimitSaysSo) {
  FakeServer server(1 << 20);
  const TemporaryFile file(std::string(2 << 20, 'x'));
  const Outcome outcome =
      RunEverlong({"generate", "--server", server.address(), "--prompt-file", file.path()});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr("everlong: RESOURCE_EXHAUSTED: "), HasSubstr("1048576")));
}

TEST(MessageSizeTest, APromptUpToTheServersLimitIsSent) {
  FakeServer server(64 << 20);
  const TemporaryFile file(std::string(32 << 20, 'x'));
  const Outcome outcome =
      RunEverlong({"generate", "--server", server.address(), "--prompt-file", file.path()});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(server.generate_requests().at(0).text().size(), 32u << 20);
}

TEST(MessageSizeTest, LargeEventsAreReceived) {
  FakeServer server;
  server.script = [](const v1::GenerateRequest&, EventWriter& writer) {
    v1::GenerateEvent event;
    event.mutable_output()->set_text(std::string(8 << 20, 'y'));
    writer.Write(event);
    return Ending{};
  };
  const Outcome outcome = RunEverlong({"generate", "--server", server.address(), "hi"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out.size(), 8u << 20);
}

}  // namespace
}  // namespace everlong
