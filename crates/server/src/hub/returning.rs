//! How a client comes and goes: it registers, takes over from its old connection, is confirmed once all that was settled
//! before is stored, and is waited for when its connection is lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aip::CloseCode;
use aip::machine::Refusal;
use aip::message::{Feature, OnDisconnect, Resume, Resumed};
use aip::{Payload, ResponseId};
use tokio::sync::oneshot;

use super::effect::Effect;
use super::identity::{Recognized, check_newest};
use super::parties::{Confirming, Presence, Recall, Via};
use super::session::Halt;
use super::timers::Due;
use super::{Hub, Moment, RETRY_STORE};
use crate::auth::Principal;
use crate::handle::Handle;
use crate::session::{Cause, IdentityRecord, Incarnation, KeyHash, TaskId};
use crate::store::{Change, StoreError};

/// How often to look for identities and outcomes that have had their time.
const TIDY: Duration = Duration::from_secs(30);

/// A client that wants to be taken in.
pub(crate) struct Newcomer<'a> {
    pub(crate) handle: &'a Arc<Handle>,
    /// A device's facts.
    pub(crate) facts: Option<Payload>,
    /// What it says of its identity.
    pub(crate) claim: Option<&'a Resume>,
}

/// A client that was taken in.
pub(crate) enum Entered {
    /// It is here.
    Here(Via),
    /// It is here once this says so, and with what it is told then.
    Confirming(Via, oneshot::Receiver<Resumed>),
}

impl Hub {
    /// Takes a newcomer in, if its target is there, and its id is free or its own.
    pub(crate) fn register(
        &mut self,
        moment: &Moment<'_>,
        newcomer: Newcomer<'_>,
    ) -> Result<Entered, Refusal> {
        if self.is_closed {
            return Err(Refusal::ShuttingDown);
        }
        let Newcomer { handle, facts, claim } = newcomer;
        // Only of a device that keeps a journal it means anything.
        let newest =
            claim.filter(|_| handle.has(Feature::Resume)).and_then(|own| own.newest.as_ref());
        newest.map_or(Ok(()), |newest| check_newest(moment, newest))?;
        let newest = newest.filter(|_| claim.is_some_and(|own| own.store.is_some()));
        let is_known_again = handle.has(Feature::Ack);
        let known = if is_known_again { self.recognize(handle, claim)? } else { Recognized::NEW };
        if known.identity.is_none() {
            self.check_target(handle)?;
        }
        let former = self.may_have_id(handle, known)?;
        if is_known_again && known.identity.is_none() {
            self.check_quota(handle)?;
        }
        let identity = known.identity.unwrap_or_else(|| self.parties.enter(handle));
        let answer = is_known_again.then(|| self.take_over(moment, identity, handle, claim, known));
        if let Some(seat) = self.parties.seat_mut(identity) {
            seat.at_once = handle.at_once;
            seat.facts = facts.or_else(|| seat.facts.take());
        }
        if let Some(former) = former {
            self.pass_seat(moment, former, identity);
        }
        let via = Via { identity, connection: handle.connection };
        let Some(answer) = answer else {
            self.resume_device(moment, identity, &[]);
            return Ok(Entered::Here(via));
        };
        self.compare_newest(moment, identity, newest.filter(|_| !known.is_former));
        self.wait_for_commits(identity);
        Ok(Entered::Confirming(via, answer))
    }

    fn check_target(&self, newcomer: &Handle) -> Result<(), Refusal> {
        let Some(target) = &newcomer.peer.target_id else { return Ok(()) };
        let known = self.parties.by_id(target);
        let is_there = known.is_some_and(|one| one.seat.is_some() && one.connection().is_some());
        if is_there { Ok(()) } else { Err(Refusal::TargetNotConnected(target.clone())) }
    }

    /// Whether it may have its id. Returns who has it now and loses it.
    fn may_have_id(
        &self,
        newcomer: &Handle,
        known: Recognized,
    ) -> Result<Option<Incarnation>, Refusal> {
        let Some(holder) = self.parties.incarnation(newcomer.id()) else { return Ok(None) };
        let is_connected =
            self.parties.get(holder).is_some_and(|holder| holder.connection().is_some());
        let id = || newcomer.id().clone();
        match known.identity {
            Some(own) if own == holder && is_connected && !known.has_key => {
                Err(Refusal::AlreadyRegistered(id()))
            }
            Some(own) if own == holder => Ok(None),
            Some(_) if is_connected => Err(Refusal::InUse(id())),
            Some(_) => Ok(Some(holder)),
            None if is_connected => Err(Refusal::AlreadyRegistered(id())),
            None if newcomer.is_device() && self.has_key_of(newcomer, holder) => Ok(Some(holder)),
            None => Err(Refusal::ExpectedBack(id())),
        }
    }

    /// Whether a newcomer has the API key with which an identity came last.
    fn has_key_of(&self, newcomer: &Handle, other: Incarnation) -> bool {
        let key_id = match self.recall(other) {
            Some(recall) => recall.record.key_id.as_deref(),
            None => self.parties.seat(other).and_then(|seat| seat.former_key.as_deref()),
        };
        newcomer.holder.has_key_id(key_id)
    }

    /// Whether a key may have another client that is to be known again.
    fn check_quota(&self, newcomer: &Handle) -> Result<(), Refusal> {
        let has_key = |recall: &Recall| newcomer.holder.has_key_id(recall.record.key_id.as_deref());
        let of_key = || self.parties.all().filter_map(|one| one.recall.as_deref());
        let of_key = || of_key().filter(|recall| has_key(recall));
        let most = self.config.identities_per_key;
        if self.parties.len() >= most && of_key().count() >= most {
            return Err(Refusal::TooMuch(format!("{most} clients")));
        }
        self.check_undelivered(&newcomer.holder).map_err(Refusal::TooMuch)
    }

    /// Whether a key has no more outcomes to be fetched than may be.
    ///
    /// # Errors
    /// What it has.
    pub(super) fn check_undelivered(&self, holder: &Principal) -> Result<(), String> {
        let limit = self.config.undelivered_bytes;
        if self.undelivered_bytes < limit {
            return Ok(());
        }
        let all = self.parties.all().filter_map(|one| one.recall.as_deref());
        let of_key = all.filter(|own| holder.has_key_id(own.record.key_id.as_deref()));
        let bytes = of_key.flat_map(|own| own.undelivered.values()).map(|(bytes, _)| bytes);
        if bytes.sum::<usize>() < limit {
            return Ok(());
        }
        Err(format!("{limit} bytes of outcomes that were not fetched"))
    }

    /// Switches an identity to a new connection. Nothing is sent there before its confirmation.
    fn take_over(
        &mut self,
        moment: &Moment<'_>,
        id: Incarnation,
        handle: &Arc<Handle>,
        claim: Option<&Resume>,
        known: Recognized,
    ) -> oneshot::Receiver<Resumed> {
        let old = self.parties.get(id).and_then(|own| own.connection()).cloned();
        if let Some(old) = old.filter(|old| old.connection != handle.connection) {
            let taken = old.outbox.abort(CloseCode::REPLACED, "replaced: you came anew");
            self.park_commands(moment, id, &old, taken);
        }
        self.parties.seize(id);
        let window = self.parties.seat_mut(id).and_then(|seat| seat.window.take());
        let leaves = self.take_leave_timers(id);
        window.into_iter().chain(leaves).for_each(|timer| self.timers.clear(timer));
        let (sender, answer) = oneshot::channel();
        let confirming = Confirming {
            key: moment.ambient.secret(),
            is_former: known.is_former,
            is_resumed: known.identity.is_some(),
            listed: claim.map(|claim| claim.commands.clone()).unwrap_or_default(),
            is_kept: false,
            newest: None,
            unstored: BTreeSet::new(),
            answer: sender,
        };
        let mut record = match self.recall(id) {
            Some(recall) => recall.record.clone(),
            None => new_record(id, handle),
        };
        handle.holder.name().clone_into(&mut record.key_name);
        record.key_id = handle.holder.key_id().map(str::to_owned);
        record.platform.clone_from(&handle.platform);
        record.resumes = handle.has(Feature::Resume);
        record.seen_at = moment.at;
        record.is_here = true;
        record.journal = claim.map(|claim| claim.journal.clone());
        if let Some(key) = claim.and_then(|claim| claim.key.as_deref()) {
            record.presented = Some(KeyHash::of(key));
        }
        record.issued = Some(KeyHash::of(&confirming.key));
        let n = claim.map_or(0, |claim| claim.n);
        let undelivered = self.recall_mut(id).map(|own| std::mem::take(&mut own.undelivered));
        let recall = Recall {
            record,
            n,
            undelivered: undelivered.unwrap_or_default(),
            confirming: Some(confirming),
        };
        self.parties.remember(id, Box::new(recall));
        if let Some(identity) = self.parties.get_mut(id) {
            identity.presence = Presence::Confirming(handle.clone());
        }
        answer
    }

    fn take_leave_timers(&mut self, id: Incarnation) -> Vec<super::timers::TimerKey> {
        let requested = self.requested(id);
        let leave = |task| self.sessions.get_mut(&task).and_then(|own| own.leave.take());
        requested.into_iter().filter_map(leave).collect()
    }

    fn requested(&self, id: Incarnation) -> Vec<TaskId> {
        let requested = self.parties.get(id).map(|identity| &identity.requested);
        requested.into_iter().flatten().copied().collect()
    }

    /// A device that has a receipt of a command that the store does not know of says that the store has lost commits:
    /// what it may have done for its other tasks is unknown too.
    fn compare_newest(
        &mut self,
        moment: &Moment<'_>,
        id: Incarnation,
        newest: Option<&ResponseId>,
    ) {
        let (Some(newest), Some(recall)) = (newest, self.recall_mut(id)) else { return };
        if recall.record.newest.as_ref() >= Some(newest) {
            return;
        }
        // Were it in the store before the tasks that are lost, a server that died between would not see the loss again.
        if let Some(confirming) = &mut recall.confirming {
            confirming.newest = Some(newest.clone());
        }
        tracing::error!(
            device = %recall.record.client_id,
            "the store has lost commits: this device has received a command that it does not know"
        );
        self.has_lost = true;
        let lane = self.parties.seat(id).map(|seat| seat.lane.sessions()).unwrap_or_default();
        // Those that wait go first, so that none of them gets the place of another.
        for task in lane.into_iter().rev() {
            self.halt(moment, task, &Halt::Lost);
        }
    }

    /// Notes what has to be in the store before the newcomer is confirmed.
    fn wait_for_commits(&mut self, id: Incarnation) {
        let lane = self.parties.seat(id).map(|seat| seat.lane.sessions()).unwrap_or_default();
        let tasks = lane.into_iter().chain(self.requested(id));
        let is_unstored = |task: &TaskId| {
            self.sessions.get(task).is_some_and(|session| !session.is_settled_in_store())
        };
        let unstored: BTreeSet<TaskId> = tasks.filter(is_unstored).collect();
        if let Some(confirming) = self.recall_mut(id).and_then(|own| own.confirming.as_mut()) {
            confirming.unstored = unstored;
        }
        self.keep(id);
    }

    /// Has an identity stored as it is now.
    pub(super) fn keep(&mut self, id: Incarnation) {
        let Some(identity) = self.parties.get(id) else { return };
        if let (Some(recall), Some(handle)) = (&identity.recall, identity.connection()) {
            let via = Via { identity: id, connection: handle.connection };
            let change = Change::Identity(Arc::new(recall.record.clone()));
            self.effects.push(Effect::Keep(change, Some(via)));
        }
    }

    /// The store has an identity, or would not have it.
    pub(crate) fn handle_kept(
        &mut self,
        moment: &Moment<'_>,
        via: Via,
        kept: &Result<(), StoreError>,
    ) {
        let identity = self.parties.get(via.identity);
        let connection = identity.and_then(|own| own.connection()).map(|own| own.connection);
        if connection != Some(via.connection) {
            return;
        }
        match kept {
            Ok(()) => {
                let recall = self.recall_mut(via.identity);
                if let Some(confirming) = recall.and_then(|own| own.confirming.as_mut()) {
                    confirming.is_kept = true;
                }
                self.confirm_if_ready(moment, via.identity);
            }
            Err(_) => {
                self.timers.set(moment.now + RETRY_STORE, Due::Keep(via.identity));
            }
        }
    }

    /// Nothing of a task is on its way into the store any more.
    pub(super) fn note_stored(
        &mut self,
        moment: &Moment<'_>,
        task: TaskId,
        parties: [Option<Incarnation>; 2],
    ) {
        for id in parties.into_iter().flatten() {
            let confirming = self.recall_mut(id).and_then(|own| own.confirming.as_mut());
            if confirming.is_some_and(|confirming| confirming.unstored.remove(&task)) {
                self.confirm_if_ready(moment, id);
            }
        }
    }

    fn confirm_if_ready(&mut self, moment: &Moment<'_>, id: Incarnation) {
        let Some(recall) = self.recall(id) else { return };
        let Some(confirming) = recall.confirming.as_ref().filter(|own| own.is_ready()) else {
            return;
        };
        let settled = self.settled_meanwhile(id, &confirming.listed);
        let Some(recall) = self.recall_mut(id) else { return };
        if let Some(confirming) = recall.confirming.as_mut() {
            confirming.unstored = settled;
        }
        let Some(mut confirming) = recall.confirming.take_if(|own| own.is_ready()) else { return };
        if let Some(newest) = confirming.newest.take() {
            recall.record.newest = recall.record.newest.take().max(Some(newest));
            let change = Change::Identity(Arc::new(recall.record.clone()));
            self.effects.push(Effect::Keep(change, None));
        }
        let Some(identity) = self.parties.get_mut(id) else { return };
        let Some(handle) = identity.connection().cloned() else { return };
        identity.presence = Presence::Here(handle.clone());
        let Confirming { key, is_former, is_resumed, listed, answer, .. } = confirming;
        let resumes = handle.has(Feature::Resume);
        let resumed = Resumed {
            store: self.store.id.clone(),
            former: is_former,
            resumed: is_resumed,
            resume_key: key,
            resume_window_s: resumes.then(|| self.config.resume_window.as_secs_f64()),
            commands: self.resume_device(moment, id, &listed),
        };
        // Who is gone is away from now on, which its connection says itself.
        let _gone = answer.send(resumed);
        let outcomes = self.recall(id).map(|own| own.undelivered.keys().copied().collect());
        self.deliver(
            Via { identity: id, connection: handle.connection },
            outcomes.unwrap_or_default(),
        );
        for task in self.requested(id) {
            self.ask_for_output(moment, task);
        }
    }

    /// The connection is over, or is given up; `is_goodbye` says that the client closed it because it was done. Doing so
    /// again changes nothing.
    pub(crate) fn disconnect(&mut self, moment: &Moment<'_>, via: Via, is_goodbye: bool) {
        let Some(handle) = self.parties.leave(moment, via) else { return };
        // From here on nothing more is handed to the socket.
        let taken = handle.outbox.abort(CloseCode::NORMAL, "closed");
        let id = via.identity;
        let is_idle = self.parties.seat(id).is_none_or(|seat| seat.is_empty());
        if handle.has(Feature::Resume) && !(is_goodbye && is_idle) && !handle.is_forbidden() {
            self.park_commands(moment, id, &handle, taken);
            self.expect_back(moment, id);
        } else {
            self.parties.release(id);
            self.lose_commands(moment, id, taken);
            self.stop_lane(moment, id);
        }
        for task in self.requested(id) {
            self.lose_requester(moment, task);
        }
        let has_nothing = self.parties.get(id).is_some_and(|own| own.requested.is_empty())
            && self.recall(id).is_some_and(|own| own.undelivered.is_empty());
        if is_goodbye && !handle.is_device() && has_nothing {
            self.forget(id);
        }
        if handle.is_device() {
            self.keep_parting(id);
        }
        self.parties.forget_unneeded(id, moment.now);
        self.effects.push(Effect::Moved);
    }

    /// Has it stored when a device was last seen. Nobody waits for that.
    fn keep_parting(&mut self, id: Incarnation) {
        if let Some(recall) = self.recall(id) {
            let change = Change::Identity(Arc::new(recall.record.clone()));
            self.effects.push(Effect::Keep(change, None));
        }
    }

    /// Waits for a device that is away.
    pub(super) fn expect_back(&mut self, moment: &Moment<'_>, id: Incarnation) {
        let window = self.timers.set(moment.now + self.config.resume_window, Due::Window(id));
        if let Some(seat) = self.parties.seat_mut(id) {
            seat.window = Some(window);
        }
        self.parties.seize(id);
    }

    /// A device did not come back in time: it is gone.
    pub(super) fn handle_window(&mut self, moment: &Moment<'_>, id: Incarnation) {
        let Some(seat) = self.parties.seat_mut(id) else { return };
        seat.window = None;
        self.parties.release(id);
        self.lose_commands(moment, id, 0);
        self.stop_lane(moment, id);
        self.parties.forget_unneeded(id, moment.now);
    }

    /// The connection of a task's requester is lost.
    pub(super) fn lose_requester(&mut self, moment: &Moment<'_>, task: TaskId) {
        let Some(session) = self.sessions.get_mut(&task) else { return };
        let is_known_again = session.task.terms.is_acknowledged();
        let device = session.device;
        let wait = match session.task.terms.on_disconnect {
            OnDisconnect::Continue if is_known_again => return,
            OnDisconnect::After(after) if is_known_again => {
                Duration::from_secs(after.cancel_after_s.into())
            }
            _ if session.is_own_task()
                && self.parties.get(device).is_some_and(|own| own.is_expected()) =>
            {
                return;
            }
            _ => return self.halt(moment, task, &Halt::Stopped(Cause::RequesterGone)),
        };
        self.leave_after(moment, task, wait);
    }

    /// Cancels a task after a while, unless its requester is back.
    pub(super) fn leave_after(&mut self, moment: &Moment<'_>, task: TaskId, wait: Duration) {
        let timer = self.timers.set(moment.now + wait, Due::Leave(task));
        if let Some(session) = self.sessions.get_mut(&task) {
            session.leave = Some(timer);
        }
    }

    /// Forgets who a client was. Nobody can come as it any more, and so nobody with the ids of its requests.
    fn forget(&mut self, id: Incarnation) {
        if self.parties.give_up(id) {
            self.effects.push(Effect::Keep(Change::Forget(id), None));
        }
    }

    /// Lets go of identities and outcomes that have had their time.
    pub(crate) fn tidy(&mut self, moment: &Moment<'_>) {
        if self.tidy_at.is_some_and(|at| moment.now < at) {
            return;
        }
        self.tidy_at = Some(moment.now + TIDY);
        for id in self.parties.ids() {
            let Some(identity) = self.parties.get_mut(id) else { continue };
            let is_here = identity.connection().is_some();
            let is_open = !identity.requested.is_empty()
                || identity.seat.as_ref().is_some_and(|seat| !seat.is_empty());
            let is_device = identity.seat.is_some();
            let Some(recall) = &mut identity.recall else { continue };
            let before = recall.undelivered.len();
            let mut freed = 0;
            recall.undelivered.retain(|_, (bytes, until)| {
                let is_kept = *until > moment.at;
                freed += if is_kept { 0 } else { *bytes };
                is_kept
            });
            if is_here || is_open || before > 0 {
                recall.record.seen_at = moment.at;
            }
            let kept = if is_device { self.config.device_time } else { self.config.outcome_time };
            let until = recall.record.seen_at.checked_add(kept).unwrap_or(moment.at);
            self.undelivered_bytes -= freed;
            if !is_here && until <= moment.at {
                self.forget(id);
                self.parties.forget_unneeded(id, moment.now);
            }
        }
        self.forget_requests(moment);
    }
}

fn new_record(id: Incarnation, handle: &Handle) -> IdentityRecord {
    IdentityRecord {
        id,
        client_id: handle.id().clone(),
        role: handle.peer.client_type,
        key_name: String::new(),
        key_id: None,
        journal: None,
        presented: None,
        issued: None,
        newest: None,
        resumes: false,
        platform: String::new(),
        seen_at: jiff::Timestamp::UNIX_EPOCH,
        is_here: false,
    }
}
