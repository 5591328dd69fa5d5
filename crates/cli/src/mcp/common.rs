//! The form that most programs share, `{"mcpServers": {NAME: …}}`, and its like in TOML, `[mcp.NAME]`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use aip::ToolType;
use device::tools::mcp::{ServerSettings, Transport};
use serde_json::{Map, Value};

use super::expand::Place;
use super::keys::{Keys, nearest, shown, unknown};
use super::transport::{check_name, http, stdio};
use super::{Claim, Reading};

/// Reads the tables of servers that stand under one of `names`. What else is there belongs to other
/// programs, unless it looks like one of them.
pub(super) fn read(reading: &mut Reading<'_>, mut top: Map<String, Value>, names: &[&'static str]) {
    let mut is_found = false;
    for name in names {
        match top.remove(*name) {
            None => continue,
            Some(Value::Object(servers)) => read_servers(reading, servers),
            Some(Value::Null) => {}
            Some(_) => reading.note(&format!("'{name}' must hold a table of servers")),
        }
        is_found = true;
    }
    if let Some(key) = top.keys().find(|key| is_misspelt(key, names)) {
        return reading.note(&unknown(key, names));
    }
    if !is_found {
        reading.left_out(&format!("it lists no servers: it has no '{}'", names.join("' or '")));
    }
}

/// Whether a key is like the name, and about as long: `mcp` alone is another program's.
fn is_misspelt(key: &str, names: &[&str]) -> bool {
    nearest(key, names).is_some() && key.len().abs_diff(names.first().map_or(0, |n| n.len())) < 3
}

fn read_servers(reading: &mut Reading<'_>, servers: Map<String, Value>) {
    for (name, value) in servers {
        let outcome = match (check_name(&name), value) {
            (Err(why), _) => Err(vec![why]),
            (Ok(()), Value::Object(entry)) => read_server(reading, &name, entry),
            (Ok(()), _) => {
                Err(vec!["it must be a table of keys, such as command or url".to_owned()])
            }
        };
        reading.claim(&name, outcome);
    }
}

fn read_server(
    reading: &mut Reading<'_>,
    name: &str,
    entry: Map<String, Value>,
) -> Result<Claim, Vec<String>> {
    if entry.get("disabled") == Some(&Value::Bool(true)) {
        return Ok(Claim::Disabled);
    }
    let mut keys = Keys::new(entry, &reading.place);
    let entry = Entry::take(&mut keys);
    let (faults, has_secret) = keys.finish();
    reading.has_secret |= has_secret;
    if !faults.is_empty() {
        return Err(faults);
    }
    let server = entry.server(name, &reading.place).map_err(|why| vec![why])?;
    Ok(Claim::Server(server))
}

/// What stands under the name of a server.
struct Entry {
    transport: Option<String>,
    command: Option<String>,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    url: Option<String>,
    headers: BTreeMap<String, String>,
    trusted: bool,
    reset: bool,
    data_collection: Vec<String>,
    action: Vec<String>,
}

impl Entry {
    fn take(keys: &mut Keys<'_>) -> Self {
        keys.flag("disabled", false);
        Self {
            transport: keys.text("type"),
            command: keys.text("command"),
            args: keys.texts("args"),
            env: keys.table("env"),
            cwd: keys.text("cwd"),
            url: keys.text("url"),
            headers: keys.table("headers"),
            trusted: keys.flag("trusted", true),
            reset: keys.flag("reset", false),
            data_collection: keys.texts("data_collection"),
            action: keys.texts("action"),
        }
    }

    fn server(self, name: &str, place: &Place<'_>) -> Result<ServerSettings, String> {
        Ok(ServerSettings {
            namespace: name.to_owned(),
            sections: Vec::new(),
            trusted: self.trusted,
            reset: self.reset,
            tool_types: tool_types(&self.data_collection, &self.action),
            transport: self.transport(place)?,
        })
    }

    fn transport(self, place: &Place<'_>) -> Result<Transport, String> {
        let kind = self.transport.as_deref().map(kind).transpose()?;
        match (self.command, self.url, kind) {
            (Some(_), Some(_), _) => {
                Err("it has both command and url; a server is a program or an address".to_owned())
            }
            (None, None, _) => Err("it has neither command nor url".to_owned()),
            (Some(_), None, Some(Kind::Http)) => {
                Err("type http goes with url, not with command".to_owned())
            }
            (None, Some(_), Some(Kind::Stdio)) => {
                Err("type stdio goes with command, not with url".to_owned())
            }
            (Some(_), None, _) if !self.headers.is_empty() => {
                Err("headers go with url, not with command".to_owned())
            }
            (None, Some(_), _)
                if !self.args.is_empty() || !self.env.is_empty() || self.cwd.is_some() =>
            {
                Err("args, env and cwd go with command, not with url".to_owned())
            }
            (Some(command), None, _) => {
                stdio(place, &command, self.args, self.env, self.cwd.as_deref())
            }
            (None, Some(url), _) => http(&url, self.headers),
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Stdio,
    Http,
}

/// The value of `type`, in the spellings of several programs.
fn kind(text: &str) -> Result<Kind, String> {
    match text.to_lowercase().replace(['-', '_'], "").as_str() {
        "stdio" => Ok(Kind::Stdio),
        "http" | "streamablehttp" => Ok(Kind::Http),
        "sse" => Err("type sse is the old transport, which is not available here; name the \
                      server's streamable HTTP address with type http"
            .to_owned()),
        _ => Err("type must be stdio or http".to_owned()),
    }
}

/// The patterns of both lists, so that the first that fits a name is the one that says most of it: names
/// before patterns, longer patterns before shorter, and `action` where all else is equal.
fn tool_types(data_collection: &[String], action: &[String]) -> Vec<(String, ToolType)> {
    let typed = |list: &[String], tool_type| -> Vec<_> {
        list.iter().map(|pattern| (pattern.clone(), tool_type)).collect()
    };
    let mut all = typed(action, ToolType::Action);
    all.extend(typed(data_collection, ToolType::DataCollection));
    all.sort_by_key(|(pattern, _)| {
        let wild = pattern.matches(['*', '?']).count();
        (wild > 0, Reverse(pattern.chars().count() - wild))
    });
    all
}

/// A table of servers as `config show` may print it: without any value that may be a secret.
pub(crate) fn redacted(servers: &toml::Table) -> toml::Table {
    let entry = |value: &toml::Value| match value {
        toml::Value::Table(entry) => {
            let shown =
                entry.iter().map(|(key, value)| (shown(key).to_owned(), redact(key, value)));
            toml::Value::Table(shown.collect())
        }
        _ => hidden(),
    };
    servers.iter().map(|(name, value)| (name.clone(), entry(value))).collect()
}

fn redact(key: &str, value: &toml::Value) -> toml::Value {
    use toml::Value;
    match (key, value) {
        ("type" | "command" | "cwd", Value::String(_)) => value.clone(),
        ("data_collection" | "action", Value::Array(_)) => value.clone(),
        (_, Value::Boolean(_)) => value.clone(),
        ("url", Value::String(url)) => Value::String(origin(url)),
        ("args", Value::Array(args)) => Value::Array(args.iter().map(|_| hidden()).collect()),
        ("env" | "headers", Value::Table(entries)) => {
            let names = entries.keys().map(|name| (shown(name).to_owned(), hidden()));
            Value::Table(names.collect())
        }
        _ => hidden(),
    }
}

/// The host of an address: a path or query may hold a key.
fn origin(url: &str) -> String {
    let url = url.parse::<reqwest::Url>().ok().filter(reqwest::Url::has_host);
    url.map_or("[redacted]".to_owned(), |url| format!("{}/…", url.origin().ascii_serialization()))
}

fn hidden() -> toml::Value {
    toml::Value::String("[redacted]".to_owned())
}
