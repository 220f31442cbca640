// Runs the whole program on strings.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "client/client.h"

namespace everlong {

struct Outcome {
  int code = -1;
  std::string out;
  std::string err;
};

struct Terminals {
  bool in = false;
  bool out = false;
  bool err = false;
};

inline constexpr Terminals kAllTerminals = {true, true, true};

// `interrupts`, where given, lets the test raise Ctrl-C meanwhile.
inline Outcome RunEverlong(const std::vector<std::string>& args, const std::string& input = "",
                           Terminals terminals = {}, Interrupts* interrupts = nullptr) {
  Interrupts none;
  std::istringstream in(input);
  std::ostringstream out;
  std::ostringstream err;
  Console console{.in = in,
                  .out = out,
                  .err = err,
                  .interrupts = interrupts ? *interrupts : none,
                  .in_is_terminal = terminals.in,
                  .out_is_terminal = terminals.out,
                  .err_is_terminal = terminals.err};
  const int code = RunClient(args, console);
  return {code, out.str(), err.str()};
}

}  // namespace everlong
