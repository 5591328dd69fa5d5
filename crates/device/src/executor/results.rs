//! Makes the results of a COMMAND fit into one message.

use aip::codec::{MAX_MESSAGE_BYTES, Wire};
use aip::{
    ActionResult, ClientId, ClientMessage, ClientMessageType, ClientType, Command, Payload,
    ServerMessage,
};
use bytes::Bytes;

use super::jobs::Job;

/// The longest error of a result, in bytes. Servers keep no more of it.
const MAX_ERROR_BYTES: usize = 63 * 1024;

/// Room in a message beside the results.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// Room for each action beside what its result holds: one that did not run has to be told as well.
const EACH_BYTES: usize = 512;

/// What an action is told that was under way when the device ended.
const INTERRUPTED: &str = "interrupted, outcome unknown";

/// The text of the answer to a COMMAND, which fits into a message.
pub(super) fn answer(
    client_id: &ClientId,
    at: &str,
    job: &Job,
    results: Vec<ActionResult>,
) -> Bytes {
    let message = |results| ClientMessage {
        status: job.status,
        session_id: job.caller.session_id.clone(),
        client_id: Some(client_id.clone()),
        action_results: Some(results),
        timestamp: Some(at.to_owned()),
        prev_response_id: job.response_id.clone(),
        ..ClientMessage::new(ClientMessageType::CommandResults, ClientType::Device)
    };
    let answer = message(within(results, room(job.actions.len()))).encode();
    if answer.len() <= MAX_MESSAGE_BYTES {
        return answer;
    }
    // Names and ids may be that long, and escapes make texts longer.
    let error = format!("The results of {} bytes do not fit into a message", answer.len());
    message(all_failed(&job.actions, &error)).encode()
}

/// The same for a COMMAND that the end of the device cut off after these results.
pub(crate) fn interrupted(
    client_id: &ClientId,
    at: &str,
    command: ServerMessage,
    mut results: Vec<ActionResult>,
) -> Bytes {
    let job = Job::of(command);
    results.extend(all_failed(job.actions.get(results.len()..).unwrap_or_default(), INTERRUPTED));
    answer(client_id, at, &job, results)
}

/// What a message has room for, in bytes, with so many actions.
pub(super) fn room(actions: usize) -> usize {
    (MAX_MESSAGE_BYTES - ENVELOPE_BYTES).saturating_sub(actions * EACH_BYTES)
}

/// The same failure of each action.
pub(super) fn all_failed(actions: &[Command], error: &str) -> Vec<ActionResult> {
    actions.iter().map(|action| ActionResult::failure(action.call_id.clone(), error)).collect()
}

/// Replaces results that do not fit into the room of a message by failures that name their size.
pub(super) fn within(mut results: Vec<ActionResult>, mut room: usize) -> Vec<ActionResult> {
    for result in &mut results {
        if let Some(error) = result.error.as_mut().filter(|error| error.len() > MAX_ERROR_BYTES) {
            *error = head(error);
        }
        if content(result) > room {
            let bytes = result.result.as_ref().map_or(0, Payload::len);
            let error = format!("The result of {bytes} bytes does not fit into a message");
            *result = ActionResult::failure(result.call_id.clone(), error);
        } else {
            room -= content(result);
        }
    }
    results
}

/// What of a result [`EACH_BYTES`] has no room for, in bytes.
pub(super) fn content(result: &ActionResult) -> usize {
    result.bytes().saturating_sub(EACH_BYTES)
}

/// The beginning of an error that is longer than anybody reads.
fn head(error: &str) -> String {
    let end = (0..=MAX_ERROR_BYTES).rev().find(|at| error.is_char_boundary(*at)).unwrap_or(0);
    format!("{}… ({} bytes in all)", &error[..end], error.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_any_length_fits_into_a_message() {
        let error = "é".repeat(MAX_ERROR_BYTES);
        let results = within(vec![ActionResult::failure(None, error.as_str())], 100_000);
        let told = results[0].error.as_deref().unwrap_or_default();
        assert!(told.len() < MAX_ERROR_BYTES + 100 && told.ends_with("(129024 bytes in all)"));
    }

    #[test]
    fn a_result_that_fits_no_message_is_a_failure_that_names_its_size() {
        let result = |bytes| ActionResult::success(None, None, Payload::string(&"x".repeat(bytes)));
        let results = within(vec![result(5), result(3000), result(7)], 2000);
        let texts: Vec<_> = results.iter().map(|result| result.error.as_deref()).collect();
        let error = "The result of 3002 bytes does not fit into a message".to_owned();
        assert_eq!(texts, [None, Some(error.as_str()), None]);
    }
}
