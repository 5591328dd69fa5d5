//! How many tasks are at work on a device at the same time: more than the server's number only if all of them share it.

use std::collections::BTreeMap;

use server::TaskId;
use server::store::{Batch, Record};

use super::Rules;
use crate::site::shares_device;

/// The tasks that have a command on each device.
#[derive(Default)]
pub(super) struct Beside {
    /// Whether each task shares its device.
    shares: BTreeMap<TaskId, bool>,
    /// By the identities of the devices.
    at_work: BTreeMap<String, Vec<TaskId>>,
}

impl Beside {
    /// Notes what is stored. Returns what is wrong with it.
    pub(super) fn store(&mut self, batch: &Batch, rules: &Rules) -> Option<String> {
        let (task, mut wrong) = (batch.task, None);
        for record in &batch.records {
            match record {
                Record::Created(created) => {
                    self.shares.insert(task, shares_device(&created.request));
                }
                Record::Decided { device, .. } => {
                    self.leave(task);
                    let at_work = self.at_work.entry(device.to_string()).or_default();
                    at_work.push(task);
                    wrong = wrong.or_else(|| wrong_with(at_work, &self.shares, rules));
                }
                Record::Readdressed { device, .. } => {
                    self.leave(task);
                    self.at_work.entry(device.to_string()).or_default().push(task);
                }
                Record::Answered { .. } | Record::Ended(_) => self.leave(task),
                Record::Noted { .. } | Record::Cancelling { .. } => {}
            }
        }
        wrong
    }

    fn leave(&mut self, task: TaskId) {
        self.at_work.values_mut().for_each(|at_work| at_work.retain(|one| *one != task));
    }
}

fn wrong_with(
    at_work: &[TaskId],
    shares: &BTreeMap<TaskId, bool>,
    rules: &Rules,
) -> Option<String> {
    let (any, together) = rules.places;
    let all_share = || at_work.iter().all(|task| shares.get(task).copied().unwrap_or_default());
    let is_fine = at_work.len() <= any || at_work.len() <= together && all_share();
    let (last, others) = at_work.split_last()?;
    (!is_fine).then(|| format!("T={last} is at work beside {others:?}"))
}
