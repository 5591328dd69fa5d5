//! What is true of any frame whatever: checked by the test beside it, and by the fuzz target `codec`.

use std::fmt::Debug;

use aip::codec::{About, MAX_MESSAGE_BYTES, Wire, kind_of_server};
use aip::{ClientId, ClientMessage, Payload, ServerMessage};
use bytes::Bytes;

/// The most characters of a refusal's text.
const MAX_REFUSAL_CHARS: usize = 450;

/// Reads a frame in every way there is.
///
/// # Errors
/// What is not as it should be.
pub(crate) fn check(frame: &Bytes) -> Result<(), String> {
    check_refusal(frame)?;
    check_as(frame, client_payloads)?;
    if let Some(message) = check_as(frame, server_payloads)? {
        let said = kind_of_server(&message.encode());
        expect(said == Some(message.kind), || {
            format!("a frame of {} says {said:?}", message.kind)
        })?;
    }
    Ok(())
}

/// Whatever a frame is about, a device has an answer to it that is JSON and fits into a message.
fn check_refusal(frame: &Bytes) -> Result<(), String> {
    let client_id = ClientId::new("d").map_err(|error| error.to_string())?;
    let answer = About::of(frame).refusal(&client_id, "now", "bad");
    expect(answer.len() <= MAX_MESSAGE_BYTES, || format!("{} bytes", answer.len()))?;
    expect(Payload::from_text(answer.clone()).is_ok(), || format!("answered with {answer:?}"))
}

/// A frame is refused with a text that can be shown, or read; what was read can be written, and reads the
/// same again, its payloads to the letter what they were in the frame.
fn check_as<M: Wire + PartialEq + Debug>(
    frame: &Bytes,
    payloads: fn(&M) -> Vec<&Payload>,
) -> Result<Option<M>, String> {
    let message = match M::decode(frame) {
        Ok(message) => message,
        Err(refusal) => {
            let text = refusal.to_string();
            let can_be_shown =
                text.chars().count() <= MAX_REFUSAL_CHARS && !text.chars().any(char::is_control);
            return expect(can_be_shown, || format!("refused with {text:?}")).map(|()| None);
        }
    };
    let frame = String::from_utf8_lossy(frame);
    for payload in payloads(&message) {
        let is_there = frame.contains(payload.as_str());
        expect(is_there, || format!("a payload was changed to {}", payload.as_str()))?;
    }
    let written = message.encode();
    let again =
        M::decode(&written).map_err(|error| format!("what we write is refused: {error}"))?;
    expect(again == message, || format!("{message:?} came back as {again:?}"))?;
    expect(again.encode() == written, || "the same message is written in two ways".to_owned())?;
    Ok(Some(message))
}

fn client_payloads(message: &ClientMessage) -> Vec<&Payload> {
    let results = message.action_results.iter().flatten();
    results.filter_map(|result| result.result.as_ref()).chain(&message.metadata).collect()
}

fn server_payloads(message: &ServerMessage) -> Vec<&Payload> {
    let commands = message.actions.iter().flatten();
    commands.filter_map(|command| command.parameters.as_ref()).chain(&message.result).collect()
}

fn expect(is_so: bool, else_say: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(else_say()) }
}
