#include <ctime>

#include "engine/jinja/builtin.h"
#include "engine/jinja/compare.h"
#include "engine/jinja/objects.h"
#include "engine/jinja/print.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

// As the sandbox limits it.
constexpr int64_t kMaxRange = 100'000;

int64_t RangeLength(int64_t start, int64_t stop, int64_t step) {
  if (step == 0) throw Error("range: the step is zero");
  const bool empty = step > 0 ? start >= stop : start <= stop;
  if (empty) return 0;
  const uint64_t distance = step > 0 ? static_cast<uint64_t>(stop) - static_cast<uint64_t>(start)
                                     : static_cast<uint64_t>(start) - static_cast<uint64_t>(stop);
  const uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : -static_cast<uint64_t>(step);
  const uint64_t length = (distance - 1) / stride + 1;
  if (length > kMaxRange) {
    throw Error(fmt::format("range: {} elements, the limit is {}", length, kMaxRange));
  }
  return static_cast<int64_t>(length);
}

Value Range(const Call& call) {
  const bool only_stop = !call.args[1].has_value();
  const int64_t start = only_stop ? 0 : call.Int(0, 0);
  const int64_t stop = call.Int(only_stop ? 0 : 1, 0);
  const int64_t step = call.Int(2, 1);
  const int64_t length = RangeLength(start, stop, step);
  ListBuilder numbers(call.heap);
  for (int64_t i = 0; i < length; ++i) numbers.Add(Value(start + i * step));
  return numbers.Finish(Flavor::kRange);
}

// dict(mapping or pairs, name=value ...).
std::vector<std::pair<Value, Value>> DictItems(const Call& call) {
  std::vector<std::pair<Value, Value>> items;
  if (const Value base = call.Arg(0); base.dict() != nullptr) {
    items = base.dict()->items;
  } else if (call.args[0].has_value()) {
    for (const Value& element : Elements(call.heap, base)) {
      const std::span<const Value> pair = Elements(call.heap, element);
      if (pair.size() != 2) throw Error(fmt::format("{}: an element is no pair", call.callee));
      SetItem(call.heap, pair[0], pair[1], &items);
    }
  }
  for (const auto& [name, value] : call.rest.named) {
    SetItem(call.heap, Value(name), value, &items);
  }
  if (!call.rest.positional.empty()) {
    throw Error(fmt::format("{} takes one mapping", call.callee));
  }
  return items;
}

Value MakeDict(const Call& call) {
  return call.heap.NewDict(DictItems(call));
}

Value MakeNamespace(const Call& call) {
  Namespace* result = call.heap.New<Namespace>();
  for (const auto& [name, value] : DictItems(call)) {
    result->Set(call.heap, ToText(name, "a namespace's attribute"), value);
  }
  return Value(result);
}

Value RaiseException(const Call& call) {
  TextBuilder message(call.heap);
  Print(call.heap, call.Arg(0), &message);
  throw Error(message.Take());
}

// In local time, like the Python it stands for.
Value FormatNow(const Call& call) {
  const std::string format(call.Text(0, ""));
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[256];
  const size_t length = std::strftime(buffer, sizeof(buffer), format.c_str(), &local);
  if (length == 0 && !format.empty()) {
    throw Error("strftime_now: the result is empty or longer than 255 bytes");
  }
  return call.heap.NewText(std::string(buffer, length));
}

Value MakeCycler(const Call& call) {
  if (call.rest.positional.empty()) throw Error("cycler: no items");
  call.heap.Reserve(call.rest.positional.size() * sizeof(Value));
  return Value(call.heap.New<Cycler>(call.rest.positional));
}

Value MakeJoiner(const Call& call) {
  return Value(call.heap.New<Joiner>(call.Arg(0, Value(", "))));
}

}  // namespace

std::span<const Builtin> Functions() {
  static constexpr Builtin kFunctions[] = {
      {"cycler", "*", MakeCycler},
      {"dict", "mapping? / *", MakeDict},
      {"joiner", "sep?", MakeJoiner},
      {"namespace", "mapping? / *", MakeNamespace},
      {"raise_exception", "message", RaiseException},
      {"range", "start stop? step? /", Range},
      {"strftime_now", "format", FormatNow},
  };
  return kFunctions;
}

}  // namespace everlong::jinja
