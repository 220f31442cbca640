#include <fmt/format.h>

#include <atomic>
#include <memory>
#include <ostream>

#include "client/commands.h"
#include "client/connection.h"
#include "client/generation.h"
#include "client/prompt.h"
#include "client/stream_printer.h"

namespace everlong {
namespace {

struct ChatOptions {
  ConnectionOptions connection;
  std::string model;
  GenerationOptions generation;
  std::string system;
  bool verbose = false;
};

constexpr char kPrompt[] = "> ";
constexpr char kHelp[] =
    "/system [TEXT]  sets the system message; without TEXT removes it\n"
    "/reset          forgets the conversation, but not the system message\n"
    "/quit           ends, as Ctrl-D does; Ctrl-C interrupts an answer\n"
    "A line that begins with a space is sent even where a / follows.\n";

// A conversation, line by line: each line is a command or a message, which the model answers.
class Conversation {
 public:
  Conversation(const ChatOptions& options, v1::GenerateRequest request, Console& console)
      : options_(options),
        request_(std::move(request)),
        system_(options.system),
        console_(console),
        connection_(options.connection),
        interactive_(console.in_is_terminal && console.err_is_terminal) {}

  int Run() {
    if (absl::Status status = Greet(); !status.ok()) return Finish(console_, status);
    std::optional<Interrupts::Watch> watch;
    if (interactive_) watch.emplace(console_.interrupts, [this] { Hint(); });
    for (std::string line; ReadLine(line);) {
      const int code = line.starts_with('/') ? Obey(line) : Answer(line);
      if (quit_ || !console_.out.good()) return code;
      // A script must not go on with a conversation that lacks a turn.
      if (code != kExitOk && !interactive_) return code;
    }
    return kExitOk;
  }

 private:
  absl::Status Greet() {
    const absl::StatusOr<v1::Model> model = connection_.GetModel(options_.model);
    if (!model.ok()) return model.status();
    if (!model->has_chat_template()) {
      return absl::FailedPreconditionError(
          fmt::format("{} has no chat template; use `everlong generate`", model->name()));
    }
    if (interactive_) console_.err << model->name() << ": /help lists the commands\n";
    return absl::OkStatus();
  }

  // Where Ctrl-C interrupts no answer. At the prompt the terminal has dropped what was typed.
  void Hint() {
    if (at_prompt_) console_.err << "\n/quit or Ctrl-D ends\n" << kPrompt << std::flush;
  }

  // The next line that is not empty; false at the end of the input.
  bool ReadLine(std::string& line) {
    do {
      at_prompt_ = true;
      if (interactive_) console_.err << kPrompt << std::flush;
      const bool read = static_cast<bool>(std::getline(console_.in, line));
      at_prompt_ = false;
      if (!read) {
        if (interactive_) console_.err << std::endl;
        return false;
      }
      if (line.ends_with('\r')) line.pop_back();
    } while (line.empty());
    return true;
  }

  int Obey(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string command = line.substr(0, space);
    if (command == "/quit") {
      quit_ = true;
    } else if (command == "/reset") {
      turns_.Clear();
    } else if (command == "/system") {
      const std::string text = space == std::string::npos ? "" : line.substr(space + 1);
      if (absl::Status s = CheckUtf8(text, "/system"); !s.ok()) return FailUsage(console_, s);
      system_ = text;
    } else if (command == "/help") {
      console_.err << kHelp << std::flush;
    } else {
      return FailUsage(console_, absl::InvalidArgumentError("unknown command " + command +
                                                            "; /help lists them"));
    }
    return kExitOk;
  }

  int Answer(const std::string& message) {
    if (absl::Status s = CheckUtf8(message, "message"); !s.ok()) return FailUsage(console_, s);
    AddMessage("user", message, turns_);
    std::string answer;
    const GenerateEnd end = Stream(answer);
    // What was interrupted stays in the conversation as far as it was read.
    if (end.status.ok() || (end.interrupted && !answer.empty())) {
      AddMessage("assistant", answer, turns_);
    } else {
      turns_.mutable_messages()->RemoveLast();
    }
    if (end.interrupted && interactive_) console_.err << "(interrupted)" << std::endl;
    return Finish(console_, end.interrupted ? absl::OkStatus() : end.status);
  }

  GenerateEnd Stream(std::string& answer) {
    v1::GenerateRequest request = request_;
    if (!system_.empty()) AddMessage("system", system_, *request.mutable_chat());
    request.mutable_chat()->MergeFrom(turns_);
    StreamPrinter printer(console_, {.summary = options_.verbose, .end_line = true});
    return Generate(connection_, request, console_.interrupts, [&](const v1::GenerateEvent& event) {
      answer += event.output().text();
      printer.Handle(event);
      return console_.out.good();
    });
  }

  const ChatOptions& options_;
  const v1::GenerateRequest request_;  // but for its messages
  std::string system_;                 // empty: none
  v1::Chat turns_;                     // so far
  Console& console_;
  Connection connection_;
  const bool interactive_;
  std::atomic<bool> at_prompt_ = false;
  bool quit_ = false;
};

int RunChat(const ChatOptions& options, Console& console) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  absl::Status status = ApplyGenerationOptions(options.generation, request);
  if (status.ok()) status = CheckUtf8(options.system, "--system");
  if (!status.ok()) return FailUsage(console, status);
  return Conversation(options, std::move(request), console).Run();
}

}  // namespace

Command AddChat(CLI::App& app) {
  CLI::App& command = *app.add_subcommand("chat", "Holds a conversation with the model");
  const auto options = std::make_shared<ChatOptions>();
  command.footer(std::string("In the conversation:\n") + kHelp);
  command.add_option("--system", options->system, "System message")->type_name("TEXT");
  AddConnectionOptions(command, options->connection);
  AddModelOption(command, options->model);
  AddGenerationOptions(command, options->generation);
  command.add_flag("-v,--verbose", options->verbose, "Usage and timings after each answer");
  return [options](Console& console) { return RunChat(*options, console); };
}

}  // namespace everlong
