// The `everlong` command: one function, so that tests run what users run.
#pragma once

#include <string>
#include <vector>

#include "client/console.h"

namespace everlong {

// `args` without the program's name. Returns the exit status: 0, 1 where a request failed, 2 where
// the command line or its input is wrong.
int RunClient(const std::vector<std::string>& args, Console& console);

}  // namespace everlong
