#include "engine/session.h"

#include <algorithm>

namespace everlong {

bool WritesSharedPage(const Session& session, const PagePool& pool) {
  return session.stored % kPageTokens != 0 &&
         pool.IsShared(session.pages[session.stored / kPageTokens]);
}

int64_t OwnPages(const Session& session, const PagePool& pool) {
  return std::count_if(session.pages.begin(), session.pages.end(),
                       [&](int32_t page) { return !pool.IsShared(page); });
}

void Extend(Session& session, PagePool& pool, int64_t num_tokens, std::vector<PageCopy>& copies) {
  if (WritesSharedPage(session, pool)) {
    int32_t& page = session.pages[session.stored / kPageTokens];
    copies.push_back({.from = page, .to = pool.Allocate()});
    page = copies.back().to;
  }
  const int64_t needed = PagesFor(session.stored + num_tokens);
  while (static_cast<int64_t>(session.pages.size()) < needed) {
    session.pages.push_back(pool.Allocate());
  }
}

void ReleaseCopied(PagePool& pool, std::vector<PageCopy>& copies) {
  for (const PageCopy& copy : copies) pool.Release(copy.from);
  copies.clear();
}

Session Fork(const Session& session, PagePool& pool) {
  for (const int32_t page : session.pages) pool.Share(page);
  return session;
}

void DropPages(Session& session, PagePool& pool) {
  for (const int32_t page : session.pages) pool.Release(page);
  session.pages.clear();
  session.stored = 0;
}

}  // namespace everlong
