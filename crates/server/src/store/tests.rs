//! What every store promises, tried with each of them.

use std::sync::{Arc, LazyLock};

use aip::message::{Feature, Features, JournalId};
use aip::{CallId, ClientId, ClientType, Payload, RequestId, ResponseId, TaskName};
use jiff::{Timestamp, ToSpan};

use super::*;
use crate::agent::Usage;
use crate::audit::{Audit, AuditSettings};
use crate::session::tests::task;
use crate::session::{
    Call, CallResult, CallStatus, Finish, IdentityRecord, Incarnation, KeyHash, KeyName,
    RequestHash, Terms,
};

/// A store that can be left and found again, as by a server that was killed.
pub(super) trait Kept {
    fn new() -> Self;
    /// One that remembers next to nothing of what is over.
    fn small() -> Self;
    fn store(&self) -> &dyn Store;
    #[must_use]
    fn restarted(self) -> Self;
}

struct InMemory(MemoryStore);

impl Kept for InMemory {
    fn new() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        let unfetched_bytes = 64 * 1024 * 1024;
        let limits = HistoryLimits {
            tasks: 10_000,
            bytes: 64 * 1024 * 1024,
            unfetched_bytes,
            unfetched_time: day,
        };
        Self(MemoryStore::new(limits))
    }

    fn small() -> Self {
        let unfetched_time = Duration::from_secs(1);
        let limits = HistoryLimits { tasks: 1, bytes: 1000, unfetched_bytes: 0, unfetched_time };
        Self(MemoryStore::new(limits))
    }

    fn store(&self) -> &dyn Store {
        &self.0
    }

    fn restarted(self) -> Self {
        // All clones are the same, so this is one.
        self
    }
}

struct InSqlite {
    store: SqliteStore,
    settings: SqliteSettings,
    _folder: tempfile::TempDir,
}

impl InSqlite {
    fn with(retention: impl FnOnce(Retention) -> Retention) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let usual = SqliteSettings::new(folder.path().to_owned());
        let retention = retention(usual.retention);
        let settings = SqliteSettings { reserve_bytes: 1024 * 1024, retention, ..usual };
        Self { store: SqliteStore::open(&settings).unwrap(), settings, _folder: folder }
    }
}

impl Kept for InSqlite {
    fn new() -> Self {
        Self::with(|retention| retention)
    }

    fn small() -> Self {
        Self::with(|retention| Retention { tasks: 1, bytes: 1000, ..retention })
    }

    fn store(&self) -> &dyn Store {
        &self.store
    }

    fn restarted(self) -> Self {
        drop(self.store);
        Self { store: SqliteStore::open(&self.settings).unwrap(), ..self }
    }
}

/// Makes each function a test of both stores.
macro_rules! suite {
    ($($name:ident)*) => {
        mod memory_store { $(#[tokio::test] async fn $name() { super::$name::<super::InMemory>().await; })* }
        mod sqlite_store { $(#[tokio::test] async fn $name() { super::$name::<super::InSqlite>().await; })* }
    };
}

suite! {
    a_journal_is_read_as_it_was_written
    a_server_that_comes_back_finds_what_is_open
    an_identity_is_found_with_the_newest_command_that_was_sent_to_it
    an_identity_that_was_forgotten_does_not_come_back
    an_outcome_is_found_until_it_is_acknowledged
    an_outcome_that_nobody_fetches_in_time_is_history
    an_outcome_that_nobody_acknowledged_stays_whole_whatever_the_history_may_hold
    a_request_id_names_its_task_for_a_day_and_while_it_is_needed
    pages_have_neither_gaps_nor_repeats
    a_list_has_what_it_is_asked_for
    what_is_about_an_unknown_task_is_dropped
    a_change_comes_after_everything_before_it
    large_payloads_come_back_whole
    a_task_is_in_the_audit_log_when_it_is_known_that_it_was_accepted
}

/// A clock that stands, close to the real one: request ids are known for a day.
pub(super) fn now() -> Timestamp {
    static NOW: LazyLock<Timestamp> = LazyLock::new(Timestamp::now);
    Timestamp::from_second(NOW.as_second()).unwrap()
}

pub(super) fn id(n: u128) -> TaskId {
    let uuid = uuid::Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + n);
    TaskId::from_bytes(uuid.into_bytes())
}

pub(super) fn created(id: TaskId) -> Record {
    Record::Created(Arc::new(Task { created_at: now(), ..task(id) }))
}

/// A task of the identity 7, with a request id.
fn requested(id: TaskId, request_id: &str, created_at: Timestamp) -> Record {
    requested_by(Incarnation(7), id, request_id, created_at)
}

fn requested_by(owner: Incarnation, id: TaskId, request_id: &str, created_at: Timestamp) -> Record {
    let terms = Terms {
        requester: Some(owner),
        role: Some(ClientType::Constellation),
        device: Incarnation(3),
        features: Features::granted(&[Feature::Ack, Feature::RequestId], ClientType::Constellation),
        request_id: RequestId::new(request_id).ok(),
        request_hash: Some(RequestHash::new([0xab; 32])),
        ..Terms::default()
    };
    Record::Created(Arc::new(Task { created_at, terms, ..task(id) }))
}

pub(super) fn r(n: u32) -> ResponseId {
    ResponseId::new(&format!("01900000-0000-7000-8000-{n:012}")).unwrap()
}

pub(super) fn decided(n: u32, device: Incarnation) -> Record {
    let call = Call {
        tool_name: "execute_command".to_owned(),
        parameters: Payload::from_text(r#"{"command":"uname -r", "n":12345678901234567890}"#).ok(),
        observes: true,
        call_id: CallId::new("C").ok(),
    };
    Record::Decided {
        at: now(),
        response_id: r(n),
        calls: Arc::new([call]),
        is_discovery: false,
        device,
        journal: JournalId::new("file", "boot").ok(),
    }
}

pub(super) fn answered(text: &str) -> Record {
    let result = CallResult {
        status: CallStatus::Success,
        error: None,
        result: Some(Payload::string(text)),
        namespace: Some("BashExecutor".to_owned()),
        call_id: CallId::new("C").ok(),
    };
    let failed = CallResult::failure(None, "no");
    Record::Answered { at: now(), results: Arc::new([result, failed]) }
}

pub(super) fn ended(undelivered_until: Option<Timestamp>) -> Record {
    Record::Ended(Arc::new(Ended {
        at: now(),
        ending: Ending::Failed,
        error: Some("why".into()),
        finish: Finish::Value(Payload::from_text("[1.50]").unwrap()),
        is_unfetched: false,
        undelivered_until,
    }))
}

pub(super) async fn append(store: &dyn Store, task: TaskId, records: Vec<Record>) {
    store.append(&Arc::new(Batch { task, records })).wait().await.unwrap();
}

fn identity(id: u64, newest: Option<ResponseId>) -> IdentityRecord {
    IdentityRecord {
        id: Incarnation(id),
        client_id: ClientId::new("d").unwrap(),
        role: ClientType::Device,
        key_name: "local".to_owned(),
        key_id: None,
        journal: JournalId::new("file", "boot").ok(),
        presented: None,
        issued: Some(KeyHash::of("key")),
        newest,
        resumes: true,
        platform: "linux".to_owned(),
        seen_at: now(),
        is_here: false,
    }
}

async fn keep(store: &dyn Store, change: Change) {
    store.keep(change).wait().await.unwrap();
}

async fn a_journal_is_read_as_it_was_written<K: Kept>() {
    let kept = K::new();
    let notes = Arc::new([Payload::from_text(r#"{"b":1,"a":2}"#).unwrap()]);
    let usage = Usage { input_tokens: 3, output_tokens: 4 };
    let (device, journal) = (Incarnation(4), None);
    let batches = [
        vec![requested(id(1), "Q", now()), decided(1, Incarnation(3))],
        vec![
            answered("one"),
            Record::Noted { at: now(), notes, usage },
            decided(2, Incarnation(3)),
        ],
        vec![Record::Readdressed { response_id: r(2), device, journal }],
        vec![Record::Cancelling {
            at: now(),
            by: Some("somebody".into()),
            why: "somebody wants it".into(),
        }],
        vec![answered("two"), ended(Some(now()))],
    ];
    for batch in &batches {
        append(kept.store(), id(1), batch.clone()).await;
    }
    let written = batches.concat();
    assert_eq!(kept.store().journal(id(1)).await.unwrap().unwrap(), written);
    let kept = kept.restarted();
    assert_eq!(kept.store().journal(id(1)).await.unwrap().unwrap(), written);
    assert_eq!(kept.store().journal(id(2)).await.unwrap(), None);
}

async fn a_server_that_comes_back_finds_what_is_open<K: Kept>() {
    let kept = K::new();
    append(kept.store(), id(2), vec![created(id(2)), decided(1, Incarnation(3))]).await;
    append(kept.store(), id(1), vec![created(id(1))]).await;
    append(kept.store(), id(3), vec![created(id(3)), ended(None)]).await;
    let kept = kept.restarted();
    let recovered = kept.store().recover().unwrap();
    assert!(!recovered.has_lost && recovered.former.is_empty() && !recovered.store.is_empty());
    let found: Vec<_> =
        recovered.open.into_iter().map(|open| (open.records, open.is_damaged)).collect();
    let one = vec![created(id(1))];
    let two = vec![created(id(2)), decided(1, Incarnation(3))];
    assert_eq!(found, [(one, false), (two, false)], "oldest first");
    append(kept.store(), id(2), vec![answered("late")]).await;
    let kept = kept.restarted();
    let again = kept.store().recover().unwrap();
    assert_eq!(again.store, recovered.store);
    assert_eq!(again.open[1].records.len(), 3, "it goes on where it was");
}

async fn an_identity_is_found_with_the_newest_command_that_was_sent_to_it<K: Kept>() {
    let kept = K::new();
    keep(kept.store(), Change::Identity(Arc::new(identity(3, None)))).await;
    append(kept.store(), id(1), vec![created(id(1)), decided(5, Incarnation(3))]).await;
    append(kept.store(), id(2), vec![created(id(2)), decided(9, Incarnation(8))]).await;
    let newest = |kept: &K| kept.store().recover().unwrap().identities[0].newest.clone();
    let kept = kept.restarted();
    assert_eq!(newest(&kept), Some(r(5)));
    keep(kept.store(), Change::Identity(Arc::new(identity(3, Some(r(2)))))).await;
    let kept = kept.restarted();
    assert_eq!(newest(&kept), Some(r(5)), "a later record does not lower it");
    keep(kept.store(), Change::Identity(Arc::new(identity(3, Some(r(7)))))).await;
    let kept = kept.restarted();
    let expected = identity(3, Some(r(7)));
    let found = kept.store().recover().unwrap().identities;
    assert_eq!(found, [IdentityRecord { seen_at: found[0].seen_at, ..expected }]);
}

async fn an_identity_that_was_forgotten_does_not_come_back<K: Kept>() {
    let kept = K::new();
    for n in [1, 2] {
        keep(kept.store(), Change::Identity(Arc::new(identity(n, Some(r(1)))))).await;
    }
    keep(kept.store(), Change::Forget(Incarnation(1))).await;
    let recovered = kept.restarted().store().recover().unwrap();
    let found: Vec<_> = recovered.identities.iter().map(|identity| identity.id).collect();
    assert_eq!(found, [Incarnation(2)]);
}

async fn an_outcome_is_found_until_it_is_acknowledged<K: Kept>() {
    let kept = K::new();
    let until = now() + 1.hour();
    for n in [1, 2] {
        append(kept.store(), id(n), vec![requested(id(n), "Q", now()), ended(Some(until))]).await;
    }
    let kept = kept.restarted();
    let found = kept.store().recover().unwrap().undelivered;
    assert_eq!(found.iter().map(|one| one.task).collect::<Vec<_>>(), [id(1), id(2)]);
    assert_eq!((found[0].owner, &*found[0].key, found[0].until), (Incarnation(7), "local", until));
    assert!(found[0].bytes > 0);
    keep(kept.store(), Change::Delivered(id(1))).await;
    let kept = kept.restarted();
    let found = kept.store().recover().unwrap().undelivered;
    assert_eq!(found.iter().map(|one| one.task).collect::<Vec<_>>(), [id(2)]);
    assert!(kept.store().journal(id(1)).await.unwrap().is_some(), "it is history");
}

async fn an_outcome_that_nobody_fetches_in_time_is_history<K: Kept>() {
    let kept = K::new();
    let until = now() + 1.hour();
    append(kept.store(), id(1), vec![requested(id(1), "Q", now()), ended(Some(until))]).await;
    kept.store().tidy(until - 1.second());
    append(kept.store(), id(2), vec![requested(id(2), "Q", now()), ended(Some(until + 1.hour()))])
        .await;
    kept.store().tidy(until);
    let found = kept.restarted().store().recover().unwrap().undelivered;
    assert_eq!(found.iter().map(|one| one.task).collect::<Vec<_>>(), [id(2)]);
}

async fn an_outcome_that_nobody_acknowledged_stays_whole_whatever_the_history_may_hold<K: Kept>() {
    let kept = K::small();
    let (large, until) = ("x".repeat(50_000), now() + 1.hour());
    let whole = |n: u128, until| vec![requested(id(n), "Q", now()), answered(&large), ended(until)];
    for n in 0..4 {
        append(kept.store(), id(n), whole(n, Some(until))).await;
    }
    for n in 4..8 {
        append(kept.store(), id(n), whole(n, None)).await;
    }
    // What is in front of this change is done, also what nobody waits for.
    kept.store().tidy(now());
    keep(kept.store(), Change::Delivered(id(0))).await;
    kept.store().tidy(now());
    keep(kept.store(), Change::Identity(Arc::new(identity(1, None)))).await;
    let kept = kept.restarted();
    let left = kept.store().recover().unwrap().undelivered;
    assert_eq!(left.iter().map(|one| one.task).collect::<Vec<_>>(), [1, 2, 3].map(id));
    for n in 1..4 {
        let journal = kept.store().journal(id(n)).await.unwrap().unwrap();
        assert_eq!(journal, whole(n, Some(until)));
    }
}

async fn a_request_id_names_its_task_for_a_day_and_while_it_is_needed<K: Kept>() {
    let kept = K::new();
    keep(kept.store(), Change::Identity(Arc::new(identity(7, None)))).await;
    let (before, forgotten) = (now() - 48.hours(), Incarnation(8));
    let batches = [
        (1, vec![requested(id(1), "open", before)]),
        (2, vec![requested(id(2), "undelivered", before), ended(Some(now() + 1.hour()))]),
        (3, vec![requested(id(3), "old", before), ended(None)]),
        (4, vec![requested(id(4), "young", now()), ended(None)]),
        (5, vec![requested_by(forgotten, id(5), "nobody's", now()), ended(None)]),
        (6, vec![created(id(6))]),
    ];
    for (n, batch) in batches {
        append(kept.store(), id(n), batch).await;
    }
    kept.store().tidy(now());
    let recovered = kept.restarted().store().recover().unwrap();
    assert_eq!((recovered.last_owner, recovered.newest_task), (forgotten, Some(id(6))));
    let mut found = recovered.requests;
    found.sort_by_key(|request| request.task);
    let names: Vec<_> = found.iter().map(|request| request.request_id.as_str()).collect();
    assert_eq!(names, ["open", "undelivered", "young"]);
    let young = &found[2];
    assert_eq!((young.owner, &*young.key), (Some(Incarnation(7)), "local"));
    let hash = RequestHash::new([0xab; 32]);
    assert_eq!((young.hash, young.task, young.created_at), (hash, id(4), now()));
}

async fn pages_have_neither_gaps_nor_repeats<K: Kept>() {
    let kept = K::new();
    let mut commits = Vec::new();
    for n in 0..5000 {
        let records = vec![created(id(n)), ended(None)];
        commits.push(kept.store().append(&Arc::new(Batch { task: id(n), records })));
    }
    for commit in commits {
        commit.wait().await.unwrap();
    }
    let (mut before, mut found) = (None, Vec::new());
    loop {
        let page =
            kept.store().tasks(Query { before, limit: 999, ..Query::default() }).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.task.id);
        found.extend(page.iter().map(|found| found.task.id));
    }
    assert!(found.into_iter().eq((0..5000).rev().map(id)));
    let rare = Query { task_name: Some("rare".to_owned()), limit: 1, ..Query::default() };
    assert!(kept.store().tasks(rare).await.unwrap().is_empty());
}

async fn a_list_has_what_it_is_asked_for<K: Kept>() {
    let kept = K::new();
    let named = |n: u128, device: &str, name: &str, key: Option<&str>| {
        let (device, key) = (ClientId::new(device).unwrap(), key.map(Into::into));
        let task_name = TaskName::sanitize(name).unwrap();
        let key = KeyName { name: "label".into(), id: key };
        Record::Created(Arc::new(Task { device, task_name, key, ..task(id(n)) }))
    };
    append(kept.store(), id(1), vec![named(1, "d", "a", None), decided(1, Incarnation(3))]).await;
    append(kept.store(), id(2), vec![named(2, "e", "a", Some("k")), ended(None)]).await;
    append(kept.store(), id(3), vec![named(3, "d", "b", Some("k"))]).await;
    append(kept.store(), id(4), vec![named(4, "d", "b", Some("label"))]).await;
    append(kept.store(), id(1), vec![answered("one"), decided(2, Incarnation(3))]).await;
    let all = Query { limit: 9, ..Query::default() };
    let device = Some(ClientId::new("d").unwrap());
    for (query, expected) in [
        (all.clone(), vec![4, 3, 2, 1]),
        (Query { limit: 2, ..all.clone() }, vec![4, 3]),
        (Query { before: Some(id(3)), ..all.clone() }, vec![2, 1]),
        (Query { device: device.clone(), ..all.clone() }, vec![4, 3, 1]),
        (Query { task_name: Some("a".to_owned()), ..all.clone() }, vec![2, 1]),
        (Query { key: Some("k".to_owned()), ..all.clone() }, vec![3, 2]),
        (Query { key: Some("label".to_owned()), ..all.clone() }, vec![4]),
        (Query { is_over: Some(true), ..all.clone() }, vec![2]),
        (Query { is_over: Some(false), ..all.clone() }, vec![4, 3, 1]),
        (Query { is_over: Some(false), device, before: Some(id(4)), ..all.clone() }, vec![3, 1]),
    ] {
        let found = kept.store().tasks(query.clone()).await.unwrap();
        let found: Vec<_> = found.iter().map(|found| found.task.id).collect();
        assert_eq!(found, expected.into_iter().map(id).collect::<Vec<_>>(), "{query:?}");
    }
    let found = kept.store().tasks(all).await.unwrap();
    assert_eq!(found.iter().map(|found| found.steps).collect::<Vec<_>>(), [0, 0, 0, 2]);
    let ended = found[2].ended.as_ref().unwrap();
    assert_eq!((ended.ending, ended.error.as_deref()), (Ending::Failed, Some("why")));
    assert_eq!(found[3].task.session_id.as_str(), "S");
}

async fn what_is_about_an_unknown_task_is_dropped<K: Kept>() {
    let kept = K::new();
    append(kept.store(), id(1), vec![answered("nobody asked")]).await;
    assert_eq!(kept.store().journal(id(1)).await.unwrap(), None);
    append(kept.store(), id(2), vec![created(id(2)), ended(None)]).await;
    assert_eq!(kept.store().journal(id(2)).await.unwrap().unwrap().len(), 2);
}

async fn a_change_comes_after_everything_before_it<K: Kept>() {
    let kept = K::new();
    let large = "x".repeat(3_000_000);
    let first = kept
        .store()
        .append(&Arc::new(Batch { task: id(1), records: vec![created(id(1)), answered(&large)] }));
    let second =
        kept.store().append(&Arc::new(Batch { task: id(1), records: vec![answered("small")] }));
    let change = kept.store().keep(Change::Identity(Arc::new(identity(1, None))));
    change.wait().await.unwrap();
    let read = kept.store().journal(id(1)).await.unwrap().unwrap();
    assert_eq!(read, [created(id(1)), answered(&large), answered("small")]);
    for commit in [first, second] {
        commit.wait().await.unwrap();
    }
}

async fn large_payloads_come_back_whole<K: Kept>() {
    let kept = K::new();
    let large = "ü".repeat(300_000);
    let huge = Record::Created(Arc::new(Task { request: large.clone(), ..task(id(1)) }));
    let value = Finish::Value(Payload::string(&large));
    let Record::Ended(end) = ended(None) else { panic!() };
    let end = Record::Ended(Arc::new(Ended { finish: value, ..Ended::clone(&end) }));
    let written = vec![huge, decided(1, Incarnation(1)), answered(&large), end];
    append(kept.store(), id(1), written.clone()).await;
    let kept = kept.restarted();
    assert!(kept.store().journal(id(1)).await.unwrap().unwrap() == written);
}

/// The tasks of which an audit log says that they were accepted, in its order.
pub(super) fn audited(log: &Path) -> Vec<TaskId> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let accepted = lines.filter(|line| line["event"] == "submitted");
    accepted.map(|line| line["task"].as_str().unwrap().parse().unwrap()).collect()
}

async fn a_task_is_in_the_audit_log_when_it_is_known_that_it_was_accepted<K: Kept>() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let settings = AuditSettings { path: path.clone(), max_bytes: 1 << 20, files: 1 };
    let kept = K::new();
    kept.store().set_audit(Audit::open(settings).unwrap());
    append(kept.store(), id(1), vec![created(id(1)), decided(1, Incarnation(3))]).await;
    assert_eq!(audited(&path), [id(1)]);
    append(kept.store(), id(1), vec![answered("one"), ended(None)]).await;
    append(kept.store(), id(2), vec![created(id(2)), answered(&"x".repeat(300_000))]).await;
    assert_eq!(audited(&path), [id(1), id(2)]);
}

/// What a database of an older version is tried with: an open task, one that ended, one whose outcome nobody
/// acknowledged, and an identity.
pub(super) async fn fill_a_fixture(store: &dyn Store) {
    keep(store, Change::Identity(Arc::new(identity(3, None)))).await;
    append(store, id(1), vec![requested(id(1), "Q1", now()), decided(1, Incarnation(3))]).await;
    append(store, id(1), vec![answered("one"), decided(2, Incarnation(3))]).await;
    append(store, id(2), vec![created(id(2)), ended(None)]).await;
    let until = Timestamp::from_second(4_000_000_000).unwrap();
    append(store, id(3), vec![requested(id(3), "Q3", now()), ended(Some(until))]).await;
}
