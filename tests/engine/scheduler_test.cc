#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "engine/session.h"

namespace everlong {
namespace {

constexpr SchedulerLimits kLimits = {.max_batch_tokens = 512, .max_running = 8};

SequenceView Running(int64_t stored, int64_t pending) {
  return {.pending = pending,
          .stored = stored,
          .own_pages = PagesFor(stored),
          .holds_pages = stored > 0,
          .running = true};
}

SequenceView Waiting(int64_t pending) {
  return {.pending = pending};
}

Schedule ScheduleStep(std::span<const SequenceView> sequences, int64_t free_pages,
                      const SchedulerLimits& limits) {
  return Scheduler().Plan(sequences, free_pages, limits);
}

int64_t Total(const Schedule& plan) {
  return std::accumulate(plan.tokens.begin(), plan.tokens.end(), int64_t{0});
}

TEST(SchedulerTest, DecodingComesFirstAndPromptsShareTheRest) {
  const std::vector<SequenceView> views = {Waiting(100000), Running(900, 1), Waiting(100000),
                                           Running(70, 1)};
  const Schedule plan = ScheduleStep(views, 100000, kLimits);
  EXPECT_EQ(plan.tokens[1], 1);
  EXPECT_EQ(plan.tokens[3], 1);
  EXPECT_EQ(plan.tokens[0] % kPageTokens, 0);
  EXPECT_GE(plan.tokens[0], 192);
  EXPECT_GE(plan.tokens[2], 192);
  EXPECT_LE(Total(plan), 512);
}

TEST(SchedulerTest, AShortPromptIsReadWholeBesideALongOne) {
  const std::vector<SequenceView> views = {Running(6400, 100000), Waiting(200)};
  const Schedule plan = ScheduleStep(views, 100000, kLimits);
  EXPECT_EQ(plan.tokens[1], 200);
  EXPECT_GE(plan.tokens[0], 256);
}

TEST(SchedulerTest, ChunksEndAtPageBoundariesUnlessThePromptEnds) {
  const std::vector<SequenceView> views = {Running(100, 5000)};
  const Schedule plan = ScheduleStep(views, 100000, kLimits);
  EXPECT_EQ((100 + plan.tokens[0]) % kPageTokens, 0);
  EXPECT_GT(plan.tokens[0], 512 - kPageTokens);
}

TEST(SchedulerTest, AdmissionWaitsForRoomInRankOrder) {
  const std::vector<SequenceView> views = {Running(640, 1), Waiting(1000), Waiting(10)};
  const Schedule plan = ScheduleStep(views, 10, kLimits);
  EXPECT_EQ(plan.tokens, (std::vector<int64_t>{1, 0, 0}));
  EXPECT_TRUE(plan.preempted.empty());
}

TEST(SchedulerTest, AdmissionWaitsForRoomForWhatComesAgainToo) {
  std::vector<SequenceView> views = {Running(640, 1), Waiting(100)};
  EXPECT_EQ(ScheduleStep(views, 3, kLimits).tokens, (std::vector<int64_t>{1, 100}));
  views[1].later = 29;  // of two pages' second
  EXPECT_EQ(ScheduleStep(views, 3, kLimits).tokens, (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(ScheduleStep(views, 4, kLimits).tokens, (std::vector<int64_t>{1, 100}));
}

TEST(SchedulerTest, TheBestRankedPreemptsTheWorst) {
  const std::vector<SequenceView> views = {Running(640, 1), Running(320, 1), Running(128, 1)};
  const Schedule plan = ScheduleStep(views, 0, kLimits);
  EXPECT_EQ(plan.preempted, std::vector<int32_t>{2});
  EXPECT_EQ(plan.tokens, (std::vector<int64_t>{1, 1, 0}));
}

TEST(SchedulerTest, PausedSequencesGetNothingAndMayBePreempted) {
  std::vector<SequenceView> views = {Running(640, 1), Running(320, 1)};
  views[1].paused = true;
  EXPECT_EQ(ScheduleStep(views, 5, kLimits).tokens, (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(ScheduleStep(views, 0, kLimits).preempted, std::vector<int32_t>{1});
}

TEST(SchedulerTest, PausedSequencesGiveWayToWhoeverWaits) {
  SchedulerLimits limits = kLimits;
  limits.max_running = 2;
  std::vector<SequenceView> views = {Running(640, 1), Running(320, 1), Waiting(10)};
  EXPECT_EQ(ScheduleStep(views, 100, limits).tokens, (std::vector<int64_t>{1, 1, 0}));
  views[0].paused = true;  // the best-ranked
  Schedule plan = ScheduleStep(views, 100, limits);
  EXPECT_EQ(plan.preempted, std::vector<int32_t>{0});
  EXPECT_EQ(plan.tokens, (std::vector<int64_t>{0, 1, 10}));
  // For pages as for places.
  plan = ScheduleStep(views, 0, kLimits);
  EXPECT_EQ(plan.preempted, std::vector<int32_t>{0});
  EXPECT_EQ(plan.tokens, (std::vector<int64_t>{0, 1, 10}));
  // One that waits and is paused is passed over.
  views = {Running(640, 1), Waiting(10), Waiting(10)};
  views[1].paused = true;
  EXPECT_EQ(ScheduleStep(views, 100, limits).tokens, (std::vector<int64_t>{1, 0, 10}));
}

// Random states: the plan keeps within every limit and always advances the best-ranked sequence.
TEST(SchedulerTest, RandomStatesKeepTheLimits) {
  std::mt19937 random(3);
  for (int round = 0; round < 20000; ++round) {
    std::vector<SequenceView> views;
    int64_t num_running = 0;
    const int count = 1 + static_cast<int>(random() % 12);
    for (int i = 0; i < count; ++i) {
      const bool running = random() % 2 == 0 && num_running < kLimits.max_running;
      num_running += running ? 1 : 0;
      const int64_t pending = random() % 2 == 0 ? 1 : 1 + static_cast<int64_t>(random() % 3000);
      views.push_back(running ? Running(static_cast<int64_t>(1 + random() % 2000), pending)
                              : Waiting(pending));
      views.back().paused = i > 0 && random() % 4 == 0;
    }
    const auto free_pages = static_cast<int64_t>(random() % 40);
    const Schedule plan = ScheduleStep(views, free_pages, kLimits);

    ASSERT_EQ(plan.tokens.size(), views.size());
    int64_t free_after = free_pages;
    int64_t running_after = num_running;
    for (const int32_t victim : plan.preempted) {
      ASSERT_GT(views[victim].own_pages, 0);
      ASSERT_EQ(plan.tokens[victim], 0);
      free_after += views[victim].own_pages;
      running_after -= views[victim].running ? 1 : 0;
    }
    for (size_t i = 0; i < views.size(); ++i) {
      ASSERT_GE(plan.tokens[i], 0);
      ASSERT_LE(plan.tokens[i], views[i].pending);
      free_after -= PagesFor(views[i].stored + plan.tokens[i]) - PagesFor(views[i].stored);
      running_after += plan.tokens[i] > 0 && !views[i].running ? 1 : 0;
      if (views[i].paused) {
        ASSERT_EQ(plan.tokens[i], 0);
      }
    }
    ASSERT_GE(free_after, 0);
    ASSERT_LE(running_after, kLimits.max_running);
    ASSERT_LE(Total(plan), kLimits.max_batch_tokens);
    int64_t reachable = free_pages;
    for (size_t i = 1; i < views.size(); ++i) reachable += views[i].own_pages;
    const bool fits = PagesFor(views[0].stored + 1) - PagesFor(views[0].stored) <= reachable;
    if (views[0].running && views[0].pending == 1 && fits) {
      ASSERT_EQ(plan.tokens[0], 1);
    }
  }
}

// Random sessions are extended, forked and dropped: pages are conserved, none is written by two.
TEST(SessionTest, PagesAreConserved) {
  PagePool pool(200);
  std::vector<Session> sessions(1);
  std::vector<PageCopy> copies;
  std::mt19937 random(9);
  for (int round = 0; round < 100000; ++round) {
    const size_t i = random() % sessions.size();
    const uint32_t action = random() % 8;
    Session& session = sessions[i];
    if (action < 5) {
      const auto num_tokens = static_cast<int64_t>(1 + random() % 100);
      const int64_t needed = PagesFor(session.stored + num_tokens) -
                             static_cast<int64_t>(session.pages.size()) +
                             (WritesSharedPage(session, pool) ? 1 : 0);
      if (needed > pool.num_free()) {
        DropPages(session, pool);
        continue;
      }
      Extend(session, pool, num_tokens, copies);
      for (int64_t p = session.stored / kPageTokens; p < PagesFor(session.stored + num_tokens);
           ++p) {
        ASSERT_FALSE(pool.IsShared(session.pages[p]));
      }
      session.stored += num_tokens;
      ReleaseCopied(pool, copies);
    } else if (action == 5 && sessions.size() < 12) {
      sessions.push_back(Fork(session, pool));
    } else if (action == 6 && sessions.size() > 1) {
      DropPages(session, pool);
      sessions.erase(sessions.begin() + static_cast<ptrdiff_t>(i));
    }
    if (round % 64 != 0) continue;
    std::vector<int> held(200, 0);
    for (const Session& s : sessions) {
      for (const int32_t page : s.pages) ++held[page];
    }
    const auto used = std::count_if(held.begin(), held.end(), [](int refs) { return refs > 0; });
    ASSERT_EQ(used + pool.num_free(), 200);
  }
  for (Session& session : sessions) DropPages(session, pool);
  EXPECT_EQ(pool.num_free(), 200);
}

}  // namespace
}  // namespace everlong
