//! `flightdeck key`: the generated key, the created ones, and the key pairs of devices.

use std::io;

use anyhow::{Context, bail};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde_json::json;
use server::{KeyChange, KeyRecord, NewKey, Role};

use crate::args::{CreateKey, Global, Key, KeyRole};
use crate::key_file::KeyFile;
use crate::key_uses::KeyUses;
use crate::output::{print, print_json, print_line, safe_line, table};
use crate::state::StateFolder;
use crate::{Code, Ended};

const HEADINGS: [&str; 8] =
    ["NAME", "ID", "KIND", "ROLE", "CLIENT", "TARGET", "EXPIRES", "LAST USED"];

pub(crate) fn run(args: Key, global: Global) -> Ended {
    let folder = StateFolder::new(global.state_dir)?;
    match args {
        Key::Show => show(&folder)?,
        Key::Create(args) => create(args, &folder)?,
        Key::List { json } => list(json, &folder)?,
        Key::Revoke { name } => revoke(&name, &folder)?,
    }
    Ok(Code::COMPLETED)
}

fn show(folder: &StateFolder) -> anyhow::Result<()> {
    let key = folder.key()?.with_context(|| {
        let path = folder.key_path();
        format!("there is no key at {}; `flightdeck serve` makes one", path.display())
    })?;
    print_line(key.expose_secret())
}

fn create(args: CreateKey, folder: &StateFolder) -> anyhow::Result<()> {
    folder.create()?;
    let expires_at = args.expires.map(|lifetime| Timestamp::now().checked_add(lifetime.0));
    let new = NewKey {
        name: args.name,
        role: match args.role {
            KeyRole::Device => Role::Device,
            KeyRole::Constellation => Role::Constellation,
            KeyRole::Operator => Role::Operator,
        },
        client: args.client,
        target: args.target,
        expires_at: expires_at.transpose().context("--expires is too far away")?,
    };
    let (record, key) = KeyRecord::create(new).map_err(anyhow::Error::msg)?;
    let written = KeyFile::new(folder).change(KeyChange::Created, |book| {
        if book.keys.iter().any(|known| known.name == record.name) {
            bail!(
                "there is a key '{}' already; revoke it first, or take another --name",
                safe_line(&record.name)
            );
        }
        let (name, role) = (record.name.clone(), record.role);
        book.keys.push(record);
        Ok((name, role))
    })?;
    print_line(key.expose_secret())?;
    say!("Keep it now: it is not shown again. Its holder gives it as FLIGHTDECK_TOKEN.");
    warn_unless(written);
    Ok(())
}

fn list(json: bool, folder: &StateFolder) -> anyhow::Result<()> {
    let keys = KeyFile::new(folder).book()?.keys;
    let uses = KeyUses::at(folder.path()).read();
    let last_use = |key: &KeyRecord| uses.get(&key.id).copied();
    if json {
        for key in &keys {
            print_json(&as_json(key, last_use(key)))?;
        }
    } else if keys.is_empty() {
        say!("No key was created. Create one: flightdeck key create --name N --role device");
    } else {
        let rows: Vec<_> = keys.iter().map(|key| row(key, last_use(key))).collect();
        print(&table(HEADINGS, &rows))?;
    }
    Ok(())
}

/// A key without its hash, which is nobody's business.
fn as_json(key: &KeyRecord, last_use: Option<Timestamp>) -> String {
    json!({
        "id": key.id, "name": key.name, "kind": if key.is_key_pair() { "key_pair" } else { "key" },
        "role": key.role, "client": key.client,
        "target": key.target, "created_at": key.created_at, "expires_at": key.expires_at,
        "expired": key.is_expired(Timestamp::now()), "last_used_at": last_use,
    })
    .to_string()
}

fn row(key: &KeyRecord, last_use: Option<Timestamp>) -> [String; 8] {
    let any = |pattern: &Option<server::Pattern>| {
        pattern.as_ref().map_or_else(|| "any".to_owned(), |pattern| safe_line(&pattern.to_string()))
    };
    let target = if key.role == Role::Device { "–".to_owned() } else { any(&key.target) };
    let expires = match key.expires_at {
        None => "never".to_owned(),
        Some(_) if key.is_expired(Timestamp::now()) => "expired".to_owned(),
        Some(end) => minute(end),
    };
    let kind = if key.is_key_pair() { "pair" } else { "key" };
    [
        safe_line(&key.name),
        key.id.clone(),
        kind.to_owned(),
        key.role.to_string(),
        any(&key.client),
        target,
        expires,
        last_use.map_or_else(|| "never".to_owned(), minute),
    ]
}

/// A time, for people.
pub(crate) fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

fn revoke(name: &str, folder: &StateFolder) -> anyhow::Result<()> {
    folder.create()?;
    let written = KeyFile::new(folder).change(KeyChange::Revoked, |book| {
        let Some(key) = book.remove_key(name) else {
            bail!("there is no key '{}'; `flightdeck key list` shows all", safe_line(name));
        };
        Ok((key.name, key.role))
    })?;
    say!("Revoked. A running server closes its connections within a second.");
    warn_unless(written);
    Ok(())
}

/// Says that the audit log has not got what was done.
pub(crate) fn warn_unless(written: io::Result<()>) {
    if let Err(error) = written {
        say!("warning: the audit log could not be written: {error}");
    }
}
