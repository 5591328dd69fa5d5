//! `flightdeck device rejoin`: an operator lets a device join again.

use anyhow::Context;

use crate::api::Api;
use crate::args::{DeviceRejoin, Global};
use crate::connect::Target;
use crate::invitation::device_line;
use crate::output::{print_line, safe_line};
use crate::serving::Serving;
use crate::state::StateFolder;
use crate::{Code, Ended};

pub(super) async fn run(args: DeviceRejoin, global: Global) -> Ended {
    let target = Target::new(args.client, &global)?;
    let allowed = Api::new(&target)?.rejoin(&args.id).await?;
    let pin = allowed.key_hash.map(|hash| hash.parse()).transpose().context("its public key")?;
    // Another machine does not reach this one by its own address of itself.
    let serving = match target.server.is_loopback() {
        true => Serving::read(&StateFolder::new(global.state_dir)?).ok(),
        false => None,
    };
    // A tunnel to another server ends on this machine too: that one has another key.
    let own = serving.filter(|serving| serving.pin().is_ok_and(|own| own == pin));
    let server = own.map_or(Ok(target.server), |own| own.server())?;
    print_line(&device_line(&server, &allowed.token.into(), pin))?;
    let id = safe_line(&args.id);
    say!(
        "Type it on the machine of '{id}', with --id {id}, until {}; it replaces the key pair that opened for this id.",
        allowed.expires_at
    );
    Ok(Code::COMPLETED)
}
