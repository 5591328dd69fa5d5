//! Carries out what the hub decides: asks the agent, writes outcomes, stores batches, and hands back what came of it.
//!
//! The hub is locked for each decision alone. What is done here about one task comes in order, since the hub has at
//! most one thing of a task done at a time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use aip::{Payload, ResponseId};
use futures_util::FutureExt;
use link::connection::{OFFLOAD_BYTES, now};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::agent::{Answer, Decision, Question, Thinking};
use crate::audit::{self, Event};
use crate::hub::{
    Advice, DeviceGoodbye, Effect, Goodbyes, Hub, Moment, Next, Over, Prepared, Session,
    Submission, SubmitError, Submitted, Via, Writing,
};
use crate::server::{Inner, Server};
use crate::session::{
    Call, CallResult, Outcome, Stamp, Task, encode_command, fresh_call_id, fresh_response_id,
    next_command_id,
};
use crate::spans::TaskSpan;
use crate::store::{Batch, Change, Commit, StoreError};

/// How often to let go of what has had its time.
const TIDY: Duration = Duration::from_secs(1);

impl Server {
    /// Has the hub decide, and carries out what it decided.
    pub(crate) fn act<T>(&self, input: impl FnOnce(&mut Hub, &Moment<'_>) -> T) -> T {
        let moment = self.moment();
        let (result, effects) = self.decide(|hub| input(hub, &moment));
        self.carry_out(&moment, effects);
        result
    }

    fn moment(&self) -> Moment<'_> {
        let ambient = self.ambient();
        Moment { now: now(), at: ambient.timestamp(), ambient }
    }

    fn decide<T>(&self, input: impl FnOnce(&mut Hub) -> T) -> (T, Vec<Effect>) {
        let mut hub = self.hub();
        let result = input(&mut hub);
        let (effects, rearm) = (hub.take_effects(), hub.must_rearm());
        drop(hub);
        if rearm {
            self.alarm().notify_one();
        }
        (result, effects)
    }

    /// Does all that is wanted, and what is wanted next; it all happens at one moment.
    fn carry_out(&self, moment: &Moment<'_>, effects: Vec<Effect>) {
        let mut waiting = VecDeque::from(effects);
        let mut span = TaskSpan::default();
        while let Some(effect) = waiting.pop_front() {
            span.enter(effect.task());
            waiting.extend(self.perform(moment, effect));
        }
    }

    /// Does one thing. Returns what the hub wants done next.
    fn perform(&self, moment: &Moment<'_>, effect: Effect) -> Vec<Effect> {
        match effect {
            Effect::Ask(question) => self.ask(moment, *question),
            Effect::Write(writing) => self.write(moment, *writing),
            Effect::Commit(_, batch) => self.commit(moment, batch),
            Effect::Settled(settlement, took) => {
                self.metrics().count_command(settlement, took);
                Vec::new()
            }
            Effect::Keep(change, via) => self.keep(moment, change, via),
            Effect::Deliver(via, tasks) => {
                let server = self.clone();
                self.ambient().spawn(async move {
                    for task in tasks {
                        server.deliver(via, task).await;
                    }
                });
                Vec::new()
            }
            Effect::Repeat(asked) => {
                let server = self.clone();
                self.ambient().spawn(async move { server.answer_again(*asked).await });
                Vec::new()
            }
            Effect::Accepted(task) => {
                tracing::debug!(device = %task.device, requester = %task.requester, "task accepted");
                Vec::new()
            }
            Effect::Stepped(task, n, calls) => {
                self.note_step(&task, n, &calls);
                Vec::new()
            }
            Effect::Over(over) => {
                self.note_over(&over);
                self.moved().notify_waiters();
                Vec::new()
            }
            Effect::NotStored(session, error) => {
                self.note_not_stored(&session, &error);
                self.moved().notify_waiters();
                Vec::new()
            }
            Effect::Moved => {
                self.moved().notify_waiters();
                Vec::new()
            }
            Effect::StoreFails(_, error) => {
                note_store(error.as_ref());
                Vec::new()
            }
        }
    }

    fn ask(&self, moment: &Moment<'_>, question: Question) -> Vec<Effect> {
        let task = question.task.clone();
        let agent = self.agent();
        match catch_unwind(AssertUnwindSafe(|| agent.next(question))) {
            Ok(Thinking::Done(answer)) => self.advise(moment, &task, answer),
            Ok(Thinking::Later(thought)) => {
                let cancelled = CancellationToken::new();
                let guard = cancelled.clone().drop_guard();
                let server = self.clone();
                let id = task.id;
                let thinking = async move {
                    let thought = AssertUnwindSafe(thought).catch_unwind();
                    tokio::select! {
                       biased;
                        () = cancelled.cancelled() => {}
                        answer = thought => match answer {
                            Ok(answer) => {
                                let moment = server.moment();
                                let effects = server.advise(&moment, &task, answer);
                                server.carry_out(&moment, effects);
                            }
                            Err(_) => server.act(|hub, moment| hub.handle_panic(moment, id)),
                        },
                    }
                };
                self.ambient().spawn(thinking.in_current_span());
                self.decide(|hub| hub.handle_thinking(id, guard)).1
            }
            Err(_) => self.decide(|hub| hub.handle_panic(moment, task.id)).1,
        }
    }

    fn advise(&self, moment: &Moment<'_>, task: &Task, answer: Answer) -> Vec<Effect> {
        let Answer { decision, notes, usage, memo } = answer;
        let next = match decision {
            Decision::Calls(calls) => Next::Send(self.prepare(task, calls, false)),
            Decision::Discover => Next::Send(self.prepare(task, vec![list_tools()], true)),
            Decision::Finish(finish) => Next::Finish(finish),
            Decision::Fail(error) => Next::Fail(error),
        };
        let advice = Advice { next, notes, usage, memo };
        self.decide(|hub| hub.handle_advice(moment, task.id, advice)).1
    }

    /// Makes a COMMAND ready to be sent.
    fn prepare(&self, task: &Task, mut calls: Vec<Call>, is_discovery: bool) -> Prepared {
        let ambient = self.ambient();
        for call in &mut calls {
            call.call_id = Some(fresh_call_id(ambient));
        }
        let response_id = next_command_id(ambient);
        let (note, is_ours) = {
            let hub = self.hub();
            (hub.note_of(task, &calls), hub.may_be_ours(&task.device))
        };
        let at = ambient.time_text();
        let frame = encode_command(task, &calls, &response_id, is_ours, note.as_ref(), at);
        Prepared { response_id, calls: calls.into(), is_discovery, frame, journal: None }
    }

    /// Writes a TASK_END; a large one on a thread of its own, so that no other connection waits for it.
    fn write(&self, moment: &Moment<'_>, writing: Writing) -> Vec<Effect> {
        if writing.bytes() <= OFFLOAD_BYTES {
            return self.written(moment, &writing);
        }
        let (server, span) = (self.clone(), Span::current());
        self.ambient().spawn(async move {
            let own = server.clone();
            let write = move || span.in_scope(|| own.written(&own.moment(), &writing));
            let written = tokio::task::spawn_blocking(write);
            // It catches its own panics; the runtime itself is ending if there is none.
            let effects = written.await.unwrap_or_default();
            server.carry_out(&server.moment(), effects);
        });
        Vec::new()
    }

    fn written(&self, moment: &Moment<'_>, writing: &Writing) -> Vec<Effect> {
        let id = writing.task.id;
        match catch_unwind(AssertUnwindSafe(|| self.goodbyes(writing))) {
            Ok(goodbyes) => self.decide(|hub| hub.handle_goodbyes(moment, id, goodbyes)).1,
            Err(_) => {
                let broken = Writing { outcome: Outcome::broken(), ..writing.without_results() };
                let goodbyes = self.goodbyes(&broken);
                self.decide(|hub| {
                    hub.handle_panic(moment, id);
                    hub.handle_goodbyes(moment, id, goodbyes);
                })
                .1
            }
        }
    }

    fn goodbyes(&self, writing: &Writing) -> Goodbyes {
        let Writing { task, outcome, history, for_requester, for_device } = writing;
        let stamp = || Stamp {
            response_id: end_id(task).unwrap_or_else(|| fresh_response_id(self.ambient())),
            at: self.ambient().time_text(),
        };
        let is_wanted = *for_requester || *for_device == DeviceGoodbye::Whole;
        let whole = is_wanted.then(|| outcome.encode(task, history, stamp()));
        let is_whole = whole.as_ref().is_none_or(|(_, is_whole)| *is_whole);
        let frame = whole.map(|(frame, _)| frame);
        let device = match for_device {
            DeviceGoodbye::Nothing => None,
            DeviceGoodbye::WithoutResult => Some(outcome.encode_without_result(task, stamp())),
            DeviceGoodbye::Whole => frame.clone(),
        };
        Goodbyes { requester: frame.filter(|_| *for_requester), device, is_whole }
    }

    fn keep(&self, moment: &Moment<'_>, change: Change, via: Option<Via>) -> Vec<Effect> {
        let kept = catch_unwind(AssertUnwindSafe(|| self.store().keep(change)));
        let kept = kept.unwrap_or_else(|_| Commit::Known(Err(panicked())));
        let Some(via) = via else { return Vec::new() };
        match kept {
            Commit::Known(kept) => self.decide(|hub| hub.handle_kept(moment, via, &kept)).1,
            pending @ Commit::Pending(_) => {
                let server = self.clone();
                self.ambient().spawn(async move {
                    let kept = pending.wait().await;
                    server.act(|hub, moment| hub.handle_kept(moment, via, &kept));
                });
                Vec::new()
            }
        }
    }

    fn commit(&self, moment: &Moment<'_>, batch: Arc<Batch>) -> Vec<Effect> {
        let appended = catch_unwind(AssertUnwindSafe(|| self.store().append(&batch)));
        match appended.unwrap_or_else(|_| Commit::Known(Err(panicked()))) {
            Commit::Known(committed) => self.committed(moment, &batch, committed),
            pending @ Commit::Pending(_) => {
                let server = self.clone();
                let committing = async move {
                    let committed = pending.wait().await;
                    let moment = server.moment();
                    let effects = server.committed(&moment, &batch, committed);
                    server.carry_out(&moment, effects);
                };
                self.ambient().spawn(committing.in_current_span());
                Vec::new()
            }
        }
    }

    fn committed(
        &self,
        moment: &Moment<'_>,
        batch: &Batch,
        committed: Result<(), StoreError>,
    ) -> Vec<Effect> {
        self.decide(|hub| hub.handle_committed(moment, batch, committed)).1
    }

    fn note_step(&self, task: &Task, n: u32, calls: &[Call]) {
        for call in calls {
            let shown = call.parameters.as_ref().filter(|_| self.config().audit_arguments);
            self.audit().record(audit::Entry {
                step: Some(n),
                tool: Some(&call.tool_name),
                arguments: shown.map(Payload::as_str),
                ..audit::Entry::of(task, Event::Step)
            });
        }
    }

    fn note_over(&self, over: &Over) {
        let Over { session, outcome, ended } = over;
        let took = ended.saturating_duration_since(session.accepted_at());
        self.metrics().count_task(outcome.status(), took);
        self.audit().record(audit::Entry {
            outcome: Some(outcome.status().as_str()),
            reason: outcome.reason(),
            ..audit::Entry::of(session.task(), Event::Ended)
        });
        let task = session.task();
        tracing::info!(
            device = %task.device,
            requester = %task.requester,
            status = %outcome.status(),
            elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            error = outcome.reason(),
            "task ended"
        );
        tracing::trace!(error = outcome.error.as_deref(), "why it ended");
    }

    fn note_not_stored(&self, session: &Session, error: &StoreError) {
        let why = error.to_string();
        self.audit().record(audit::Entry {
            reason: Some(&why),
            ..audit::Entry::of(session.task(), Event::Refused)
        });
        tracing::error!(%error, "a task was refused");
    }

    /// Does what is due, from the first connection on, for as long as there is the server.
    pub(crate) fn start_upkeep(&self) {
        if self.is_first_connection() {
            self.ambient().spawn(upkeep(self.downgrade()));
        }
    }
}

/// Wakes when something is due, and every second to tidy. It does not keep the server alive.
async fn upkeep(server: Weak<Inner>) {
    let mut tidy_at = now() + TIDY;
    while let Some(next) = Server::upgrade(&server).map(|server| server.hub().rearm()) {
        let at = next.map_or(tidy_at, |next| next.min(tidy_at));
        let Some(alarm) = Server::upgrade(&server).map(|server| server.alarm().clone()) else {
            return;
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(at.into()) => {}
            () = alarm.notified() => {}
        }
        let Some(server) = Server::upgrade(&server) else { return };
        server.act(Hub::handle_due);
        tidy_at = server.tidy_if_due(tidy_at);
    }
}

impl Server {
    /// Tidies, if it is time. Returns when it is time again.
    fn tidy_if_due(&self, at: Instant) -> Instant {
        let now = now();
        if now < at {
            return at;
        }
        self.tidy();
        now + TIDY
    }
}

impl Writing {
    /// What the outcome takes, about, in bytes.
    fn bytes(&self) -> usize {
        let results = self.history.iter().flat_map(|step| step.results.iter());
        self.task.request.len() + results.map(CallResult::bytes).sum::<usize>()
    }

    fn without_results(&self) -> Self {
        Self {
            task: self.task.clone(),
            outcome: self.outcome.clone(),
            history: Arc::default(),
            for_requester: self.for_requester,
            for_device: self.for_device,
        }
    }
}

/// Submits a task. Where the store commits at once, its ACK is queued on return.
///
/// # Errors
/// When it cannot begin.
pub(crate) fn submit(server: &Server, submission: Submission) -> Result<Submitted, SubmitError> {
    server.act(|hub, moment| {
        // Under the hub's lock, so that those who end the tasks of a key that was revoked miss none.
        if !server.keyring().is_valid(&submission.holder) {
            return Err(SubmitError::KeyGone);
        }
        hub.submit(moment, submission)
    })
}

/// The id of a task's TASK_END, where its requester knows it by that: *T*.
pub(crate) fn end_id(task: &Task) -> Option<ResponseId> {
    let id = task.terms.is_acknowledged().then(|| task.id.to_string())?;
    ResponseId::new(&id).ok()
}

fn note_store(error: Option<&StoreError>) {
    match error {
        Some(error) => tracing::error!(%error, "a task stays open until the store can write"),
        None => tracing::info!("the store writes again"),
    }
}

fn panicked() -> StoreError {
    StoreError::Failed("it panicked; see the log".to_owned())
}

/// The call that asks a device for its tools.
fn list_tools() -> Call {
    Call {
        tool_name: "list_tools".to_owned(),
        parameters: Payload::from_text(r#"{"tool_type":"action"}"#).ok(),
        observes: false,
        call_id: None,
    }
}
