//! What no child of a device may do, whatever it was asked to do: the owner's limits.
//!
//! It must not know how a child is started or ended: `group.rs` puts a confinement on it between
//! fork and exec, from where everything the child starts inherits it.
//!
//! - *No new privileges* (Linux, always): set-user-id programs such as `sudo` gain nothing.
//! - *Memory*: each process gets at most so much of its own (`RLIMIT_DATA`). Of address space, which
//!   V8 and the JVM reserve by the hundred gigabytes, it may have as much as it wants.
//! - *Sandbox* (Linux with Landlock): writing goes below the roots, into the folder for temporary
//!   files, and to a few devices that every program takes for granted. Reading and running go on
//!   everywhere.
//! - *The device itself* (Linux): nothing that runs as its user can read its memory.
//!
//! Known limits of the sandbox: the kernel lets it change the mode, the owner and the times of
//! files elsewhere; and another program that does work on request (Docker's, systemd's over D-Bus)
//! is not in it.

use std::path::PathBuf;
#[cfg(target_os = "linux")]
use std::{os::fd::OwnedFd, path::Path, sync::Arc};

#[cfg(target_os = "linux")]
use crate::group::Veil;

/// What a sandboxed program may write to wherever its roots are. No terminals: the owner may be
/// asked on one.
#[cfg(target_os = "linux")]
const COMMON_DEVICES: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/shm"];

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// This system has none.
    #[error(
        "no sandbox on this system: it needs Linux 5.13 or newer, with `landlock` among the `lsm=` \
         of its boot parameters, and in a container a seccomp profile that lets Landlock's calls \
         pass; or start without the sandbox"
    )]
    Unavailable,
    /// A root can't be opened.
    #[error("no sandbox around {}: it cannot be opened", root.display())]
    Root {
        /// The root.
        root: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused it.
    #[error("no sandbox: the kernel refuses it")]
    Refused(#[source] std::io::Error),
}

/// Why files cannot be hidden from a child.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} below the folder is kept from callers, and this system cannot hide it from a program ({why}); name other \
     folders or files", path.display()
)]
pub(crate) struct CannotHide {
    path: PathBuf,
    why: String,
}

/// The limits that every child of a device is started with. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    max_memory: Option<u64>,
    #[cfg(target_os = "linux")]
    sandbox: Option<Arc<Sandbox>>,
    #[cfg(target_os = "linux")]
    veil: Veil,
}

/// What is written goes where the rules say.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Sandbox {
    rules: OwnedFd,
    missing: Vec<String>,
}

impl Confinement {
    /// Without a sandbox; `max_memory_bytes` for each process, 0 for no limit.
    pub fn new(max_memory_bytes: u64) -> Self {
        let max_memory = Some(max_memory_bytes).filter(|bytes| *bytes > 0);
        Self { max_memory, ..Self::default() }
    }

    /// The same with a sandbox: writing goes below `roots` (the home folder, where there are none)
    /// and into the folder for temporary files only. The folders are those that are there now.
    ///
    /// # Errors
    /// See [`SandboxError`]. A kernel that can enforce only some of it is no error: see
    /// [`Confinement::missing`].
    #[cfg(target_os = "linux")]
    pub fn sandboxed(self, roots: &[PathBuf]) -> Result<Self, SandboxError> {
        Ok(Self { sandbox: Some(Arc::new(Sandbox::around(roots)?)), ..self })
    }

    /// The same with a sandbox, which this system doesn't have.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn sandboxed(self, _: &[PathBuf]) -> Result<Self, SandboxError> {
        Err(SandboxError::Unavailable)
    }

    /// What this system can't enforce of it, in sentences for the owner.
    #[cfg(target_os = "linux")]
    pub fn missing(&self) -> Vec<String> {
        self.sandbox.as_ref().map(|sandbox| sandbox.missing.clone()).unwrap_or_default()
    }

    /// What this system can't enforce of it, in sentences for the owner.
    #[cfg(not(target_os = "linux"))]
    pub fn missing(&self) -> Vec<String> {
        let memory = self.max_memory.map(|_| "This system does not limit the memory of commands.");
        let always = [
            "This system lets commands gain privileges, as sudo does.",
            "Programs that leave the session of their command (setsid) are not ended with it here.",
        ];
        memory.into_iter().chain(always).map(str::to_owned).collect()
    }
}

/// Whether commands that read whole folders can be kept from seeing what is kept from callers (Linux with mount
/// namespaces for this user). Tried once, with a program that does nothing.
///
/// # Errors
/// Why not, in the system's words.
pub fn can_hide() -> Result<(), &'static str> {
    #[cfg(target_os = "linux")]
    return Veil::try_out();
    #[cfg(not(target_os = "linux"))]
    Err("this system has no mount namespaces")
}

impl Confinement {
    /// The same for a child that does not see these files and folders. May start a program to see whether that can be.
    ///
    /// # Errors
    /// When this system cannot hide them.
    pub(crate) fn without(self, paths: Vec<PathBuf>) -> Result<Self, CannotHide> {
        let Some(path) = paths.first().cloned() else { return Ok(self) };
        let cannot =
            |why: &dyn std::fmt::Display| CannotHide { path: path.clone(), why: why.to_string() };
        can_hide().map_err(|why| cannot(&why))?;
        #[cfg(target_os = "linux")]
        return Ok(self.behind(Veil::over(paths).map_err(|error| cannot(&error))?));
        #[cfg(not(target_os = "linux"))]
        Ok(self)
    }
}

#[cfg(target_os = "linux")]
impl Confinement {
    /// Most bytes of memory that a process may take for itself.
    pub(crate) fn max_memory(&self) -> Option<u64> {
        self.max_memory
    }

    /// The same, and some files are not seen.
    pub(crate) fn behind(self, veil: Veil) -> Self {
        Self { veil, ..self }
    }

    /// What is not seen.
    pub(crate) fn veil(&self) -> &Veil {
        &self.veil
    }

    /// The Landlock rules of the sandbox.
    pub(crate) fn rules(&self) -> Option<&OwnedFd> {
        self.sandbox.as_ref().map(|sandbox| &sandbox.rules)
    }
}

#[cfg(target_os = "linux")]
impl Sandbox {
    fn around(roots: &[PathBuf]) -> Result<Self, SandboxError> {
        let home = home();
        let roots: Vec<&Path> = match roots {
            [] => home.as_deref().into_iter().collect(),
            roots => roots.iter().map(PathBuf::as_path).collect(),
        };
        let rules = landlock::rules(&roots)?;
        let mut missing = landlock::missing();
        if roots.is_empty() {
            missing.push(
                "There is no home folder: what is sandboxed may write into the folder for \
                 temporary files only. Name other folders with --root."
                    .to_owned(),
            );
        }
        Ok(Self { rules, missing })
    }
}

/// The user's own folder; that of a user without one is nowhere, or everything.
#[cfg(target_os = "linux")]
fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| home.parent().is_some() && home.is_dir())
}

/// The rules of the sandbox, in terms of the kernel.
#[cfg(target_os = "linux")]
mod landlock {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use ::landlock::{
        ABI, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError,
        Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, path_beneath_rules,
    };

    use super::{COMMON_DEVICES, SandboxError};

    /// Every way of writing that the rules are about. Newer kernels know more: those are taken up
    /// here once they have been tried.
    fn writing() -> BitFlags<AccessFs> {
        AccessFs::from_write(ABI::V5)
    }

    /// Rules that refuse all writing but below `roots` and what every program may write to.
    pub(super) fn rules(roots: &[&Path]) -> Result<OwnedFd, SandboxError> {
        if !can_enforce(AccessFs::from_write(ABI::V1)) {
            return Err(SandboxError::Unavailable);
        }
        let opened = roots.iter().map(|root| open(root)).collect::<Result<Vec<_>, _>>()?;
        let rules = build(opened)
            .map_err(|error| SandboxError::Refused(io::Error::other(error.to_string())))?;
        rules.ok_or(SandboxError::Unavailable)
    }

    fn build(roots: Vec<PathFd>) -> Result<Option<OwnedFd>, RulesetError> {
        let shared = COMMON_DEVICES.iter().map(|path| Path::new(path).to_owned());
        let shared = shared.chain([std::env::temp_dir()]);
        let rules = Ruleset::default()
            .handle_access(writing())?
            .create()?
            .add_rules(path_beneath_rules(shared, writing()))?
            .add_rules(roots.into_iter().map(below))?;
        Ok(rules.into())
    }

    fn below(root: PathFd) -> Result<PathBeneath<PathFd>, RulesetError> {
        Ok(PathBeneath::new(root, writing()))
    }

    /// What of the rules this kernel lets pass, or takes too strictly.
    pub(super) fn missing() -> Vec<String> {
        let known = [
            (
                AccessFs::Refer,
                "What is sandboxed cannot move or link files from one folder to another (only copy \
                 them): that takes Linux 5.19.",
            ),
            (
                AccessFs::Truncate,
                "What is sandboxed can still empty files outside the roots (truncate): to prevent \
                 that takes Linux 6.2.",
            ),
            (
                AccessFs::IoctlDev,
                "What is sandboxed can still command devices that it may open for reading (ioctl): \
                 to prevent that takes Linux 6.10.",
            ),
        ];
        let missing = known.iter().filter(|(access, _)| !can_enforce((*access).into()));
        missing.map(|(_, sentence)| (*sentence).to_owned()).collect()
    }

    fn can_enforce(access: BitFlags<AccessFs>) -> bool {
        let strictly = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        strictly.handle_access(access).is_ok()
    }

    fn open(root: &Path) -> Result<PathFd, SandboxError> {
        PathFd::new(root).map_err(|error| {
            let source = match error {
                PathFdError::OpenCall { source, .. } => source,
                other => io::Error::other(other.to_string()),
            };
            SandboxError::Root { root: root.to_owned(), source }
        })
    }
}

/// Has the kernel keep the memory of this process, and the environment that it was started with, from all
/// others of its user (Linux). Programs that it starts are as open as ever, and root may read on. It also
/// leaves no core dump, and no debugger of its user may look at it.
///
/// # Errors
/// When the kernel refuses it.
pub fn close_to_others() -> std::io::Result<()> {
    // Before Linux 5.14 who has closed itself cannot look at its own descriptors any more.
    #[cfg(target_os = "linux")]
    let _found_by_now = crate::group::inherited_descriptors();
    close_memory()
}

/// The same for a program that starts no others: its memory is read by nobody of its user, and no core dump of it
/// holds a key (Linux).
///
/// # Errors
/// When the kernel refuses it.
pub fn close_memory() -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::process::{Output, Spec, run, scrubbed_env};
    use crate::progress::Progress;

    /// Runs a script in a shell that is confined.
    async fn ran(confinement: &Confinement, cwd: &Path, script: &str) -> Output {
        let spec = Spec {
            program: "sh".into(),
            args: ["-c", script].map(OsString::from).to_vec(),
            cwd: cwd.to_owned(),
            timeout: Duration::from_secs(60),
            max_output: 64 * 1024,
            env: scrubbed_env(),
            confinement: confinement.clone(),
        };
        run(spec, &CancellationToken::new(), None, &Progress::default(), None).await.unwrap()
    }

    /// A folder that isn't one for temporary files: those may be written to.
    fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
    }

    /// A sandbox around a folder; nothing where the kernel has none, which is told in words.
    fn sandbox(root: &Path) -> Option<Confinement> {
        let temporary = std::env::temp_dir().canonicalize().unwrap();
        if root.canonicalize().unwrap().starts_with(temporary) {
            // Everything around it may be written to, so nothing can be seen here.
            return None;
        }
        match Confinement::default().sandboxed(&[root.to_owned()]) {
            Ok(confinement) => Some(confinement),
            Err(error) => {
                assert!(error.to_string().contains("`landlock`"), "{error}");
                None
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_gets_no_more_memory_than_its_limit() {
        let script = "perl -e 'my $n = 200 << 20; my $x = \"x\" x $n; print length $x'";
        let limited = ran(&Confinement::new(100 << 20), Path::new("/"), script).await;
        assert!(limited.exit_code != 0 && limited.stdout.text.is_empty(), "{limited:?}");
        for enough in [500 << 20, 0] {
            let output = ran(&Confinement::new(enough), Path::new("/"), script).await;
            assert_eq!(output.stdout.text, "209715200", "{output:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_limit_that_leaves_no_room_at_all_is_no_riddle() {
        let output = ran(&Confinement::new(1), Path::new("/"), "echo never").await;
        assert!(output.exit_code != 0 && output.stdout.text.is_empty(), "{output:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_program_gains_privileges() {
        let script = "exec setsid grep NoNewPrivs /proc/self/status";
        let output = ran(&Confinement::default(), Path::new("/"), script).await;
        assert_eq!(output.stdout.text, "NoNewPrivs:\t1\n");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_sandboxed_writes_below_its_roots() {
        let inside = folder();
        let Some(sandbox) = sandbox(inside.path()) else { return };
        let script = "set -e
            mkdir -p a/b; echo text > a/b/file; mv a/b/file moved; ln moved linked; ln -s moved symbolic
            echo more >> moved; : > moved; rm -r a symbolic; mkfifo pipe
            echo to nowhere > /dev/null; echo error > /dev/stderr
            file=$(mktemp); echo temporary > $file; rm $file
            setsid sh -c 'echo deep > deep'; cat deep /etc/passwd > copied; ls";
        let output = ran(&sandbox, inside.path(), script).await;
        let expected = (0, "copied\ndeep\nlinked\nmoved\npipe\n", "error\n");
        let shown = (output.exit_code, output.stdout.text.as_str(), output.stderr.text.as_str());
        assert_eq!(shown, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_sandboxed_writes_nowhere_else() {
        let (inside, outside) = (folder(), folder());
        let Some(sandbox) = sandbox(inside.path()) else { return };
        let file = outside.path().join("file");
        fs::write(&file, "kept").unwrap();
        fs::write(inside.path().join("own"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("symbolic")).unwrap();
        let attempts = [
            "echo changed > $OUT/file",
            "echo changed >> $OUT/file",
            "echo changed > symbolic/file",
            "echo changed > symbolic/new",
            "echo changed > $OUT/new",
            "setsid sh -c 'echo changed > $OUT/new'",
            "truncate -s 0 $OUT/file",
            "mkdir $OUT/new",
            "ln -s own $OUT/new",
            "mkfifo $OUT/new",
            "rm $OUT/file",
            "mv $OUT/file stolen",
            "mv own $OUT/new",
            "ln own $OUT/new",
            "ln $OUT/file linked && echo changed > linked",
            "mv own ../new",
        ];
        let must_hold = sandbox.missing().is_empty();
        for attempt in attempts.into_iter().filter(|it| must_hold || !it.contains("truncate")) {
            let out = outside.path().display();
            let script = format!("OUT={out}; export OUT; {attempt}");
            let output = ran(&sandbox, inside.path(), &script).await;
            assert_ne!(output.exit_code, 0, "{attempt}: {output:?}");
            assert_eq!(fs::read_to_string(&file).unwrap(), "kept", "{attempt}");
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{attempt}");
        }
        let read = format!("cat {}", file.display());
        assert_eq!(ran(&sandbox, inside.path(), &read).await.stdout.text, "kept");
    }

    #[test]
    fn a_sandbox_around_nothing_is_refused() {
        let inside = folder();
        if sandbox(inside.path()).is_some() {
            let nowhere = Confinement::default().sandboxed(&[inside.path().join("no")]);
            let error = nowhere.unwrap_err().to_string();
            assert!(error.starts_with("no sandbox around /") && error.contains("/no"), "{error}");
        }
    }

    #[test]
    fn nothing_is_missing_where_nothing_special_is_asked_for() {
        assert_eq!(Confinement::new(1 << 30).missing(), Vec::<String>::new());
    }
}
