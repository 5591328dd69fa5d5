//! A server that starts again: who is expected back, and where each task goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aip::ClientId;
use aip::message::OnDisconnect;
use jiff::Timestamp;

use super::commands::{OpenCommand, Place, Reach};
use super::identity::StoreName;
use super::lane::Entrant;
use super::parties::{Identity, Presence, Recall, Seat};
use super::requests::{Known, Owner};
use super::session::{Broken, Cancelling, Halt, Phase, Sent, Session};
use super::steps::unknown;
use super::streams::Relay;
use super::tasks::{manner, share};
use super::timers::Due;
use super::{Hub, Moment, Settlement};
use crate::auth::Principal;
use crate::session::{Cause, IdentityRecord, Incarnation, Outcome, Requester, Step, Task, TaskId};
use crate::store::{OpenJournal, Record, Recovered};

/// How many newcomers are numbered before the clock has to go on by a millisecond, as a power of two.
const NEWCOMERS_BITS: u32 = 10;

/// Of each client id the device that came last, and when: it has the place, and the tasks of those before it.
type Latest = BTreeMap<ClientId, (Timestamp, Incarnation)>;

/// Finds who a task is for.
pub(crate) type Holder<'a> = &'a dyn Fn(&Task) -> Option<Arc<Principal>>;

/// Says whether a task shares its device with its like.
pub(crate) type Shares<'a> = &'a dyn Fn(&Task) -> bool;

/// What a store remembers, and whose keys still open.
pub(crate) struct Found<'a> {
    pub(crate) recovered: Recovered,
    pub(crate) is_durable: bool,
    /// The holder of the key that a task was submitted with, while it reaches the task's device.
    pub(crate) holder: Holder<'a>,
    /// Who stands for the holder of a key that opens no more.
    pub(crate) nobody: Arc<Principal>,
    pub(crate) shares: Shares<'a>,
}

/// How a task ends that does not go on after a restart.
enum Verdict {
    GoesOn,
    Ends(Outcome),
}

impl Hub {
    /// Says what the store is called, and whether it outlives the server.
    pub(crate) fn set_store(&mut self, store: StoreName, is_durable: bool) {
        self.store = store;
        self.is_durable = is_durable;
    }

    /// Takes in what is known from before, before anything else happens.
    pub(crate) fn recover(&mut self, moment: &Moment<'_>, found: Found<'_>) {
        let Found { recovered, is_durable, holder, nobody, shares } = found;
        let Recovered {
            store,
            former,
            has_lost,
            identities,
            mut open,
            undelivered,
            requests,
            last_owner,
            newest_task: _,
        } = recovered;
        self.store = StoreName { id: store, former };
        self.is_durable = is_durable;
        self.has_lost = has_lost;
        // Above all that were, also those that are forgotten: what was theirs is nobody's.
        let millis = u64::try_from(moment.at.as_millisecond()).unwrap_or(0);
        self.parties.count_from(Incarnation(millis << NEWCOMERS_BITS));
        self.parties.count_from(last_owner);
        let latest = latest_devices(&identities);
        for mut record in identities {
            // Nobody knows until when it was here: at most until now.
            if std::mem::take(&mut record.is_here) {
                record.seen_at = moment.at;
            }
            let id = record.id;
            let seat = (record.role == aip::ClientType::Device).then(Seat::default);
            let client_id = record.client_id.clone();
            let recall = Recall { record, n: 0, undelivered: BTreeMap::new(), confirming: None };
            self.put_back(moment, id, client_id, seat, Some(Box::new(recall)));
        }
        for one in undelivered {
            if let Some(recall) = self.recall_mut(one.owner) {
                recall.undelivered.insert(one.task, (one.bytes, one.until));
                self.undelivered_bytes += one.bytes;
            }
        }
        self.requests.reserve(requests.len());
        for one in requests {
            let owner = one.owner.map_or_else(|| Owner::Key(one.key.clone()), Owner::Client);
            let known = Known { hash: one.hash, task: one.task };
            self.requests.insert(one.created_at, &owner, &one.request_id, known);
        }
        // Those with a command on its way keep their place.
        open.sort_by_key(|journal| !has_open_command(&journal.records));
        for journal in open {
            self.recover_task(moment, &journal, &latest, has_lost, (holder, &nobody, shares));
        }
        for id in self.parties.ids() {
            if self.parties.seat(id).is_some_and(|seat| !seat.is_empty()) {
                self.expect_one_back(moment, id);
            }
        }
    }

    /// Waits for a device. Of several that had one id, one after the other, the last has what there is to do for any:
    /// whoever comes first of them gets it.
    fn expect_one_back(&mut self, moment: &Moment<'_>, id: Incarnation) {
        let before = self.parties.get(id).and_then(|own| self.parties.incarnation(&own.client_id));
        if let Some(before) = before {
            self.pass_seat(moment, before, id);
        }
        self.expect_back(moment, id);
    }

    fn put_back(
        &mut self,
        moment: &Moment<'_>,
        id: Incarnation,
        client_id: ClientId,
        seat: Option<Seat>,
        recall: Option<Box<Recall>>,
    ) {
        let at = recall.as_ref().map_or(moment.at, |recall| recall.record.seen_at);
        let presence = Presence::Away { since: moment.now, at };
        let identity = Identity { client_id, presence, requested: BTreeSet::new(), seat, recall };
        self.parties.put_back(id, identity);
    }

    fn recover_task(
        &mut self,
        moment: &Moment<'_>,
        journal: &OpenJournal,
        latest: &Latest,
        has_lost: bool,
        (holder, nobody, shares): (Holder<'_>, &Arc<Principal>, Shares<'_>),
    ) {
        let Some(Record::Created(task)) = journal.records.first() else { return };
        let task = task.clone();
        let sent_to = journal.records.iter().rev().find_map(Record::sent);
        let own = sent_to.map_or(task.terms.device, |(device, _)| device);
        self.parties.count_from(own);
        // Since then its device's place may have passed to another, unless it keeps no journal and came after that.
        let is_known = self.recall(own).is_some();
        let latest = latest.get(&task.device).filter(|one| is_known || one.0 >= task.created_at);
        let device = latest.map_or(own, |(_, latest)| *latest);
        self.parties.count_from(task.terms.requester.unwrap_or_default());
        if self.parties.get(device).is_none() {
            // A device that keeps no journal is nobody's identity: who comes with its id and its key takes its place.
            let mut seat = Seat::default();
            seat.former_key.clone_from(&task.terms.device_key);
            self.put_back(moment, device, task.device.clone(), Some(seat), None);
        }
        let opens = holder(&task);
        let session = Session {
            device,
            is_recovered: true,
            is_accepted: true,
            ..Session::new(
                moment,
                &task,
                opens.clone().unwrap_or_else(|| nobody.clone()),
                self.budget.nothing(),
            )
        };
        let id = task.id;
        let entrant = Entrant { task: id, manner: manner(shares(&task)) };
        let share = share(&task);
        self.enter(Session { journal: super::session::Journal::default(), ..session });
        if let Some(seat) = self.parties.seat_mut(device) {
            let limits = self.config.places(seat.at_once);
            seat.lane.put_back(share, entrant, limits, has_open_command(&journal.records));
        }
        self.replay(moment, id, &journal.records);
        match verdict(&task, has_lost || journal.is_damaged, opens.is_some()) {
            Verdict::Ends(outcome) => self.end_recovered(moment, id, outcome),
            Verdict::GoesOn => self.go_on(moment, id),
        }
    }

    /// Puts a session where its journal says that it stands.
    fn replay(&mut self, moment: &Moment<'_>, id: TaskId, records: &[Record]) {
        let config = self.config.clone();
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let mut history: Vec<Step> = Vec::new();
        let mut began = None;
        for record in records {
            match record {
                Record::Decided { at, response_id, calls, is_discovery, journal, .. } => {
                    began.get_or_insert(*at);
                    session.last_command = Some(response_id.clone());
                    session.phase = Phase::Running(Sent {
                        response_id: response_id.clone(),
                        calls: calls.clone(),
                        is_discovery: *is_discovery,
                        at: moment.now,
                        journal: journal.clone(),
                    });
                }
                Record::Readdressed { journal, .. } => {
                    if let Phase::Running(sent) = &mut session.phase {
                        sent.journal.clone_from(journal);
                    }
                }
                Record::Answered { results, .. } => {
                    let phase = std::mem::replace(&mut session.phase, Phase::Resting);
                    let Phase::Running(sent) = phase else { continue };
                    let bytes =
                        results.iter().map(crate::session::CallResult::bytes).sum::<usize>();
                    session.bytes += bytes;
                    session.kept.grow(bytes);
                    if sent.is_discovery {
                        session.note_tools(results);
                    }
                    let (calls, is_discovery) = (sent.calls, sent.is_discovery);
                    history.push(Step { calls, results: results.clone(), is_discovery });
                }
                Record::Cancelling { by, .. } => {
                    let cause = by.clone().map_or(Cause::RequesterGone, Cause::Cancelled);
                    let (is_committed, is_told) = (true, false);
                    let (word, timer) = (None, None);
                    session.cancel = Some(Cancelling { cause, is_committed, is_told, word, timer });
                }
                Record::Created(_) | Record::Noted { .. } | Record::Ended(_) => {}
            }
        }
        session.history = Arc::new(history);
        let bytes = session.bytes;
        let at = began.map(|began| {
            let passed = Duration::try_from(moment.at.duration_since(began)).unwrap_or_default();
            let limit = config.session_limit(session.task.terms.no_time_limit);
            moment.now + limit.saturating_sub(passed)
        });
        session.deadline = at.map(|at| (at, self.timers.set(at, Due::Session(id))));
        self.result_bytes += bytes;
        self.reopen_command(id);
    }

    /// A command that was committed may have been sent: its device says so when it is back.
    fn reopen_command(&mut self, id: TaskId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Phase::Running(sent) = &session.phase else { return };
        let command = OpenCommand {
            task: id,
            session_id: session.task.session_id.clone(),
            call_ids: sent.calls.iter().filter_map(|call| call.call_id.clone()).collect(),
            place: Place::Known(Reach::Sent),
            journal: sent.journal.clone(),
            is_stopping: false,
            timer: None,
            left: session.task.command_timeout,
            relay: Relay::of(&session.task, &sent.calls, session.step_number()),
        };
        let (device, response_id) = (session.device, sent.response_id.clone());
        if let Some(seat) = self.parties.seat_mut(device) {
            seat.commands.insert(response_id, command);
        }
    }

    /// Ends a task that does not go on. What it has on its device is stopped when that is back.
    fn end_recovered(&mut self, moment: &Moment<'_>, id: TaskId, outcome: Outcome) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.cancel = None;
        let Phase::Running(sent) = &session.phase else { return self.end(id, outcome) };
        let (sent, device) = (sent.clone(), session.device);
        let reach = self.stop_command(moment, device, &sent.response_id);
        let results = unknown(&sent.calls, "The server restarted", reach);
        let broken = Broken::Ended(outcome);
        self.take_step(moment, id, Settlement::Stopped, results, Some(broken));
    }

    fn go_on(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(cancel) = &mut session.cancel {
            let at = moment.now + self.config.cancel_wait;
            cancel.timer = Some(self.timers.set(at, Due::Cancel(id)));
        }
        let keeps_none = matches!(&session.phase, Phase::Running(sent) if sent.journal.is_none());
        if keeps_none {
            let broken = Outcome::failed("The server restarted; the outcome is unknown");
            return self.end_recovered(moment, id, broken);
        }
        let wait = match session.task.terms.on_disconnect {
            _ if session.task.terms.requester.is_none() => None,
            OnDisconnect::Continue => None,
            OnDisconnect::Cancel => Some(self.config.resume_window),
            OnDisconnect::After(after) => Some(Duration::from_secs(after.cancel_after_s.into())),
        };
        if let Some(wait) = wait {
            self.leave_after(moment, id, wait);
        }
        if matches!(self.sessions.get(&id).map(|own| &own.phase), Some(Phase::Resting))
            && self.sessions.get(&id).is_some_and(|own| own.cancel.is_some())
        {
            self.end_if_cancelled(id);
        }
        self.settle_in(id);
    }

    /// A task without an open command waits for its turn, or for its device.
    pub(super) fn settle_in(&mut self, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id).filter(|own| own.cancel.is_none()) else {
            return;
        };
        let seat = self.parties.seat(session.device);
        let has_place = seat.is_some_and(|seat| seat.lane.running().any(|one| one == id));
        if matches!(session.phase, Phase::Queued | Phase::Resting) {
            session.phase = if has_place { Phase::Resting } else { Phase::Queued };
        }
    }

    /// Whether a task goes on after a restart, so that the server stops without ending it.
    pub(super) fn is_suspended(&self, id: TaskId) -> bool {
        self.is_closed
            && self.is_durable
            && self.sessions.get(&id).is_some_and(|session| session.outlives_the_server())
    }

    /// At the end of the time that running commands may take at a shutdown: what goes on later is left as it is, the rest
    /// ends.
    pub(crate) fn suspend(&mut self, moment: &Moment<'_>) {
        let mut open: Vec<TaskId> = self.sessions.keys().copied().collect();
        open.sort_unstable();
        for id in open {
            if !self.is_suspended(id) {
                self.halt(moment, id, &Halt::Stopped(Cause::Shutdown));
                continue;
            }
            let Some(session) = self.sessions.get(&id) else { continue };
            let Phase::Running(sent) = &session.phase else { continue };
            if sent.journal.is_none() {
                let outcome = Outcome::failed("The server stopped; the outcome is unknown");
                self.end_recovered(moment, id, outcome);
            }
        }
    }

    /// Whether nothing is left that the server has to do before it stops.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.sessions.iter().all(|(id, session)| {
            let waits = match &session.phase {
                Phase::Queued | Phase::Resting | Phase::Thinking(_) => true,
                Phase::Running(sent) => {
                    sent.journal.is_some() && self.parties.handle(session.device).is_none()
                }
                Phase::Prepared(_) | Phase::Ending(_) => false,
            };
            waits && session.journal.is_stored() && self.is_suspended(*id)
        })
    }

    /// Whether, of what is left, all may be left at the end of the time for running commands.
    pub(crate) fn may_be_left(&self) -> bool {
        self.sessions.iter().all(|(id, session)| {
            !matches!(session.phase, Phase::Ending(_))
                && session.journal.is_stored()
                && self.is_suspended(*id)
        })
    }

    /// Whether the store has lost commits, as far as is known.
    pub(crate) const fn has_lost(&self) -> bool {
        self.has_lost
    }

    /// Whether every task that ends at the start has ended.
    pub(crate) fn is_recovered(&self) -> bool {
        !self.sessions.values().any(|session| matches!(session.phase, Phase::Ending(_)))
    }
}

/// The latest of all devices.
fn latest_devices(identities: &[IdentityRecord]) -> Latest {
    let mut devices: Vec<_> =
        identities.iter().filter(|one| one.role == aip::ClientType::Device).collect();
    devices.sort_by_key(|one| (one.seen_at, one.id));
    devices.into_iter().map(|one| (one.client_id.clone(), (one.seen_at, one.id))).collect()
}

fn has_open_command(records: &[Record]) -> bool {
    let last = records.iter().rev().find_map(|record| match record {
        Record::Decided { .. } => Some(true),
        Record::Answered { .. } => Some(false),
        _ => None,
    });
    last == Some(true)
}

fn verdict(task: &Task, is_unknown: bool, opens: bool) -> Verdict {
    if is_unknown {
        return Verdict::Ends(Outcome::failed(
            "The server restarted and has lost what it had stored last; the outcome is unknown",
        ));
    }
    if !opens {
        return Verdict::Ends(Outcome::stopped(&Cause::KeyGone, task));
    }
    let is_legacy = matches!(task.requester, Requester::Client(_)) && !task.terms.is_acknowledged();
    if is_legacy {
        return Verdict::Ends(Outcome::failed("Task was cancelled because the server restarted"));
    }
    Verdict::GoesOn
}
