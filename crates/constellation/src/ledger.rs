//! The tasks of an orchestrator that are not over for it: what each message of the server means for them, and what is
//! said again after a loss. It writes down what must not be forgotten, and sends nothing itself.
//!
//! A server with *ack* names tasks by our `request_id` and by its own id, *T*; from others only the `session_id` tells
//! them apart.
//!
//! | a task is | and is said again as |
//! |---|---|
//! | submitted | the same TASK |
//! | accepted: T is known | a question after T |
//! | to be cancelled | the cancel, behind either |
//! | ended | nothing; its outcome is acknowledged whenever it comes |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use aip::codec::Wire;
use aip::message::{
    Accepted, Cancel, Downstream, Passed, Refused, TaskRefused, TaskSettings, Word,
};
use aip::{
    ClientMessage, ClientMessageType, RequestId, ResponseId, ServerMessage, SessionId, Status,
};
use bytes::Bytes;

use crate::keep::{Record, TaskFile};
use crate::task::{Inbox, Outcome, TaskEvent};

/// The most tasks that are not over for us.
pub(crate) const MAX_TASKS: usize = 10_000;

/// The most ids of tasks that are remembered after their end, since their outcome may come once more.
const MAX_KNOWN: usize = 4096;

/// A task that is not over for us.
pub(crate) struct Entry {
    pub(crate) session_id: SessionId,
    /// The store that it is held for; `None` of a server without *ack*.
    pub(crate) store: Option<String>,
    /// The TASK as it was sent, until it is accepted; `None` as well of a server without *ack*.
    pub(crate) frame: Option<Bytes>,
    pub(crate) inbox: Arc<Inbox>,
    /// T.
    task: Option<ResponseId>,
    is_accepted: bool,
    is_cancelled: bool,
    outcome: Option<Outcome>,
    /// Whether the outcome is written down.
    is_kept: bool,
    /// Its place in the order of submission.
    number: u64,
}

impl Entry {
    pub(crate) fn new(session_id: SessionId, store: Option<String>, frame: Option<Bytes>) -> Self {
        Self {
            session_id,
            store,
            frame,
            inbox: Arc::default(),
            task: None,
            is_accepted: false,
            is_cancelled: false,
            outcome: None,
            is_kept: false,
            number: 0,
        }
    }

    const fn is_open(&self) -> bool {
        self.outcome.is_none()
    }
}

/// An outcome to be acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) task: ResponseId,
    pub(crate) session_id: Option<SessionId>,
}

/// All tasks that are not over for us.
#[derive(Default)]
pub(crate) struct Ledger {
    entries: BTreeMap<RequestId, Entry>,
    by_session: BTreeMap<SessionId, RequestId>,
    by_task: BTreeMap<ResponseId, RequestId>,
    /// Tasks that are over for us, oldest first.
    known: VecDeque<ResponseId>,
    is_known: BTreeSet<ResponseId>,
    submitted: u64,
    file: Option<TaskFile>,
}

impl Ledger {
    /// What the records of a file say; further ones go into it.
    pub(crate) fn of(records: Vec<Record>, file: Option<TaskFile>) -> Self {
        let mut ledger = Self::default();
        for record in records {
            ledger.replay(record);
        }
        ledger.file = file;
        ledger.rewrite();
        ledger
    }

    fn replay(&mut self, record: Record) {
        match record {
            Record::Submitted { request_id, session_id, store, frame } => {
                let frame = frame.map(|frame| Bytes::copy_from_slice(frame.as_bytes()));
                self.insert(request_id, Entry::new(session_id, Some(store), frame));
            }
            Record::Accepted { request_id, task } => self.note_accepted(&request_id, &task),
            Record::Cancelled { request_id } => {
                if let Some(entry) = self.entries.get_mut(&request_id) {
                    entry.is_cancelled = true;
                }
            }
            Record::Ended { request_id, outcome } => self.note_ended(&request_id, outcome, true),
            Record::Taken { request_id } => {
                self.remove(&request_id);
            }
            Record::Moved { from, to } => self.note_moved(&from, &to),
            Record::Known { tasks } => tasks.into_iter().for_each(|task| self.remember(task)),
        }
    }

    /// All that is known now, as records.
    fn records(&self) -> Vec<Record> {
        let mut records = vec![Record::Known { tasks: self.known.iter().cloned().collect() }];
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(_, entry)| entry.number);
        for (request_id, entry) in entries {
            let Some(store) = entry.store.clone() else { continue };
            let request_id = || request_id.clone();
            let frame = entry.frame.clone().and_then(|frame| aip::Payload::from_text(frame).ok());
            let session_id = entry.session_id.clone();
            records.push(Record::Submitted { request_id: request_id(), session_id, store, frame });
            let accepted = |task| Record::Accepted { request_id: request_id(), task };
            records.extend(entry.task.clone().map(accepted));
            records
                .extend(entry.is_cancelled.then(|| Record::Cancelled { request_id: request_id() }));
            let ended = |outcome| Record::Ended { request_id: request_id(), outcome };
            records.extend(entry.outcome.clone().map(ended));
        }
        records
    }

    /// Writes a record. `false` when it could not be written.
    fn write(&mut self, record: &Record) -> bool {
        let Some(file) = &mut self.file else { return true };
        let written = file.append(record);
        let is_stale = file.is_stale();
        match written {
            Ok(()) if is_stale => self.rewrite(),
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "failed to write down what became of a task");
                return false;
            }
        }
        true
    }

    fn rewrite(&mut self) {
        let records = self.records();
        if let Some(file) = &mut self.file
            && let Err(error) = file.replace(&records)
        {
            tracing::warn!(%error, "failed to write the file of tasks anew");
        }
    }

    /// How many tasks are not over for us.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The tasks that a file held, in the order of their submission.
    pub(crate) fn held(&self) -> Vec<(RequestId, SessionId, Arc<Inbox>)> {
        let mut held: Vec<_> = self.entries.iter().collect();
        held.sort_by_key(|(_, entry)| entry.number);
        let handle = |(request_id, entry): (&RequestId, &Entry)| {
            (request_id.clone(), entry.session_id.clone(), entry.inbox.clone())
        };
        held.into_iter().map(handle).collect()
    }

    /// Takes a task in that is about to be sent. `false` when it could not be written down.
    pub(crate) fn add(&mut self, request_id: RequestId, entry: Entry) -> bool {
        let frame = entry.frame.clone().and_then(|frame| aip::Payload::from_text(frame).ok());
        let is_written = match (entry.store.clone(), frame) {
            (Some(store), Some(frame)) if self.file.is_some() => {
                let (request_id, session_id) = (request_id.clone(), entry.session_id.clone());
                let frame = Some(frame);
                self.write(&Record::Submitted { request_id, session_id, store, frame })
            }
            _ => true,
        };
        if is_written {
            self.insert(request_id, entry);
        }
        is_written
    }

    fn insert(&mut self, request_id: RequestId, entry: Entry) {
        self.submitted += 1;
        self.by_session.insert(entry.session_id.clone(), request_id.clone());
        self.entries.insert(request_id, Entry { number: self.submitted, ..entry });
    }

    fn remove(&mut self, request_id: &RequestId) -> Option<Entry> {
        let entry = self.entries.remove(request_id)?;
        self.by_session.remove(&entry.session_id);
        if let Some(task) = &entry.task {
            self.by_task.remove(task);
        }
        Some(entry)
    }

    /// Forgets a task that was not sent, or whose outcome its submitter has.
    pub(crate) fn forget(&mut self, request_id: &RequestId) {
        if self.remove(request_id).is_some_and(|entry| entry.store.is_some()) {
            self.write(&Record::Taken { request_id: request_id.clone() });
        }
    }

    /// The submitter has taken the outcome, or wants none.
    pub(crate) fn take(&mut self, request_id: &RequestId) {
        if self.entries.get(request_id).is_some_and(|entry| !entry.is_open()) {
            self.forget(request_id);
        }
    }

    /// Whether the server has said that it has the task.
    pub(crate) fn is_accepted(&self, request_id: &RequestId) -> bool {
        self.entries.get(request_id).is_some_and(|entry| entry.is_accepted)
    }

    /// How the outcome of a task is acknowledged, once there is one.
    pub(crate) fn delivered(&self, request_id: &RequestId) -> Option<Delivered> {
        let entry = self.entries.get(request_id)?;
        let session_id = Some(entry.session_id.clone());
        entry.task.clone().map(|task| Delivered { task, session_id })
    }

    /// The task that a server without *ack* means.
    pub(crate) fn by_session(&self, session_id: Option<&SessionId>) -> Option<RequestId> {
        self.by_session.get(session_id?).cloned()
    }

    /// The oldest task that the server has not acknowledged: a Python server's ERROR names no session.
    pub(crate) fn oldest_unaccepted(&self) -> Option<RequestId> {
        let unaccepted = self.entries.iter().filter(|(_, entry)| !entry.is_accepted);
        unaccepted.min_by_key(|(_, entry)| entry.number).map(|(id, _)| id.clone())
    }

    /// Something happened on the way to a task of this session.
    pub(crate) fn put(&self, session_id: Option<&SessionId>, event: TaskEvent) {
        let request_id = session_id.and_then(|id| self.by_session.get(id));
        if let Some(entry) = request_id.and_then(|id| self.entries.get(id)) {
            entry.inbox.put(event);
        }
    }

    /// Something happened to all that are open.
    pub(crate) fn put_all(&self, event: &TaskEvent) {
        let open = self.entries.values().filter(|entry| entry.is_open());
        open.for_each(|entry| entry.inbox.put(event.clone()));
    }

    /// An ACK of a server with *ack* came. Returns which task it answers.
    pub(crate) fn accept(&mut self, message: &ServerMessage) -> Option<RequestId> {
        let accepted = Accepted::of(message.result.as_ref())?;
        let request_id = accepted.request_id?;
        let task = ResponseId::new(&accepted.task).ok()?;
        let entry = self.entries.get(&request_id)?;
        entry.inbox.granted(accepted.streams.unwrap_or_default());
        if entry.task.is_none() && entry.is_open() {
            self.note_accepted(&request_id, &task);
            // Without it the TASK is sent again after our own end, and answered with the same id.
            self.write(&Record::Accepted { request_id: request_id.clone(), task });
        }
        Some(request_id)
    }

    fn note_accepted(&mut self, request_id: &RequestId, task: &ResponseId) {
        let Some(entry) = self.entries.get_mut(request_id) else { return };
        (entry.task, entry.is_accepted, entry.frame) = (Some(task.clone()), true, None);
        entry.inbox.put(TaskEvent::Accepted { task: Some(task.to_string()) });
        self.by_task.insert(task.clone(), request_id.clone());
    }

    /// A server without *ack* has a task.
    pub(crate) fn accept_session(&mut self, session_id: &SessionId) {
        let request_id = self.by_session.get(session_id);
        let entry = request_id.and_then(|id| self.entries.get_mut(id));
        if let Some(entry) = entry.filter(|entry| !entry.is_accepted) {
            entry.is_accepted = true;
            entry.inbox.put(TaskEvent::Accepted { task: None });
        }
    }

    /// An outcome of a server with *ack* came, for the first time or again. Returns what to acknowledge: what is not
    /// known is not ours, and what could not be written down comes again.
    pub(crate) fn end(&mut self, message: ServerMessage) -> Option<Delivered> {
        let task = message.response_id.clone()?;
        let session_id = message.session_id.clone();
        let delivered = Delivered { task: task.clone(), session_id };
        let Some(request_id) = self.by_task.get(&task).cloned() else {
            return self.is_known.contains(&task).then_some(delivered);
        };
        let session_id = self.entries.get(&request_id).map(|entry| entry.session_id.clone());
        self.settle(&request_id, Outcome::of(message))
            .then_some(Delivered { session_id, ..delivered })
    }

    /// The outcome of a task is known. The first one counts. `false` when it could not be written down.
    pub(crate) fn settle(&mut self, request_id: &RequestId, outcome: Outcome) -> bool {
        let Some(entry) = self.entries.get(request_id) else { return true };
        let outcome = entry.outcome.clone().unwrap_or(outcome);
        let must_be_kept = entry.store.is_some() && self.file.is_some() && !entry.is_kept;
        let is_kept = !must_be_kept
            || self
                .write(&Record::Ended { request_id: request_id.clone(), outcome: outcome.clone() });
        self.note_ended(request_id, outcome, is_kept);
        let has_submitter = |entry: &Entry| Arc::strong_count(&entry.inbox) > 1;
        let is_wanted = self.entries.get(request_id).is_some_and(has_submitter);
        // Without a file there is nothing to take it from later, and nobody takes what nobody waits for.
        if is_kept && (self.file.is_none() || !is_wanted) {
            self.forget(request_id);
        }
        is_kept
    }

    fn note_ended(&mut self, request_id: &RequestId, outcome: Outcome, is_kept: bool) {
        let Some(entry) = self.entries.get_mut(request_id) else { return };
        entry.is_kept = is_kept;
        if entry.outcome.is_none() {
            entry.outcome = Some(outcome.clone());
            entry.frame = None;
            entry.inbox.put(TaskEvent::Ended(outcome));
        }
        if let Some(task) = entry.task.clone() {
            self.remember(task);
        }
    }

    fn remember(&mut self, task: ResponseId) {
        if self.is_known.insert(task.clone()) {
            self.known.push_back(task);
        }
        if self.known.len() > MAX_KNOWN
            && let Some(oldest) = self.known.pop_front()
        {
            self.is_known.remove(&oldest);
        }
    }

    /// A server with *ack* refuses something. Returns which task it answers, if it is about one.
    pub(crate) fn refuse(&mut self, message: &ServerMessage) -> Option<RequestId> {
        let text = message.error.as_deref().unwrap_or("the server gave no reason");
        let refusal = TaskRefused::of(message.result.as_ref());
        let how = refusal.as_ref().map_or(Refused::Final, |refusal| refusal.refused);
        let named = refusal.and_then(|refusal| refusal.request_id);
        let request_id = named.or_else(|| self.by_session(message.session_id.as_ref()))?;
        let entry = self.entries.get(&request_id)?;
        if entry.task.is_some() && how != Refused::Lost {
            // What was accepted stays so: it is asked after again.
            tracing::warn!(error = ?text, "the server refuses what it has accepted");
            return Some(request_id);
        }
        self.settle(&request_id, Outcome::refused(how, text));
        Some(request_id)
    }

    /// A task is to be cancelled. Returns the message that says so, unless it is over.
    pub(crate) fn cancel(
        &mut self,
        request_id: &RequestId,
        base: &ClientMessage,
    ) -> Option<ClientMessage> {
        let entry = self.entries.get_mut(request_id).filter(|entry| entry.is_open())?;
        let is_first = !std::mem::replace(&mut entry.is_cancelled, true);
        let (said, is_held) = (cancel_message(request_id, entry, base), entry.store.is_some());
        if is_first && is_held {
            self.write(&Record::Cancelled { request_id: request_id.clone() });
        }
        Some(said)
    }

    /// The server with this store has confirmed us: what is held for a former id of it is held for it now, and what it
    /// does not know any more is lost. Returns what is to be said again, in the order of submission.
    pub(crate) fn come_back(
        &mut self,
        store: &str,
        former: Option<&str>,
        resumed: bool,
    ) -> VecDeque<RequestId> {
        if let Some(former) = former {
            self.note_moved(former, store);
            self.write(&Record::Moved { from: former.to_owned(), to: store.to_owned() });
        }
        let is_here = |entry: &Entry| entry.store.as_deref() == Some(store);
        if !resumed {
            self.lose(is_here, "the server does not know this client any more");
        }
        if self.file.is_none() {
            // Nobody will ask the other server for it.
            let elsewhere = |entry: &Entry| !is_here(entry);
            self.lose(elsewhere, "the server there now is not the one that had the task");
        }
        let mut open: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.is_open() && is_here(entry)).collect();
        open.sort_by_key(|(_, entry)| entry.number);
        open.into_iter().map(|(id, _)| id.clone()).collect()
    }

    fn note_moved(&mut self, from: &str, to: &str) {
        let held = self.entries.values_mut().filter(|entry| entry.store.as_deref() == Some(from));
        held.for_each(|entry| entry.store = Some(to.to_owned()));
    }

    fn lose(&mut self, which: impl Fn(&Entry) -> bool, why: &str) {
        let lost = self.entries.iter().filter(|(_, entry)| entry.is_open() && which(entry));
        let lost: Vec<_> = lost.map(|(id, _)| id.clone()).collect();
        for request_id in lost {
            self.settle(&request_id, Outcome::lost(why));
        }
    }

    /// The connection is gone and does not come back. What a file holds stays there, for the next start.
    pub(crate) fn lose_connection(&mut self, why: &str) {
        self.put_all(&TaskEvent::Ended(Outcome::lost(why)));
        if self.file.is_none() {
            self.entries.retain(|_, entry| !entry.is_open());
        }
    }

    /// What is said of an open task after a confirmation.
    pub(crate) fn repeat(&self, request_id: &RequestId, base: &ClientMessage) -> Vec<Bytes> {
        let Some(entry) = self.entries.get(request_id).filter(|entry| entry.is_open()) else {
            return Vec::new();
        };
        let question = || question(request_id, entry, base).encode();
        let first = entry.frame.clone().unwrap_or_else(question);
        let cancel = entry.is_cancelled.then(|| cancel_message(request_id, entry, base).encode());
        let streams = entry.inbox.repeat_streams();
        let streams = streams.iter().filter_map(|said| Some(stream(entry, said, base)?.encode()));
        [first].into_iter().chain(cancel).chain(streams).collect()
    }

    /// What is said of a task's streams.
    pub(crate) fn stream_message(
        &self,
        request_id: &RequestId,
        downstream: &Downstream,
        base: &ClientMessage,
    ) -> Option<ClientMessage> {
        stream(self.entries.get(request_id)?, downstream, base)
    }

    /// The server passes on what a task's device says of its streams. Returns what is said in answer.
    pub(crate) fn passed(&self, passed: Passed, base: &ClientMessage) -> Vec<ClientMessage> {
        let task = ResponseId::new(&passed.task).ok();
        let request_id = task.and_then(|task| self.by_task.get(&task));
        let Some(entry) = request_id.and_then(|id| self.entries.get(id)) else { return Vec::new() };
        let answers = entry.inbox.take_passed(passed);
        answers.iter().filter_map(|said| stream(entry, said, base)).collect()
    }
}

/// Asks after a task that was accepted. It starts nothing.
fn question(request_id: &RequestId, entry: &Entry, base: &ClientMessage) -> ClientMessage {
    let task = entry.task.as_ref().map(ToString::to_string);
    ClientMessage {
        kind: ClientMessageType::Task,
        status: Status::Continue,
        session_id: Some(entry.session_id.clone()),
        request_id: Some(request_id.clone()),
        metadata: TaskSettings { task, ..TaskSettings::default() }.to_metadata(),
        ..base.clone()
    }
}

/// Says something of a task's streams, once its id is known.
fn stream(entry: &Entry, downstream: &Downstream, base: &ClientMessage) -> Option<ClientMessage> {
    Some(ClientMessage {
        kind: ClientMessageType::Heartbeat,
        status: Status::Continue,
        session_id: Some(entry.session_id.clone()),
        prev_response_id: Some(entry.task.clone()?),
        metadata: Some(downstream.to_payload()),
        ..base.clone()
    })
}

/// Cancels a task by its id, or by our own while that is not known.
fn cancel_message(request_id: &RequestId, entry: &Entry, base: &ClientMessage) -> ClientMessage {
    ClientMessage {
        kind: ClientMessageType::TaskEnd,
        status: Status::Failed,
        session_id: Some(entry.session_id.clone()),
        prev_response_id: entry.task.clone(),
        request_id: entry.task.is_none().then(|| request_id.clone()),
        metadata: Cancel { cancel: Word::Request }.to_payload(),
        ..base.clone()
    }
}

/// Acknowledges an outcome.
pub(crate) fn acknowledgement(delivered: Delivered, base: &ClientMessage) -> ClientMessage {
    ClientMessage {
        kind: ClientMessageType::TaskEnd,
        session_id: delivered.session_id,
        prev_response_id: Some(delivered.task),
        ..base.clone()
    }
}
