//! What a service could not use, found when it is installed: nobody sees what it says when it starts.

use std::fs;
use std::path::{Path, PathBuf};

use super::install::PROXIES;
use super::listed_servers;
use crate::args::Global;
use crate::policy::PolicyFile;
use crate::settings::{ClientValues, DeviceValues};
use crate::state::expand_home;
use crate::tls;

/// Variables that systemd gives a service, beside those in its file.
const VARIABLES: [&str; 6] = ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"];

/// The files that a service is to read.
pub(super) struct Files(Vec<PathBuf>);

impl Files {
    /// Those that are named, each as it is to be.
    ///
    /// # Errors
    /// When one is not there, or is not what it should be.
    pub(super) fn of(
        device: &DeviceValues,
        client: &ClientValues,
        global: &Global,
    ) -> anyhow::Result<Self> {
        let policy = PolicyFile::load(&device.policy, global.config.as_deref())?.path;
        let mut files: Vec<_> = policy.into_iter().chain(global.config.clone()).collect();
        if !client.ca_file.is_empty() {
            tls::trust(&client.ca_file)?;
            files.push(expand_home(Path::new(&client.ca_file)));
        }
        for list in device.mcp.0.iter().map(|path| expand_home(path)) {
            let shown = list.display();
            anyhow::ensure!(list.exists(), "--mcp {shown}: there is no such file");
            anyhow::ensure!(list.is_file(), "--mcp {shown}: it is no file");
            files.push(list);
        }
        Ok(Self(files))
    }

    /// Warns of those that a user who owns nothing cannot read.
    pub(super) fn warn_of_closed(&self) {
        for path in self.0.iter().filter(|path| !is_open(path)) {
            let path = path.display();
            say!(
                "warning: the service's user, who owns nothing, cannot read {path}: open it and its folders \
                 to others, or name a user that can read it with --run-as"
            );
        }
    }
}

/// Tells of the MCP servers that the service would leave out. It has none of the variables of this shell.
pub(super) fn warn_of_left_out(
    settings_file: Option<(PathBuf, toml::Table)>,
    device: &DeviceValues,
    edit: &str,
) {
    let has = |name: &str| VARIABLES.contains(&name) || PROXIES.contains(&name);
    let variable = |name: &str| std::env::var(name).ok().filter(|_| has(name));
    let listed = listed_servers(settings_file, device, &variable);
    if listed.problems.iter().any(|problem| problem.to_string().contains(" is not set")) {
        say!(
            "  a service has none of your shell's variables: give it each with `{edit}` and the lines\n  \
             [Service]\n  Environment=NAME=VALUE"
        );
    }
}

/// Whether everybody can read a file, as far as modes say.
fn is_open(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let Ok(real) = path.canonicalize() else { return false };
        let may = |path: &Path, bit| {
            fs::metadata(path).is_ok_and(|found| found.permissions().mode() & bit != 0)
        };
        may(&real, 0o004) && real.ancestors().skip(1).all(|folder| may(folder, 0o001))
    }
    #[cfg(not(unix))]
    fs::metadata(path).is_ok()
}
