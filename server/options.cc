#include "server/options.h"

#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <ostream>

#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

constexpr char kFooter[] =
    "Every option is also an environment variable (EVERLONG_MAX_CONTEXT) and a key of the YAML "
    "file\n(max-context: 4096). A flag goes before the environment, that before the file.";

// A value and where it was written, for messages.
struct Setting {
  std::string value;
  std::string origin;
};
using Settings = std::map<std::string, Setting>;  // by option name

absl::Status Invalid(const std::string& message) {
  return absl::InvalidArgumentError(message);
}

bool IsOption(const std::string& name) {
  const auto& table = OptionTable();
  return std::any_of(table.begin(), table.end(),
                     [&](const Option& option) { return option.name == name; });
}

absl::Status AddYamlEntry(const std::string& path, const YAML::Node& key, const YAML::Node& value,
                          Settings& settings) {
  const std::string origin = fmt::format("{}:{}: ", path, key.Mark().line + 1);
  if (!key.IsScalar()) return Invalid(origin + "a key is not a name");
  std::string name = key.Scalar();
  std::replace(name.begin(), name.end(), '_', '-');
  if (!IsOption(name)) return Invalid(fmt::format("{}unknown key '{}'", origin, key.Scalar()));
  if (!value.IsScalar()) return Invalid(fmt::format("{}{} has no single value", origin, name));
  const Setting setting = {value.Scalar(), fmt::format("{}{}", origin, key.Scalar())};
  if (!settings.emplace(name, setting).second) {
    return Invalid(fmt::format("{}key '{}' is given twice", origin, key.Scalar()));
  }
  return absl::OkStatus();
}

absl::StatusOr<Settings> ReadYaml(const std::string& path) {
  Settings settings;
  try {
    const YAML::Node root = YAML::LoadFile(path);
    if (root.IsNull()) return settings;
    if (!root.IsMap()) return Invalid(fmt::format("{}: is not a list of KEY: VALUE", path));
    for (const auto& entry : root) {
      RETURN_IF_ERROR(AddYamlEntry(path, entry.first, entry.second, settings));
    }
  } catch (const YAML::BadFile&) {
    return Invalid(fmt::format("--config: cannot read {}", path));
  } catch (const YAML::Exception& error) {
    return Invalid(fmt::format("{}:{}: {}", path, error.mark.line + 1, error.msg));
  }
  return settings;
}

Settings ReadEnvironment(const Environment& environment) {
  Settings settings;
  for (const Option& option : OptionTable()) {
    const std::string name = EnvironmentName(option);
    if (const char* value = environment(name.c_str())) settings[option.name] = {value, name};
  }
  return settings;
}

Settings ReadDefaults() {
  Settings settings;
  for (const Option& option : OptionTable()) {
    if (!option.fallback.empty()) settings[option.name] = {option.fallback, "default"};
  }
  return settings;
}

// The command line as CLI11 reads it: values stay text.
class CommandLine {
 public:
  CommandLine() : app_("Serves a checkpoint over gRPC.", "everlong-server") {
    app_.footer(kFooter);
    app_.set_version_flag("--version", "everlong-server " EVERLONG_VERSION);
    app_.add_option("--config", config_, "YAML file with options")->type_name("FILE");
    for (const Option& option : OptionTable()) {
      CLI::Option* flag = app_.add_option("--" + option.name, values_[option.name], option.help);
      flag->type_name(option.placeholder)->default_str(option.fallback);
    }
  }

  // False where the answer is in `out` already.
  absl::StatusOr<bool> Parse(std::vector<std::string> arguments, std::ostream& out) {
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    try {
      app_.parse(std::move(arguments));
    } catch (const CLI::CallForHelp&) {
      out << app_.help();
      return false;
    } catch (const CLI::CallForVersion& version) {
      out << version.what() << '\n';
      return false;
    } catch (const CLI::ParseError& error) {
      return Invalid(error.what());
    }
    return true;
  }

  const std::string& config() const { return config_; }

  Settings settings() const {
    Settings settings;
    for (const auto& [name, value] : values_) {
      const std::string flag = "--" + name;
      if (app_.count(flag) > 0) settings[name] = {value, flag};
    }
    return settings;
  }

 private:
  CLI::App app_;
  std::string config_;
  std::map<std::string, std::string> values_;
};

}  // namespace

std::string EnvironmentName(const Option& option) {
  std::string name = "EVERLONG_" + option.name;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return c == '-' ? '_' : std::toupper(c); });
  return name;
}

absl::StatusOr<std::optional<ServerOptions>> ParseOptions(std::vector<std::string> arguments,
                                                          const Environment& environment,
                                                          std::ostream& out) {
  CommandLine command_line;
  ASSIGN_OR_RETURN(const bool proceed, command_line.Parse(std::move(arguments), out));
  if (!proceed) return std::nullopt;

  Settings settings = command_line.settings();
  settings.merge(ReadEnvironment(environment));  // keeps what is there already
  const char* config_variable = environment("EVERLONG_CONFIG");
  std::string config = command_line.config();
  if (config.empty() && config_variable != nullptr) config = config_variable;
  if (!config.empty()) {
    ASSIGN_OR_RETURN(Settings file, ReadYaml(config));
    settings.merge(file);
  }
  settings.merge(ReadDefaults());

  ServerOptions options;
  for (const Option& option : OptionTable()) {
    const auto setting = settings.find(option.name);
    if (setting == settings.end()) continue;
    const absl::Status status = option.read(setting->second.value, options);
    if (!status.ok()) {
      return Invalid(fmt::format("{}: {}", setting->second.origin, std::string(status.message())));
    }
  }
  if (options.model.empty()) return Invalid("--model: the path of a checkpoint is required");
  return options;
}

}  // namespace everlong
