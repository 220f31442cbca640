// EVERLONG_CHECK aborts on our own bugs; nothing that a request contains may reach it.
#pragma once

#include <cstdio>
#include <cstdlib>

#define EVERLONG_CHECK(condition)                                                        \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
