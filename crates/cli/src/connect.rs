//! How the commands find their server: its address and its key, from wherever they were given.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use constellation::Constellation;
use device::tools::mcp::{ServerSettings, Transport};
use link::{ClientSettings, DeviceKey, Exit, Pins, Proxy, ServerUrl, TokenSource, Trust};
use secrecy::SecretString;

use crate::Failure;
use crate::args::Global;
use crate::logins::{Login, Logins};
use crate::proxy;
use crate::serving::Serving;
use crate::settings::{ApiKey, ClientKeys, ClientValues, File, ServerAddress, usual_path};
use crate::state::{StateFolder, expand_home, read_key, warn_of_readers};
use crate::tls;

/// Longest wait for the server's goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// A server and the key to it.
pub(crate) struct Target {
    pub(crate) server: ServerUrl,
    pub(crate) key: Option<SecretString>,
    /// Reads it anew, where it lies in a file: a server on this machine makes it at its first start.
    source: Option<TokenSource>,
    /// What a device that has joined proves itself with.
    device_key: Option<Arc<DeviceKey>>,
    /// Whose certificates are trusted, if the server is behind TLS.
    pub(crate) trust: Option<Trust>,
    /// The public keys by which the server is known again, where that is how it is trusted.
    pins: Option<Pins>,
    /// The HTTP proxy on the way to the server, if any.
    pub(crate) proxy: Option<Proxy>,
    values: ClientValues,
}

impl Target {
    /// Puts together what flags, variables, file and state folder say, for who wants something of devices.
    pub(crate) fn new(keys: ClientKeys, global: &Global) -> anyhow::Result<Self> {
        let file = File::load(global.config.as_deref())?;
        let named = keys.server.clone().or_else(|| file.client.server.clone());
        if let Some(serving) = running(named.as_ref(), global) {
            return Self::here(&serving, in_force(keys, file.client), global);
        }
        let login = login(named.as_ref(), global)?;
        match login {
            Some(login) => Self::logged_in(&login, in_force(keys, file.client), global),
            None => Self::keyed(keys, global),
        }
    }

    /// A server that this user has logged in to. A key that is typed counts more than the login's; one in a variable or
    /// in the settings may be another server's.
    fn logged_in(login: &Login, values: ClientValues, global: &Global) -> anyhow::Result<Self> {
        let server = login.server()?;
        let is_given = ["--token", "--token-file"].into_iter().any(is_on_command_line);
        let key =
            if is_given { find_key(&values, &server, global)? } else { Some(login.key.clone()) };
        let pins = login.pin()?.map(Pins::fixed);
        Ok(Self { key, ..Self::joined(server, pins, None, values)? })
    }

    /// The server that runs on this machine, which makes its key itself unless another is given.
    fn here(serving: &Serving, values: ClientValues, global: &Global) -> anyhow::Result<Self> {
        let (server, pin) = serving.local()?;
        let is_given = values.token.secret().is_some() || !values.token_file.is_empty();
        let key = match is_given {
            true => find_key(&values, &server, global)?,
            false => StateFolder::new(global.state_dir.clone())?.key()?,
        };
        let source = key_source(&values, &server, global);
        // Its certificate may be replaced while it runs.
        let again = serving.clone();
        let again = move || again.local().ok().and_then(|(_, pin)| pin);
        let pins = pin.map(|pin| Pins::looked_up(pin, again));
        Ok(Self { key, source, ..Self::joined(server, pins, None, values)? })
    }

    /// The same for who shows a key, whatever this user has logged in to.
    pub(crate) fn keyed(keys: ClientKeys, global: &Global) -> anyhow::Result<Self> {
        let file = File::load(global.config.as_deref())?;
        let named = keys.server.clone().or_else(|| file.client.server.clone());
        let values = in_force(keys, file.client);
        if let Some(serving) = running(named.as_ref(), global) {
            return Self::here(&serving, values, global);
        }
        let in_url = ["--server", "--ws-server"].into_iter().any(is_on_command_line)
            && values.server.has_key();
        let on_command_line = is_on_command_line("--token") || in_url;
        if on_command_line {
            say!(
                "warning: other users of this machine can see a key on the command line; \
                 use FLIGHTDECK_TOKEN or --token-file"
            );
        }
        let server: ServerUrl = values.server.exposed().parse().with_context(|| {
            format!("{:?} is no server URL", without_secrets(values.server.exposed()))
        })?;
        let key = find_key(&values, &server, global)?;
        let source = key_source(&values, &server, global);
        // A file that is named has to be there, also where nothing is to be trusted.
        let trusts = server.is_tls() || !values.ca_file.is_empty();
        let trust = trusts.then(|| tls::trust(&values.ca_file)).transpose()?;
        let trust = trust.filter(|_| server.is_tls());
        let proxy = proxy::proxy_to(&server)?;
        Ok(Self { server, key, source, device_key: None, trust, pins: None, proxy, values })
    }

    /// A server that this machine has joined, or is about to: it shows no key there.
    pub(crate) fn joined(
        server: ServerUrl,
        pins: Option<Pins>,
        device_key: Option<DeviceKey>,
        values: ClientValues,
    ) -> anyhow::Result<Self> {
        let trust = match pins.clone() {
            Some(pins) => tls::pinned(pins, &values.ca_file)?,
            None if server.is_tls() => tls::trust(&values.ca_file)?,
            None => Trust::nobody()?,
        };
        let trust = Some(trust).filter(|_| server.is_tls());
        let (proxy, device_key) = (proxy::proxy_to(&server)?, device_key.map(Arc::new));
        Ok(Self { server, key: None, source: None, device_key, trust, pins, proxy, values })
    }

    /// The settings of a client of this server.
    pub(crate) fn apply(&self, settings: ClientSettings) -> ClientSettings {
        ClientSettings {
            token: self.key.clone(),
            token_source: self.source.clone(),
            device_key: self.device_key.clone(),
            pins: self.pins.clone(),
            trust: self.trust.clone(),
            proxy: self.proxy.clone(),
            connect_timeout: self.connect_timeout(),
            ..settings
        }
    }

    /// Whose certificates the MCP servers of a device may have, if any of them is behind TLS.
    pub(crate) fn trust_of_servers(
        &self,
        servers: &[ServerSettings],
    ) -> anyhow::Result<Option<Trust>> {
        let is_tls = |server: &ServerSettings| match &server.transport {
            Transport::Http { url, .. } => url.starts_with("https:"),
            Transport::Stdio { .. } => false,
        };
        match self.trust.as_ref().filter(|_| self.pins.is_none()) {
            Some(trust) => Ok(Some(trust.clone())),
            None if servers.iter().any(is_tls) => tls::trust(&self.values.ca_file).map(Some),
            None => Ok(None),
        }
    }

    /// The files in which the key may be.
    pub(crate) fn key_files(&self, global: &Global) -> Vec<PathBuf> {
        key_files(&self.values, global)
    }

    /// Longest wait for a connection.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.values.connect_timeout.0
    }

    /// Connects as an orchestrator with a name of its own.
    pub(crate) async fn connect(&self, what: &str) -> Result<Constellation, Failure> {
        let id = format!("{what}-{}", uuid::Uuid::new_v4().simple());
        let id = id.parse().context("the id of this client")?;
        let settings = self.apply(ClientSettings::constellation(self.server.clone()));
        Constellation::connect(settings, id).await.map_err(|exit| self.explain(exit))
    }

    /// An exit with what to do about it.
    pub(crate) fn explain(&self, exit: Exit) -> Failure {
        let text = exit.to_string();
        let is_unknown = text.contains("refused the key") || text.contains("knows no key pair");
        let hint = if is_unknown {
            self.key_hint()
        } else if text.contains("no server answer") {
            "start one with `flightdeck serve`, or name another with --server".to_owned()
        } else if let Some(hint) = trust_hint(&text) {
            hint.to_owned()
        } else {
            return Failure::unreachable(exit);
        };
        Failure::unreachable(anyhow::anyhow!("{exit}\n  {hint}"))
    }

    fn key_hint(&self) -> String {
        let shown = if self.server.is_loopback() {
            "`flightdeck key create` makes one (`flightdeck key show` prints the one that opens everything)"
        } else {
            "on the server's machine, `flightdeck join-token create` prints the line to join or log in with, and \
             `flightdeck key create` makes a key"
        };
        if self.device_key.is_some() {
            return "its key pair may have been revoked: see `flightdeck key list` on the server's machine, and \
                    `flightdeck device rejoin`, which lets it join again"
                .to_owned();
        }
        match &self.key {
            Some(_) => format!("{shown}; give it with FLIGHTDECK_TOKEN or --token-file"),
            None => {
                format!("no key was given: {shown}; give it with FLIGHTDECK_TOKEN or --token-file")
            }
        }
    }
}

/// The server that runs on this machine with the same state folder, unless another is named.
fn running(named: Option<&ServerAddress>, global: &Global) -> Option<Serving> {
    let folder = StateFolder::new(global.state_dir.clone()).ok()?;
    named.is_none().then(|| Serving::here(&folder)).flatten()
}

/// The login that is named, or without a name the newest one, unless a server has run on this machine.
fn login(named: Option<&ServerAddress>, global: &Global) -> anyhow::Result<Option<Login>> {
    let Ok(folder) = StateFolder::new(global.state_dir.clone()) else { return Ok(None) };
    let logins = Logins::new(&folder);
    match named {
        // An address is not looked for, so that a damaged file stops nobody who gives one.
        Some(named) if named.exposed().contains([':', '/']) => Ok(None),
        Some(named) => Ok(logins.all()?.into_iter().find(|login| login.name == named.exposed())),
        None if folder.key_path().exists() => Ok(None),
        None => Ok(logins.all()?.pop()),
    }
}

/// What to do about a certificate that nobody vouches for.
pub(crate) fn trust_hint(text: &str) -> Option<&'static str> {
    text.contains("signed by nobody who is trusted")
        .then_some("to trust it, give it, or its authority's, with --ca-file FILE")
}

/// Says goodbye to the server, which need not answer: whatever there was to show has been shown.
pub(crate) async fn say_goodbye(constellation: Constellation) {
    let _answered = tokio::time::timeout(GOODBYE, constellation.close()).await;
}

/// How to reach a server, as far as that is said. A key that is named in a way that counts more puts others out of
/// force: a flag goes before a variable, both before the file; among equals the key itself goes before its file.
pub(crate) fn in_force(keys: ClientKeys, file: ClientKeys) -> ClientValues {
    let is_flag = is_on_command_line("--token-file") && !is_on_command_line("--token");
    let is_given = is_flag || keys.token.is_none();
    let names_file = keys.token_file.as_ref().is_some_and(|path| !path.is_empty());
    let values = keys.resolve(file);
    match is_given && names_file {
        true => ClientValues { token: ApiKey::default(), ..values },
        false => values,
    }
}

/// What finds the key anew with all files as they are then, the settings file too: for who stays, and is refused.
pub(crate) fn key_anew(keys: &ClientKeys, server: &ServerUrl, global: &Global) -> TokenSource {
    let (keys, server) = (keys.clone(), server.clone());
    let (config, state_dir) = (global.config.clone(), global.state_dir.clone());
    Arc::new(move || {
        let file = File::load(config.as_deref()).ok()?;
        let values = in_force(keys.clone(), file.client);
        // A key for another server is not for this one.
        let now: ServerUrl = values.server.exposed().parse().ok()?;
        let is_same = now.to_string() == server.to_string();
        is_same.then(|| look_for_key(&values, &now, state_dir.clone()).ok().flatten()).flatten()
    })
}

/// The files in which [`key_anew`] finds the key.
fn key_files(values: &ClientValues, global: &Global) -> Vec<PathBuf> {
    let config = global.config.clone().or_else(usual_path);
    let named = (!values.token_file.is_empty()).then(|| expand_home(Path::new(&values.token_file)));
    let own = StateFolder::new(global.state_dir.clone()).ok().map(|folder| folder.key_path());
    [config, named, own].into_iter().flatten().collect()
}

/// What reads the key again, where [`find_key`] takes it from a file.
fn key_source(values: &ClientValues, server: &ServerUrl, global: &Global) -> Option<TokenSource> {
    if values.token.secret().is_some() {
        return None;
    }
    if !values.token_file.is_empty() {
        let path = expand_home(Path::new(&values.token_file));
        return Some(Arc::new(move || read_key(&path).ok()));
    }
    if server.token().is_some() || !server.is_loopback() {
        return None;
    }
    let folder = StateFolder::new(global.state_dir.clone()).ok()?;
    Some(Arc::new(move || folder.key().ok().flatten()))
}

/// The key: given, in a file, in the URL, or for a server on this machine the generated one.
pub(crate) fn find_key(
    values: &ClientValues,
    server: &ServerUrl,
    global: &Global,
) -> anyhow::Result<Option<SecretString>> {
    if values.token.secret().is_none() && !values.token_file.is_empty() {
        warn_of_readers("key file", &expand_home(Path::new(&values.token_file)));
    }
    look_for_key(values, server, global.state_dir.clone())
}

fn look_for_key(
    values: &ClientValues,
    server: &ServerUrl,
    state_dir: Option<PathBuf>,
) -> anyhow::Result<Option<SecretString>> {
    if let Some(key) = values.token.secret() {
        return Ok(Some(key.clone()));
    }
    if !values.token_file.is_empty() {
        return read_key(&expand_home(Path::new(&values.token_file))).map(Some);
    }
    if let Some(key) = server.token() {
        return Ok(Some(key.clone()));
    }
    if server.is_loopback() {
        return StateFolder::new(state_dir)?.key();
    }
    Ok(None)
}

/// Whether a flag was typed, rather than its variable set.
pub(crate) fn is_on_command_line(flag: &str) -> bool {
    std::env::args_os().skip(1).take_while(|arg| arg != "--").any(|arg| {
        arg.to_str().is_some_and(|arg| {
            arg.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    })
}

/// An address without what may be a key or a password: its query, and who is named before its host.
fn without_secrets(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.rsplit('@').next().unwrap_or_default();
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}
