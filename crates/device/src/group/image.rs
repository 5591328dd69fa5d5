//! A program with its arguments, environment and directory, as the system takes them.
//!
//! It must not know how a child is started.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

/// Where a program is looked for whose environment does not say.
const USUAL_PATH: &str = "/bin:/usr/bin";

/// What a child becomes.
pub(crate) struct Image {
    /// Where the program may be, in the order in which it is tried.
    pub(super) programs: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
    pub(super) cwd: CString,
}

impl Image {
    /// A program, by its path or by a name that is looked for in the PATH of `env`.
    ///
    /// # Errors
    /// When a text has a NUL in it.
    pub(crate) fn new(
        program: &Path,
        args: &[OsString],
        env: &[(OsString, OsString)],
        cwd: &Path,
    ) -> io::Result<Self> {
        let args = std::iter::once(program.as_os_str()).chain(args.iter().map(OsString::as_os_str));
        let variable = |(name, value): &(OsString, OsString)| {
            text(
                &[name.as_os_str(), OsStr::new("="), value.as_os_str()]
                    .map(OsStr::as_bytes)
                    .concat(),
            )
        };
        let places = places(program, env);
        Ok(Self {
            programs: places
                .iter()
                .map(|place| text(place.as_os_str().as_bytes()))
                .collect::<Result<_, _>>()?,
            args: args.map(|arg| text(arg.as_bytes())).collect::<Result<_, _>>()?,
            env: env.iter().map(variable).collect::<Result<_, _>>()?,
            cwd: text(cwd.as_os_str().as_bytes())?,
        })
    }

    pub(super) fn args(&self) -> Vec<*const libc::c_char> {
        list(&self.args)
    }

    pub(super) fn env(&self) -> Vec<*const libc::c_char> {
        list(&self.env)
    }
}

fn text(bytes: &[u8]) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}

/// As C has a list of texts.
fn list(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// Where a program may be.
fn places(program: &Path, env: &[(OsString, OsString)]) -> Vec<PathBuf> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
    let path = path.unwrap_or(OsStr::new(USUAL_PATH));
    std::env::split_paths(path).map(|folder| folder.join(program)).collect()
}
