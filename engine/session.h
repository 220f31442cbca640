// A context: its tokens and the pages that hold their KV. Every generation runs against one.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/kv/page_pool.h"
#include "kernels/args.h"

namespace everlong {

// Engine thread only. `stored <= tokens.size()`, and pages cover at least the stored tokens.
struct Session {
  std::vector<int32_t> tokens;
  std::vector<int32_t> pages;  // page j holds positions [64 j, 64 j + 64)
  int64_t stored = 0;          // leading tokens whose KV is in the pages

  int64_t num_pending() const { return static_cast<int64_t>(tokens.size()) - stored; }
};

constexpr int64_t PagesFor(int64_t num_tokens) {
  return (num_tokens + kPageTokens - 1) / kPageTokens;
}

// A shared page that is about to be written moves to a page of the session's own.
struct PageCopy {
  int32_t from;
  int32_t to;
};

// Whether the next stored token falls into a page that other sessions hold too.
bool WritesSharedPage(const Session& session, const PagePool& pool);

// Pages that no other session holds: what DropPages would free.
int64_t OwnPages(const Session& session, const PagePool& pool);

// Makes room for the next num_tokens after the stored ones: adds pages, and replaces a shared last
// page by a copy, which the caller has to carry out before the page is written. The pool must have
// the pages. A copied page stays referenced until ReleaseCopied.
void Extend(Session& session, PagePool& pool, int64_t num_tokens, std::vector<PageCopy>& copies);

// Drops the references that kept the sources of copies alive.
void ReleaseCopied(PagePool& pool, std::vector<PageCopy>& copies);

// A session with the same tokens and stored KV, all pages shared.
Session Fork(const Session& session, PagePool& pool);

// Gives all pages back; the tokens stay.
void DropPages(Session& session, PagePool& pool);

}  // namespace everlong
