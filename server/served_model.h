// What a server serves, once it is loaded.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"

namespace everlong {

struct ServedModel {
  std::string name;    // the last component of the checkpoint's path
  std::string device;  // as Kernels::description says
  std::unique_ptr<Engine> engine;
};

}  // namespace everlong
