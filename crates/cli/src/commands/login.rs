//! `flightdeck login` and `logout`: an operator's key of a server on another machine.

use anyhow::{Context, ensure};
use link::{Pins, ServerUrl};

use crate::api::Api;
use crate::args::{Global, Login as Args, Logout};
use crate::connect::Target;
use crate::invitation::Invitation;
use crate::logins::{Login, Logins};
use crate::output::{GREEN, print, safe_line, table};
use crate::settings::{ApiKey, ClientKeys, File};
use crate::state::StateFolder;
use crate::{Code, Ended};

/// The longest name of a login, in bytes.
const MAX_NAME_BYTES: usize = 64;

pub(crate) async fn run(args: Args, global: Global) -> Ended {
    let folder = StateFolder::new(global.state_dir)?;
    let logins = Logins::new(&folder);
    let Some(typed) = args.join.as_ref().and_then(ApiKey::secret) else {
        list(&logins.all()?)?;
        return Ok(Code::COMPLETED);
    };
    let invitation = Invitation::typed(typed)?;
    invitation.check_way(args.insecure)?;
    folder.create()?;
    // What could not be kept would be lost with the token.
    let name = name(args.name, &invitation.server, &logins.all()?)?;
    let file = File::load(global.config.as_deref())?;
    let values = ClientKeys::default().resolve(file.client);
    let pins = invitation.pin.map(Pins::fixed);
    let target = Target::joined(invitation.server.clone(), pins, None, values)?;
    let operator = Api::new(&target)?.login(&invitation.token).await?;
    let key = operator.key.into();
    let kept = logins.keep(Login::new(name.clone(), &invitation.server, invitation.pin, key));
    kept.with_context(|| {
        let key = safe_line(&operator.name);
        format!(
            "the key is lost: revoke it on the server's machine, with `flightdeck key revoke {key}`"
        )
    })?;
    let name = safe_line(&name);
    say!("{GREEN}logged in{GREEN:#} to {} as '{}'", invitation.server, safe_line(&operator.name));
    say!("Commands name it with --server {name}; without --server they take the newest login,");
    say!("unless a server has run on this machine.");
    Ok(Code::COMPLETED)
}

/// What the server is called here: no other one is.
fn name(given: Option<String>, server: &ServerUrl, all: &[Login]) -> anyhow::Result<String> {
    let is_others = |name: &str| {
        let of_name = all.iter().find(|login| login.name == name);
        of_name.is_some_and(|login| {
            login.server().is_ok_and(|own| own.to_string() != server.to_string())
        })
    };
    let Some(name) = given else {
        let host = server.host().to_string();
        let Some((_, port)) = server
            .http("")
            .rsplit_once(':')
            .filter(|_| is_others(&host))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
        else {
            return Ok(host);
        };
        return Ok(format!("{host}-{port}"));
    };
    let is_plain = |c: char| !c.is_control() && !c.is_whitespace() && !":/".contains(c);
    ensure!(
        !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.chars().all(is_plain),
        "--name: 1 to {MAX_NAME_BYTES} bytes without spaces, ':' and '/', which tell an address from a name"
    );
    ensure!(
        !is_others(&name),
        "'{}' is another server's login: give another --name, or `flightdeck logout` that one",
        safe_line(&name)
    );
    Ok(name)
}

pub(crate) fn log_out(args: &Logout, global: Global) -> Ended {
    let folder = StateFolder::new(global.state_dir)?;
    let shown = safe_line(&args.name);
    let forgot = Logins::new(&folder).forget(&args.name)?;
    forgot.then_some(()).with_context(|| format!("there is no login '{shown}'"))?;
    say!("Forgotten here. On the server's machine `flightdeck key revoke` takes the key away.");
    Ok(Code::COMPLETED)
}

fn list(all: &[Login]) -> anyhow::Result<()> {
    if all.is_empty() {
        say!(
            "No login. On the server's machine: flightdeck join-token create --name me --role operator"
        );
        return Ok(());
    }
    let row = |login: &Login| Ok([safe_line(&login.name), login.server()?.to_string()]);
    let rows = all.iter().rev().map(row).collect::<anyhow::Result<Vec<_>>>()?;
    print(&table(["NAME", "SERVER"], &rows))
}
