//! `flightdeck serve`: starts the server and says how to use it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use link::{Pin, ServerUrl};
use secrecy::SecretString;
use server::store::{MemoryStore, OpenError, Retention, SqliteSettings, SqliteStore, Store};
use server::{Audit, AuditSettings, Config, KeyBook, Keys, Server, Services, Tls};
use tokio_util::sync::CancellationToken;

use crate::args::{Global, Serve};
use crate::certificate::OwnCertificate;
use crate::connect::is_on_command_line;
use crate::key_file::KeyFile;
use crate::memory;
use crate::output::{BOLD, CYAN, DIM, RED};
use crate::serving::{Noted, Serving};
use crate::settings::{DeviceTables, File, ServerValues, at_least_one};
use crate::state::{StateFolder, audit_log, expand_home};
use crate::tls::{self, Files};
use crate::{Code, Ended, Interrupts};

/// Of the memory that the server may use, messages in flight may take one of this many parts.
const IN_FLIGHT_SHARE: usize = 4;

pub(crate) async fn run(args: Serve, global: Global) -> Ended {
    let file = File::load(global.config.as_deref())?;
    let values = args.server.resolve(file.server);
    if is_on_command_line("--api-key") {
        say!(
            "warning: other users of this machine can see a key on the command line; \
             use FLIGHTDECK_API_KEY"
        );
    }
    let address = resolve(&values).await?;
    let files = Files::named(&values.tls_cert, &values.tls_key)?;
    let tls = files.clone().map(Files::serve).transpose()?;
    let config = config(&values, file.devices)?;
    let folder = StateFolder::new(global.state_dir)?;
    let _taken = folder.take()?;
    folder.note_elsewhere();
    let certificate = match tls.zip(files) {
        // Whoever is on the way could read keys and command every device.
        None if !address.ip().is_loopback() && !values.insecure => Some(own_certificate(&folder)?),
        named => named,
    };
    let key = Key::find(&values, &folder)?;
    raise_open_files();
    let key_file = KeyFile::new(&folder);
    let seen = key_file.version();
    let keys = key.and(key_file.book()?);
    let audit = open_audit(&values, &folder)?;
    let store = open_store(&values, &config, &folder)?;
    let services = Services {
        audit,
        store: store.clone(),
        key_store: Some(Arc::new(key_file.clone())),
        ..Services::in_memory(&config)
    };
    let server = Server::with(config, keys, services);
    server.recover().await.context("taking over the tasks of before")?;
    let listener = server::listen(address).map_err(|error| {
        anyhow::anyhow!("{error}\n  is a server running already? Another port: --port N")
    })?;
    let address = listener.local_addr().context("the address of the listener")?;
    let tls = certificate.as_ref().map(|(tls, _)| tls.clone());
    let certificate = certificate.map(|(tls, files)| (tls, files.certificate));
    let mut interrupts = Interrupts::listen();
    let place = Place { address, certificate, public_url: values.public_url.clone() };
    let _noted = place.note(&values, &folder);
    greet(&place, &key, &folder);

    let stop = CancellationToken::new();
    tokio::spawn(key_file.watch(server.clone(), seen));
    let serving_stop = stop.clone();
    let serving = async {
        match tls {
            Some(tls) => server.serve_tls(listener, tls, serving_stop).await,
            None => server.serve(listener, serving_stop).await,
        }
    };
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => {}
        () = interrupts.next() => {
            let grace = values.shutdown_grace;
            say!("Stopping: running commands have {grace} s to finish; Ctrl-C again stops at once.");
            stop.cancel();
            tokio::select! {
                () = serving => {}
                () = interrupts.next() => {}
            }
        }
    }
    close(store).await
}

/// Where the journals go: a database in the state folder, unless something else is wanted.
fn open_store(
    values: &ServerValues,
    config: &Config,
    folder: &StateFolder,
) -> anyhow::Result<Arc<dyn Store>> {
    if values.memory {
        return Ok(Arc::new(MemoryStore::new(config.history())));
    }
    let data = match values.data.as_str() {
        "" => folder.path().join("data"),
        data => expand_home(Path::new(data)),
    };
    let defaults = SqliteSettings::new(data);
    let settings = SqliteSettings {
        durability: values.durability.into(),
        accept_loss: values.accept_loss,
        retention: Retention {
            age: values.history_age.0,
            tasks: values.history_tasks.or(defaults.retention.tasks),
            bytes: values.history_bytes.or(defaults.retention.bytes),
        },
        queue_bytes: values.store_queue_bytes,
        reserve_bytes: values.disk_reserve_bytes,
        ..defaults
    };
    let store = SqliteStore::open(&settings).map_err(|error| {
        let hint = match error {
            OpenError::InUse { .. } => "\n  name another folder with --state-dir or --data",
            OpenError::Network { .. } => "\n  name one with --data, or keep nothing with --memory",
            _ => "",
        };
        anyhow::anyhow!("{error}{hint}")
    })?;
    Ok(Arc::new(store))
}

/// Has the store write what waits, and say that nothing is missing.
async fn close(store: Arc<dyn Store>) -> Ended {
    match tokio::task::spawn_blocking(move || store.close()).await {
        Ok(Err(error)) => Err(anyhow::Error::from(error).context("closing the store").into()),
        // A panic says so itself.
        Ok(Ok(())) | Err(_) => Ok(Code::COMPLETED),
    }
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

impl Key {
    /// All keys that the server opens to.
    fn and(&self, KeyBook { keys: created, join_tokens }: KeyBook) -> Keys {
        if !self.is_generated {
            tracing::warn!(
                "one given key opens everything (legacy, as UFO's); \
                 `flightdeck key create` makes keys that open less"
            );
        }
        let (shared, is_legacy) = (self.secret.clone(), !self.is_generated);
        Keys { shared, is_legacy, created, join_tokens }
    }
}

async fn resolve(values: &ServerValues) -> anyhow::Result<SocketAddr> {
    let (host, port) = (values.host.trim_matches(['[', ']']), values.port);
    let mut found = tokio::net::lookup_host((host, port))
        .await
        .with_context(|| format!("--host {host}: no such address"))?;
    let address = found.next().with_context(|| format!("--host {host}: no such address"))?;
    // An IPv4 address in IPv6's clothes would not count as loopback.
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The server's own certificate, which is made at its first start.
fn own_certificate(folder: &StateFolder) -> anyhow::Result<(Tls, Files)> {
    let own = OwnCertificate::new(folder);
    let files = own.ensure()?;
    let tls = files.clone().serve()?;
    tokio::spawn(own.keep_valid(tls.clone()));
    Ok((tls, files))
}

/// The audit log, beside the keys in the state folder.
fn open_audit(values: &ServerValues, folder: &StateFolder) -> anyhow::Result<Audit> {
    folder.create()?;
    let path = audit_log(folder.path());
    let settings = AuditSettings {
        path: path.clone(),
        max_bytes: values.audit_max_bytes as u64,
        files: values.audit_files,
    };
    Audit::open(settings).with_context(|| format!("cannot open the audit log {}", path.display()))
}

/// The settings as the server takes them. A limit of nothing would stop everything.
pub(crate) fn config(values: &ServerValues, devices: DeviceTables) -> anyhow::Result<Config> {
    let values = values.clone();
    at_least_one(&[
        ("sessions_per_device", values.sessions_per_device),
        ("max_connections", values.max_connections),
        ("max_steps", values.max_steps as usize),
        ("failed_keys_per_minute", values.failed_keys_per_minute as usize),
        ("max_unproven_per_address", values.max_unproven_per_address),
        ("audit_max_bytes", values.audit_max_bytes),
    ])?;
    anyhow::ensure!(
        values.outbox_messages >= server::MIN_OUTBOX_MESSAGES,
        "outbox_messages must be at least {}",
        server::MIN_OUTBOX_MESSAGES
    );
    let share = (memory::usable() / IN_FLIGHT_SHARE).max(server::MIN_BYTES_IN_FLIGHT);
    let max_bytes_in_flight = values.max_bytes_in_flight.or(share);
    let defaults = Config::default();
    anyhow::ensure!(
        max_bytes_in_flight >= server::MIN_BYTES_IN_FLIGHT,
        "max_bytes_in_flight must be at least {}",
        server::MIN_BYTES_IN_FLIGHT
    );
    for (name, time) in [
        ("registration_timeout", values.registration_timeout),
        ("liveness_timeout", values.liveness_timeout),
        ("ping_interval", values.ping_interval),
        ("header_timeout", values.header_timeout),
        ("body_timeout", values.body_timeout),
        ("write_timeout", values.write_timeout),
    ] {
        anyhow::ensure!(!time.0.is_zero(), "{name} must be more than 0");
    }
    for (name, limit) in [
        ("command_timeout", values.command_timeout.0),
        ("max_command_timeout", values.max_command_timeout.0),
        ("session_timeout", values.session_timeout.0),
    ] {
        anyhow::ensure!(limit.is_none_or(|limit| !limit.is_zero()), "{name} must be more than 0");
    }
    anyhow::ensure!(
        values.ping_interval.0 < values.liveness_timeout.0,
        "ping_interval must be less than liveness_timeout: a peer that is never pinged in time \
         would be cut for its silence"
    );
    let (host_names, proxy_pin) = (host_names(&values.public_url)?, proxy_pin(&values)?);
    Ok(Config {
        sessions_per_device: values.sessions_per_device,
        shared_per_device: values.shared_per_device,
        queue_per_device: values.queue_per_device,
        command_timeout: values.command_timeout.0,
        max_command_timeout: values.max_command_timeout.0,
        session_timeout: values.session_timeout.0,
        max_steps: values.max_steps,
        max_request_bytes: values.max_request_bytes,
        max_task_bytes: values.max_task_bytes,
        stop_grace: values.stop_grace.0,
        resume_window: values.resume_window.0,
        resume_ping: values.resume_ping.0,
        cancel_wait: values.cancel_wait.0,
        outcome_time: values.outcome_time.0,
        device_time: values.device_time.0,
        identities_per_key: values.identities_per_key,
        undelivered_bytes: values.undelivered_bytes,
        registration_timeout: values.registration_timeout.0,
        liveness_timeout: values.liveness_timeout.0,
        ping_interval: values.ping_interval.0,
        header_timeout: values.header_timeout.0,
        body_timeout: values.body_timeout.0,
        write_timeout: values.write_timeout.0,
        allowed_hosts: values.allowed_hosts.0,
        allowed_origins: values.allowed_origins.0,
        host_names,
        proxy_pin,
        next_pin: next_pin(&values.next_tls_cert)?,
        failed_keys_per_minute: values.failed_keys_per_minute,
        max_unproven_per_address: values.max_unproven_per_address,
        max_connections: values.max_connections,
        outbox_messages: values.outbox_messages,
        outbox_bytes: values.outbox_bytes,
        slow_after: values.slow_after.0,
        max_bytes_in_flight,
        shutdown_grace: values.shutdown_grace.0,
        history_tasks: values.history_tasks.or(defaults.history_tasks),
        history_bytes: values.history_bytes.or(defaults.history_bytes),
        unfetched_bytes: values.unfetched_bytes,
        unfetched_time: values.unfetched_time.0,
        agent_name_linux: values.agent_name_linux,
        agent_name_windows: values.agent_name_windows,
        agent_name_mobile: values.agent_name_mobile,
        devices: payloads(devices)?,
        audit_arguments: values.audit_arguments,
    })
}

/// What this server is called: as its machine, and as others reach it.
fn host_names(public_url: &str) -> anyhow::Result<Vec<String>> {
    let mut names = vec![device::info::host_name()];
    if !public_url.is_empty() {
        let url: ServerUrl = public_url.parse().context("public_url")?;
        names.push(url.host().to_string());
    }
    Ok(names)
}

/// The public key of the TLS proxy in front.
fn proxy_pin(values: &ServerValues) -> anyhow::Result<Option<Pin>> {
    let hash = &values.proxy_key_hash;
    (!hash.is_empty()).then(|| hash.parse()).transpose().context("proxy_key_hash")
}

/// The public key of the certificate that will be shown next.
fn next_pin(file: &str) -> anyhow::Result<Option<Pin>> {
    if file.is_empty() {
        return Ok(None);
    }
    let path = expand_home(Path::new(file));
    let named = || format!("next_tls_cert {}", path.display());
    let pem = tls::read(&path).with_context(named)?;
    Pin::of_pem(&pem).map(Some).context("it is no certificate").with_context(named)
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

/// Where a server listens, and what it shows there.
struct Place {
    address: SocketAddr,
    certificate: Option<(Tls, PathBuf)>,
    /// How others reach it, if that was said.
    public_url: String,
}

impl Place {
    fn scheme(&self) -> &'static str {
        if self.certificate.is_some() { "wss" } else { "ws" }
    }

    /// Where commands on this machine reach this server.
    fn local(&self) -> String {
        let (ip, port) = (self.address.ip(), self.address.port());
        let loopback = match ip {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
        };
        let ip = if ip.is_unspecified() { loopback } else { ip };
        url(self.scheme(), &ip.to_string(), port)
    }

    /// Where other machines reach this server.
    fn remote(&self) -> String {
        if !self.public_url.is_empty() {
            return self.public_url.clone();
        }
        let ip = self.address.ip();
        let ip = if ip.is_unspecified() { local_ip_address::local_ip().unwrap_or(ip) } else { ip };
        let port = self.address.port();
        let Some((tls, _)) = &self.certificate else {
            return url("ws", &ip.to_string(), port);
        };
        let candidates = [ip.to_string(), device::info::host_name()].into_iter();
        let host = named(tls, candidates).unwrap_or_else(|| ip.to_string());
        url("wss", &host, port)
    }

    /// Leaves word for commands that make join tokens. Without it they cannot say where to join, and say so.
    fn note(&self, values: &ServerValues, folder: &StateFolder) -> Option<Noted> {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let serving = Serving {
            url: self.remote(),
            local: self.local(),
            certificate: self.certificate.as_ref().map(|(_, path)| absolute(path)),
            proxy_key_hash: Some(values.proxy_key_hash.clone()).filter(|hash| !hash.is_empty()),
        };
        let noted = serving.note(folder);
        noted
            .inspect_err(|error| tracing::warn!(error = format!("{error:#}"), "no join tokens"))
            .ok()
    }
}

/// The first of these hosts that a certificate is for, else the one that it names itself.
fn named(tls: &Tls, mut hosts: impl Iterator<Item = String>) -> Option<String> {
    hosts.find(|host| tls.names(host)).or_else(|| tls.host_name())
}

fn url(scheme: &str, host: &str, port: u16) -> String {
    match host.parse() {
        Ok(ip) => format!("{scheme}://{}", SocketAddr::new(ip, port)),
        Err(_) => format!("{scheme}://{host}:{port}"),
    }
}

/// Says where the server is and what to type next.
fn greet(place: &Place, key: &Key, folder: &StateFolder) {
    let (version, scheme, address) = (env!("CARGO_PKG_VERSION"), place.scheme(), place.address);
    say!("{BOLD}Flightdeck {version}{BOLD:#} listens on {CYAN}{scheme}://{address}/ws{CYAN:#}");
    if key.is_generated {
        let made = if key.is_new { "generated just now" } else { "kept" };
        let path = folder.key_path();
        let state = folder.flag();
        say!("The key is {made} in {}; `flightdeck key show{state}` prints it.", path.display());
    } else {
        say!("The key is the one that was given; commands here need it in FLIGHTDECK_TOKEN.");
    }
    let state = folder.flag();
    say!("\nOn this machine, in two more terminals:");
    if !key.is_generated {
        say!("  {BOLD}{GIVEN_KEY}{BOLD:#}");
    }
    say!("  {BOLD}flightdeck device{state}{BOLD:#}");
    let id = device::info::host_name();
    say!("  {BOLD}flightdeck exec{state} --on {id} -- df -h{BOLD:#}");
    greet_others(place, &state);
    say!();
}

/// The key stays here: other machines get one of their own.
fn greet_others(place: &Place, state: &str) {
    let ip = place.address.ip();
    if ip.is_loopback() && place.public_url.is_empty() {
        let all = if ip.is_ipv6() { "::" } else { "0.0.0.0" };
        say!(
            "\n{DIM}Other machines cannot reach {ip}: start with --host {all} to let them \
             in.{DIM:#}"
        );
        return;
    }
    if place.certificate.is_none() && !place.public_url.starts_with("wss:") {
        say!("\n{RED}without TLS{RED:#}: whoever is on the way to this server can command devices");
    }
    say!("\nAnother machine joins with the line that this prints here:");
    say!("  {BOLD}flightdeck join-token create --name lab-1{state}{BOLD:#}");
}
