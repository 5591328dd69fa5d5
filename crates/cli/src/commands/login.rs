//! `flightdeck login` and `logout`: an operator's key of a server on another machine.

use anyhow::Context;

use crate::api::Api;
use crate::args::{Global, Login as Args, Logout};
use crate::connect::Target;
use crate::invitation::Invitation;
use crate::logins::{Login, Logins};
use crate::output::{GREEN, print, safe_line, table};
use crate::settings::{ApiKey, ClientKeys, File};
use crate::state::StateFolder;
use crate::{Code, Ended};

pub(crate) async fn run(args: Args, global: Global) -> Ended {
    let folder = StateFolder::new(global.state_dir)?;
    let logins = Logins::new(&folder);
    let Some(typed) = args.join.as_ref().and_then(ApiKey::secret) else {
        list(&logins.all()?)?;
        return Ok(Code::COMPLETED);
    };
    let invitation = Invitation::typed(typed)?;
    invitation.check_way(args.insecure)?;
    let name = args.name.unwrap_or_else(|| invitation.server.host().to_string());
    folder.create()?;
    // What could not be kept would be lost with the token.
    logins.all()?;
    let file = File::load(global.config.as_deref())?;
    let values = ClientKeys::default().resolve(file.client);
    let target = Target::joined(invitation.server.clone(), invitation.pin, None, values)?;
    let operator = Api::new(&target)?.login(&invitation.token).await?;
    let key = operator.key.into();
    logins.keep(Login::new(name.clone(), &invitation.server, invitation.pin, key))?;
    let name = safe_line(&name);
    say!("{GREEN}logged in{GREEN:#} to {} as '{}'", invitation.server, safe_line(&operator.name));
    say!("Commands name it with --server {name}; without --server they take the newest login,");
    say!("unless a server has run on this machine.");
    Ok(Code::COMPLETED)
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
