//! `flightdeck key show`.

use anyhow::Context;
use secrecy::ExposeSecret;

use crate::args::Global;
use crate::output::print_line;
use crate::state::StateFolder;
use crate::{Code, Ended};

pub(crate) fn show(global: Global) -> Ended {
    let folder = StateFolder::new(global.state_dir)?;
    let key = folder.key()?.with_context(|| {
        let path = folder.key_path();
        format!("there is no key at {}; `flightdeck serve` makes one", path.display())
    })?;
    print_line(key.expose_secret())?;
    Ok(Code::COMPLETED)
}
