//! A device joins a server once, and comes back without being told where it is: its key pair, and the server's address and
//! public key, are kept in the state folder.

use std::fs;
use std::path::{Path, PathBuf};

use aip::ClientId;
use anyhow::{Context, bail};
use link::{DeviceKey, KeyPair, Pin, Pins, ServerUrl};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::status_file::file_word;
use crate::Failure;
use crate::api::Api;
use crate::args::Global;
use crate::connect::{Target, is_on_command_line};
use crate::invitation::Invitation;
use crate::logins::{expose, hide};
use crate::output::{GREEN, safe_line};
use crate::settings::{ApiKey, ClientKeys, ClientValues};
use crate::state::{StateFolder, check_is_file, check_private_keys, replace_private_file};

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The most files of devices that are looked at.
const MAX_FILES: usize = 1024;

/// What is kept of a server that a device has joined, or is joining.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// The device.
    id: ClientId,
    server: String,
    /// What tells the server's public key from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
    /// The same of the key that it will have, as it has announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_pin: Option<String>,
    /// The public id of the join token.
    token: String,
    #[serde(serialize_with = "expose", deserialize_with = "hide")]
    private_key: SecretString,
    /// What the server calls the key pair, once it is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The id of the server's store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<String>,
}

/// A device that has joined: who it is, and its server.
pub(super) struct Joined {
    pub(super) id: ClientId,
    pub(super) target: Target,
}

/// What was typed.
pub(super) struct Asked<'a> {
    pub(super) join: Option<&'a ApiKey>,
    pub(super) is_insecure: bool,
    /// The id that was given; empty if none was.
    pub(super) id: &'a str,
    pub(super) keys: &'a ClientKeys,
    pub(super) values: &'a ClientValues,
}

/// Joins if that was asked for; else finds what this device has joined. `None` where it is to show a key.
///
/// # Errors
/// When the server refuses, or the files cannot be used.
pub(super) async fn find(asked: &Asked<'_>, global: &Global) -> Result<Option<Joined>, Failure> {
    let folder = StateFolder::new(global.state_dir.clone())?;
    if let Some(typed) = asked.join.and_then(ApiKey::secret) {
        let invitation = Invitation::typed(typed)?;
        invitation.check_way(asked.is_insecure)?;
        // A service is started with the same line again and again; meanwhile an operator may have let it join anew.
        let known = match is_on_command_line("--join") {
            true => None,
            false => kept(asked.id, &folder)?.filter(|kept| kept.is_at(&invitation.server)),
        };
        return match known {
            Some(known) => Ok(Some(known.joined(asked.values.clone(), &folder)?)),
            None => join(asked, &invitation, &folder).await.map(Some),
        };
    }
    // A key in a variable or file may be for something else; one that was typed is meant.
    if ["--token", "--token-file"].into_iter().any(is_on_command_line) {
        return Ok(None);
    }
    let Some(kept) = kept(asked.id, &folder)? else { return Ok(None) };
    let server: ServerUrl = kept.server.parse().context("the server that was joined")?;
    // Another server, or the same one with a key in its address.
    let is_other = |given: &str| {
        given.parse().map_or(true, |given: ServerUrl| {
            given.token().is_some() || given.to_string() != server.to_string()
        })
    };
    if is_given(asked) && is_other(asked.values.server.exposed()) {
        return Ok(None);
    }
    kept.joined(asked.values.clone(), &folder).map(Some).map_err(Failure::from)
}

/// Whether it was said where the server is.
fn is_given(asked: &Asked<'_>) -> bool {
    asked.keys.server.is_some()
}

async fn join(
    asked: &Asked<'_>,
    invitation: &Invitation,
    folder: &StateFolder,
) -> Result<Joined, Failure> {
    let id = if asked.id.is_empty() { device::info::host_name() } else { asked.id.to_owned() };
    let id: ClientId = id.parse().with_context(|| format!("--id {id:?}"))?;
    let values = asked.values.clone();
    // The same line again, as in a service's settings.
    if let Some(kept) = read(&path(folder, "joined", &id))?.filter(|kept| kept.is_of(invitation)) {
        return Ok(kept.joined(values, folder)?);
    }
    folder.create()?;
    let draft = path(folder, "joining", &id);
    let mut kept = match read(&draft)?.filter(|kept| kept.is_of(invitation)) {
        // The answer may have been lost: the token opens for this key pair alone by now.
        Some(kept) => kept,
        None => Kept::new(id.clone(), invitation)?,
    };
    kept.write(&draft)?;
    let pins = invitation.pin.map(Pins::fixed);
    let target = Target::joined(invitation.server.clone(), pins, None, values.clone())?;
    let public_key = KeyPair::read(&kept.private_key).context("the new key pair")?.public();
    let api = Api::new(&target)?;
    let member = api.join(&invitation.token, id.as_str(), &public_key).await?;
    kept.key = Some(member.key);
    kept.store = Some(member.store);
    kept.write(&path(folder, "joined", &id))?;
    // It is of no use any more.
    let _removed = fs::remove_file(&draft);
    say!("{GREEN}joined{GREEN:#} {} as '{}'", invitation.server, safe_line(id.as_str()));
    Ok(kept.joined(values, folder)?)
}

impl Kept {
    fn new(id: ClientId, invitation: &Invitation) -> anyhow::Result<Self> {
        let pair = KeyPair::generate().context("cannot make a key pair")?;
        Ok(Self {
            id,
            server: invitation.server.to_string(),
            pin: invitation.pin.map(|pin| pin.to_string()),
            next_pin: None,
            token: invitation.token_id().to_owned(),
            private_key: pair.private(),
            key: None,
            store: None,
        })
    }

    /// Whether it was made for this invitation.
    fn is_of(&self, invitation: &Invitation) -> bool {
        self.token == invitation.token_id() && self.is_at(&invitation.server)
    }

    fn is_at(&self, server: &ServerUrl) -> bool {
        self.server == server.to_string()
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string(self).context("the key pair")?;
        replace_private_file(path, &text)
            .with_context(|| format!("cannot keep the key pair in {}", path.display()))
    }

    fn joined(self, values: ClientValues, folder: &StateFolder) -> anyhow::Result<Joined> {
        let pair = KeyPair::read(&self.private_key).context("the device's key pair")?;
        let pins = self.pins(path(folder, "joined", &self.id))?;
        let server = self.server.parse().context("the server that was joined")?;
        let key_id = self.key.context("the device has not joined")?;
        let key = DeviceKey { pair, device: self.id.clone(), key_id };
        let target = Target::joined(server, pins, Some(key), values)?;
        Ok(Joined { id: self.id, target })
    }

    /// What the server is known by; what it announces is kept in this file.
    fn pins(&self, path: PathBuf) -> anyhow::Result<Option<Pins>> {
        let read = |pin: &Option<String>| pin.as_deref().map(str::parse).transpose();
        let Some(present) = read(&self.pin)? else { return Ok(None) };
        let kept = self.clone();
        let keep = move |present: Pin, next: Pin| {
            let [pin, next_pin] = [present, next].map(|pin| Some(pin.to_string()));
            match (Self { pin, next_pin, ..kept.clone() }).write(&path) {
                Ok(()) => tracing::info!("the server has announced its next public key"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the server's next public key cannot be kept");
                }
            }
        };
        Ok(Some(Pins::new(present, read(&self.next_pin)?, keep)))
    }
}

/// What the device with this id has joined, or without one the only device that has, or the one that is called as this
/// machine.
fn kept(id: &str, folder: &StateFolder) -> anyhow::Result<Option<Kept>> {
    if !id.is_empty() {
        let Ok(id) = id.parse() else { return Ok(None) };
        return read(&path(folder, "joined", &id));
    }
    let Ok(files) = fs::read_dir(folder.path()) else { return Ok(None) };
    let is_joined = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("joined-") && name.ends_with(".json")
    };
    let paths = files.flatten().map(|file| file.path()).filter(is_joined).take(MAX_FILES);
    let mut all =
        paths.filter_map(|path| read(&path).transpose()).collect::<Result<Vec<_>, _>>()?;
    if all.len() < 2 {
        return Ok(all.pop());
    }
    let host = device::info::host_name();
    let ids: Vec<_> = all.iter().map(|kept| safe_line(kept.id.as_str())).collect();
    let own = all.into_iter().find(|kept| kept.id.as_str() == host);
    match own {
        Some(kept) => Ok(Some(kept)),
        None => {
            bail!("several devices have joined from here: name one with --id: {}", ids.join(", "))
        }
    }
}

fn path(folder: &StateFolder, what: &str, id: &ClientId) -> PathBuf {
    folder.path().join(format!("{what}-{}.json", file_word(id.as_str())))
}

/// What is in a file; nothing where there is none.
fn read(path: &Path) -> anyhow::Result<Option<Kept>> {
    let cannot = || format!("cannot read what the device has joined, {}", path.display());
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.with_context(cannot)?,
    };
    check_is_file(path, &found).with_context(cannot)?;
    check_private_keys(path)?;
    anyhow::ensure!(found.len() <= MAX_BYTES, "{}: it is larger than {MAX_BYTES} bytes", cannot());
    let text = fs::read(path).with_context(cannot)?;
    // The library's own words may repeat what is secret.
    let kept = serde_json::from_slice(&text).map_err(|error| {
        anyhow::anyhow!(
            "it is damaged (line {}, column {}); remove it, and join again",
            error.line(),
            error.column()
        )
    });
    kept.map(Some).with_context(cannot)
}
