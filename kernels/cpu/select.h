#pragma once

#include <vector>

#include "kernels/args.h"
#include "kernels/cpu/choice.h"
#include "kernels/cpu/scan.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/thread_pool.h"

namespace everlong::cpu {

// Divides the selections of a step among threads: prompt blocks one by one, scans by ranges of
// pages. Keeps its memory between calls.
class Select {
 public:
  void Run(const SelectArgs& args, const Step& step, ThreadPool& pool);

 private:
  void PlanChoices(const SelectArgs& args, const Step& step);
  void PrepareChunkTurns(const SelectArgs& args);

  std::vector<Choice> probed_;
  Scan scan_;
  std::vector<Turn> chunk_turns_;            // by chunk number
  std::vector<float> chunk_inv_freq_;        // what they were made with
  std::vector<SelectWorkspace> workspaces_;  // [threads]
};

}  // namespace everlong::cpu
