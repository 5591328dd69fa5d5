//! What there is of cgroups and hunts where there is no Linux: nothing.
//!
//! It must not do anything.

use std::time::Instant;

/// A search that finds nobody.
pub(crate) struct Chase;

impl Chase {
    /// It is over at once.
    pub(crate) fn go_on(&mut self, _: Option<Instant>) -> bool {
        true
    }
}

/// There are no cgroups here.
pub(crate) enum Cgroup {}

impl Cgroup {
    /// There are none.
    pub(crate) fn new() -> Option<Self> {
        None
    }

    /// There is nothing to find out.
    pub(crate) fn find_out() {}

    /// Never called: there are none.
    pub(crate) fn kill(&self) {
        match *self {}
    }

    /// Never called: there are none.
    pub(crate) fn is_removed(&self) -> bool {
        match *self {}
    }
}
