// Counts what `new` allocates, on all threads. A file of its own, so that no compiler sees a new
// expression and this malloc at once.
#pragma once

#include <cstdint>

namespace everlong {

int64_t NumAllocations();

}  // namespace everlong
