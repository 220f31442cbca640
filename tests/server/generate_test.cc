// What requests get back: events, answers, and a status that names what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "fmt/format.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/server/test_server.h"

namespace everlong {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kTemplate[] =
    "{{ bos_token }}{% for message in messages %}<|mark|>{{ message['role'] }}:"
    "{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|mark|>assistant:{% endif %}";

class GenerateTest : public ::testing::Test {
 protected:
  // One server for all: that a request that fails never disturbs another is part of what is tested.
  static void SetUpTestSuite() { server_ = new TestServer({.chat_template = kTemplate}); }
  static void TearDownTestSuite() {
    EXPECT_TRUE(server_->server().Idle());
    delete server_;
  }

  static TestServer* server_;
};
TestServer* GenerateTest::server_ = nullptr;

v1::GenerateRequest TextRequest(const std::string& text, int64_t output = 8) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_output_tokens(output);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

TEST_F(GenerateTest, EventsComeInTheirOrderAndCountsAgree) {
  const Answer answer = server_->Generate(TokenRequest(300, 12));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_GE(answer.events.size(), 5u);
  for (size_t i = 1; i < answer.events.size(); ++i) {
    EXPECT_LE(answer.events[i - 1].event_case(), answer.events[i].event_case());
  }
  const auto& accepted = answer.events[0].accepted();
  EXPECT_GT(accepted.request_id(), 0u);
  EXPECT_EQ(accepted.model(), "tiny");
  EXPECT_EQ(accepted.prompt_tokens(), 300);
  EXPECT_EQ(accepted.queue_position(), 0);
  int64_t done = 0;
  for (const auto& event : answer.events) {
    if (!event.has_prefill()) continue;
    EXPECT_GT(event.prefill().done_tokens(), done);
    EXPECT_EQ(event.prefill().total_tokens(), 300);
    done = event.prefill().done_tokens();
  }
  EXPECT_EQ(done, 300);
  EXPECT_EQ(answer.tokens().size(), 12u);
  const auto& sample = answer.events[answer.events.size() - 2].sample_finished();
  EXPECT_EQ(sample.reason(), v1::FINISH_REASON_LENGTH);
  ASSERT_TRUE(answer.events.back().has_finished());
  const auto& finished = answer.events.back().finished();
  EXPECT_EQ(finished.usage().prompt_tokens(), 300);
  EXPECT_EQ(finished.usage().output_tokens(), 12);
  EXPECT_GT(finished.timings().first_token().nanos(), 0);
  EXPECT_GT(finished.timings().per_token().nanos(), 0);
}

TEST_F(GenerateTest, TextAndItsTokensGiveTheSameOutput) {
  const Answer from_text = server_->Generate(TextRequest("some text <|end|>"));
  v1::GenerateRequest request = TextRequest("");
  for (const unsigned char c : std::string("some text <|end|>")) {
    request.mutable_token_ids()->add_ids(c);
  }
  const Answer from_tokens = server_->Generate(request);
  EXPECT_EQ(from_text.tokens().size(), 8u);
  EXPECT_EQ(from_text.tokens(), from_tokens.tokens());
  EXPECT_EQ(from_text.text(), from_tokens.text());
}

TEST_F(GenerateTest, ASeedRepeatsAndSamplesDiffer) {
  v1::GenerateRequest request = TextRequest("some text", 12);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(7);
  request.set_num_samples(3);
  const Answer first = server_->Generate(request);
  const Answer second = server_->Generate(request);
  for (int sample = 0; sample < 3; ++sample) {
    EXPECT_EQ(first.tokens(sample).size(), 12u);
    EXPECT_EQ(first.tokens(sample), second.tokens(sample));
  }
  EXPECT_NE(first.tokens(0), first.tokens(1));
  EXPECT_EQ(first.events.back().finished().usage().output_tokens(), 36);
}

TEST_F(GenerateTest, StopStringEndsTheOutput) {
  const std::string whole = server_->Generate(TextRequest("some text", 60)).text();
  size_t at = whole.size() / 2;
  while (at < whole.size() && (whole[at] & 0x80) != 0) ++at;
  ASSERT_LT(at, whole.size());
  v1::GenerateRequest request = TextRequest("some text", 60);
  request.mutable_stopping()->add_stop(whole.substr(at, 1));
  const Answer stopped = server_->Generate(request);
  EXPECT_EQ(stopped.text(), whole.substr(0, whole.find(whole[at])));
  const auto& sample = stopped.events[stopped.events.size() - 2].sample_finished();
  EXPECT_EQ(sample.reason(), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(sample.stop_string(), whole.substr(at, 1));
}

TEST_F(GenerateTest, LogprobsComeForOutputAndPrompt) {
  v1::GenerateRequest request = TokenRequest(200, 6);
  request.mutable_logprobs()->set_output(true);
  request.mutable_logprobs()->set_prompt(true);
  request.mutable_logprobs()->set_top(4);
  const Answer answer = server_->Generate(request);
  std::vector<v1::PositionLogprobs> prompt;
  int num_output = 0;
  for (const auto& event : answer.events) {
    prompt.insert(prompt.end(), event.prefill().prompt_logprobs().begin(),
                  event.prefill().prompt_logprobs().end());
    for (int i = 0; i < event.output().logprobs_size(); ++i, ++num_output) {
      const auto& position = event.output().logprobs(i);
      EXPECT_EQ(position.chosen().token(), event.output().token_ids(i));
      EXPECT_EQ(position.top(0).token(), position.chosen().token());
      EXPECT_EQ(position.top_size(), 4);
    }
  }
  EXPECT_EQ(num_output, 6);
  ASSERT_EQ(prompt.size(), 199u);
  for (int i = 0; i < 199; ++i)
    EXPECT_EQ(prompt[i].chosen().token(), request.token_ids().ids(i + 1));
}

TEST_F(GenerateTest, FinishedAndMetricsTellWhatSparseAttentionLost) {
  v1::GenerateRequest request = TokenRequest(600, 12);
  v1::Attention& attention = *request.mutable_attention();
  attention.set_mode(v1::ATTENTION_MODE_INFINITE_HIP);
  attention.set_positions(v1::ATTENTION_POSITIONS_CLIPPED);
  attention.set_budget(64);
  attention.set_sinks(16);
  attention.set_window(64);
  const Answer plain = server_->Generate(request);
  EXPECT_FALSE(plain.events.back().finished().attention().has_fidelity());
  attention.set_fidelity_every(4);
  const Answer compared = server_->Generate(request);
  EXPECT_EQ(compared.tokens(), plain.tokens());
  const v1::AttentionUse& use = compared.events.back().finished().attention();
  // Sinks, budget, and a window that starts at a block and grows until the next refresh.
  EXPECT_GE(use.attended_ratio(), (16 + 64 + 64) / 611.0);
  EXPECT_LE(use.attended_ratio(), (16 + 64 + 80) / 600.0);
  EXPECT_THAT(use.stage_refreshes(), ElementsAre(2));
  EXPECT_GT(use.hit_ratio(), 0.0);
  EXPECT_EQ(use.fidelity().tokens(), 3);
  ASSERT_EQ(use.fidelity().layers_size(), 2);
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_GT(use.fidelity().layers(layer).recall(), 0.0);
    EXPECT_LT(use.fidelity().layers(layer).recall(), 1.0);
    EXPECT_GT(use.fidelity().layers(layer).error(), 0.0);
    for (const char* name : {"hip_recall_ratio", "hip_output_error_ratio"}) {
      EXPECT_EQ(server_->Metric(fmt::format("{}_count{{layer=\"{}\"}}", name, layer)), "3");
    }
  }
}

TEST_F(GenerateTest, ChatIsRenderedByTheModelsTemplate) {
  v1::TokenizeRequest tokenize;
  auto* message = tokenize.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hi");
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  ASSERT_TRUE(server_->stub().Tokenize(&context, tokenize, &response).ok());
  std::vector<int32_t> expected = {257};
  for (const char c : std::string("user:hi")) expected.push_back(c);
  expected.push_back(kTinyEnd);
  expected.push_back(257);
  for (const char c : std::string("assistant:")) expected.push_back(c);
  EXPECT_EQ(std::vector<int32_t>(response.token_ids().begin(), response.token_ids().end()),
            expected);

  v1::GenerateRequest request = TextRequest("");
  *request.mutable_chat() = tokenize.chat();
  const Answer answer = server_->Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.events[0].accepted().prompt_tokens(), static_cast<int64_t>(expected.size()));
  request.mutable_chat()->set_add_generation_prompt(false);
  EXPECT_EQ(server_->Generate(request).events[0].accepted().prompt_tokens(),
            static_cast<int64_t>(expected.size()) - 11);
}

TEST_F(GenerateTest, TokenizeAndDetokenizeAreInverse) {
  const std::string text =
      "Gr\xC3\xBC\xC3\x9F"
      "e <|end|> \xF0\x9F\x98\x80";
  v1::TokenizeRequest tokenize;
  tokenize.set_text(text);
  v1::TokenizeResponse tokens;
  grpc::ClientContext first;
  ASSERT_TRUE(server_->stub().Tokenize(&first, tokenize, &tokens).ok());
  EXPECT_EQ(tokens.token_ids_size(), static_cast<int>(text.size()));
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse back;
  grpc::ClientContext second;
  ASSERT_TRUE(server_->stub().Detokenize(&second, detokenize, &back).ok());
  EXPECT_EQ(back.text(), text);

  detokenize.mutable_token_ids()->Clear();
  for (const int32_t token : {int32_t{'a'}, kTinyEnd, 0xE2}) detokenize.add_token_ids(token);
  grpc::ClientContext third;
  ASSERT_TRUE(server_->stub().Detokenize(&third, detokenize, &back).ok());
  EXPECT_EQ(back.text(), "a<|end|>\xEF\xBF\xBD");
  detokenize.set_skip_special_tokens(true);
  grpc::ClientContext fourth;
  ASSERT_TRUE(server_->stub().Detokenize(&fourth, detokenize, &back).ok());
  EXPECT_EQ(back.text(), "a\xEF\xBF\xBD");
}

// Past the size that is answered on gRPC's own threads.
TEST_F(GenerateTest, LongMessagesAreAnsweredTheSame) {
  v1::TokenizeRequest request;
  request.set_text(std::string(3 << 20, 'x'));
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  const auto stub = v1::Inference::NewStub(grpc::CreateCustomChannel(
      server_->server().grpc_address(), grpc::InsecureChannelCredentials(), arguments));
  const grpc::Status status = stub->Tokenize(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.token_ids_size(), 3 << 20);

  v1::GenerateRequest generate = TokenRequest(50, 3);
  for (int i = 0; i < 16; ++i) generate.mutable_stopping()->add_stop(std::string(1024, 'x'));
  EXPECT_EQ(server_->Generate(generate).tokens().size(), 3u);
  const Answer too_long = server_->Generate(TokenRequest(30000, 3));
  EXPECT_EQ(too_long.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GenerateTest, ModelsAreDescribed) {
  grpc::ClientContext first;
  v1::ListModelsResponse list;
  ASSERT_TRUE(server_->stub().ListModels(&first, {}, &list).ok());
  ASSERT_EQ(list.models_size(), 1);
  const v1::Model& model = list.models(0);
  EXPECT_EQ(model.name(), "tiny");
  EXPECT_EQ(model.architecture(), "LlamaForCausalLM");
  EXPECT_EQ(model.vocab_size(), kTinyVocab);
  EXPECT_EQ(model.hidden_size(), 32);
  EXPECT_EQ(model.num_layers(), 2);
  EXPECT_EQ(model.q_heads(), 4);
  EXPECT_EQ(model.kv_heads(), 2);
  EXPECT_EQ(model.head_dim(), 8);
  EXPECT_EQ(model.trained_length(), 4096);
  EXPECT_EQ(model.served_length(), 4096);
  EXPECT_EQ(model.kv_bytes_per_token(), 2 * 2 * 2 * 8 * 4);
  EXPECT_THAT(model.eos_token_ids(), ElementsAre(kTinyEnd));
  EXPECT_TRUE(model.has_chat_template());
  EXPECT_EQ(model.device(), "cpu");
  for (const char* name : {"", "tiny"}) {
    v1::GetModelRequest request;
    request.set_model(name);
    grpc::ClientContext context;
    v1::Model one;
    ASSERT_TRUE(server_->stub().GetModel(&context, request, &one).ok());
    EXPECT_EQ(one.SerializeAsString(), model.SerializeAsString());
  }
}

// Fields of the BadRequest details.
std::vector<std::string> Violations(const grpc::Status& status) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(status.error_details()));
  std::vector<std::string> fields;
  for (const auto& detail : rich.details()) {
    google::rpc::BadRequest bad_request;
    if (!detail.UnpackTo(&bad_request)) continue;
    for (const auto& violation : bad_request.field_violations())
      fields.push_back(violation.field());
  }
  return fields;
}

struct BadInput {
  const char* field;
  const char* in_message;  // value or limit
  std::function<void(v1::GenerateRequest&)> spoil;
};

TEST_F(GenerateTest, BadInputIsNamedWithFieldValueAndLimit) {
  using R = v1::GenerateRequest;
  const float nan = std::nanf("");
  const auto bias = [](R& r, int32_t token, float value) {
    auto* entry = r.mutable_sampling()->add_logit_bias();
    entry->set_token(token);
    entry->set_bias(value);
  };
  const std::vector<BadInput> cases = {
      {"input", "text, token_ids and chat", [](R& r) { r.clear_input(); }},
      {"text", "0 tokens", [](R& r) { r.set_text(""); }},
      {"text", "5000 tokens", [](R& r) { r.set_text(std::string(5000, 'x')); }},
      {"text", "4096 tokens", [](R& r) { r.set_text(std::string(5000, 'x')); }},
      {"token_ids.ids", "0 tokens", [](R& r) { r.mutable_token_ids(); }},
      {"token_ids.ids", "token 258", [](R& r) { r.mutable_token_ids()->add_ids(258); }},
      {"token_ids.ids", "[0, 258)", [](R& r) { r.mutable_token_ids()->add_ids(-1); }},
      {"chat.messages", "0 messages", [](R& r) { r.mutable_chat(); }},
      {"chat.messages[0].role", "empty", [](R& r) { r.mutable_chat()->add_messages(); }},
      {"sampling.temperature", "-0.5", [](R& r) { r.mutable_sampling()->set_temperature(-0.5f); }},
      {"sampling.temperature", "nan", [=](R& r) { r.mutable_sampling()->set_temperature(nan); }},
      {"sampling.temperature", "inf",
       [](R& r) { r.mutable_sampling()->set_temperature(HUGE_VALF); }},
      {"sampling.top_k", "-1", [](R& r) { r.mutable_sampling()->set_top_k(-1); }},
      {"sampling.top_p", "1.5", [](R& r) { r.mutable_sampling()->set_top_p(1.5f); }},
      {"sampling.top_p", "0 ", [](R& r) { r.mutable_sampling()->set_top_p(0); }},
      {"sampling.top_p", "nan", [=](R& r) { r.mutable_sampling()->set_top_p(nan); }},
      {"sampling.min_p", "1 ", [](R& r) { r.mutable_sampling()->set_min_p(1); }},
      {"sampling.min_p", "nan", [=](R& r) { r.mutable_sampling()->set_min_p(nan); }},
      {"sampling.repetition_penalty", "0 ",
       [](R& r) { r.mutable_sampling()->set_repetition_penalty(0); }},
      {"sampling.presence_penalty", "[-2, 2]",
       [](R& r) { r.mutable_sampling()->set_presence_penalty(2.5f); }},
      {"sampling.frequency_penalty", "[-2, 2]",
       [](R& r) { r.mutable_sampling()->set_frequency_penalty(-3); }},
      {"sampling.logit_bias", "token 300", [=](R& r) { bias(r, 300, 1); }},
      {"sampling.logit_bias", "[-100, 100]", [=](R& r) { bias(r, 1, 101); }},
      {"sampling.logit_bias", "token 1 ",
       [=](R& r) {
         bias(r, 1, 1);
         bias(r, 1, 2);
       }},
      {"sampling.logit_bias", "1025 entries, the limit is 1024",
       [=](R& r) {
         for (int i = 0; i < 1025; ++i) bias(r, i, 1);
       }},
      {"stopping.max_output_tokens", "0 is below 1",
       [](R& r) { r.mutable_stopping()->set_max_output_tokens(0); }},
      {"stopping.max_output_tokens", "-5 is below 1",
       [](R& r) { r.mutable_stopping()->set_max_output_tokens(-5); }},
      {"stopping.max_output_tokens", "4096 tokens",
       [](R& r) { r.mutable_stopping()->set_max_output_tokens(4096); }},
      {"stopping.min_output_tokens", "[0, 8]",
       [](R& r) { r.mutable_stopping()->set_min_output_tokens(9); }},
      {"stopping.min_output_tokens", "-1",
       [](R& r) { r.mutable_stopping()->set_min_output_tokens(-1); }},
      {"stopping.stop", "17 entries, the limit is 16",
       [](R& r) {
         for (int i = 0; i < 17; ++i) r.mutable_stopping()->add_stop("x");
       }},
      {"stopping.stop[1]", "0 bytes",
       [](R& r) {
         r.mutable_stopping()->add_stop("x");
         r.mutable_stopping()->add_stop("");
       }},
      {"stopping.stop[0]", "1025 bytes are outside [1, 1024]",
       [](R& r) { r.mutable_stopping()->add_stop(std::string(1025, 'x')); }},
      {"stopping.stop_token_ids", "token 258",
       [](R& r) { r.mutable_stopping()->add_stop_token_ids(258); }},
      {"stopping.stop_token_ids", "65 entries, the limit is 64",
       [](R& r) {
         for (int i = 0; i < 65; ++i) r.mutable_stopping()->add_stop_token_ids(i);
       }},
      {"logprobs.top", "21 is outside [0, 20]",
       [](R& r) {
         r.mutable_logprobs()->set_output(true);
         r.mutable_logprobs()->set_top(21);
       }},
      {"logprobs.top", "-1",
       [](R& r) {
         r.mutable_logprobs()->set_output(true);
         r.mutable_logprobs()->set_top(-1);
       }},
      {"logprobs.top", "logprobs.output or logprobs.prompt",
       [](R& r) { r.mutable_logprobs()->set_top(3); }},
      {"num_samples", "0 is outside [1, 16]", [](R& r) { r.set_num_samples(0); }},
      {"num_samples", "17 is outside [1, 16]", [](R& r) { r.set_num_samples(17); }},
      {"priority", "101 is outside [-100, 100]", [](R& r) { r.set_priority(101); }},
      {"attention.mode", "7 is outside [0, 3]",
       [](R& r) { r.mutable_attention()->set_mode(v1::AttentionMode{7}); }},
      {"attention.preset", "\"9k\" is none of default, 3k",
       [](R& r) { r.mutable_attention()->set_preset("9k"); }},
      {"attention.budget", "12 must be in [8, 1048576] and a multiple of 8",
       [](R& r) { r.mutable_attention()->set_budget(12); }},
      {"attention.window", "8 must be in [64, 1048576]",
       [](R& r) { r.mutable_attention()->set_window(8); }},
      {"attention.sieve", "65 must be in [1, 64]",
       [](R& r) { r.mutable_attention()->set_sieve(65); }},
      {"attention.rerank", "0 must be in [1, 64]",
       [](R& r) { r.mutable_attention()->set_rerank(0); }},
      {"attention.dilation", "neither prompts nor output use the selector scan",
       [](R& r) {
         r.mutable_attention()->set_preset("3k");
         r.mutable_attention()->set_dilation(1);
       }},
      {"attention.fidelity_every", "-1 is outside [0, 2147483647]",
       [](R& r) { r.mutable_attention()->set_fidelity_every(-1); }},
      {"attention.refresh", "2 intervals for a selector of 1 stages",
       [](R& r) {
         r.mutable_attention()->add_refresh(4);
         r.mutable_attention()->add_refresh(2);
       }},
  };
  for (const BadInput& bad : cases) {
    v1::GenerateRequest request = TextRequest("some text");
    bad.spoil(request);
    const Answer answer = server_->Generate(request);
    EXPECT_TRUE(answer.events.empty());
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << bad.field;
    EXPECT_THAT(answer.status.error_message(), ::testing::StartsWith(bad.field));
    EXPECT_THAT(answer.status.error_message(), HasSubstr(bad.in_message));
    EXPECT_THAT(Violations(answer.status), ElementsAre(bad.field));
  }
  EXPECT_EQ(server_->Generate(TextRequest("some text")).tokens().size(), 8u);
}

TEST_F(GenerateTest, OtherModelsAreNotFound) {
  v1::GenerateRequest request = TextRequest("some text");
  request.set_model("other");
  grpc::Status status = server_->Generate(request).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("'other'"));
  EXPECT_THAT(status.error_message(), HasSubstr("'tiny'"));

  v1::TokenizeRequest tokenize;
  tokenize.set_model("other");
  v1::TokenizeResponse tokens;
  grpc::ClientContext first;
  EXPECT_EQ(server_->stub().Tokenize(&first, tokenize, &tokens).error_code(),
            grpc::StatusCode::NOT_FOUND);
  v1::DetokenizeRequest detokenize;
  detokenize.set_model("other");
  v1::DetokenizeResponse text;
  grpc::ClientContext second;
  EXPECT_EQ(server_->stub().Detokenize(&second, detokenize, &text).error_code(),
            grpc::StatusCode::NOT_FOUND);
  v1::GetModelRequest get;
  get.set_model("other");
  v1::Model model;
  grpc::ClientContext third;
  EXPECT_EQ(server_->stub().GetModel(&third, get, &model).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(GenerateTest, TokenizeAndDetokenizeNameWhatIsWrong) {
  grpc::ClientContext first;
  v1::TokenizeResponse tokens;
  grpc::Status status = server_->stub().Tokenize(&first, {}, &tokens);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(Violations(status), ElementsAre("input"));
  v1::DetokenizeRequest detokenize;
  detokenize.add_token_ids(1);
  detokenize.add_token_ids(258);
  grpc::ClientContext second;
  v1::DetokenizeResponse text;
  status = server_->stub().Detokenize(&second, detokenize, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(Violations(status), ElementsAre("token_ids[1]"));
  EXPECT_THAT(status.error_message(), HasSubstr("[0, 258)"));
}

TEST_F(GenerateTest, BytesThatAreNoMessageAreInvalidWithTheirPlace) {
  v1::GenerateRequest request = TextRequest("fine until \xFF");
  for (const auto& [bytes, expected] :
       {std::pair{request.SerializeAsString(), std::string("text: not UTF-8 at byte 11")},
        {std::string("\x12\x40 no 64 bytes"), "the message is damaged at byte 2"}}) {
    for (const char* method : {"Generate", "Tokenize"}) {
      const auto [status, response] =
          server_->RawCall(std::string("/everlong.v1.Inference/") + method, bytes);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
      EXPECT_EQ(status.error_message(), expected);
    }
  }
}

TEST(GenerateLimitsTest, MessagesOverTheSizeLimitAreRefusedWithBothNumbers) {
  TestSetup setup;
  setup.options.max_message_bytes = 4096;
  TestServer server(setup);
  EXPECT_EQ(server.Generate(TextRequest(std::string(3000, 'x'))).tokens().size(), 8u);
  const Answer answer = server.Generate(TextRequest(std::string(5000, 'x')));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("4096"));
  EXPECT_THAT(answer.status.error_message(), HasSubstr("50"));
}

TEST(GenerateLimitsTest, ChatNeedsATemplate) {
  TestServer server;
  v1::GenerateRequest request = TextRequest("");
  request.mutable_chat()->add_messages()->set_role("user");
  const Answer answer = server.Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("'tiny' has no chat template"));
}

TEST(GenerateLimitsTest, TheTemplatesOwnComplaintComesBack) {
  TestServer server({.chat_template = "{{ raise_exception('roles must alternate') }}"});
  v1::GenerateRequest request = TextRequest("");
  request.mutable_chat()->add_messages()->set_role("user");
  const Answer answer = server.Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("roles must alternate"));
  EXPECT_THAT(Violations(answer.status), ElementsAre("chat"));
}

}  // namespace
}  // namespace everlong
