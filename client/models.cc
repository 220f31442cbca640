#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>
#include <ostream>
#include <vector>

#include "client/commands.h"
#include "client/connection.h"
#include "client/stream_printer.h"

namespace everlong {
namespace {

struct ModelsOptions {
  ConnectionOptions connection;
  bool json = false;
};

constexpr size_t kNumColumns = 10;
using Row = std::array<std::string, kNumColumns>;

Row DescribeModel(const v1::Model& model) {
  return {model.name(),
          model.architecture(),
          fmt::format("{}", model.num_layers()),
          fmt::format("{}/{} x {}", model.q_heads(), model.kv_heads(), model.head_dim()),
          fmt::format("{}", model.vocab_size()),
          fmt::format("{}", model.trained_length()),
          fmt::format("{}", model.served_length()),
          fmt::format("{}", model.kv_bytes_per_token()),
          model.has_chat_template() ? "yes" : "no",
          model.device()};
}

std::string ModelTable(const v1::ListModelsResponse& models) {
  std::vector<Row> rows = {{"NAME", "ARCHITECTURE", "LAYERS", "HEADS Q/KV x DIM", "VOCABULARY",
                            "TRAINED LENGTH", "SERVED LENGTH", "KV BYTES/TOKEN", "CHAT", "DEVICE"}};
  for (const v1::Model& model : models.models()) rows.push_back(DescribeModel(model));
  std::array<size_t, kNumColumns> widths{};
  for (const Row& row : rows) {
    for (size_t i = 0; i < kNumColumns; ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string table;
  for (const Row& row : rows) {
    for (size_t i = 0; i + 1 < kNumColumns; ++i) {
      table += fmt::format("{:<{}}  ", row[i], widths[i]);
    }
    table += row.back() + '\n';
  }
  return table;
}

int RunModels(const ModelsOptions& options, Console& console) {
  const auto models = Connection(options.connection).ListModels();
  if (!models.ok()) return Finish(console, models.status());
  console.out << (options.json ? JsonLine(*models) : ModelTable(*models));
  return Finish(console, absl::OkStatus());
}

}  // namespace

Command AddModels(CLI::App& app) {
  CLI::App& command = *app.add_subcommand("models", "Lists the models that a server serves");
  const auto options = std::make_shared<ModelsOptions>();
  AddConnectionOptions(command, options->connection);
  command.add_flag("--json", options->json, "Prints the response as a line of JSON");
  return [options](Console& console) { return RunModels(*options, console); };
}

}  // namespace everlong
