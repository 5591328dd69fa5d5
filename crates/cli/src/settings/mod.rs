//! The settings: one table of keys for the flags, the variables, the file and the reference.
//!
//! Precedence: flag, environment, file, default. A key of the file is a flag with dashes, and the
//! variable that stands beside it.

mod file;
mod keys;
mod values;

use clap::Args;

use crate::args::Global;

pub(crate) use file::{DeviceTables, File, FileError, likest, usual_path};
pub(crate) use keys::{
    ClientKeys, ClientValues, DeviceKeys, DeviceValues, ServerKeys, ServerValues,
};
pub(crate) use values::{
    ApiKey, ExecMode, FeatureList, Lifetime, RecordMode, Seconds, ServerAddress,
};

/// One key, as the reference and `config show` list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) section: &'static str,
    pub(crate) key: &'static str,
    pub(crate) variable: &'static str,
    pub(crate) value: String,
    /// Whether the value stands in quotes in the file.
    pub(crate) is_text: bool,
    /// What a bare number counts.
    pub(crate) unit: &'static str,
    pub(crate) about: String,
}

/// Every key with its default.
pub(crate) fn defaults() -> Vec<Row> {
    let mut rows = ServerKeys::default().resolve(ServerKeys::default()).rows();
    rows.extend(ClientKeys::default().resolve(ClientKeys::default()).rows());
    rows.extend(DeviceKeys::default().resolve(DeviceKeys::default()).rows());
    rows
}

/// Refuses a limit of nothing, which would stop everything.
pub(crate) fn at_least_one(limits: &[(&str, usize)]) -> anyhow::Result<()> {
    for (name, limit) in limits {
        anyhow::ensure!(*limit > 0, "{name} must be at least 1");
    }
    Ok(())
}

/// `docs/settings.md`, whole.
pub(crate) fn reference() -> String {
    let mut text = String::from(REFERENCE_HEAD);
    text.push_str(&global_flags());
    let mut section = "";
    for row in defaults() {
        if row.section != section {
            section = row.section;
            text.push_str(&format!("\n## `[{section}]`\n\n{}\n\n", about(section)));
            text.push_str(
                "| key | flag | variable | default | what it is |\n|---|---|---|---|---|\n",
            );
        }
        let flag = row.key.replace('_', "-");
        let default = if row.value.is_empty() {
            "–".to_owned()
        } else {
            format!("`{}`{}", row.value, row.unit)
        };
        text.push_str(&format!(
            "| `{}` | `--{flag}` | `{}` | {default} | {} |\n",
            row.key, row.variable, row.about
        ));
    }
    text.push_str(REFERENCE_TAIL);
    text
}

/// What every command takes, which stands in no file.
fn global_flags() -> String {
    let mut text = String::from(
        "\n## For every command\n\nThese are no keys of the file.\n\n| flag | variable | what it is |\n|---|---|---|\n",
    );
    let command = Global::augment_args(clap::Command::new("flightdeck"));
    for arg in command.get_arguments() {
        let flag = arg.get_long().unwrap_or_default();
        let variable = arg.get_env().unwrap_or_default().to_string_lossy();
        let about = arg.get_help().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("| `--{flag}` | `{variable}` | {about}. |\n"));
    }
    text
}

const REFERENCE_TAIL: &str = "
## `[devices.\"ID\"]`

For `flightdeck serve`, only in the file: what the server adds to the facts that orchestrators get of a
device. Any keys. Each goes into the device's `custom_metadata`; the words of `additional_features` are
added to its `supported_features`; `tags` stands at the top too, with those that the device gives itself, and
`exec --on tag:WORD` chooses by them.

```toml
[devices.\"lab-1\"]
room = \"2.14\"
additional_features = [\"gpu\"]
tags = [\"lab\", \"linux\"]
```

## `[mcp.NAME]`

For `flightdeck device`, in the settings file or in a file of `--mcp` whose name ends in `.toml`: an MCP
server whose tools the device offers in the namespace `NAME`. The same keys stand in the common JSON,
`{\"mcpServers\": {NAME: {…}}}`. A mistake in one server leaves it out with a message; the others stay.
Where several files list the same name, the last one counts; the settings file comes first.

| key | default | what it is |
|---|---|---|
| `command` | – | The program of a server that speaks over its standard input and output: a name that is looked for in `PATH`, or a path. |
| `args` | `[]` | Its arguments; at most 256. |
| `env` | `{}` | Variables it gets beside the few that every child gets; at most 256. |
| `cwd` | – | The folder it runs in; the device's own if none. |
| `url` | – | Instead of `command`: the address of a server that speaks streamable HTTP, `http://…` or `https://…`. |
| `headers` | `{}` | Headers of every request to it, such as `Authorization`; at most 256. |
| `type` | – | `stdio` or `http`, for files that say it; `command` and `url` say it already. |
| `disabled` | `false` | Leaves the server out. |
| `trusted` | `true` | Whether its tools may be called without asking, and what it says of them is believed. |
| `reset` | `false` | Whether it is started anew for each task. |
| `data_collection` | `[]` | Tools that only observe, by name or pattern (`*` stands for anything, `?` for one character); at most 256. |
| `action` | `[]` | Tools that change something. Where several patterns fit, a name goes before a pattern, and a longer pattern before a shorter one. |

In texts `${VAR}` stands for a variable of the device's environment, `${VAR:-DEFAULT}` gives it a default,
and `$${` stands for `${`. `~/` at the start of `command` and `cwd` is the home folder; other relative
paths (for `command`, those with a `/`) start from the file's own folder.

```toml
[mcp.files]
command = \"npx\"
args = [\"-y\", \"@modelcontextprotocol/server-filesystem\", \"/srv/data\"]
data_collection = [\"read_*\", \"list_*\"]

[mcp.search]
url = \"https://mcp.example.com/mcp\"
headers = { Authorization = \"Bearer ${SEARCH_TOKEN}\" }
trusted = false
```
";

const REFERENCE_HEAD: &str = "# Settings

Generated from the code (`flightdeck config reference`); a test compares the two.

Each key can be given as a flag, as an environment variable, or in the file, in this order of
precedence; what is given nowhere has its default. The file is TOML: `--config FILE`, else
`$XDG_CONFIG_HOME/flightdeck/config.toml` (`~/.config/flightdeck/config.toml`) if it is there.
Times are seconds (`30`, `0.5`) or carry a unit (`\"90s\"`, `\"5m\"`, `\"1h30m\"`).
`flightdeck config show` prints what is in force.
";

fn about(section: &str) -> &'static str {
    match section {
        "server" => "For `flightdeck serve`.",
        "client" => "For everything that connects to a server: `device`, `exec`, `run`, `devices`.",
        _ => "For `flightdeck device`.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_the_docs_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == reference(),
            "docs/settings.md is out of date: run `flightdeck config reference > docs/settings.md`"
        );
    }

    #[test]
    fn no_two_keys_share_a_variable() {
        let mut variables: Vec<_> = defaults().into_iter().map(|row| row.variable).collect();
        variables.sort_unstable();
        let all = variables.len();
        variables.dedup();
        assert_eq!(variables.len(), all);
    }
}
