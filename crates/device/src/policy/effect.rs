//! What calls do to files, whichever tool does it.
//!
//! It must not know how a tool works: who runs it says which files it touches.

use aip::ToolType;

/// What a call does to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It shows what is in it, or facts of it.
    Read,
    /// It changes or makes it.
    Write,
    /// It runs it.
    Execute,
}

impl Effect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Execute];

    /// As it stands in the owner's rules.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "execute",
        }
    }
}

/// One effect that a call has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// What it does.
    pub effect: Effect,
    /// To which file, by each way that it may be called: absolute and resolved first, if that is known, then
    /// as it was asked for. None if nobody knows which files these are.
    pub names: Vec<String>,
    /// Whether the first of the names is the file that is meant.
    pub is_known: bool,
}

impl Touch {
    /// The effect on a file that is known, which may have been asked for by another name.
    #[must_use]
    pub fn on(effect: Effect, path: String, asked: String) -> Self {
        let names = if path == asked { vec![path] } else { vec![path, asked] };
        Self { effect, names, is_known: true }
    }

    /// The effect on a file of which only what was asked for is known.
    #[must_use]
    pub fn perhaps_on(effect: Effect, names: Vec<String>) -> Self {
        Self { effect, names, is_known: false }
    }

    /// The effect on files that nobody knows.
    #[must_use]
    pub fn somewhere(effect: Effect) -> Self {
        Self::perhaps_on(effect, Vec::new())
    }
}

/// The effects of a tool: those that its calls may have, and those that each of them has.
pub(super) struct Effects {
    may: &'static [Effect],
    surely: &'static [Effect],
}

impl Effects {
    /// Those of the device's own tools are known by their names. Of any other tool is known what it says: one
    /// that observes reads, and one that acts may do everything.
    pub(super) fn of(namespace: &str, tool_name: &str, tool_type: ToolType) -> Self {
        use Effect::{Execute, Read, Write};
        let all = &[Read, Write, Execute];
        let (may, surely): (&[Effect], &[Effect]) = match (namespace, tool_name) {
            ("Files", "read_file" | "list_directory" | "search_files") => (&[Read], &[Read]),
            ("Files", "write_file") => (&[Write], &[Write]),
            ("BashExecutor", "execute_command") => (all, &[Execute]),
            ("BashExecutor", "get_system_info") | ("Screen", "screenshot") => (&[], &[]),
            _ if tool_type == ToolType::DataCollection => (&[Read], &[Read]),
            _ => (all, all),
        };
        Self { may, surely }
    }

    /// Whether a call may have this effect.
    pub(super) fn may_be(&self, effect: Effect) -> bool {
        self.may.contains(&effect)
    }

    /// Whether every call has it.
    pub(super) fn surely_are(&self, effect: Effect) -> bool {
        self.surely.contains(&effect)
    }
}
