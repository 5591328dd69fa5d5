//! `flightdeck key`: the generated key, and the created ones.

use std::io;

use anyhow::{Context, bail};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde_json::json;
use server::{KeyChange, KeyRecord, NewKey, Role};

use crate::args::{CreateKey, Global, Key, KeyRole};
use crate::key_file::KeyFile;
use crate::output::{print, print_line, safe_line, table};
use crate::state::StateFolder;
use crate::{Code, Ended};

const HEADINGS: [&str; 6] = ["NAME", "ID", "ROLE", "CLIENT", "TARGET", "EXPIRES"];

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
    let written = KeyFile::new(folder).change(KeyChange::Created, |keys| {
        if keys.iter().any(|known| known.name == record.name) {
            bail!(
                "there is a key '{}' already; revoke it first, or take another --name",
                safe_line(&record.name)
            );
        }
        keys.push(record.clone());
        Ok(record)
    })?;
    print_line(key.expose_secret())?;
    say!("Keep it now: it is not shown again. Its holder gives it as FLIGHTDECK_TOKEN.");
    warn_unless(written);
    Ok(())
}

fn list(json: bool, folder: &StateFolder) -> anyhow::Result<()> {
    let keys = KeyFile::new(folder).load()?;
    if json {
        for key in &keys {
            print_line(&as_json(key))?;
        }
    } else if keys.is_empty() {
        say!("No key was created. Create one: flightdeck key create --name N --role device");
    } else {
        print(&table(HEADINGS, &keys.iter().map(row).collect::<Vec<_>>()))?;
    }
    Ok(())
}

/// A key without its hash, which is nobody's business.
fn as_json(key: &KeyRecord) -> String {
    json!({
        "id": key.id, "name": key.name, "role": key.role, "client": key.client,
        "target": key.target, "created_at": key.created_at, "expires_at": key.expires_at,
        "expired": key.is_expired(Timestamp::now()),
    })
    .to_string()
}

fn row(key: &KeyRecord) -> [String; 6] {
    let any = |pattern: &Option<server::Pattern>| {
        pattern.as_ref().map_or_else(|| "any".to_owned(), |pattern| safe_line(&pattern.to_string()))
    };
    let target = if key.role == Role::Device { "–".to_owned() } else { any(&key.target) };
    let expires = match key.expires_at {
        None => "never".to_owned(),
        Some(_) if key.is_expired(Timestamp::now()) => "expired".to_owned(),
        Some(end) => end.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    };
    [safe_line(&key.name), key.id.clone(), key.role.to_string(), any(&key.client), target, expires]
}

fn revoke(name: &str, folder: &StateFolder) -> anyhow::Result<()> {
    folder.create()?;
    let written = KeyFile::new(folder).change(KeyChange::Revoked, |keys| {
        let found = keys.iter().position(|key| key.name == name || key.id == name);
        let Some(found) = found else {
            bail!("there is no key '{}'; `flightdeck key list` shows all", safe_line(name));
        };
        Ok(keys.remove(found))
    })?;
    say!("Revoked. A running server closes its connections within a second.");
    warn_unless(written);
    Ok(())
}

/// Says that the audit log has not got what was done.
fn warn_unless(written: io::Result<()>) {
    if let Err(error) = written {
        say!("warning: the audit log could not be written: {error}");
    }
}
