// EVERLONG_CHECK, which the kernels use too.
#pragma once

#include "kernels/check.h"
