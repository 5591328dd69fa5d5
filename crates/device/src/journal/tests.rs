//! Journals in real files, each start of a device a new [`Journals`].

use std::fs;
use std::path::PathBuf;

use aip::message::HeldState;
use aip::{ServerMessageType, Status};

use super::disk::aside_name;
use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> Journals {
        self.open_in("boot").0
    }

    fn open_in(&self, boot: &str) -> (Journals, bool) {
        let folder = Some(self.0.path().to_owned());
        let settings = JournalSettings { folder, ..JournalSettings::default() };
        let interrupt = |command: ServerMessage, results: Vec<ActionResult>| {
            let id = command.response_id.unwrap();
            Bytes::from(format!("interrupted {id} after {}", results.len()))
        };
        Journals::open(settings, boot, &interrupt).unwrap()
    }

    fn log(&self) -> PathBuf {
        let files = fs::read_dir(self.0.path()).unwrap().map(|file| file.unwrap().path());
        let mut logs = files.filter(|path| path.extension().unwrap() == "journal");
        let log = logs.next().unwrap();
        assert!(logs.next().is_none());
        log
    }
}

fn ticket(n: u128) -> Ticket {
    Ticket { journal: 0, id: CommandId(n << 80 | 7 << 76 | 2 << 62) }
}

fn receive(journals: &mut Journals, ticket: Ticket) {
    let command = ServerMessage {
        session_id: Some("s".parse().unwrap()),
        response_id: ticket.id.to_response_id(),
        ..ServerMessage::new(ServerMessageType::Command, Status::Continue)
    };
    journals.receive(ticket, command.session_id.as_ref(), &command.encode()).unwrap();
}

fn execute(journals: &mut Journals, ticket: Ticket, results: &'static str) {
    receive(journals, ticket);
    journals.start(ticket).unwrap();
    assert!(journals.finish(ticket, Finished::Small(results.into()), false));
}

fn results(journals: &mut Journals, ticket: Ticket) -> Option<Bytes> {
    match journals.results(ticket).unwrap()? {
        Kept::Here(frame) => Some(frame),
        Kept::Aside { len, crc } => Some(journals.shelf().take_out(ticket.id, len, crc).unwrap()),
    }
}

fn states(journals: &Journals) -> Vec<HeldState> {
    journals.list("S").1.into_iter().map(|held| held.state).collect()
}

#[test]
fn wherever_a_journal_is_torn_what_stands_before_is_read() {
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.select("S", None);
    execute(&mut journals, ticket(1), "one");
    let len = fs::metadata(folder.log()).unwrap().len();
    execute(&mut journals, ticket(2), "two");
    drop(journals);
    let whole = fs::read(folder.log()).unwrap();
    for end in len as usize..whole.len() {
        fs::write(folder.log(), &whole[..end]).unwrap();
        let (mut journals, is_damaged) = folder.open_in("boot");
        assert!(!is_damaged);
        assert_eq!(results(&mut journals, ticket(1)).unwrap(), "one", "{end}");
        if let Known::Held(state) = journals.known(ticket(2)) {
            // One that ran is interrupted by now.
            assert_ne!(state, HeldState::Running, "{end}");
        }
        // It can be written again.
        execute(&mut journals, ticket(3), "three");
        drop(journals);
        assert_eq!(results(&mut folder.open(), ticket(3)).unwrap(), "three", "{end}");
    }
}

#[test]
fn damage_in_the_middle_is_told_unless_power_was_lost() {
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.select("S", None);
    execute(&mut journals, ticket(1), "one");
    let len = fs::metadata(folder.log()).unwrap().len() as usize;
    execute(&mut journals, ticket(2), "two");
    drop(journals);
    let mut damaged = fs::read(folder.log()).unwrap();
    damaged[len + 10] ^= 1;
    for (boot, expected) in [("boot", true), ("another", false)] {
        fs::write(folder.log(), &damaged).unwrap();
        let (mut journals, is_damaged) = folder.open_in(boot);
        assert_eq!(is_damaged, expected);
        assert_eq!(results(&mut journals, ticket(1)).unwrap(), "one");
        assert_eq!(journals.known(ticket(2)), Known::New);
    }
}

#[test]
fn a_flipped_byte_of_the_last_record_is_damage_and_nothing_is_started_again() {
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.select("S", None);
    receive(&mut journals, ticket(1));
    let len = fs::metadata(folder.log()).unwrap().len() as usize;
    journals.start(ticket(1)).unwrap();
    drop(journals);
    let whole = fs::read(folder.log()).unwrap();
    for at in len..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(folder.log(), &damaged).unwrap();
        let (journals, is_damaged) = folder.open_in("boot");
        assert!(is_damaged, "{at}");
        assert_eq!(states(&journals), [HeldState::Done], "{at}");
        // What it had a receipt for was sent to the journal that this one is not any more, also at the next start.
        assert_eq!(journals.list("S").0, None, "{at}");
        drop(journals);
        assert_eq!(folder.open().list("S").0, None, "{at}");
    }
}

#[test]
fn a_journal_that_is_damaged_at_its_beginning_has_lost_all() {
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.select("S", None);
    execute(&mut journals, ticket(1), "one");
    drop(journals);
    let mut damaged = fs::read(folder.log()).unwrap();
    damaged[8] ^= 1;
    fs::write(folder.log(), &damaged).unwrap();
    let (journals, is_damaged) = folder.open_in("boot");
    assert!(is_damaged);
    assert_eq!(journals.known(ticket(1)), Known::New);
}

#[test]
fn a_journal_does_not_grow_with_what_is_over() {
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.select("S", None);
    execute(&mut journals, ticket(1), "kept");
    for n in 2..10_000 {
        execute(&mut journals, ticket(n), "results");
        journals.forget(ticket(n));
    }
    assert!(fs::metadata(folder.log()).unwrap().len() < 2 * COMPACT_BYTES);
    for _ in 0..2 {
        assert_eq!(results(&mut journals, ticket(1)).unwrap(), "kept");
        assert_eq!(states(&journals), [HeldState::Done]);
        let known = [2, 5000, 9999, 10_000].map(|n| journals.known(ticket(n)));
        assert_eq!(known, [Known::TooOld, Known::TooOld, Known::Forgotten, Known::New]);
        assert_eq!(journals.list("S").0, ticket(9999).id.to_response_id());
        drop(journals);
        journals = folder.open();
    }
}

#[test]
fn what_was_received_in_another_boot_is_done_and_stays_so() {
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.select("S", None);
    receive(&mut journals, ticket(1));
    drop(journals);
    assert_eq!(states(&folder.open()), [HeldState::Received]);
    for boot in ["another", "third"] {
        let (mut journals, _) = folder.open_in(boot);
        assert_eq!(states(&journals), [HeldState::Done]);
        let told = results(&mut journals, ticket(1)).unwrap();
        assert!(told.starts_with(b"interrupted") && told.ends_with(b"after 0"), "{told:?}");
    }
}

#[test]
fn large_results_lie_aside_until_they_are_forgotten_and_damage_is_noticed() {
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.select("S", None);
    let large = Bytes::from(vec![b'x'; 200_000]);
    receive(&mut journals, ticket(1));
    let crc = journals.shelf().put(ticket(1).id, &large).unwrap();
    journals.finish(ticket(1), Finished::Aside { len: large.len() as u64, crc }, false);
    drop(journals);
    let mut journals = folder.open();
    assert_eq!(results(&mut journals, ticket(1)).unwrap(), large);
    let path = folder.0.path().join(aside_name(ticket(1).id));
    fs::write(&path, "something else").unwrap();
    let damaged = journals.shelf().take_out(ticket(1).id, large.len() as u64, crc);
    assert!(damaged.is_err());
    journals.forget(ticket(1));
    assert!(!path.exists());
    // What nobody knows of goes at the start.
    fs::write(&path, "left behind").unwrap();
    drop(journals);
    folder.open();
    assert!(!path.exists());
}

#[test]
fn the_bounds_hold_over_all_stores() {
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.bounds.commands = 2;
    for (number, store) in ["A", "B"].into_iter().enumerate() {
        let journal = journals.select(store, None);
        assert_eq!(journal, number as u32);
        execute(&mut journals, Ticket { journal, ..ticket(1) }, "results");
    }
    let one_more = Ticket { journal: 0, ..ticket(2) };
    assert_eq!(journals.receive(one_more, None, b"{}"), Err("journal full".to_owned()));
    journals.retain(|store| store == "A");
    assert_eq!(journals.receive(one_more, None, b"{}"), Ok(()));
    drop(journals);
    assert_eq!(folder.open().find("B"), None);
}

#[test]
fn what_was_taken_under_another_store_id_stays_over_when_that_journal_is_gone() {
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.select("S", None);
    execute(&mut journals, ticket(1), "held");
    execute(&mut journals, ticket(2), "results");
    journals.forget(ticket(2));
    assert_eq!(journals.select("copy", Some("S")), 0);
    let journal = journals.select("S", None);
    let back = [1, 2, 3].map(|n| Ticket { journal, ..ticket(n) });
    let expected = [Known::Forgotten, Known::Forgotten, Known::New];
    assert_eq!(back.map(|ticket| journals.known(ticket)), expected);
    back[..2].iter().for_each(|ticket| journals.remember(*ticket));
    journals.retain(|store| store == "S");
    assert_eq!(back.map(|ticket| journals.known(ticket)), expected);
    drop(journals);
    let journals = folder.open();
    assert_eq!([1, 2, 3].map(|n| journals.known(ticket(n))), expected);
}

#[cfg(unix)]
#[test]
fn nobody_else_can_read_a_journal() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let mut journals = folder.open();
    journals.select("S", None);
    execute(&mut journals, ticket(1), "results");
    journals.shelf().put(ticket(2).id, &Bytes::from("large")).unwrap();
    for file in fs::read_dir(folder.0.path()).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
