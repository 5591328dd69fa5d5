use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::file::LogFile;
use super::*;

/// Settings for a log in a folder that goes away with the test.
fn settings(folder: &TempDir) -> AuditSettings {
    AuditSettings { path: folder.path().join("audit.jsonl"), max_bytes: 1 << 20, files: 3 }
}

fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn registered(client: &str) -> Entry<'_> {
    Entry { client: Some(client), ..Entry::new(Event::Registered) }
}

fn clients(entries: &[Value]) -> Vec<&str> {
    entries.iter().filter_map(|entry| entry["client"].as_str()).collect()
}

fn lines(clients: &[&str]) -> VecDeque<Line> {
    clients.iter().map(|client| registered(client).line()).collect()
}

#[test]
fn an_entry_is_a_line_with_what_is_known_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let audit = Audit::open(settings(&folder)).unwrap();
    let task = TaskId::fresh();
    audit.record(Entry::new(Event::Started));
    audit.record(Entry {
        client: Some("orchestrator"),
        role: Some("constellation"),
        key: Some("ci"),
        address: Some("[2001:db8::1]:443".parse().unwrap()),
        task: Some(task),
        session: Some("s-1"),
        device: Some("pc"),
        outcome: Some("failed"),
        reason: Some("it took too long"),
        ..Entry::new(Event::Ended)
    });
    drop(audit);
    let text = fs::read_to_string(settings(&folder).path).unwrap();
    let (first, second) = text.split_once('\n').unwrap();
    let (at, rest) = first.split_at(34);
    assert!(at.starts_with("{\"at\":\"20") && at.ends_with('Z'), "{at}");
    assert_eq!(rest, "\",\"event\":\"started\"}");
    let rest = format!(
        "\",\"event\":\"ended\",\"client\":\"orchestrator\",\"role\":\"constellation\",\"key\":\"ci\",\
         \"address\":\"[2001:db8::1]:443\",\"task\":\"{task}\",\"session\":\"s-1\",\"device\":\"pc\",\
         \"outcome\":\"failed\",\"reason\":\"it took too long\"}}\n"
    );
    assert_eq!(&second[34..], rest);
}

#[test]
fn what_a_peer_chose_is_bounded_and_cannot_drive_a_terminal_or_forge_a_line() {
    let folder = TempDir::new().unwrap();
    let audit = Audit::open(settings(&folder)).unwrap();
    for text in
        ["a\n{\"event\":\"started\"}", "\u{9b}2J\u{1b}[2J", &"ä".repeat(300), &"x".repeat(257)]
    {
        audit.record(registered(text));
    }
    audit.close();
    let entries = read(&settings(&folder).path);
    let clients = clients(&entries);
    assert_eq!(clients[0], "a\u{fffd}{\"event\":\"started\"}");
    assert_eq!(clients[1], "\u{fffd}2J\u{fffd}[2J");
    assert_eq!(clients[2], "ä".repeat(255) + "…");
    assert_eq!(clients[3], "x".repeat(255) + "…");
    assert_eq!(entries.len(), 4);
}

#[test]
fn what_the_queue_cannot_take_is_lost_and_the_log_says_how_much() {
    let folder = TempDir::new().unwrap();
    let log = Arc::new(Log::new(LogFile::open(settings(&folder)).unwrap()));
    let audit = Audit(Some(log.clone()));
    let names: Vec<String> = (0..QUEUE_ENTRIES + 5).map(|number| number.to_string()).collect();
    names.iter().for_each(|name| audit.record(registered(name)));
    assert_eq!(audit.lost(), 5);
    log.start().unwrap();
    audit.close();
    let entries = read(&settings(&folder).path);
    assert_eq!(clients(&entries), names[..QUEUE_ENTRIES]);
    let lost = entries.last().unwrap();
    assert_eq!((&lost["event"], &lost["count"]), (&"lost".into(), &5.into()));
    assert_eq!(entries.len(), QUEUE_ENTRIES + 1);
}

#[test]
fn everything_is_written_when_the_log_is_closed_and_what_comes_later_is_lost() {
    let folder = TempDir::new().unwrap();
    let audit = Audit::open(settings(&folder)).unwrap();
    let names: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    names.iter().for_each(|name| audit.record(registered(name)));
    audit.close();
    audit.record(registered("late"));
    audit.close();
    assert_eq!(clients(&read(&settings(&folder).path)), names);
    assert_eq!(audit.lost(), 1);
}

#[test]
fn a_full_file_is_put_aside_whole_and_the_oldest_go() {
    let folder = TempDir::new().unwrap();
    let line = registered("0000").line().len() as u64;
    let settings = AuditSettings { max_bytes: line * 10 + 5, ..settings(&folder) };
    let names: Vec<String> = (0..95).map(|number| format!("{number:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut file = LogFile::open(settings).unwrap();
    for batch in names.chunks(37) {
        file.append(&mut lines(batch)).unwrap();
    }
    let at = |end: &str| folder.path().join(format!("audit.jsonl{end}"));
    let kept: Vec<Value> = [".3", ".2", ".1", ""].iter().flat_map(|end| read(&at(end))).collect();
    assert_eq!(clients(&kept), names[60..]);
    assert!([".3", ".2", ".1"].iter().all(|end| read(&at(end)).len() == 10));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 4);
}

#[test]
fn without_older_files_a_full_one_is_deleted_and_a_long_line_is_written_all_the_same() {
    let folder = TempDir::new().unwrap();
    let settings = AuditSettings { max_bytes: 10, files: 0, ..settings(&folder) };
    let mut file = LogFile::open(settings.clone()).unwrap();
    file.append(&mut lines(&["a", "b", "c"])).unwrap();
    assert_eq!(clients(&read(&settings.path)), ["c"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn a_full_file_that_cannot_be_put_aside_grows_on() {
    let folder = TempDir::new().unwrap();
    let settings = AuditSettings { max_bytes: 10, files: 1, ..settings(&folder) };
    fs::create_dir(folder.path().join("audit.jsonl.1")).unwrap();
    let mut file = LogFile::open(settings.clone()).unwrap();
    file.append(&mut lines(&["a", "b", "c"])).unwrap();
    assert_eq!(clients(&read(&settings.path)), ["a", "b", "c"]);
}

#[test]
fn a_restart_goes_on_in_the_same_file_and_ends_the_line_that_a_crash_cut_short() {
    let folder = TempDir::new().unwrap();
    let settings = settings(&folder);
    fs::write(&settings.path, "{\"at\":\"2026-01-01T00:00:00.0000").unwrap();
    for name in ["first", "second"] {
        Audit::open(settings.clone()).unwrap().record(registered(name));
    }
    let text = fs::read_to_string(&settings.path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[1].contains("first") && lines[2].contains("second"), "{text}");
}

#[cfg(unix)]
#[test]
fn only_its_owner_reads_the_log_and_the_older_ones() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let settings = AuditSettings { max_bytes: 10, ..settings(&folder) };
    let mut file = LogFile::open(settings).unwrap();
    file.append(&mut lines(&["a", "b", "c"])).unwrap();
    for entry in fs::read_dir(&folder).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_nothing_that_still_has_a_place_in_the_queue() {
    let folder = TempDir::new().unwrap();
    let settings = settings(&folder);
    std::os::unix::fs::symlink("/dev/full", &settings.path).unwrap();
    let mut file = LogFile::open(settings.clone()).unwrap();
    let mut waiting = lines(&["a", "b"]);
    assert_eq!(file.append(&mut waiting).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(waiting.len(), 2);
    fs::remove_file(&settings.path).unwrap();
    waiting.extend(lines(&["c"]));
    file.append(&mut waiting).unwrap();
    assert_eq!(clients(&read(&settings.path)), ["a", "b", "c"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_still_full_at_the_end_does_not_keep_the_server_and_the_loss_is_counted() {
    let folder = TempDir::new().unwrap();
    let settings = settings(&folder);
    std::os::unix::fs::symlink("/dev/full", &settings.path).unwrap();
    let audit = Audit::open(settings).unwrap();
    ["a", "b", "c"].iter().for_each(|name| audit.record(registered(name)));
    audit.close();
    assert_eq!(audit.lost(), 3);
}

#[test]
fn without_an_audit_log_nothing_happens() {
    let audit = Audit::none();
    audit.record(Entry::new(Event::Started));
    audit.close();
    assert_eq!(audit.lost(), 0);
}

/// A task that was accepted at this second.
fn accepted(second: i64) -> Task {
    let created_at = Timestamp::from_second(second).unwrap();
    Task { created_at, ..crate::session::tests::task(TaskId::fresh()) }
}

fn of(events: &[Value], name: &str) -> Vec<TaskId> {
    let of_name = events.iter().filter(|line| line["event"] == name);
    of_name.map(|line| line["task"].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn an_accepted_task_has_its_line_before_anybody_is_told_and_behind_what_came_before() {
    let folder = TempDir::new().unwrap();
    let audit = Audit::open(settings(&folder)).unwrap();
    let [first, second, third] = [1, 2, 3].map(accepted);
    audit.record(registered("before"));
    audit.write_accepted([&first, &second]);
    let written = read(&settings(&folder).path);
    assert_eq!(written[0]["client"], "before");
    assert_eq!(of(&written, "submitted"), [first.id, second.id]);
    audit.queue_accepted(&third).wait().await.unwrap();
    assert_eq!(of(&read(&settings(&folder).path), "submitted")[2..], [third.id]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn nobody_waits_for_a_disk_that_refuses_an_accepted_tasks_line_which_comes_later() {
    let folder = TempDir::new().unwrap();
    let settings = settings(&folder);
    std::os::unix::fs::symlink("/dev/full", &settings.path).unwrap();
    let audit = Audit::open(settings.clone()).unwrap();
    let [first, second] = [1, 2].map(accepted);
    audit.write_accepted([&first]);
    audit.queue_accepted(&second).wait().await.unwrap();
    fs::remove_file(&settings.path).unwrap();
    audit.close();
    assert_eq!(of(&read(&settings.path), "submitted"), [first.id, second.id]);
    assert_eq!(audit.lost(), 0);
}

#[test]
fn what_a_killed_server_did_not_write_down_is_seen_at_the_end_of_the_log() {
    let folder = TempDir::new().unwrap();
    let now = Timestamp::now().as_second();
    let audit = Audit::open(settings(&folder)).unwrap();
    assert!(audit.end().is_none(), "there is no log, so nothing can be missing");
    audit.record(Entry::new(Event::Started));
    let [old, known, missing] = [now - 1000, now + 1, now + 2].map(accepted);
    audit.write_accepted([&known]);
    let end = audit.end().unwrap();
    assert_eq!([&old, &known, &missing].map(|task| end.misses(task)), [false, false, true]);
    audit.write_missing([&missing]);
    assert!(!audit.end().unwrap().misses(&missing));
    let line = read(&settings(&folder).path).pop().unwrap();
    assert_eq!(line["at"], format!("{:.6}", missing.created_at));
    assert!(line["reason"].as_str().unwrap().contains("killed"), "{line}");
    audit.record(Entry::new(Event::Stopped));
    audit.flush();
    assert!(audit.end().is_none(), "its server has stopped in peace");
}

#[test]
fn the_end_of_the_log_reaches_into_the_file_before_it() {
    let folder = TempDir::new().unwrap();
    let line = Entry::of(&accepted(0), Event::Submitted).line().len() as u64;
    let audit = Audit::open(AuditSettings { max_bytes: 2 * line, ..settings(&folder) }).unwrap();
    let now = Timestamp::now().as_second();
    let tasks = [(); 3].map(|()| accepted(now + 10));
    audit.write_accepted(&tasks);
    let end = audit.end().unwrap();
    assert!(tasks.iter().all(|task| !end.misses(task)));
    assert!(end.misses(&accepted(now + 10)));
}

#[test]
fn what_becomes_of_a_key_is_written_behind_a_server_that_runs_or_was_killed() {
    let folder = TempDir::new().unwrap();
    let settings = settings(&folder);
    let new = crate::auth::NewKey {
        name: "lab".to_owned(),
        role: crate::auth::Role::Device,
        client: None,
        target: None,
        expires_at: None,
    };
    let (key, secret) = crate::auth::KeyRecord::create(new).unwrap();
    fs::write(&settings.path, "{\"at\":\"2026").unwrap();
    append_key_change(&settings.path, &key.name, key.role, KeyChange::Created).unwrap();
    let audit = Audit::open(settings.clone()).unwrap();
    audit.record(registered("a"));
    audit.flush();
    append_key_change(&settings.path, &key.name, key.role, KeyChange::Revoked).unwrap();
    audit.record(registered("b"));
    audit.close();
    let text = fs::read_to_string(&settings.path).unwrap();
    let lines: Vec<Value> =
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["key_created", "registered", "key_revoked", "registered"]);
    assert_eq!((&lines[0]["key"], &lines[0]["role"]), (&"lab".into(), &"device".into()));
    assert!(!text.contains(secrecy::ExposeSecret::expose_secret(&secret)));
}
