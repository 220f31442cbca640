#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/client/fake_server.h"
#include "tests/client/run_client.h"

namespace everlong {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;

// Answers the n-th message with "answer n".
Script Counting() {
  return [n = 0](const v1::GenerateRequest&, EventWriter& writer) mutable {
    v1::GenerateEvent event;
    event.mutable_output()->set_text("answer " + std::to_string(++n));
    writer.Write(event);
    writer.Write(Event("sample_finished { reason: FINISH_REASON_STOP_TOKEN stop_token: 2 }"));
    writer.Write(Event("finished {}"));
    return Ending{};
  };
}

class ChatTest : public ::testing::Test {
 protected:
  Outcome Chat(const std::string& input, std::vector<std::string> args = {},
               Terminals terminals = {}) {
    args.insert(args.begin(), {"chat", "--server", server_.address()});
    return RunEverlong(args, input, terminals, &interrupts_);
  }

  // The messages of request `i`, each as "role: content".
  std::vector<std::string> Messages(size_t i) {
    const auto requests = server_.generate_requests();
    std::vector<std::string> messages;
    if (i >= requests.size()) return {"no such request"};
    for (const v1::ChatMessage& message : requests[i].chat().messages()) {
      messages.push_back(message.role() + ": " + message.content());
    }
    return messages;
  }

  FakeServer server_;
  Interrupts interrupts_;
};

TEST_F(ChatTest, KeepsTheConversation) {
  server_.script = Counting();
  const Outcome outcome = Chat("one\n\ntwo\r\nthree");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.out, "answer 1\nanswer 2\nanswer 3\n");
  EXPECT_EQ(outcome.err, "") << "no prompts in a pipe";
  EXPECT_THAT(Messages(2), ElementsAre("user: one", "assistant: answer 1", "user: two",
                                       "assistant: answer 2", "user: three"));
}

TEST_F(ChatTest, ShowsPromptsOnATerminal) {
  server_.script = Counting();
  const Outcome outcome = Chat("one\n", {}, kAllTerminals);
  EXPECT_EQ(outcome.err, "bytes: /help lists the commands\n> > \n");
  EXPECT_EQ(outcome.out, "answer 1\n");
}

TEST_F(ChatTest, SendsGenerationOptionsEachTime) {
  Chat("one\ntwo\n", {"--temperature", "0", "--max-output-tokens", "5", "--model", "bytes"});
  const auto requests = server_.generate_requests();
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[1].model(), "bytes");
  EXPECT_EQ(requests[1].sampling().temperature(), 0);
  EXPECT_EQ(requests[1].stopping().max_output_tokens(), 5);
}

TEST_F(ChatTest, QuitEndsBeforeTheInputDoes) {
  EXPECT_EQ(Chat("/quit\nmore\n").code, 0);
  EXPECT_TRUE(server_.generate_requests().empty());
}

TEST_F(ChatTest, ResetForgetsTheTurnsAndKeepsTheSystemMessage) {
  server_.script = Counting();
  Chat("one\n/reset\ntwo\n", {"--system", "be brief"});
  EXPECT_THAT(Messages(0), ElementsAre("system: be brief", "user: one"));
  EXPECT_THAT(Messages(1), ElementsAre("system: be brief", "user: two"));
}

TEST_F(ChatTest, SystemSetsReplacesAndRemovesTheMessage) {
  server_.script = Counting();
  Chat("/system speak French\none\n/system\ntwo\n");
  EXPECT_THAT(Messages(0), ElementsAre("system: speak French", "user: one"));
  EXPECT_THAT(Messages(1), ElementsAre("user: one", "assistant: answer 1", "user: two"));
}

TEST_F(ChatTest, UnknownCommandsAreNotSent) {
  const Outcome pipe = Chat("/rest\none\n");
  EXPECT_EQ(pipe.code, 2) << "a script does not go on";
  EXPECT_EQ(pipe.err, "everlong: unknown command /rest; /help lists them\n");
  EXPECT_EQ(Chat("/rest\n", {}, kAllTerminals).code, 0);
  EXPECT_TRUE(server_.generate_requests().empty());
  Chat(" /rest\n");
  EXPECT_THAT(Messages(0), ElementsAre("user:  /rest"));
}

TEST_F(ChatTest, HelpNamesEveryCommand) {
  const Outcome outcome = Chat("/help\n");
  for (const char* command : {"/system", "/reset", "/quit"}) {
    EXPECT_THAT(outcome.err, HasSubstr(command));
  }
}

TEST_F(ChatTest, CtrlCInterruptsTheAnswerAndNotTheProgram) {
  server_.script = [this, n = 0](const v1::GenerateRequest& request, EventWriter& writer) mutable {
    if (++n > 1) return Counting()(request, writer);
    writer.Write(Event("output { text: 'half an' token_ids: 1 }"));
    // The client has read the text once it has written it; it reads the events in order.
    writer.Write(Event("output { text: ' answer' token_ids: 1 }"));
    interrupts_.Raise();
    EXPECT_TRUE(writer.WaitForCancel());
    return Ending{absl::StatusCode::kCancelled, "", {}};
  };
  const Outcome outcome = Chat("one\ntwo\n", {}, kAllTerminals);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.out, EndsWith("answer 1\n"));
  EXPECT_THAT(outcome.err, HasSubstr("(interrupted)"));
  EXPECT_EQ(Messages(1).back(), "user: two");
}

TEST_F(ChatTest, AnInterruptedAnswerStaysAsFarAsItWasRead) {
  // Ctrl-C comes as soon as the client has printed the beginning.
  class RaiseOnWrite : public std::stringbuf {
   public:
    explicit RaiseOnWrite(Interrupts& interrupts) : interrupts_(interrupts) {}
    int sync() override {
      interrupts_.Raise();
      return 0;
    }

   private:
    Interrupts& interrupts_;
  };
  server_.script = [n = 0](const v1::GenerateRequest& request, EventWriter& writer) mutable {
    if (++n > 1) return Counting()(request, writer);
    writer.Write(Event("output { text: 'half' token_ids: 1 }"));
    EXPECT_TRUE(writer.WaitForCancel());
    return Ending{};
  };
  RaiseOnWrite buffer(interrupts_);
  std::istringstream in("one\ntwo\n");
  std::ostream out(&buffer);
  std::ostringstream err;
  Console console{.in = in, .out = out, .err = err, .interrupts = interrupts_};
  EXPECT_EQ(RunClient({"chat", "--server", server_.address()}, console), 0);
  EXPECT_THAT(Messages(1), ElementsAre("user: one", "assistant: half", "user: two"));
}

TEST_F(ChatTest, AFailedTurnIsForgottenOnATerminal) {
  server_.script = [n = 0](const v1::GenerateRequest& request, EventWriter& writer) mutable {
    if (++n > 1) return Counting()(request, writer);
    return Ending{absl::StatusCode::kResourceExhausted, "the queue is full", {}};
  };
  const Outcome outcome = Chat("one\ntwo\n", {}, kAllTerminals);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.err, HasSubstr("everlong: RESOURCE_EXHAUSTED: the queue is full\n"));
  EXPECT_THAT(Messages(1), ElementsAre("user: two"));
}

TEST_F(ChatTest, AFailedTurnEndsAScript) {
  server_.script = [](const v1::GenerateRequest&, EventWriter&) {
    return Ending{absl::StatusCode::kResourceExhausted, "the queue is full", {}};
  };
  EXPECT_EQ(Chat("one\ntwo\n").code, 1);
  EXPECT_EQ(server_.generate_requests().size(), 1u);
}

TEST_F(ChatTest, InvalidUtf8IsNotSent) {
  const Outcome outcome = Chat("a\xFF\n/quit\n", {}, kAllTerminals);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.err, HasSubstr("everlong: message: invalid UTF-8 at byte 1 (0xFF)"));
  EXPECT_EQ(Chat("/system \xFF\n").code, 2);
  EXPECT_EQ(Chat("", {"--system", "\xFF"}).code, 2);
  EXPECT_TRUE(server_.generate_requests().empty());
}

TEST_F(ChatTest, AModelWithoutATemplateIsRefusedAtOnce) {
  server_.model.set_has_chat_template(false);
  const Outcome outcome = Chat("one\n");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_EQ(outcome.err,
            "everlong: FAILED_PRECONDITION: bytes has no chat template; use `everlong generate`\n");
}

}  // namespace
}  // namespace everlong
