#include "client/client.h"

#include <fmt/format.h>

#include <ostream>
#include <utility>

#include "client/commands.h"

namespace everlong {
namespace {

std::string UsageMessage(const CLI::App* app, const CLI::Error& error) {
  const auto commands = app->get_subcommands();
  return fmt::format("everlong: {}; see `everlong {}--help`\n", error.what(),
                     commands.empty() ? "" : commands.front()->get_name() + " ");
}

}  // namespace

int RunClient(const std::vector<std::string>& args, Console& console) {
  CLI::App app("Talks to an everlong server.", "everlong");
  app.set_version_flag("--version", "everlong " EVERLONG_VERSION);
  app.require_subcommand(0, 1);
  app.failure_message(UsageMessage);
  app.footer("`everlong COMMAND --help` lists a command's options.");
  const std::pair<const char*, Command> commands[] = {
      {"generate", AddGenerate(app)}, {"chat", AddChat(app)},   {"tokenize", AddTokenize(app)},
      {"models", AddModels(app)},     {"bench", AddBench(app)},
  };
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::ParseError& error) {
    return app.exit(error, console.out, console.err) == 0 ? kExitOk : kExitUsage;
  }
  for (const auto& [name, run] : commands) {
    if (app.got_subcommand(name)) return run(console);
  }
  console.err << app.help();
  return kExitUsage;
}

}  // namespace everlong
