// The subcommands, one file each.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "client/console.h"

namespace everlong {

// Runs a subcommand with the options parsed by then; returns the exit status.
using Command = std::function<int(Console&)>;

// Each adds its subcommand and options to `app` and returns what runs it.
Command AddGenerate(CLI::App& app);
Command AddChat(CLI::App& app);
Command AddTokenize(CLI::App& app);
Command AddModels(CLI::App& app);
Command AddBench(CLI::App& app);

}  // namespace everlong
