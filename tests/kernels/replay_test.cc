// Decode steps again and again, at the same addresses: what a backend keeps from earlier ones must
// not show.
#include "gtest/gtest.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/decode_step.h"

namespace everlong {
namespace {

class ReplayTest : public ::testing::TestWithParam<KvBackend> {};
INSTANTIATE_TEST_SUITE_P(Backends, ReplayTest,
                         ::testing::ValuesIn(KvBackends(BackendsBesideReference())),
                         [](const auto& info) { return info.param.name(); });

DecodeStep::Outcome RunOnFreshKernels(const Backend& backend, const DecodeInputs& inputs,
                                      const SampleParams& params) {
  Device device(MakeFresh(backend));
  DecodeStep step(device, inputs);
  step.Run(params);
  return step.Read();
}

void ExpectSame(const DecodeStep::Outcome& actual, const DecodeStep::Outcome& expected) {
  EXPECT_TRUE(actual.cache == expected.cache);
  EXPECT_TRUE(actual.index.bytes == expected.index.bytes);
  EXPECT_TRUE(actual.index.range_bytes == expected.index.range_bytes);
  EXPECT_EQ(actual.selected, expected.selected);
  ExpectSameBits(actual.residual, expected.residual);
  EXPECT_EQ(actual.tokens, expected.tokens);
  EXPECT_EQ(actual.top_tokens, expected.top_tokens);
  ExpectSameBits(actual.logprobs, expected.logprobs);
  ExpectSameBits(actual.top_logprobs, expected.top_logprobs);
}

// Tokens, positions, pages and what rows ask of the sampler change from step to step; two steps
// complete pages, and before the seventh wider ones need more room for everything.
TEST_P(ReplayTest, StepsAreAsOnFreshKernels) {
  const auto& [backend, kv_type] = GetParam();
  Device device(MakeFresh(backend));
  DecodeInputs inputs(kv_type, {30, 122, 2000, 1500, 1800});
  DecodeStep step(device, inputs);
  for (int i = 0; i < 9; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    if (i == 6) {
      DecodeStep wide(device, DecodeInputs(kv_type, std::vector<int64_t>(12, 2100)));
      for (int run = 0; run < 3; ++run) wide.Run({});
    }
    const SampleParams params = {.temperature = i % 3 == 0 ? 0.0f : 1.0f,
                                 .top_p = i % 2 == 0 ? 0.9f : 1.0f,
                                 .num_top = DecodeStep::kTop,
                                 .adjust_end = i % 3,
                                 .seed = static_cast<uint64_t>(i)};
    step.Put(inputs);
    step.Run(params);
    ExpectSame(step.Read(), RunOnFreshKernels(backend, inputs, params));
    inputs.Advance();
  }
}

// Attention of one step, launched three times at the same addresses.
Values AttendThrice(Device& device, const AttentionProblem& problem, AttentionArgs args,
                    const float* inv_freq) {
  args.rope.inv_freq = inv_freq;
  for (int run = 0; run < 3; ++run) {
    device->BeginStep(problem.step.Layout());
    device->Attention(args);
    device->Sync();
  }
  return device.ReadActivations(args.out, problem.step.num_tokens() * problem.out_width());
}

// The frequencies of one model may lie where those of another did.
TEST_P(ReplayTest, FrequenciesCountNotTheirAddress) {
  const auto& [backend, kv_type] = GetParam();
  Device device(MakeFresh(backend));
  std::vector<float> at_one_address(64);
  for (const int32_t head_dim : {64, 128}) {
    auto problem = AttentionProblem::Dense({.q_heads = 4, .kv_heads = 2, .head_dim = head_dim},
                                           kv_type, device.activation_type(), {{300, 1}, {70, 1}});
    AttentionArgs args = problem.Place(device);
    args.q_stride = problem.out_width();
    args.q = device.PlaceActivations(problem.q);
    args.out = device.PlaceActivations(Values(problem.q.size()));
    for (const int32_t num_decode : {0, 2}) {
      problem.step.num_decode = num_decode;
      for (const double frequency : {1.0, 100.0}) {
        const float* apart = InverseFrequencies(head_dim, frequency);
        const Values expected = AttendThrice(device, problem, args, apart);
        std::copy_n(apart, head_dim / 2, at_one_address.begin());
        ExpectSameBits(AttendThrice(device, problem, args, at_one_address.data()), expected);
      }
    }
  }
}

}  // namespace
}  // namespace everlong
