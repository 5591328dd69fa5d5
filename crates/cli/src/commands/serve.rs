//! `flightdeck serve`: starts the server and says how to use it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use secrecy::SecretString;
use server::{Config, Keys, Server};
use tokio_util::sync::CancellationToken;

use crate::args::{Global, Serve};
use crate::connect::is_on_command_line;
use crate::key_file::KeyFile;
use crate::output::{BOLD, CYAN, DIM};
use crate::settings::{DeviceTables, File, ServerValues, at_least_one};
use crate::state::StateFolder;
use crate::{Code, Ended, interrupted};

pub(crate) async fn run(args: Serve, global: Global) -> Ended {
    let file = File::load(global.config.as_deref())?;
    let values = args.server.resolve(file.server);
    if is_on_command_line("--api-key") {
        eprintln!(
            "warning: other users of this machine can see a key on the command line; \
             use FLIGHTDECK_API_KEY"
        );
    }
    let address = resolve(&values).await?;
    let folder = StateFolder::new(global.state_dir)?;
    let key = Key::find(&values, &folder)?;
    raise_open_files();
    let key_file = KeyFile::new(&folder);
    let seen = key_file.version();
    let keys = Keys {
        shared: key.secret.clone(),
        is_legacy: !key.is_generated,
        created: key_file.load()?,
    };
    if keys.is_legacy {
        tracing::warn!(
            "one given key opens everything (legacy, as UFO's); \
             `flightdeck key create` makes keys that open less"
        );
    }
    let server = Server::new(config(&values, file.devices)?, keys);
    let listener = server::listen(address).map_err(|error| {
        anyhow::anyhow!("{error}\n  is a server running already? Another port: --port N")
    })?;
    let address = listener.local_addr().context("the address of the listener")?;
    greet(address, &key, &folder);

    let stop = CancellationToken::new();
    tokio::spawn(key_file.watch(server.clone(), seen));
    let serving = server.serve(listener, stop.clone());
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => {}
        () = interrupted() => {
            let grace = values.shutdown_grace;
            eprintln!("Stopping: running commands have {grace} s to finish; Ctrl-C again stops at once.");
            stop.cancel();
            tokio::select! {
                () = serving => {}
                () = interrupted() => {}
            }
        }
    }
    Ok(Code::COMPLETED)
}

/// What to type where the key is one that the server was given.
const GIVEN_KEY: &str = "export FLIGHTDECK_TOKEN=...   # the key that this server was given";

/// The server's key, and where it came from.
struct Key {
    secret: SecretString,
    /// Whether it is the one in the state folder, which local commands find by themselves.
    is_generated: bool,
    is_new: bool,
}

impl Key {
    fn find(values: &ServerValues, folder: &StateFolder) -> anyhow::Result<Self> {
        if let Some(secret) = values.api_key.secret() {
            return Ok(Self { secret: secret.clone(), is_generated: false, is_new: false });
        }
        let (secret, is_new) = folder.key_or_new()?;
        Ok(Self { secret, is_generated: true, is_new })
    }
}

async fn resolve(values: &ServerValues) -> anyhow::Result<SocketAddr> {
    let (host, port) = (values.host.trim_matches(['[', ']']), values.port);
    let mut found = tokio::net::lookup_host((host, port))
        .await
        .with_context(|| format!("--host {host}: no such address"))?;
    found.next().with_context(|| format!("--host {host}: no such address"))
}

/// The settings as the server takes them. A limit of nothing would stop everything.
pub(crate) fn config(values: &ServerValues, devices: DeviceTables) -> anyhow::Result<Config> {
    let values = values.clone();
    at_least_one(&[
        ("sessions_per_device", values.sessions_per_device),
        ("max_connections", values.max_connections),
        ("outbox_messages", values.outbox_messages),
        ("max_steps", values.max_steps as usize),
    ])?;
    for (name, time) in [
        ("command_timeout", values.command_timeout),
        ("session_timeout", values.session_timeout),
        ("registration_timeout", values.registration_timeout),
        ("liveness_timeout", values.liveness_timeout),
        ("ping_interval", values.ping_interval),
        ("header_timeout", values.header_timeout),
        ("body_timeout", values.body_timeout),
    ] {
        anyhow::ensure!(!time.0.is_zero(), "{name} must be more than 0");
    }
    Ok(Config {
        sessions_per_device: values.sessions_per_device,
        queue_per_device: values.queue_per_device,
        command_timeout: values.command_timeout.0,
        max_command_timeout: values.max_command_timeout.0,
        session_timeout: values.session_timeout.0,
        max_steps: values.max_steps,
        max_request_bytes: values.max_request_bytes,
        max_task_bytes: values.max_task_bytes,
        stop_grace: values.stop_grace.0,
        registration_timeout: values.registration_timeout.0,
        liveness_timeout: values.liveness_timeout.0,
        ping_interval: values.ping_interval.0,
        header_timeout: values.header_timeout.0,
        body_timeout: values.body_timeout.0,
        max_connections: values.max_connections,
        outbox_messages: values.outbox_messages,
        outbox_bytes: values.outbox_bytes,
        shutdown_grace: values.shutdown_grace.0,
        history_tasks: values.history_tasks,
        history_bytes: values.history_bytes,
        agent_name_linux: values.agent_name_linux,
        agent_name_windows: values.agent_name_windows,
        agent_name_mobile: values.agent_name_mobile,
        devices: payloads(devices)?,
    })
}

/// What the file says of devices, as JSON.
fn payloads(
    devices: DeviceTables,
) -> anyhow::Result<BTreeMap<String, BTreeMap<String, aip::Payload>>> {
    let payload =
        |(key, value): (String, toml::Value)| Ok((key, aip::Payload::from_value(&value)?));
    let table = |(id, table): (String, toml::Table)| {
        Ok((id, table.into_iter().map(payload).collect::<Result<_, serde_json::Error>>()?))
    };
    devices.into_iter().map(table).collect()
}

/// Every connection is an open file; ten thousand are more than the usual limit.
fn raise_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "failed to raise the limit of open files");
        }
    }
}

/// Says where the server is and what to type next.
fn greet(address: SocketAddr, key: &Key, folder: &StateFolder) {
    let version = env!("CARGO_PKG_VERSION");
    anstream::eprintln!(
        "{BOLD}Flightdeck {version}{BOLD:#} listens on {CYAN}ws://{address}/ws{CYAN:#}"
    );
    if key.is_generated {
        let made = if key.is_new { "generated just now" } else { "kept" };
        let path = folder.key_path();
        anstream::eprintln!(
            "The key is {made} in {}; `flightdeck key show` prints it.",
            path.display()
        );
    } else {
        anstream::eprintln!(
            "The key is the one that was given; clients need it in FLIGHTDECK_TOKEN."
        );
    }
    let local = local_server(address);
    anstream::eprintln!("\nOn this machine, in two more terminals:");
    if !key.is_generated {
        anstream::eprintln!("  {BOLD}{GIVEN_KEY}{BOLD:#}");
    }
    anstream::eprintln!("  {BOLD}flightdeck device{local}{BOLD:#}");
    let id = device::info::host_name();
    anstream::eprintln!("  {BOLD}flightdeck exec{local} --on {id} -- df -h{BOLD:#}");
    greet_others(address, key);
    anstream::eprintln!();
}

/// How a local command names this server, when it is not the usual one.
fn local_server(address: SocketAddr) -> String {
    let usual = address.port() == link::dial::DEFAULT_PORT
        && (address.ip().is_unspecified() || address.ip() == IpAddr::from([127, 0, 0, 1]));
    if usual {
        return String::new();
    }
    let host =
        if address.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { address.ip() };
    format!(" --server ws://{}", SocketAddr::new(host, address.port()))
}

fn greet_others(address: SocketAddr, key: &Key) {
    if address.ip().is_loopback() {
        anstream::eprintln!(
            "\n{DIM}Other machines cannot reach {}: start with --host {} to let them in.{DIM:#}",
            address.ip(),
            if address.is_ipv6() { "::" } else { "0.0.0.0" }
        );
        return;
    }
    let ip = if address.ip().is_unspecified() {
        local_ip_address::local_ip().unwrap_or(address.ip())
    } else {
        address.ip()
    };
    let reachable = SocketAddr::new(ip, address.port());
    anstream::eprintln!("\nOn another machine (what $(…) stands for, type here to see it):");
    let token =
        if key.is_generated { "export FLIGHTDECK_TOKEN=$(flightdeck key show)" } else { GIVEN_KEY };
    anstream::eprintln!("  {BOLD}{token}{BOLD:#}");
    anstream::eprintln!("  {BOLD}flightdeck device --server ws://{reachable}{BOLD:#}");
}
