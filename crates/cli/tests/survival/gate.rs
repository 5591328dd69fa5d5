//! Commands that write a line each and then wait until they are let go: what happens meanwhile happens in their middle.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::common::{Home, until};

/// Holds up commands.
pub(crate) struct Gate(Home);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Home::new())
    }

    fn lines(&self) -> PathBuf {
        self.0.path().join("lines")
    }

    fn key(&self) -> PathBuf {
        self.0.path().join("open")
    }

    /// Writes the line of this number, waits at the gate, and prints the number.
    pub(crate) fn command(&self, n: usize) -> String {
        let (lines, key) = (self.lines(), self.key());
        let wait = format!("until [ -e {} ]; do sleep 0.1; done", key.display());
        format!("{}; {wait}; echo {n}", self.line(n, &lines))
    }

    /// Writes the line of this number and waits for nothing.
    pub(crate) fn quick_command(&self, n: usize) -> String {
        self.line(n, &self.lines())
    }

    fn line(&self, n: usize, lines: &std::path::Path) -> String {
        format!("echo {n} >> {}", lines.display())
    }

    /// Lets all of them go.
    pub(crate) fn open(&self) {
        fs::write(self.key(), "").unwrap();
    }

    /// How often the line of each number stands.
    pub(crate) fn written(&self) -> BTreeMap<usize, usize> {
        let mut written = BTreeMap::new();
        for line in fs::read_to_string(self.lines()).unwrap_or_default().lines() {
            *written.entry(line.parse().unwrap()).or_default() += 1;
        }
        written
    }

    /// Waits until so many have begun.
    pub(crate) async fn has_begun(&self, commands: usize) {
        until("the commands to begin", || self.written().len() == commands).await;
    }

    /// The lines of these numbers stand once each, and no others.
    pub(crate) fn assert_each_once(&self, numbers: impl Iterator<Item = usize>) {
        assert_eq!(self.written(), numbers.map(|n| (n, 1)).collect::<BTreeMap<_, _>>());
    }
}
