// What Prometheus scrapes: the engine's counts under the names that dashboards know from vLLM.
#pragma once

#include <string>
#include <vector>

#include "engine/stats.h"
#include "prometheus/metric_family.h"
#include "server/call_counts.h"

namespace everlong {

// All that /metrics says of the engine. Pure.
std::vector<prometheus::MetricFamily> ToMetrics(const EngineStats& stats, const CallCounts& counts);

// The one metric that has a meaning before there is an engine.
prometheus::MetricFamily BuildInfo(const std::string& version);

}  // namespace everlong
