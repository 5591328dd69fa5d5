//! Every key there is, once: the macro here makes the flags, the variables, the file's sections and the reference
//! of that one list.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use server::{HostPattern, OriginPattern};

use super::Row;
use super::values::{
    ApiKey, Durability, ExecMode, FeatureList, List, Most, RecordMode, Retries, Room, Seconds,
    ServerAddress, Setting, Usual,
};

/// Makes of one list of keys: the flags and the file's section (all optional), the values in force,
/// and the rows of the reference.
macro_rules! keys {
    ($(
        $section:literal: $keys:ident => $values:ident {
            $(
                $(#[doc = $doc:literal])+
                $(#[arg($($arg:tt)*)])?
                $key:ident: $type:ty = $default:expr, $variable:literal;
            )*
        }
    )*) => {$(
        #[doc = concat!("The section `[", $section, "]`, as given by flags and variables, or by the file.")]
        #[derive(Debug, Clone, Default, Args, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $keys {
            $(
                $(#[doc = $doc])+
                #[arg(long, env = $variable, hide_env_values = true $(, $($arg)*)?)]
                pub(crate) $key: Option<$type>,
            )*
        }

        #[doc = concat!("The values of `[", $section, "]` in force.")]
        #[derive(Debug, Clone)]
        pub(crate) struct $values {
            $(pub(crate) $key: $type,)*
        }

        impl $keys {
            /// What is in force: these, else those of the file, else the defaults.
            pub(crate) fn resolve(self, file: Self) -> $values {
                $values { $($key: self.$key.or(file.$key).unwrap_or_else(|| $default),)* }
            }
        }

        impl $keys {
            /// What was given: each key with its value, a secret without it.
            #[allow(dead_code, reason = "not every section is handed on")]
            pub(crate) fn given(&self) -> Vec<(&'static str, String)> {
                let mut given = Vec::new();
                $(if let Some(value) = &self.$key {
                    given.push((stringify!($key), value.to_string()));
                })*
                given
            }
        }

        impl $values {
            pub(crate) fn rows(&self) -> Vec<Row> {
                vec![$(Row {
                    section: $section,
                    key: stringify!($key),
                    variable: $variable,
                    value: self.$key.to_string(),
                    is_text: self.$key.is_text(),
                    unit: self.$key.unit(),
                    about: [$($doc),+].concat().trim().to_owned(),
                },)*]
            }
        }
    )*};
}

fn server() -> server::Config {
    server::Config::default()
}

fn store() -> server::store::SqliteSettings {
    server::store::SqliteSettings::new(PathBuf::new())
}

fn tools() -> device::tools::ToolSettings {
    device::tools::ToolSettings::default()
}

fn spool() -> device::SpoolSettings {
    device::SpoolSettings::default()
}

fn journal() -> device::JournalSettings {
    device::JournalSettings::default()
}

keys! {
    "server": ServerKeys => ServerValues {
        /// The address to listen on.
        host: String = "127.0.0.1".to_owned(), "FLIGHTDECK_HOST";
        /// The port to listen on; 0 takes any that is free.
        port: u16 = link::dial::DEFAULT_PORT, "FLIGHTDECK_PORT";
        /// The key that every peer must show, instead of the generated one. On the command line other users of the machine can see it.
        api_key: ApiKey = ApiKey::default(), "FLIGHTDECK_API_KEY";
        /// The server's TLS certificate, followed by those between it and its root (PEM). Read again when it changes.
        #[arg(value_name = "FILE")]
        tls_cert: String = String::new(), "FLIGHTDECK_TLS_CERT";
        /// The private key of that certificate (PEM).
        #[arg(value_name = "FILE")]
        tls_key: String = String::new(), "FLIGHTDECK_TLS_KEY";
        /// Where other machines reach this server, such as `wss://fleet.example`, if not where it listens: what join tokens name.
        #[arg(value_name = "URL")]
        public_url: String = String::new(), "FLIGHTDECK_PUBLIC_URL";
        /// Behind a TLS proxy: the SHA-256 of the proxy's public key (SPKI, DER), as base64 with `-` and `_` and no `=`. Devices that have joined sign which key they saw, and none but this one is let in.
        #[arg(value_name = "HASH")]
        proxy_key_hash: String = String::new(), "FLIGHTDECK_PROXY_KEY_HASH";
        /// The certificate (PEM) that this server, or the TLS proxy in front of it, will show next: devices that have joined are told its public key, so that they know the server again with it.
        #[arg(value_name = "FILE")]
        next_tls_cert: String = String::new(), "FLIGHTDECK_NEXT_TLS_CERT";
        /// Lets other machines connect without TLS: for a network that is trusted.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new())]
        insecure: bool = false, "FLIGHTDECK_INSECURE";
        /// Tasks of any kind that run on one device at the same time.
        sessions_per_device: usize = server().sessions_per_device, "FLIGHTDECK_SESSIONS_PER_DEVICE";
        /// Tasks that run on one device at the same time as long as all of them run only `execute_command` and the tools of `Files`, however many its owner allows (`parallel_commands`).
        shared_per_device: usize = server().shared_per_device, "FLIGHTDECK_SHARED_PER_DEVICE";
        /// Tasks of one client that may wait for one device; a further one is refused at once. The clients of a key
        /// share twice as many places, all keys four times, and a newcomer may take half of what the others leave.
        queue_per_device: usize = server().queue_per_device, "FLIGHTDECK_QUEUE_PER_DEVICE";
        /// Longest time for one command of a task that asks for no time of its own. `auto` is 300 s, and no limit for a task that wants none, as an `exec` that is followed.
        command_timeout: Usual = Usual(server().command_timeout), "FLIGHTDECK_COMMAND_TIMEOUT";
        /// The most that one task may ask for as its longest time for a command, also one that wants no limit; `none` for no limit.
        max_command_timeout: Most = Most(server().max_command_timeout), "FLIGHTDECK_MAX_COMMAND_TIMEOUT";
        /// Longest time for one task, from when it starts to run. `auto` is 3600 s, and no limit for a task that wants none, as an `exec` that is followed.
        session_timeout: Usual = Usual(server().session_timeout), "FLIGHTDECK_SESSION_TIMEOUT";
        /// Most steps of one task.
        max_steps: u32 = server().max_steps, "FLIGHTDECK_MAX_STEPS";
        /// Longest task text, in bytes.
        max_request_bytes: usize = server().max_request_bytes, "FLIGHTDECK_MAX_REQUEST_BYTES";
        /// Most bytes of results that one task may collect.
        max_task_bytes: usize = server().max_task_bytes, "FLIGHTDECK_MAX_TASK_BYTES";
        /// After a command was cancelled or timed out, how long its device may take to confirm before the next task gets its place.
        stop_grace: Seconds = Seconds(server().stop_grace), "FLIGHTDECK_STOP_GRACE";
        /// How long a device that keeps a journal is waited for when its connection is lost: its tasks stand still meanwhile. After a restart all devices with open tasks are waited for so long.
        resume_window: Seconds = Seconds(server().resume_window), "FLIGHTDECK_RESUME_WINDOW";
        /// Time between pings on the link of such a device; after as much silence more it counts as away.
        resume_ping: Seconds = Seconds(server().resume_ping), "FLIGHTDECK_RESUME_PING";
        /// How long a device may take to say what became of a command that was cancelled.
        cancel_wait: Seconds = Seconds(server().cancel_wait), "FLIGHTDECK_CANCEL_WAIT";
        /// How long an outcome is kept for a requester that does not acknowledge it, and how long such a requester is known again.
        outcome_time: Seconds = Seconds(server().outcome_time), "FLIGHTDECK_OUTCOME_TIME";
        /// How long a device that keeps a journal is known again.
        device_time: Seconds = Seconds(server().device_time), "FLIGHTDECK_DEVICE_TIME";
        /// Most clients of one key that are known again when they come back; more are refused for now.
        identities_per_key: usize = server().identities_per_key, "FLIGHTDECK_IDENTITIES_PER_KEY";
        /// Most bytes of outcomes of one key that were not acknowledged; its new clients and tasks are refused for now beyond that.
        undelivered_bytes: usize = server().undelivered_bytes, "FLIGHTDECK_UNDELIVERED_BYTES";
        /// Longest wait for the first message of a connection.
        registration_timeout: Seconds = Seconds(server().registration_timeout), "FLIGHTDECK_REGISTRATION_TIMEOUT";
        /// Silence after which a peer counts as gone.
        liveness_timeout: Seconds = Seconds(server().liveness_timeout), "FLIGHTDECK_LIVENESS_TIMEOUT";
        /// Time between pings.
        ping_interval: Seconds = Seconds(server().ping_interval), "FLIGHTDECK_PING_INTERVAL";
        /// Longest time for the head of an HTTP request.
        header_timeout: Seconds = Seconds(server().header_timeout), "FLIGHTDECK_HEADER_TIMEOUT";
        /// Longest time for the body of an HTTP request.
        body_timeout: Seconds = Seconds(server().body_timeout), "FLIGHTDECK_BODY_TIMEOUT";
        /// Longest time for which an HTTP client may take nothing of its answer.
        write_timeout: Seconds = Seconds(server().write_timeout), "FLIGHTDECK_WRITE_TIMEOUT";
        /// Names and addresses that the server goes by, beside localhost, the address it listens on, the host name and those of its certificate. Requests for others are refused. `*.example.com` stands for all names below, `*` for any. Separated by commas.
        #[arg(value_name = "HOSTS")]
        allowed_hosts: List<HostPattern> = List(Vec::new()), "FLIGHTDECK_ALLOWED_HOSTS";
        /// Origins whose pages may use the server, beside its own: `SCHEME://HOST[:PORT]`, or `*` for any. Separated by commas.
        #[arg(value_name = "ORIGINS")]
        allowed_origins: List<OriginPattern> = List(Vec::new()), "FLIGHTDECK_ALLOWED_ORIGINS";
        /// Wrong keys that one address may show in a minute before it is told to wait. Never stops a valid key, nor this machine.
        failed_keys_per_minute: u32 = server().failed_keys_per_minute, "FLIGHTDECK_FAILED_KEYS_PER_MINUTE";
        /// Most connections of one address that have not shown a valid key within two seconds. Does not count this machine's.
        max_unproven_per_address: usize = server().max_unproven_per_address, "FLIGHTDECK_MAX_UNPROVEN_PER_ADDRESS";
        /// Most WebSocket connections at the same time, and as many plain HTTP connections.
        max_connections: usize = server().max_connections, "FLIGHTDECK_MAX_CONNECTIONS";
        /// Most messages that wait to be sent to one peer. Beyond it a peer is cut that takes nothing for `slow_after`.
        outbox_messages: usize = server().outbox_messages, "FLIGHTDECK_OUTBOX_MESSAGES";
        /// Most bytes that wait to be sent to one peer, beside one message of any size. Beyond it a peer is cut that takes nothing for `slow_after`.
        outbox_bytes: usize = server().outbox_bytes, "FLIGHTDECK_OUTBOX_BYTES";
        /// How long a peer may take no byte while more waits for it than `outbox_messages` or `outbox_bytes`, or while others wait for the room that large messages to it keep.
        slow_after: Seconds = Seconds(server().slow_after), "FLIGHTDECK_SLOW_AFTER";
        /// Most bytes of large messages in flight over all connections, with the results of open tasks and what waits to be sent. Beyond it large messages are not read on until there is room; small ones pass. `auto` is a quarter of the memory that the server may use.
        max_bytes_in_flight: Room = Room::Auto, "FLIGHTDECK_MAX_BYTES_IN_FLIGHT";
        /// At shutdown, how long running commands may take to finish.
        shutdown_grace: Seconds = Seconds(server().shutdown_grace), "FLIGHTDECK_SHUTDOWN_GRACE";
        /// The folder of the database, on a local disk; `data` in the state folder if empty.
        #[arg(value_name = "FOLDER")]
        data: String = String::new(), "FLIGHTDECK_DATA";
        /// Keeps everything in memory instead: all tasks are gone with the server.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new())]
        memory: bool = false, "FLIGHTDECK_MEMORY";
        /// What tasks survive: `process` (any death of the server) or `power` (also one of the machine; each commit waits for the disk).
        durability: Durability = Durability::Process, "FLIGHTDECK_DURABILITY";
        /// Starts with a database that has lost commits, as one that was put back from a copy: the outcome of every task that is open in it is unknown.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new())]
        accept_loss: bool = false, "FLIGHTDECK_ACCEPT_LOSS";
        /// Most bytes that wait to be written to the database, beside one batch of any size. Beyond it new tasks are refused.
        store_queue_bytes: usize = store().queue_bytes, "FLIGHTDECK_STORE_QUEUE_BYTES";
        /// Room on the disk that is given up when it is full, so that the outcomes of open tasks still fit, in bytes. New tasks are refused until there is room for it again.
        disk_reserve_bytes: usize = store().reserve_bytes, "FLIGHTDECK_DISK_RESERVE_BYTES";
        /// How long ended tasks are remembered, unless in memory.
        history_age: Seconds = Seconds(store().retention.age), "FLIGHTDECK_HISTORY_AGE";
        /// Ended tasks that are remembered, newest first. `auto` is a million, in memory a thousand.
        history_tasks: Room = Room::Auto, "FLIGHTDECK_HISTORY_TASKS";
        /// Most bytes of ended tasks that are remembered, beside those whose requesters have not acknowledged the outcome. Beyond it the oldest go, in memory their payloads first. `auto` is 4 GiB, in memory 16 MiB.
        history_bytes: Room = Room::Auto, "FLIGHTDECK_HISTORY_BYTES";
        /// In memory: most bytes of results that are kept whole for whoever has still to fetch them over HTTP: those of tasks that came in over HTTP, and those that were too large for one message.
        unfetched_bytes: usize = server().unfetched_bytes, "FLIGHTDECK_UNFETCHED_BYTES";
        /// In memory: how long such results are kept whole.
        unfetched_time: Seconds = Seconds(server().unfetched_time), "FLIGHTDECK_UNFETCHED_TIME";
        /// Size at which the audit log is put aside, in bytes.
        audit_max_bytes: usize = 16 * 1024 * 1024, "FLIGHTDECK_AUDIT_MAX_BYTES";
        /// Older files of the audit log that are kept.
        audit_files: u32 = 5, "FLIGHTDECK_AUDIT_FILES";
        /// Whether the audit log has the arguments of each tool that a step calls, up to 4096 characters, beside its name. They may hold secrets.
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new())]
        audit_arguments: bool = false, "FLIGHTDECK_AUDIT_ARGUMENTS";
        /// The agent name for Linux devices: the section of a Python device's `mcp.yaml`.
        agent_name_linux: String = server().agent_name_linux, "FLIGHTDECK_AGENT_NAME_LINUX";
        /// The agent name for Windows devices.
        agent_name_windows: String = server().agent_name_windows, "FLIGHTDECK_AGENT_NAME_WINDOWS";
        /// The agent name for mobile devices.
        agent_name_mobile: String = server().agent_name_mobile, "FLIGHTDECK_AGENT_NAME_MOBILE";
    }

    "client": ClientKeys => ClientValues {
        /// Where the server is: `ws(s)://HOST:PORT[/ws]`, `http(s)://HOST:PORT` or `HOST:PORT`, also with `?token=`.
        #[arg(visible_alias = "ws-server", value_name = "URL")]
        server: ServerAddress = link::ServerUrl::default().to_string().into(), "FLIGHTDECK_SERVER";
        /// The key that the server wants. On the command line other users of the machine can see it. For a server on this machine it is found by itself.
        #[arg(value_name = "KEY")]
        token: ApiKey = ApiKey::default(), "FLIGHTDECK_TOKEN";
        /// A file that holds the key.
        #[arg(value_name = "FILE")]
        token_file: String = String::new(), "FLIGHTDECK_TOKEN_FILE";
        /// Certificates to trust beside the system's (PEM), such as one that a server has signed itself.
        #[arg(visible_alias = "ca", value_name = "FILE")]
        ca_file: String = String::new(), "FLIGHTDECK_CA_FILE";
        /// Longest wait for a connection, and then for the server's confirmation.
        connect_timeout: Seconds = Seconds(std::time::Duration::from_secs(10)), "FLIGHTDECK_CONNECT_TIMEOUT";
    }

    "device": DeviceKeys => DeviceValues {
        /// The name under which this device is known to the server; the host name if empty.
        #[arg(visible_alias = "client-id", value_name = "ID")]
        id: String = String::new(), "FLIGHTDECK_DEVICE_ID";
        /// What the server takes this machine for: `windows`, `linux` or `mobile`; what it is if empty.
        platform: String = String::new(), "FLIGHTDECK_PLATFORM";
        /// How often in a row to try again before giving up. With it a final refusal, such as a wrong key, ends the device at once.
        #[arg(value_name = "N")]
        max_retries: Retries = Retries(None), "FLIGHTDECK_MAX_RETRIES";
        /// Longest first wait before the device tries to reach its server again. With each try in vain it doubles.
        reconnect_first_wait: Seconds = Seconds(std::time::Duration::from_secs(1)), "FLIGHTDECK_RECONNECT_FIRST_WAIT";
        /// Longest wait between two such tries, unless the server refuses the device for good.
        reconnect_max_wait: Seconds = Seconds(std::time::Duration::from_secs(60)), "FLIGHTDECK_RECONNECT_MAX_WAIT";
        /// Time between heartbeats.
        heartbeat_interval: Seconds = Seconds(std::time::Duration::from_secs(120)), "FLIGHTDECK_HEARTBEAT_INTERVAL";
        /// Silence after which the server counts as gone.
        liveness_timeout: Seconds = Seconds(std::time::Duration::from_secs(180)), "FLIGHTDECK_DEVICE_LIVENESS_TIMEOUT";
        /// The same for a server that lets the device resume its commands: it waits for its devices for a while only. It is pinged after half of this at the latest.
        resume_liveness_timeout: Seconds = Seconds(std::time::Duration::from_secs(40)), "FLIGHTDECK_RESUME_LIVENESS_TIMEOUT";
        /// Time between pings.
        ping_interval: Seconds = Seconds(std::time::Duration::from_secs(20)), "FLIGHTDECK_DEVICE_PING_INTERVAL";
        /// What `execute_command` may run: `observe` (commands that only observe, without a shell), `shell` (everything) or `off`.
        exec: ExecMode = ExecMode::Observe, "FLIGHTDECK_EXEC";
        /// Folders whose files may be read and, where the policy allows it, written; the home folder without its dot files if empty. Separated by colons.
        #[arg(value_name = "FOLDERS")]
        root: Paths = Paths::default(), "FLIGHTDECK_ROOT";
        /// Files that callers may see although the device keeps such files from them: its own and its server's settings and keys, and what looks like a private key. Separated by colons.
        #[arg(value_name = "FILES")]
        reveal: Paths = Paths::default(), "FLIGHTDECK_REVEAL";
        /// Files that list MCP servers: `{"mcpServers": …}` (JSON), UFO's `mcp.yaml`, or TOML with tables `[mcp.NAME]`. Separated by colons.
        #[arg(value_name = "FILES")]
        mcp: Paths = Paths::default(), "FLIGHTDECK_MCP";
        /// Longest time for an MCP server to start.
        mcp_start_timeout: Seconds = Seconds(tools().mcp_start_timeout), "FLIGHTDECK_MCP_START_TIMEOUT";
        /// Longest time for one call of an MCP server's tool.
        mcp_call_timeout: Seconds = Seconds(tools().mcp_call_timeout), "FLIGHTDECK_MCP_CALL_TIMEOUT";
        /// Tools that are not offered: `NAMESPACE`, `NAMESPACE.TOOL` or `TOOL`, such as `Files,Screen.screenshot`. Separated by commas.
        #[arg(value_name = "TOOLS")]
        disable: List<String> = List(Vec::new()), "FLIGHTDECK_DISABLE";
        /// The owner's rules on what may be called (TOML); `policy.toml` beside the settings file if empty and it is there.
        #[arg(value_name = "FILE")]
        policy: String = String::new(), "FLIGHTDECK_POLICY";
        /// Longest wait for the owner's answer where the policy asks.
        ask_timeout: Seconds = Seconds(tools().ask_timeout), "FLIGHTDECK_ASK_TIMEOUT";
        /// Lets commands and MCP servers write below the roots and into the folder for temporary files only, where the system can do that (Linux with Landlock).
        #[arg(value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new())]
        sandbox: bool = false, "FLIGHTDECK_SANDBOX";
        /// What the device says it can do: `auto` (what is really there) or `ufo` (the fixed list of UFO's devices).
        features: FeatureList = FeatureList::Auto, "FLIGHTDECK_FEATURES";
        /// Words by which the device can be chosen among others, as `exec --on tag:WORD` does. Separated by commas.
        #[arg(visible_alias = "tag", value_name = "WORDS")]
        tags: List<String> = List(Vec::new()), "FLIGHTDECK_TAGS";
        /// Where the device writes how it is doing, for `flightdeck device status`; in the state folder if empty.
        #[arg(value_name = "FILE")]
        status_file: String = String::new(), "FLIGHTDECK_STATUS_FILE";
        /// Longest time for one command, whatever its caller asks for; `none` for no limit. A command whose caller asks for no time has 30 s.
        max_command_time: Most = Most(tools().max_command_time), "FLIGHTDECK_MAX_COMMAND_TIME";
        /// Most bytes that are kept of each output stream of a command, and that one `read_file` returns.
        max_output_bytes: usize = tools().max_output_bytes, "FLIGHTDECK_MAX_OUTPUT_BYTES";
        /// Most bytes of memory that each process of a command or MCP server may take; 0 for no limit.
        max_memory_bytes: usize = 4 * 1024 * 1024 * 1024, "FLIGHTDECK_MAX_MEMORY_BYTES";
        /// Calls that run at the same time: of the device's own tools, and of each MCP server. `list_tools`, `get_system_info` and calls that wait for the owner's answer do not count. As many tasks that run only `execute_command` and the tools of `Files` the server has it do at the same time; any other has the device to itself.
        parallel_commands: usize = tools().parallel_commands, "FLIGHTDECK_PARALLEL_COMMANDS";
        /// Commands that may run or wait; further ones fail at once.
        max_commands: usize = 256, "FLIGHTDECK_MAX_COMMANDS";
        /// Most bytes of the commands that run or wait, with the results that they have so far; further ones fail at once. A single one may have any size.
        max_commands_bytes: usize = 128 * 1024 * 1024, "FLIGHTDECK_MAX_COMMANDS_BYTES";
        /// Commands that the device's journal may hold, with those whose results the server has not acknowledged; at most 4096. Further ones fail at once.
        journal_commands: usize = journal().commands, "FLIGHTDECK_JOURNAL_COMMANDS";
        /// Most bytes of results that the journal may hold, with the commands that are still to be done.
        journal_bytes: usize = journal().bytes, "FLIGHTDECK_JOURNAL_BYTES";
        /// Of how many commands that are over the journal still knows the ids: one that comes again is not run again. Older ones are told from new ones by their order.
        journal_ids: usize = journal().forgotten, "FLIGHTDECK_JOURNAL_IDS";
        /// Most bytes that the device keeps of what a detached command writes, the newest ones; 0 keeps none.
        spool_bytes: usize = usize::try_from(spool().bytes).unwrap_or(usize::MAX), "FLIGHTDECK_SPOOL_BYTES";
        /// Detached commands of which the device keeps what they wrote, the newest ones.
        spool_commands: usize = spool().commands, "FLIGHTDECK_SPOOL_COMMANDS";
        /// How long it is kept once the server has the command's results.
        spool_time: Seconds = Seconds(spool().time), "FLIGHTDECK_SPOOL_TIME";
        /// Other servers' memories for which the device keeps a journal, the newest ones.
        journal_stores: usize = journal().retention.stores, "FLIGHTDECK_JOURNAL_STORES";
        /// How long it keeps them.
        journal_time: Seconds = Seconds(journal().retention.time), "FLIGHTDECK_JOURNAL_TIME";
        /// What the device's own record of its commands (`commands.jsonl` in the state folder, `flightdeck device log`) holds of each: `text` (the command line, or the arguments of another tool), `digest` (its SHA-256 instead) or `off` (no record).
        record: RecordMode = RecordMode::Text, "FLIGHTDECK_RECORD";
        /// Size at which that record is put aside, in bytes.
        record_max_bytes: usize = 4 * 1024 * 1024, "FLIGHTDECK_RECORD_MAX_BYTES";
        /// Older files of that record that are kept.
        record_files: u32 = 3, "FLIGHTDECK_RECORD_FILES";
        /// When the device is told to stop, how long running commands may take to finish before they are stopped.
        finish_time: Seconds = Seconds(std::time::Duration::from_secs(2)), "FLIGHTDECK_FINISH_TIME";
    }
}

/// Files or folders, separated by colons.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Paths(pub(crate) Vec<PathBuf>);

impl std::str::FromStr for Paths {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(std::env::split_paths(text).filter(|path| !path.as_os_str().is_empty()).collect()))
    }
}

impl Setting for Paths {}

impl std::fmt::Display for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&paths.join(":"))
    }
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            One(String),
            Many(Vec<PathBuf>),
        }

        Ok(match Given::deserialize(deserializer)? {
            Given::One(text) => text.parse().unwrap_or_default(),
            Given::Many(paths) => Self(paths),
        })
    }
}
