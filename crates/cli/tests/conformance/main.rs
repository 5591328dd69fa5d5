//! The protocol in a table: what is sent on which link, what must come back, and what must not, each
//! row as UFO's Python server does it or as we do it, and why. Start with a file of rows.
//!
//! It drives the real binary's WebSocket and HTTP as Python peers do. `docs/ufo-compatibility.md`
//! shows the same table to people; the last tests here keep the two together.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::needless_pass_by_value, reason = "rows read better without `&`")]

#[path = "../common/mod.rs"]
mod common;
mod connection;
mod names;
mod row;
mod rows_commands;
mod rows_endings;
mod rows_http;
mod rows_information;
mod rows_messages;
mod rows_outcomes;
mod rows_registration;
mod rows_tasks;
mod run;

use std::collections::HashSet;
use std::path::Path;

use row::{Group, Row, Verdict};
use run::holds;

/// The whole table.
fn groups() -> [Group; 8] {
    [
        rows_registration::group(),
        rows_messages::group(),
        rows_tasks::group(),
        rows_commands::group(),
        rows_outcomes::group(),
        rows_endings::group(),
        rows_information::group(),
        rows_http::group(),
    ]
}

#[tokio::test]
async fn getting_in() {
    holds(rows_registration::group()).await;
}

#[tokio::test]
async fn saying_something() {
    holds(rows_messages::group()).await;
}

#[tokio::test]
async fn asking_for_a_task() {
    holds(rows_tasks::group()).await;
}

#[tokio::test]
async fn commands_and_their_results() {
    holds(rows_commands::group()).await;
}

#[tokio::test]
async fn outcomes_and_turns() {
    holds(rows_outcomes::group()).await;
}

#[tokio::test]
async fn leaving() {
    holds(rows_endings::group()).await;
}

#[tokio::test]
async fn device_information() {
    holds(rows_information::group()).await;
}

#[tokio::test]
async fn http() {
    holds(rows_http::group()).await;
}

#[test]
fn every_recorded_transcript_is_in_the_table() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../aip/tests/golden");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let recorded = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    // Recorded too, but not as frames.
    let recorded: HashSet<_> = recorded.chain(["http", "token_wrong"].map(str::to_owned)).collect();
    let groups = groups();
    let rows = groups.iter().flat_map(|group| &group.rows);
    let named: HashSet<_> =
        rows.flat_map(|row| row.golden).map(|name| (*name).to_owned()).collect();
    assert_eq!(recorded.difference(&named).collect::<Vec<_>>(), Vec::<&String>::new(), "missing");
    assert_eq!(named.difference(&recorded).collect::<Vec<_>>(), Vec::<&String>::new(), "unknown");
}

#[test]
fn no_row_has_the_name_of_another() {
    let mut names = HashSet::new();
    for row in groups().iter().flat_map(|group| &group.rows) {
        assert!(names.insert(row.name), "twice: {}", row.name);
    }
}

/// A row as `docs/ufo-compatibility.md` shows it.
fn line(row: &Row) -> String {
    match row.verdict {
        Verdict::Same => format!("| {} | same | |\n", row.name),
        Verdict::Ours(because) => format!("| {} | **ours** | {because} |\n", row.name),
    }
}

/// A group as `docs/ufo-compatibility.md` shows it.
fn chapter(group: &Group) -> String {
    let lines: String = group.rows.iter().map(line).collect();
    format!("## {}\n\n| what happens | UFO | why |\n|---|---|---|\n{lines}", group.title)
}

#[test]
fn the_document_shows_the_whole_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ufo-compatibility.md");
    let document = std::fs::read_to_string(path).unwrap();
    let chapters = groups().iter().map(chapter).collect::<Vec<_>>().join("\n");
    assert!(
        document.ends_with(&chapters),
        "docs/ufo-compatibility.md must end with what the table says:\n\n{chapters}"
    );
}
