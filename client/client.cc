#include "client/client.h"

#include <algorithm>
#include <utility>

#include "client/commands.h"

namespace everlong {

int RunClient(const std::vector<std::string>& args, Console& console) {
  CLI::App app("Talks to an everlong server.", "everlong");
  app.set_version_flag("--version", "everlong " EVERLONG_VERSION);
  app.require_subcommand(1);
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
  const auto parsed = std::find_if(std::begin(commands), std::end(commands),
                                   [&](const auto& c) { return app.got_subcommand(c.first); });
  return parsed->second(console);
}

}  // namespace everlong
