//! What the store holds at each moment of a history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aip::message::JournalId;
use server::TaskId;
use server::store::{Batch, Ended, Record};

/// A task, as the store has it.
pub(super) type Journal = Vec<Record>;

/// A command, as the store has it.
pub(super) struct Command {
    /// The journal that it goes to; none of a device without the extension.
    pub(super) journal: Option<JournalId>,
    /// Whether nothing has settled it.
    pub(super) is_open: bool,
}

#[derive(Default)]
pub(super) struct Mirror {
    batches: Vec<Arc<Batch>>,
    tasks: BTreeMap<TaskId, Journal>,
    /// The newest task of each session.
    sessions: BTreeMap<String, TaskId>,
    commands: BTreeMap<String, Command>,
    /// The sessions of which something was lost.
    pub(super) forgotten: BTreeSet<String>,
    /// Whether anything was lost, or may have been.
    pub(super) has_lost: bool,
}

impl Mirror {
    pub(super) fn store(&mut self, batch: &Arc<Batch>) {
        self.batches.push(batch.clone());
        self.note(batch);
    }

    /// So many of the last batches are lost.
    pub(super) fn forget(&mut self, batches: usize) {
        self.has_lost = true;
        let lost = self.batches.split_off(self.batches.len().saturating_sub(batches));
        let names = self.tasks.iter().filter_map(|(id, journal)| Some((*id, session_of(journal)?)));
        let names: BTreeMap<TaskId, String> = names.collect();
        self.forgotten.extend(lost.iter().filter_map(|batch| names.get(&batch.task).cloned()));
        let (batches, forgotten) =
            (std::mem::take(&mut self.batches), std::mem::take(&mut self.forgotten));
        *self = Self { forgotten, has_lost: true, ..Self::default() };
        batches.iter().for_each(|batch| self.store(batch));
    }

    fn note(&mut self, batch: &Batch) {
        let journal = self.tasks.entry(batch.task).or_default();
        for record in &batch.records {
            match record {
                Record::Created(task) => {
                    self.sessions.insert(task.session_id.to_string(), task.id);
                }
                Record::Decided { response_id, journal, .. }
                | Record::Readdressed { response_id, journal, .. } => {
                    let command = Command { journal: journal.clone(), is_open: true };
                    self.commands.insert(response_id.to_string(), command);
                }
                Record::Answered { .. } => {
                    if let Some(open) = decided(journal)
                        && let Some(command) = self.commands.get_mut(open)
                    {
                        command.is_open = false;
                    }
                }
                Record::Noted { .. } | Record::Cancelling { .. } | Record::Ended(_) => {}
            }
            journal.push(record.clone());
        }
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = &Journal> {
        self.tasks.values()
    }

    pub(super) fn has(&self, task: &str) -> bool {
        self.journal(task).is_some()
    }

    /// The journal of a task by its id.
    pub(super) fn journal(&self, task: &str) -> Option<&Journal> {
        self.tasks.get(&task.parse().ok()?)
    }

    /// The journal of the newest task of a session.
    pub(super) fn of_session(&self, session: &str) -> Option<&Journal> {
        self.tasks.get(self.sessions.get(session)?)
    }

    pub(super) fn command(&self, response_id: &str) -> Option<&Command> {
        self.commands.get(response_id)
    }

    pub(super) fn is_open(&self, response_id: &str) -> bool {
        self.command(response_id).is_some_and(|command| command.is_open)
    }
}

/// How a task ended.
pub(super) fn ended(journal: &Journal) -> Option<&Ended> {
    journal.iter().find_map(|record| match record {
        Record::Ended(ended) => Some(&**ended),
        _ => None,
    })
}

/// The last command that was decided.
fn decided(journal: &Journal) -> Option<&str> {
    journal.iter().rev().find_map(|record| match record {
        Record::Decided { response_id, .. } => Some(response_id.as_str()),
        _ => None,
    })
}

fn session_of(journal: &Journal) -> Option<String> {
    match journal.first()? {
        Record::Created(task) => Some(task.session_id.to_string()),
        _ => None,
    }
}
