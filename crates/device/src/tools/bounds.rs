//! Decides which paths a tool may touch: those below the roots, and for some a few facts about the system.
//!
//! It must not know any tool. Links and `..` are resolved one part of the path at a time, so
//! that nothing can be learnt about what lies outside, not even whether it exists.

use std::path::{Component, Path, PathBuf};

use super::private::{Kept, Private};
use super::quote::quote;

/// Files outside the roots that tell about the system and that anybody may read.
const FACTS: [&str; 7] = [
    "/etc/os-release",
    "/proc/cpuinfo",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/uptime",
    "/proc/version",
];

/// Folders of the kernel, in which other programs' secrets and devices lie. A root that holds one
/// of them does not open it; only a root within does.
const KERNEL_FOLDERS: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What may be read, and written where a tool writes.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    roots: Vec<PathBuf>,
    hides_dots: bool,
    facts: Vec<PathBuf>,
    private: Private,
}

/// Why a path may not be touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Closed {
    #[error(transparent)]
    Outside(#[from] Outside),
    /// It is within the roots, and kept from callers all the same.
    #[error(
        "{} is kept from callers: it is {kept}; the owner can show it with `reveal`", quote(.path)
    )]
    Kept {
        /// The path as it was asked for.
        path: String,
        kept: Kept,
    },
}

/// A path is outside of the bounds: the same whatever the reason, and whether it exists or not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is outside of what this device's owner opened: {allowed}", quote(.path))]
pub(super) struct Outside {
    /// The path as it was asked for.
    pub(super) path: String,
    /// What is inside, in words.
    pub(super) allowed: String,
}

impl Bounds {
    /// Allows what lies below `roots`, dot files included. When there are none, `home` is the only
    /// root, and everything below it whose path has a part with a dot in front is left out.
    pub(super) fn new(roots: &[PathBuf], home: Option<PathBuf>) -> Self {
        let hides_dots = roots.is_empty();
        let roots = if hides_dots {
            let home = home.and_then(|home| real_root(&home));
            // System users often have `/` as their home, which nobody has chosen to open.
            home.filter(|home| home.parent().is_some()).into_iter().collect()
        } else {
            roots.iter().filter_map(|root| real_root(root)).collect()
        };
        Self { roots, hides_dots, facts: Vec::new(), private: Private::default() }
    }

    /// The same without what is private.
    pub(super) fn keeping(self, private: Private) -> Self {
        Self { private, ..self }
    }

    /// The same, and the facts about the system that anybody may read.
    pub(super) fn with_facts(self) -> Self {
        Self { facts: facts(), ..self }
    }

    /// Gives the roots, resolved as far as they existed.
    pub(super) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Tells whether dot files below the roots may not be read.
    pub(super) fn hides_dots(&self) -> bool {
        self.hides_dots
    }

    /// What is kept from callers within them.
    pub(super) fn private(&self) -> &Private {
        &self.private
    }

    /// Resolves `asked`, which is relative to `cwd`, and refuses what may not be read. What does
    /// not exist is kept if its name alone is within the bounds, for the command to report.
    pub(super) fn resolve(&self, asked: &Path, cwd: &Path) -> Result<PathBuf, Closed> {
        let resolved = self.follow(asked, cwd).filter(|path| self.holds(path));
        let resolved = resolved.ok_or_else(|| self.outside(asked))?;
        match self.private.keeps(&resolved) {
            Some(kept) => Err(Closed::Kept { path: asked.to_string_lossy().into_owned(), kept }),
            None => Ok(resolved),
        }
    }

    /// Makes the error for `asked`.
    pub(super) fn outside(&self, asked: &Path) -> Outside {
        Outside { path: asked.to_string_lossy().into_owned(), allowed: self.describe() }
    }

    fn follow(&self, asked: &Path, cwd: &Path) -> Option<PathBuf> {
        let start = if asked.is_absolute() { Path::new("/") } else { cwd };
        let mut here = start.canonicalize().ok()?;
        let mut parts = asked.components();
        while let Some(part) = parts.next() {
            let next = match part {
                Component::Normal(name) => here.join(name),
                Component::ParentDir => here.parent().unwrap_or(&here).to_path_buf(),
                Component::RootDir | Component::CurDir => continue,
                Component::Prefix(_) => return None,
            };
            match next.canonicalize() {
                Ok(real) => here = real,
                Err(_) => return missing(&next, parts.as_path()),
            }
            // Beyond this nothing is looked up: the answer must not depend on what is there.
            if !self.may_pass(&here) {
                return None;
            }
        }
        Some(here)
    }

    /// Tells whether a resolved path is within the bounds.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let below = |root: &PathBuf| {
            path.strip_prefix(root).is_ok_and(|below| !(self.hides_dots && has_dot(below)))
                && !enters_kernel_folder(path, root)
        };
        self.facts.iter().any(|fact| fact == path) || self.roots.iter().any(below)
    }

    /// Tells whether a resolved path may be a step on the way to what may be read.
    fn may_pass(&self, path: &Path) -> bool {
        let leads_to = |goal: &PathBuf| goal.starts_with(path);
        self.holds(path) || self.roots.iter().chain(&self.facts).any(leads_to)
    }

    /// Tells in words what is within the bounds.
    pub(super) fn describe(&self) -> String {
        let but = if self.hides_dots { ", but for dot files" } else { "" };
        let roots = self.roots.iter().map(|root| root.to_string_lossy()).collect::<Vec<_>>();
        let below = match roots.as_slice() {
            [] => None,
            roots => Some(format!("what is below {}{but}", quote(&roots.join(" ")))),
        };
        let facts = (!self.facts.is_empty()).then(|| FACTS.join(" "));
        match (below, facts) {
            (Some(below), Some(facts)) => format!("{below}, and {facts}"),
            (below, facts) => below.or(facts).unwrap_or_else(|| "nothing".to_owned()),
        }
    }
}

/// Resolves a root; one that does not exist (yet) counts as named if that is unambiguous.
fn real_root(root: &Path) -> Option<PathBuf> {
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    let named = || (root.is_absolute() && root.components().all(plain)).then(|| root.to_path_buf());
    root.canonicalize().ok().or_else(named)
}

/// Gives the facts both as they are named and as they resolve.
fn facts() -> Vec<PathBuf> {
    let named = FACTS.iter().map(PathBuf::from);
    let real = FACTS.iter().filter_map(|fact| Path::new(fact).canonicalize().ok());
    named.chain(real).collect()
}

/// Names what does not exist. A link that leads nowhere is not such a thing: where it leads to may
/// come into being, and saying that it leads nowhere would tell about the outside.
fn missing(first: &Path, rest: &Path) -> Option<PathBuf> {
    let climbs = rest.components().any(|part| part == Component::ParentDir);
    let is_link = first.symlink_metadata().is_ok();
    (!climbs && !is_link)
        .then(|| if rest.as_os_str().is_empty() { first.into() } else { first.join(rest) })
}

fn has_dot(below: &Path) -> bool {
    below.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."))
}

fn enters_kernel_folder(path: &Path, root: &Path) -> bool {
    KERNEL_FOLDERS.iter().any(|folder| path.starts_with(folder) && !root.starts_with(folder))
}
