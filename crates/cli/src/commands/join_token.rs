//! `flightdeck join-token`: what other machines join with.

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde_json::json;
use server::{JoinToken as Record, KeyChange, NewJoinToken, Role};

use super::key::{minute, warn_unless};
use crate::args::{CreateJoinToken, Global, JoinRole, JoinToken};
use crate::invitation::{device_line, quoted};
use crate::key_file::KeyFile;
use crate::output::{print, print_json, print_line, safe_line, table};
use crate::serving::Serving;
use crate::state::StateFolder;
use crate::{Code, Ended};

const HEADINGS: [&str; 7] = ["NAME", "ID", "ROLE", "CLIENT", "USED", "EXPIRES", "FIRST USED BY"];

pub(crate) fn run(args: JoinToken, global: Global) -> Ended {
    let folder = StateFolder::new(global.state_dir)?;
    match args {
        JoinToken::Create(args) => create(args, &folder)?,
        JoinToken::List { json } => list(json, &folder)?,
        JoinToken::Revoke { name } => revoke(&name, &folder)?,
    }
    Ok(Code::COMPLETED)
}

fn create(args: CreateJoinToken, folder: &StateFolder) -> anyhow::Result<()> {
    // Where to join has to be known before there is a token.
    let serving = Serving::read(folder)?;
    let (server, pin) = (serving.server()?, serving.pin()?);
    let lifetime = args.expires.0;
    let expires_at = Timestamp::now().checked_add(lifetime).context("--expires is too far away")?;
    let role = match args.role {
        JoinRole::Device => Role::Device,
        JoinRole::Operator => Role::Operator,
    };
    if role == Role::Operator && args.client.is_some() {
        bail!("--client is for devices: an operator has no id");
    }
    let new = NewJoinToken {
        name: args.name,
        role,
        client: args.client,
        uses: args.uses,
        expires_at,
        replaces: false,
    };
    let mut made = None;
    let written = KeyFile::new(folder).change(KeyChange::JoinTokenCreated, |book| {
        let name = new.name.clone();
        made = Some(book.add_token(new).map_err(anyhow::Error::msg)?);
        Ok((name, role))
    })?;
    let token = made.context("no token was made")?;
    match args.role {
        JoinRole::Device => print_line(&device_line(&server, &token, pin))?,
        JoinRole::Operator => {
            print_line(&format!("flightdeck login {}", quoted(&server, &token, pin)))?;
        }
    }
    let until = minute(expires_at);
    say!(
        "Type it on the other machine until {until}; it is not shown again, and is as good as a key until it is used."
    );
    if server.is_loopback() {
        say!(
            "The server listens for this machine only: `flightdeck serve --host 0.0.0.0` lets others in."
        );
    }
    if !server.is_tls() && !server.is_loopback() {
        say!("warning: without TLS whoever is on the way can read it, and join instead");
    }
    warn_unless(written);
    Ok(())
}

fn list(json: bool, folder: &StateFolder) -> anyhow::Result<()> {
    let tokens = KeyFile::new(folder).book()?.join_tokens;
    if json {
        for token in &tokens {
            print_json(&as_json(token))?;
        }
    } else if tokens.is_empty() {
        say!("There is no join token. Make one: flightdeck join-token create --name N");
    } else {
        print(&table(HEADINGS, &tokens.iter().map(row).collect::<Vec<_>>()))?;
    }
    Ok(())
}

/// A token without its hash, which is nobody's business.
fn as_json(token: &Record) -> String {
    json!({
        "id": token.id, "name": token.name, "role": token.role, "client": token.client,
        "replaces": token.replaces, "uses": token.uses, "used": token.used,
        "first_use": token.first_use, "created_at": token.created_at,
        "expires_at": token.expires_at, "expired": token.is_expired(Timestamp::now()),
    })
    .to_string()
}

fn row(token: &Record) -> [String; 7] {
    let client = token.client.as_ref().map(ToString::to_string);
    let client = match token.role {
        Role::Operator => "–".to_owned(),
        _ => client.map_or_else(|| "any".to_owned(), |client| safe_line(&client)),
    };
    let expires = match token.is_expired(Timestamp::now()) {
        true => "expired".to_owned(),
        false => minute(token.expires_at),
    };
    let first = token.first_use.as_ref().map(|first| safe_line(&first.who));
    [
        safe_line(&token.name),
        token.id.clone(),
        token.role.to_string(),
        client,
        format!("{} of {}", token.used, token.uses),
        expires,
        first.unwrap_or_else(|| "–".to_owned()),
    ]
}

fn revoke(name: &str, folder: &StateFolder) -> anyhow::Result<()> {
    folder.create()?;
    let written = KeyFile::new(folder).change(KeyChange::JoinTokenRevoked, |book| {
        let Some(token) = book.remove_token(name) else {
            bail!(
                "there is no join token '{}'; `flightdeck join-token list` shows all",
                safe_line(name)
            );
        };
        Ok((token.name, token.role))
    })?;
    say!("Revoked. What has joined with it stays: `flightdeck key revoke` takes that away.");
    warn_unless(written);
    Ok(())
}
