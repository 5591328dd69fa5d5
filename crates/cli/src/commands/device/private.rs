//! Which files a device keeps from its callers, wherever they lie: those that it, and this user's server, are
//! configured with.

use std::path::{Path, PathBuf};

use crate::args::Global;
use crate::settings::{ClientValues, DeviceValues, ServerKeys, usual_path};
use crate::state::{StateFolder, expand_home};

/// Where services of the machine have their keys.
const SYSTEM_FOLDER: &str = "/etc/flightdeck";

/// The files, and the folders with all in them, absolute. Some may not be there yet.
pub(super) fn files(
    device: &DeviceValues,
    client: &ClientValues,
    server: &ServerKeys,
    global: &Global,
) -> Vec<PathBuf> {
    let named = [&device.policy, &device.status_file, &client.token_file, &client.ca_file];
    let of_server = [&server.tls_cert, &server.tls_key, &server.data];
    let named = named.into_iter().chain(of_server.into_iter().flatten());
    let named = named.filter(|path| !path.is_empty()).map(PathBuf::from);
    // The settings, and what usually stands beside them, such as the policy.
    let usual = usual_path().and_then(|path| path.parent().map(Path::to_owned));
    let settings = global
        .config
        .iter()
        .flat_map(|config| [config.clone(), config.with_file_name(crate::policy::FILE_NAME)]);
    let folders = [global.state_dir.clone(), None].map(StateFolder::new);
    let states = folders.into_iter().flatten().map(|folder| folder.path().to_owned());
    let states = states.chain(StateFolder::elsewhere());
    let all = named.chain(device.mcp.0.iter().cloned()).chain(usual).chain(settings).chain(states);
    let mut all: Vec<_> = all
        .chain([SYSTEM_FOLDER.into()])
        .map(|path| expand_home(&path))
        .map(|path| std::path::absolute(&path).unwrap_or(path))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}
