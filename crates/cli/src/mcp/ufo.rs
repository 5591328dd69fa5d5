//! UFO's `mcp.yaml`: agent, root, `data_collection` or `action`, and a list of servers.
//!
//! Keys and defaults are those of UFO's own reader. What stands in several places under one namespace is
//! one server with several sections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use aip::ToolType;
use device::tools::mcp::{Section, ServerSettings, Transport};
use reqwest::Url;
use serde_json::{Map, Value};

use super::expand::Place;
use super::keys::{Keys, shown, unknown};
use super::transport::{check_name, http, stdio};
use super::{Claim, Reading};

/// The lists of a root, in the order in which UFO starts their servers.
const LISTS: [(&str, ToolType); 2] =
    [("data_collection", ToolType::DataCollection), ("action", ToolType::Action)];

/// What a server is called that has no namespace.
const DEFAULT_NAMESPACE: &str = "default";

/// Reads the whole file.
pub(super) fn read(reading: &mut Reading<'_>, agents: Map<String, Value>) {
    let mut file = File { reading, servers: BTreeMap::new(), local: BTreeSet::new() };
    for (agent, roots) in agents {
        for (root, lists) in file.table(shown(&agent), "the agent's roots", roots) {
            file.read_root(&agent, &root, lists);
        }
    }
    file.finish();
}

struct File<'r, 'a> {
    reading: &'r mut Reading<'a>,
    /// Each by its namespace, or what is wrong with it.
    servers: BTreeMap<String, Result<ServerSettings, Vec<String>>>,
    /// The namespaces that UFO runs inside itself.
    local: BTreeSet<String>,
}

impl File<'_, '_> {
    /// A table at this place of the file; an empty one where there is none.
    fn table(&mut self, label: &str, what: &str, value: Value) -> Map<String, Value> {
        match value {
            Value::Object(table) => return table,
            // Its lines are comments.
            Value::Null => {}
            _ => self.reading.note(&format!("{label} must be a table of {what}")),
        }
        Map::new()
    }

    fn read_root(&mut self, agent: &str, root: &str, lists: Value) {
        let label = format!("{}.{}", shown(agent), shown(root));
        let mut lists = self.table(&label, "data_collection and action", lists);
        for (list, tool_type) in LISTS {
            let label = format!("{label}.{list}");
            let section = Section { agent: agent.to_owned(), root: root.to_owned(), tool_type };
            match lists.remove(list) {
                Some(Value::Array(entries)) => self.read_list(&label, &section, entries),
                None | Some(Value::Null) => {}
                Some(_) => self.reading.note(&format!("{label} must be a list of servers")),
            }
        }
        for key in lists.keys() {
            self.reading.note(&format!("{label}: {}", unknown(key, &LISTS.map(|(name, _)| name))));
        }
    }

    fn read_list(&mut self, label: &str, section: &Section, entries: Vec<Value>) {
        for (at, entry) in entries.into_iter().enumerate() {
            let label = format!("{label}[{at}]");
            match entry {
                Value::Object(entry) => self.read_entry(&label, section, entry),
                _ => self.reading.note(&format!("{label} must be a table of keys")),
            }
        }
    }

    fn read_entry(&mut self, label: &str, section: &Section, entry: Map<String, Value>) {
        let mut keys = Keys::new(entry, &self.reading.place);
        let entry = Entry::take(&mut keys);
        let (mut faults, has_secret) = keys.finish();
        let namespace = entry.namespace.clone();
        if entry.is_local() && check_name(&namespace).is_ok() {
            self.local.insert(namespace);
            return;
        }
        let server = entry.server(section, &self.reading.place);
        let outcome = match server {
            Ok(server) if faults.is_empty() => Ok(server),
            Err(why) if faults.is_empty() => Err(vec![format!("{label}: {why}")]),
            _ => Err(faults.drain(..).map(|fault| format!("{label}: {fault}")).collect()),
        };
        self.reading.has_secret |= has_secret;
        self.put(label, namespace, outcome);
    }

    /// Adds one place of a server to the others. UFO starts the first that it meets under a namespace.
    fn put(&mut self, label: &str, name: String, place: Result<ServerSettings, Vec<String>>) {
        match (self.servers.get_mut(&name), place) {
            (None, place) => {
                self.servers.insert(name, place);
            }
            (Some(Ok(server)), Ok(place)) if server.transport == place.transport => {
                server.trusted &= place.trusted;
                server.reset |= place.reset;
                server.sections.extend(place.sections);
            }
            (Some(Ok(_)), Ok(_)) => self.reading.note(&format!(
                "{label} lists another server under the namespace '{name}', which is in use; it is \
                 left out there: give it a namespace of its own"
            )),
            (Some(Err(faults)), Err(more)) => faults.extend(more),
            (Some(server), Err(faults)) => *server = Err(faults),
            (Some(Err(_)), Ok(_)) => {}
        }
    }

    fn finish(self) {
        if !self.local.is_empty() {
            let names: Vec<_> = self.local.into_iter().collect();
            self.reading.note(&format!(
                "not available here, since they are Python inside UFO's own process (type local): {}",
                names.join(", ")
            ));
        }
        for (name, outcome) in self.servers {
            self.reading.claim(&name, outcome.map(Claim::Server));
        }
    }
}

/// One entry of a list.
struct Entry {
    namespace: String,
    kind: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    path: Option<String>,
    command: Option<String>,
    start_args: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    headers: BTreeMap<String, String>,
    token: Option<String>,
    trusted: bool,
    reset: bool,
}

impl Entry {
    fn take(keys: &mut Keys<'_>) -> Self {
        Self {
            namespace: keys.text("namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            kind: keys.text("type"),
            host: keys.text("host"),
            port: keys.port("port"),
            path: keys.text("path"),
            command: keys.text("command"),
            start_args: keys.texts("start_args"),
            env: keys.table("env"),
            cwd: keys.text("cwd"),
            headers: keys.table("headers"),
            token: take_token(keys),
            trusted: keys.flag("trusted", true),
            reset: keys.flag("reset", false),
        }
    }
}

impl Entry {
    fn is_local(&self) -> bool {
        self.kind.as_deref() == Some("local")
    }

    fn server(self, section: &Section, place: &Place<'_>) -> Result<ServerSettings, String> {
        check_name(&self.namespace)?;
        Ok(ServerSettings {
            namespace: self.namespace.clone(),
            sections: vec![section.clone()],
            trusted: self.trusted,
            reset: self.reset,
            tool_types: Vec::new(),
            transport: self.transport(place)?,
        })
    }

    /// Each kind has its own keys; those of the others are allowed to stand there, as in UFO.
    fn transport(self, place: &Place<'_>) -> Result<Transport, String> {
        match self.kind.as_deref() {
            Some("stdio") => {
                let command = self.command.as_deref().unwrap_or("python");
                stdio(place, command, self.start_args, self.env, self.cwd.as_deref())
            }
            Some("http") => {
                let url = self.url()?;
                let mut headers = self.headers;
                if let Some(token) = self.token {
                    headers.insert("Authorization".to_owned(), format!("Bearer {token}"));
                }
                http(&url, headers)
            }
            Some(_) => Err("type must be http or stdio".to_owned()),
            None => Err("type is missing; it is http or stdio".to_owned()),
        }
    }

    fn url(&self) -> Result<String, String> {
        let host = self.host.as_deref().unwrap_or("localhost");
        let host = match host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => host.to_owned(),
        };
        let port = self.port.unwrap_or(8000);
        let path = self.path.as_deref().unwrap_or("/mcp");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let url = format!("http://{host}:{port}{slash}{path}");
        if host.contains(['/', '\\', '?', '#', '@']) || Url::parse(&url).is_err() {
            return Err("host is no address; write a name or an IP address alone".to_owned());
        }
        Ok(url)
    }
}

/// UFO documents `auth: {token: …}`.
fn take_token(keys: &mut Keys<'_>) -> Option<String> {
    let mut auth = keys.table("auth");
    let token = auth.remove("token");
    if !auth.is_empty() {
        keys.fault::<()>("auth may hold nothing but token".to_owned());
    }
    token
}
