//! A client that comes back, with its file and without; each start of it is a new [`Identity`].

use std::fs;

use super::*;

fn ambient() -> Ambient {
    Ambient::system().in_boot("boot")
}

fn open(folder: &tempfile::TempDir) -> Identity {
    try_open(folder).unwrap()
}

fn try_open(folder: &tempfile::TempDir) -> Result<Identity, IdentityError> {
    Identity::open(&folder.path().join("identity.json"), Retention::default(), &ambient())
}

fn confirmation(store: &str, key: &str) -> Resumed {
    Resumed {
        store: store.to_owned(),
        former: false,
        resumed: true,
        resume_key: key.to_owned(),
        resume_window_s: None,
        commands: Default::default(),
    }
}

fn key(resume: &Resume) -> (Option<&str>, Option<&str>) {
    (resume.store.as_deref(), resume.key.as_deref())
}

#[test]
fn a_client_names_itself_alike_after_each_start_and_counts_its_connections() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(&folder);
    let resume = first.present();
    assert_eq!((key(&resume), resume.n), ((None, None), 1));
    assert_eq!(first.present().n, 2);
    drop(first);
    let again = open(&folder).present();
    assert_eq!((again.n, again.journal), (3, resume.journal));
}

#[test]
fn a_key_is_in_the_file_before_it_is_presented_and_not_earlier() {
    let folder = tempfile::tempdir().unwrap();
    let text = || fs::read_to_string(folder.path().join("identity.json")).unwrap();
    let mut client = open(&folder);
    client.present();
    assert_eq!(client.handle_confirmed(&confirmation("S", "one")), None);
    assert!(!text().contains("one"), "a client that connects once writes no key");
    assert_eq!(key(&client.present()), (Some("S"), Some("one")));
    assert!(text().contains("one"));
    client.handle_confirmed(&confirmation("S", "two"));
    drop(client);
    assert_eq!(key(&open(&folder).present()), (Some("S"), Some("one")), "it was presented last");
}

#[test]
fn a_client_that_ends_after_its_first_confirmation_still_knows_its_store() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = open(&folder);
    client.present();
    client.handle_confirmed(&confirmation("S", "one"));
    drop(client);
    assert_eq!(key(&open(&folder).present()), (Some("S"), None));
}

#[test]
fn two_clients_cannot_have_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(&folder);
    let error = try_open(&folder).unwrap_err();
    assert!(matches!(error, IdentityError::InUse { .. }), "{error}");
    drop(first);
    assert!(try_open(&folder).is_ok());
}

#[test]
fn what_is_held_for_a_former_store_is_the_present_ones() {
    let mut client = Identity::in_memory(&ambient());
    client.handle_confirmed(&confirmation("S1", "one"));
    client.present();
    let renamed = Resumed { former: true, ..confirmation("S2", "two") };
    assert_eq!(client.handle_confirmed(&renamed).as_deref(), Some("S1"));
    assert_eq!(client.other_stores().count(), 0);
    assert_eq!(key(&client.present()), (Some("S2"), Some("two")));
    let same = Resumed { former: true, ..confirmation("S2", "three") };
    assert_eq!(client.handle_confirmed(&same), None, "nothing moves");
}

#[test]
fn a_client_that_ends_after_its_store_was_renamed_still_has_the_key_it_presented() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = open(&folder);
    client.handle_confirmed(&confirmation("S1", "one"));
    client.present();
    client.handle_confirmed(&Resumed { former: true, ..confirmation("S2", "two") });
    drop(client);
    assert_eq!(key(&open(&folder).present()), (Some("S2"), Some("one")));
}

#[test]
fn a_client_comes_again_with_what_it_holds_for_the_store_it_meets() {
    let mut client = Identity::in_memory(&ambient());
    client.handle_confirmed(&confirmation("A", "a"));
    client.present();
    client.handle_confirmed(&confirmation("B", "b"));
    let other = |id: &str| Mismatch { store: Some(id.to_owned()), ..Mismatch::default() };
    assert!(client.handle_refused(&other("A")));
    assert_eq!(key(&client.present()), (Some("A"), Some("a")));
    assert!(!client.handle_refused(&other("A")), "it would come with the same again");
    assert!(client.handle_refused(&other("stranger")));
    assert_eq!(key(&client.present()), (None, None));
    assert_eq!(client.other_stores().collect::<Vec<_>>(), ["A", "B"]);
}

#[test]
fn an_unknown_key_is_forgotten_and_a_number_that_was_used_is_passed() {
    let mut client = Identity::in_memory(&ambient());
    client.handle_confirmed(&confirmation("A", "a"));
    client.present();
    let unknown = Mismatch { key: Some("unknown".to_owned()), ..Mismatch::default() };
    assert!(client.handle_refused(&unknown) && !client.handle_refused(&unknown));
    assert_eq!(key(&client.present()), (Some("A"), None));
    assert!(client.handle_refused(&Mismatch { n: Some(40), ..Mismatch::default() }));
    assert_eq!(client.present().n, 41);
}

#[test]
fn few_stores_are_remembered_and_not_for_long() {
    let mut client = Identity::in_memory(&ambient());
    for number in 0..20 {
        client.handle_confirmed(&confirmation(&format!("S{number}"), "key"));
    }
    client.present();
    let others: Vec<_> = client.other_stores().collect();
    assert_eq!((others.len(), others[0], others[7]), (8, "S11", "S18"));
    let week_ago = Timestamp::now() - jiff::SignedDuration::from_hours(24 * 7 + 1);
    client.known.stores.iter_mut().for_each(|store| store.seen = week_ago);
    client.present();
    assert_eq!((client.other_stores().count(), client.store()), (0, Some("S19")));
}

#[test]
fn a_damaged_file_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(&folder).journal().clone();
    let path = folder.path().join("identity.json");
    fs::write(&path, "{\"file\":").unwrap();
    assert_ne!(*open(&folder).journal(), journal);
    assert!(folder.path().join("identity.damaged").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn where_nothing_can_be_written_the_key_before_is_presented() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = open(&folder);
    client.handle_confirmed(&confirmation("S", "one"));
    client.present();
    client.handle_confirmed(&confirmation("S", "two"));
    // A folder in the place of the draft, so that even root cannot write it.
    fs::create_dir(folder.path().join("identity.new")).unwrap();
    let resume = client.present();
    assert_eq!((key(&resume), resume.n), ((Some("S"), Some("one")), 2));
    fs::remove_dir(folder.path().join("identity.new")).unwrap();
    assert_eq!(key(&client.present()), (Some("S"), Some("two")));
}

#[cfg(unix)]
#[test]
fn nobody_else_reads_the_file_and_no_key_shows_itself() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mut client = open(&folder);
    client.handle_confirmed(&confirmation("S", "secret"));
    client.present();
    for name in ["identity.json", "identity.lock"] {
        let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert!(!format!("{client:?} {:?}", client.known).contains("secret"));
}
