//! Whatever can be said survives the wire: what one end writes the other reads back, payloads byte
//! for byte; what a foreign program words differently reads the same; what is broken is refused with
//! a text that can be shown.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Debug;

use aip::codec::{self, MAX_DEPTH, OUTCOME_DEPTH, Wire};
use aip::{
    ActionResult, CallId, ClientMessage, ClientMessageType, ClientType, Command, DecodeError,
    Payload, ResultStatus, ServerMessage, ServerMessageType, Status, ToolType,
};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::value::RawValue;

/// The most characters of a refusal's text.
const MAX_REFUSAL_CHARS: usize = 600;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_said_arrives_as_it_was_said(client in client_message(), server in server_message()) {
        check_round_trip(&client)?;
        check_round_trip(&server)?;
    }

    #[test]
    fn what_is_written_is_one_line_with_a_status_and_without_nulls(
        client in client_message(),
        server in server_message(),
    ) {
        check_form(&client, &client_payloads(&client))?;
        check_form(&server, &server_payloads(&server))?;
    }

    #[test]
    fn a_null_and_a_missing_field_mean_the_same(
        client in client_message(),
        server in server_message(),
    ) {
        check_retold(&client, with_nulls)?;
        check_retold(&server, with_nulls)?;
    }

    #[test]
    fn a_missing_status_or_role_is_the_default(
        client in client_message(),
        server in server_message(),
    ) {
        let client = ClientMessage { status: Status::Ok, client_type: ClientType::Device, ..client };
        let server = ServerMessage { status: Status::Ok, ..server };
        check_retold(&client, without_defaults)?;
        check_retold(&server, without_defaults)?;
        check_retold(&client, nulls_for_defaults)?;
        check_retold(&server, nulls_for_defaults)?;
    }

    #[test]
    fn unknown_fields_are_ignored(
        client in client_message(),
        server in server_message(),
        key in text().prop_map(|key| format!("x-{key}")),
        value in json(),
    ) {
        let add = |fields: &mut Fields| {
            fields.insert(key.clone(), value.clone());
        };
        check_retold(&client, add)?;
        check_retold(&server, add)?;
    }

    #[test]
    fn words_are_read_in_any_letter_case(
        client in client_message(),
        server in server_message(),
        upper in any::<u64>(),
    ) {
        check_retold(&client, |fields| shout(fields, upper))?;
        check_retold(&server, |fields| shout(fields, upper))?;
    }

    #[test]
    fn noise_is_refused_and_does_no_harm(noise in vec(any::<u8>(), 0..300), text in text()) {
        check_refusal(&noise.into())?;
        check_refusal(&text.into_bytes().into())?;
    }

    #[test]
    fn json_that_is_no_message_is_refused_and_does_no_harm(value in json()) {
        check_refusal(&value.into())?;
    }

    #[test]
    fn a_wrong_word_is_refused_with_a_text_that_can_be_shown(
        word in prop_oneof![text(), "\\PC{300,900}"],
        field in select(vec!["status", "client_type", "session_id", "metadata", "action_results"]),
    ) {
        let frame = serde_json::json!({ "type": "task", field: word }).to_string();
        check_refusal(&frame.into())?;
    }

    #[test]
    fn a_damaged_frame_does_no_harm(
        client in client_message(),
        server in server_message(),
        edits in vec(edit(), 1..6),
    ) {
        for frame in [client.encode(), server.encode()] {
            check_refusal(&damaged(&frame, &edits))?;
        }
    }

    #[test]
    fn a_broken_value_is_refused_with_a_text_that_can_be_shown(
        key in prop_oneof![text(), "\\PC{300,900}"],
        value in select(vec!["tru", "1.", "{", "\u{1}", ""]),
        nested in any::<bool>(),
    ) {
        let key = quoted(&key);
        let frame = if nested {
            format!(r#"{{"type":"task","action_results":[{{"status":"none",{key}:{value}}}]}}"#)
        } else {
            format!(r#"{{"type":"task",{key}:{value}}}"#)
        };
        check_refusal(&frame.into())?;
    }
}

#[test]
fn blanks_around_a_payload_do_not_make_another_payload() {
    let result = Some(Payload::from_text(" {\"a\": 1}\n").unwrap());
    assert_survives(&ServerMessage { result, ..task_end() });
}

#[test]
fn a_payload_that_is_null_counts_as_unset() {
    let result = Some(Payload::from_text("null").unwrap());
    let frame = ServerMessage { result, ..task_end() }.encode();
    assert!(!shown(&frame).contains("null"), "{}", shown(&frame));
    assert_eq!(ServerMessage::decode(&frame).unwrap(), task_end());
}

#[test]
fn results_pass_unchanged_up_to_two_hundred_levels() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"[{"ä": "#, "} ]")] {
        let per_unit = open.matches(['[', '{']).count();
        let units = (MAX_DEPTH - RESULT_LEVELS) / per_unit;
        assert_survives(&results(vec![nested(open, close, units), brackets()]));
        let message = results(vec![nested(open, close, units + 1)]);
        let refusal = ClientMessage::decode(&message.encode()).unwrap_err();
        assert!(matches!(refusal, DecodeError::TooDeep { limit: 200, .. }), "{refusal}");
    }
}

#[test]
fn what_a_device_may_send_fits_into_the_outcome_of_its_task() {
    let deepest = nested("[", "]", MAX_DEPTH - RESULT_LEVELS);
    assert_survives(&outcome(&results(vec![deepest, brackets()])));
}

#[test]
fn an_outcome_passes_up_to_its_own_limit() {
    let message = |levels| ServerMessage { result: Some(nested("[", "]", levels)), ..task_end() };
    assert_survives(&message(MAX_DEPTH + OUTCOME_DEPTH - 1));
    let refusal = ServerMessage::decode(&message(MAX_DEPTH + OUTCOME_DEPTH).encode()).unwrap_err();
    assert!(matches!(refusal, DecodeError::TooDeep { limit: 208, .. }), "{refusal}");
}

#[test]
fn large_payloads_pass_unchanged_alone_and_side_by_side() {
    let sizes = [1, 16 * 1024 - 3, 16 * 1024 - 2, 16 * 1024 - 1, 20_000, 100_000, 3_000_000];
    let all: Vec<Payload> = sizes.into_iter().map(sized).collect();
    for payload in &all {
        assert_survives(&results(vec![payload.clone()]));
        assert_survives(&ServerMessage { result: Some(payload.clone()), ..task_end() });
    }
    assert_survives(&results(all));
    assert_survives(&results((0..40).map(|_| sized(20_000)).collect()));
}

// --- What is checked ---

fn check_round_trip<M: Wire + PartialEq + Debug>(message: &M) -> Result<(), TestCaseError> {
    let frame = message.encode();
    let read = M::decode(&frame).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(shown(&read.encode()), shown(&frame));
    prop_assert_eq!(&read, message);
    Ok(())
}

fn check_form<M: Wire>(message: &M, payloads: &[&Payload]) -> Result<(), TestCaseError> {
    let frame = message.encode();
    let fields = fields(std::str::from_utf8(&frame).unwrap());
    prop_assert!(fields.values().all(|value| value != "null"), "{fields:?}");
    prop_assert!(fields.contains_key("status"), "{fields:?}");
    let carried: usize = payloads.iter().map(|payload| line_ends(payload.as_bytes())).sum();
    prop_assert_eq!(line_ends(&frame), carried);
    Ok(())
}

/// A message that another program words differently is still this message.
fn check_retold<M: Wire + PartialEq + Debug>(
    message: &M,
    change: impl Fn(&mut Fields),
) -> Result<(), TestCaseError> {
    let frame = retold(message, change);
    match M::decode(&frame) {
        Ok(read) => prop_assert_eq!(&read, message, "{}", shown(&frame)),
        Err(error) => prop_assert!(false, "{error}: {}", shown(&frame)),
    }
    Ok(())
}

/// Whoever sent this gets a short text without control characters, or it was a message after all.
fn check_refusal(frame: &Bytes) -> Result<(), TestCaseError> {
    for refusal in refusals(frame) {
        prop_assert!(refusal.chars().count() <= MAX_REFUSAL_CHARS, "{refusal}");
        prop_assert!(!refusal.chars().any(char::is_control), "{refusal:?}");
    }
    Ok(())
}

fn refusals(frame: &Bytes) -> Vec<String> {
    let client = ClientMessage::decode(frame).err();
    let server = ServerMessage::decode(frame).err();
    client.into_iter().chain(server).map(|refusal| refusal.to_string()).collect()
}

fn assert_survives<M: Wire + PartialEq + Debug>(message: &M) {
    let read = M::decode(&message.encode()).unwrap();
    assert!(read == *message, "another message comes back: {read:?}");
}

fn shown(frame: &Bytes) -> String {
    String::from_utf8_lossy(frame).into_owned()
}

fn line_ends(text: &[u8]) -> usize {
    text.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count()
}

// --- How other programs word it ---

/// The members of one JSON object, each value as its text; they are written in another order than
/// ours.
type Fields = BTreeMap<String, String>;

fn fields(object: &str) -> Fields {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(object).unwrap();
    fields.into_iter().map(|(key, value)| (key, value.get().to_owned())).collect()
}

fn object_text(fields: &Fields) -> String {
    let members: Vec<String> =
        fields.iter().map(|(key, value)| format!("{} : {value}", quoted(key))).collect();
    format!("{{ {} }}\n", members.join(",\n"))
}

/// Rewrites a message with `change` made to it and to each command and result in it.
fn retold<M: Wire>(message: &M, change: impl Fn(&mut Fields)) -> Bytes {
    let mut message = fields(std::str::from_utf8(&message.encode()).unwrap());
    let retell = |item: &&RawValue| {
        let mut item = fields(item.get());
        change(&mut item);
        object_text(&item)
    };
    for list in ["actions", "action_results"] {
        if let Some(text) = message.get_mut(list) {
            let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            let items: Vec<String> = items.iter().map(retell).collect();
            *text = format!("[{}]", items.join(" ,"));
        }
    }
    change(&mut message);
    object_text(&message).into()
}

/// As Python writes it: every field is there, the unset ones as `null`.
fn with_nulls(fields: &mut Fields) {
    let optional = [
        "session_id",
        "task_name",
        "client_id",
        "target_id",
        "request",
        "action_results",
        "timestamp",
        "request_id",
        "prev_response_id",
        "error",
        "metadata",
        "user_request",
        "agent_name",
        "process_name",
        "root_name",
        "actions",
        "messages",
        "response_id",
        "result",
        "parameters",
        "namespace",
        "call_id",
    ];
    for key in optional {
        fields.entry(key.to_owned()).or_insert_with(|| "null".to_owned());
    }
}

fn is_default(key: &str, value: &str) -> bool {
    matches!((key, value), ("status", r#""ok""#) | ("client_type", r#""device""#))
}

fn without_defaults(fields: &mut Fields) {
    fields.retain(|key, value| !is_default(key, value));
}

fn nulls_for_defaults(fields: &mut Fields) {
    for (key, value) in fields {
        if is_default(key, value) {
            *value = "null".to_owned();
        }
    }
}

/// Writes some letters of the protocol's words in upper case: those whose bit is set.
fn shout(fields: &mut Fields, upper: u64) {
    for key in ["type", "status", "client_type", "tool_type"] {
        if let Some(word) = fields.get_mut(key).filter(|word| is_a_word(word.trim_matches('"'))) {
            *word = word
                .chars()
                .enumerate()
                .map(|(n, c)| if upper >> n & 1 == 1 { c.to_ascii_uppercase() } else { c })
                .collect();
        }
    }
}

fn is_a_word(text: &str) -> bool {
    ClientMessageType::KNOWN.iter().any(|known| known.as_str() == text)
        || ServerMessageType::from_word(text).is_some()
        || Status::from_word(text).is_some()
        || ClientType::from_word(text).is_some()
        || ToolType::from_word(text).is_some()
        || ResultStatus::from_word(text).is_some()
}

/// One slip of a pen: where, what is done there, and with which byte.
type Edit = (Index, u8, u8);

fn edit() -> impl Strategy<Value = Edit> {
    (any::<Index>(), 0..5_u8, prop_oneof![any::<u8>(), select(br#"{}[]":,\0n"#.to_vec())])
}

fn damaged(frame: &Bytes, edits: &[Edit]) -> Bytes {
    let mut frame = frame.to_vec();
    for (index, what, byte) in edits {
        let at = index.index(frame.len().max(1));
        match what {
            0 if at < frame.len() => frame[at] = *byte,
            1 if at < frame.len() => drop(frame.remove(at)),
            2 => frame.truncate(at),
            3 => frame.extend_from_within(at.min(frame.len())..),
            _ => frame.insert(at.min(frame.len()), *byte),
        }
    }
    frame.into()
}

// --- What can be said ---

/// How many levels a result's value lies deep in COMMAND_RESULTS.
const RESULT_LEVELS: usize = 3;

fn results(payloads: Vec<Payload>) -> ClientMessage {
    let results = payloads.into_iter().map(|payload| ActionResult::success(None, None, payload));
    ClientMessage {
        action_results: Some(results.collect()),
        ..ClientMessage::new(ClientMessageType::CommandResults, ClientType::Device)
    }
}

fn task_end() -> ServerMessage {
    ServerMessage::new(ServerMessageType::TaskEnd, Status::Completed)
}

/// The outcome of a plan whose only step these are, as the server writes it.
fn outcome(results: &ClientMessage) -> ServerMessage {
    let steps = [results.action_results.iter().flatten()];
    let mut text = Vec::new();
    codec::write_outcome(&mut text, "r", |out| {
        codec::write_list(out, steps, |out, step| {
            codec::write_list(out, step, |out, result| codec::write_result(out, result.into()));
        });
    });
    ServerMessage { result: Some(Payload::from_text(text).unwrap()), ..task_end() }
}

fn nested(open: &str, close: &str, units: usize) -> Payload {
    Payload::from_text(format!("{}1{}", open.repeat(units), close.repeat(units))).unwrap()
}

/// More brackets than levels are allowed, and none of them a level deep.
fn brackets() -> Payload {
    Payload::string(&r#"[{\""#.repeat(MAX_DEPTH))
}

/// A JSON string of `len` characters between its quotes.
fn sized(len: usize) -> Payload {
    Payload::string(&"x".repeat(len))
}

fn client_payloads(message: &ClientMessage) -> Vec<&Payload> {
    let results = message.action_results.iter().flatten();
    results.filter_map(|result| result.result.as_ref()).chain(&message.metadata).collect()
}

fn server_payloads(message: &ServerMessage) -> Vec<&Payload> {
    let commands = message.actions.iter().flatten();
    commands.filter_map(|command| command.parameters.as_ref()).chain(&message.result).collect()
}

prop_compose! {
    fn client_message()(
        kind in client_kind(),
        status in select(Status::ALL),
        client_type in select(ClientType::ALL),
        (session_id, client_id, target_id) in (of(id()), of(id()), of(id())),
        (request_id, prev_response_id) in (of(id()), of(id())),
        (task_name, request) in (of(text()), of(text())),
        (timestamp, error) in (of(text()), of(text())),
        action_results in of(vec(action_result(), 0..4)),
        metadata in of(object_payload()),
    ) -> ClientMessage {
        ClientMessage {
            kind,
            status,
            client_type,
            session_id: session_id.map(|id| aip::SessionId::new(&id).unwrap()),
            task_name,
            client_id: client_id.map(|id| aip::ClientId::new(&id).unwrap()),
            target_id: target_id.map(|id| aip::ClientId::new(&id).unwrap()),
            request,
            action_results,
            timestamp,
            request_id: request_id.map(|id| aip::RequestId::new(&id).unwrap()),
            prev_response_id: prev_response_id.map(|id| aip::ResponseId::new(&id).unwrap()),
            error,
            metadata,
        }
    }
}

prop_compose! {
    fn server_message()(
        kind in select(ServerMessageType::ALL),
        status in select(Status::ALL),
        (session_id, response_id) in (of(id()), of(id())),
        (user_request, agent_name) in (of(text()), of(text())),
        (process_name, root_name) in (of(text()), of(text())),
        (task_name, timestamp, error) in (of(text()), of(text()), of(text())),
        actions in of(vec(command(), 0..4)),
        messages in of(vec(text(), 0..4)),
        result in of(payload()),
    ) -> ServerMessage {
        ServerMessage {
            kind,
            status,
            user_request,
            agent_name,
            process_name,
            root_name,
            actions,
            messages,
            error,
            session_id: session_id.map(|id| aip::SessionId::new(&id).unwrap()),
            task_name,
            timestamp,
            response_id: response_id.map(|id| aip::ResponseId::new(&id).unwrap()),
            result,
        }
    }
}

prop_compose! {
    fn command()(
        tool_name in text(),
        parameters in of(object_payload()),
        tool_type in select(ToolType::ALL),
        call_id in of(id()),
    ) -> Command {
        let call_id = call_id.map(|id| CallId::new(&id).unwrap());
        Command { tool_name, parameters, tool_type, call_id }
    }
}

prop_compose! {
    fn action_result()(
        status in select(ResultStatus::ALL),
        error in of(text()),
        result in of(payload()),
        namespace in of(text()),
        call_id in of(id()),
    ) -> ActionResult {
        let call_id = call_id.map(|id| CallId::new(&id).unwrap());
        ActionResult { status, error, result, namespace, call_id }
    }
}

fn client_kind() -> impl Strategy<Value = ClientMessageType> {
    let unknown = text()
        .prop_filter("a known type", |word| !is_a_word(&word.to_ascii_lowercase()))
        .prop_map(|word| ClientMessageType::Unknown(word.into()));
    prop_oneof![8 => select(ClientMessageType::KNOWN.to_vec()), 1 => unknown]
}

fn id() -> impl Strategy<Value = String> {
    prop_oneof![9 => "[^\\p{Cc}]{1,12}", 1 => "[^\\p{Cc}]{256}"]
}

/// Any text at all, control characters too.
fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..12).prop_map(String::from_iter)
}

/// A payload that is set: `null` would be the same as none.
fn payload() -> impl Strategy<Value = Payload> {
    let large = (16_000..40_000_usize).prop_map(sized);
    let small = json()
        .prop_filter("unset", |json| json != "null")
        .prop_map(|json| Payload::from_text(json).unwrap());
    prop_oneof![19 => small, 1 => large]
}

fn object_payload() -> impl Strategy<Value = Payload> {
    object(json()).prop_map(|json| Payload::from_text(json).unwrap())
}

// --- Any JSON, as a text that no JSON library would write ---

fn json() -> impl Strategy<Value = String> {
    scalar().prop_recursive(4, 24, 4, |inner| prop_oneof![array(inner.clone()), object(inner)])
}

fn scalar() -> impl Strategy<Value = String> {
    let odd = vec![
        "null",
        "true",
        "false",
        "-0",
        "1.50",
        "1E400",
        "0.1e-9999",
        "123456789012345678901234567890",
        r#""\ud800""#,
        r#""\u00e9\/\u0000""#,
    ];
    let number = "-?(0|[1-9][0-9]{0,39})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?";
    prop_oneof![select(odd).prop_map(str::to_owned), number, text().prop_map(|t| quoted(&t))]
}

fn array(item: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (blank(), vec((item, blank()), 0..4)).prop_map(|(blank, items)| {
        let items: Vec<String> =
            items.iter().map(|(item, after)| format!("{item}{after}")).collect();
        format!("[{blank}{}]", items.join(","))
    })
}

/// Keys in any order, also the same key twice.
fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (blank(), vec((text(), blank(), value), 0..4)).prop_map(|(blank, members)| {
        let members: Vec<String> = members
            .iter()
            .map(|(key, after, value)| format!("{}{after}:{after}{value}", quoted(key)))
            .collect();
        format!("{{{blank}{}}}", members.join(","))
    })
}

fn blank() -> impl Strategy<Value = &'static str> {
    select(vec!["", " ", "\n", "\t  ", "\r\n"])
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}
