use super::*;
use crate::codec::Wire;
use crate::message::{ClientMessageType, ClientType, ServerMessageType, Status};

fn data(text: &'static str) -> Data {
    Data::Text(Payload::from_text(text).unwrap())
}

#[test]
fn bytes_come_back_as_they_were_and_their_number_is_known_without_reading_them() {
    let everything: Vec<u8> = (0..=255).collect();
    for bytes in [
        b"".as_slice(),
        b"plain\n",
        "tab\t quote\" back\\slash \u{7f} \u{1b}[1m é € 🙂\r\n".as_bytes(),
        &everything,
        b"\x00",
        b"\xff\xfe",
        &[7; 1000],
        &[0; 1000],
    ] {
        let data = Data::of(bytes);
        assert_eq!(data.to_bytes().as_deref(), Some(bytes));
        assert_eq!(data.len(), Some(bytes.len() as u64), "{data:?}");
        let is_text = matches!(data, Data::Text(_));
        assert!(is_text || data.payload().len() < bytes.len() * 3 / 2 + 8);
    }
}

#[test]
fn the_bytes_of_a_text_are_counted_whatever_its_escapes() {
    for text in [r#""\u00e9\u20ac\ud83d\ude42\n\/\u0041""#, r#""é€🙂""#, r#""\\\\\"""#] {
        let whole: String = serde_json::from_str(text).unwrap();
        assert_eq!(data(text).len(), Some(whole.len() as u64), "{text}");
    }
    for half in [r#""\ud83d""#, r#""\ude42""#, r#""\ud83dx""#, r#""\ud83d\u0041""#] {
        assert_eq!((data(half).len(), data(half).to_bytes()), (None, None), "{half}");
    }
    for (coded, length) in [(r#""""#, Some(0)), (r#""QQ==""#, Some(1)), (r#""QQ""#, None)] {
        let coded = Data::Base64(Payload::from_text(coded).unwrap());
        assert_eq!(coded.len(), length);
    }
}

#[test]
fn a_question_for_what_was_kept_is_read_as_it_was_written() {
    let asked = ReadSpool { id: 1 << 40, stream: Channel::Stdout, from: 1 << 41 };
    let result = asked.to_result();
    assert_eq!(ReadSpool::of(Some(&result)), Some(asked));
    assert_eq!(Downstream::of(Some(&result)), None, "no requester asks so");
    for chunks in [vec![chunk(), Chunk { data: Data::of(b"\xff"), ..chunk() }], Vec::new()] {
        let spooled = Spooled { id: 1 << 40, chunks };
        let metadata = spooled.to_metadata();
        assert_eq!(Spooled::of(Some(&metadata)), Some(spooled));
        assert_eq!(Upstream::of(Some(&metadata)), None, "no requester gets it");
    }
}

/// What it is in the frame of a HEARTBEAT.
fn metadata_of(upstream: &Upstream) -> Payload {
    let heartbeat = ClientMessage::new(ClientMessageType::Heartbeat, ClientType::Device);
    let read = ClientMessage::decode(&upstream.encode(&heartbeat)).unwrap();
    read.metadata.unwrap()
}

fn chunk() -> Chunk {
    Chunk {
        call_id: CallId::new("c1").ok(),
        stream: Channel::Stderr,
        n: 3,
        offset: 1 << 40,
        held: 17,
        data: Data::of(b"\"x\"\n"),
        end: true,
    }
}

#[test]
fn what_is_said_of_streams_is_read_as_it_was_written() {
    for upstream in [
        Upstream::Chunks(vec![chunk(), Chunk { data: Data::of(b"\xff"), end: false, ..chunk() }]),
        Upstream::Taken(InputTaken { call_id: CallId::new("c1").ok(), stdin: 9, closed: true }),
    ] {
        assert_eq!(Upstream::of(Some(&metadata_of(&upstream))), Some(upstream.clone()));
        let passed = Passed { task: "T".to_owned(), step: 2, upstream };
        let heartbeat = ServerMessage::new(ServerMessageType::Heartbeat, Status::Continue);
        let read = ServerMessage::decode(&passed.encode(&heartbeat)).unwrap();
        assert_eq!(Passed::of(read.result.as_ref()), Some(passed.clone()));
    }
    let text = metadata_of(&Upstream::Chunks(vec![chunk()]));
    assert_eq!(
        text.as_str(),
        r#"{"flightdeck":{"chunks":[{"call_id":"c1","stream":"stderr","n":3,"offset":1099511627776,"held":17,"text":"\"x\"\n","end":true}]}}"#
    );
    let taken = OutputTaken { step: 1, stdout: Some(5), stderr: None, again: true };
    let input = Input { step: 1, n: 0, offset: 0, data: Data::of(b"x"), end: false };
    for downstream in [Downstream::Taken(taken), Downstream::Input(input)] {
        assert_eq!(Downstream::of(Some(&downstream.to_payload())), Some(downstream));
    }
}

#[test]
fn what_is_no_chunk_is_none() {
    let of = |text: &'static str| Upstream::of(Some(&Payload::from_text(text).unwrap()));
    for wrong in [
        r#"{"flightdeck":{"chunks":[{"stream":"stdout","n":0,"offset":0,"held":0,"text":5}]}}"#,
        r#"{"flightdeck":{"chunks":[{"stream":"other","n":0,"offset":0,"held":0,"text":""}]}}"#,
        r#"{"flightdeck":{"chunks":[{"stream":"stdout","n":-1,"offset":0,"held":0}]}}"#,
        r#"{"flightdeck":{"output":{"lines":[]}}}"#,
        r"{}",
    ] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
    let many = vec![chunk(); MAX_CHUNKS + 1];
    assert_eq!(Upstream::of(Some(&metadata_of(&Upstream::Chunks(many)))), None);
}

#[test]
fn no_character_is_in_two_chunks() {
    let text = "a€🙂".as_bytes();
    let cuts: Vec<_> = (0..=text.len()).map(|end| whole_characters(&text[..end]).len()).collect();
    assert_eq!(cuts, [0, 1, 1, 1, 4, 4, 4, 4, 8]);
    assert_eq!(
        whole_characters(b"\xff\xe2\x82"),
        b"\xff\xe2\x82",
        "what is no text is cut anywhere"
    );
}
