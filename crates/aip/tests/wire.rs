//! The exact text of what we say, side by side with the messages: the small conversation of the
//! protocol's section 2, and what the extension adds to it. Each message is written, compared with
//! the text, and read back.

#![allow(clippy::unwrap_used)]

use std::fmt::Debug;

use aip::codec::{self, Wire};
use aip::machine;
use aip::message::{Confirmed, Feature, Step};
use aip::{
    ActionResult, CallId, ClientId, ClientMessage, ClientMessageType, ClientType, Command, Payload,
    RequestId, ResponseId, ServerMessage, ServerMessageType, SessionId, Status, ToolType,
};
use insta::assert_snapshot;

#[test]
fn register_a_device() {
    let message = ClientMessage {
        client_id: Some(id("d")),
        timestamp: Some("2026-01-01T00:00:00.123456+00:00".to_owned()),
        metadata: Some(payload(
            r#"{"platform":"linux","system_info":{"device_id":"d","memory_total_gb":1.50}}"#,
        )),
        ..ClientMessage::new(ClientMessageType::Register, ClientType::Device)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"register","status":"ok","client_type":"device","client_id":"d","timestamp":"2026-01-01T00:00:00.123456+00:00","metadata":{"platform":"linux","system_info":{"device_id":"d","memory_total_gb":1.50}}}"#);
}

#[test]
fn register_a_constellation() {
    let message = ClientMessage {
        client_id: Some(id("g")),
        target_id: Some(id("d")),
        ..ClientMessage::new(ClientMessageType::Register, ClientType::Constellation)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"register","status":"ok","client_type":"constellation","client_id":"g","target_id":"d"}"#);
}

#[test]
fn confirm_a_registration() {
    let message = machine::confirm(response("E"), "2026-01-01T00:00:00.123456+00:00".into(), None);
    assert_snapshot!(wire(&message), @r#"{"type":"heartbeat","status":"ok","timestamp":"2026-01-01T00:00:00.123456+00:00","response_id":"E"}"#);
}

#[test]
fn confirm_a_registration_with_the_extension() {
    let granted = Confirmed {
        version: 1,
        features: vec![Feature::Progress],
        server: "flightdeck 0.1.0".to_owned(),
        connection: "7".to_owned(),
        next_key: None,
        resumed: None,
    };
    let timestamp = "2026-01-01T00:00:00.123456+00:00";
    let message = machine::confirm(response("E"), timestamp.into(), Some(&granted));
    assert_snapshot!(wire(&message), @r#"{"type":"heartbeat","status":"ok","timestamp":"2026-01-01T00:00:00.123456+00:00","response_id":"E","result":{"flightdeck":{"version":1,"features":["progress"],"server":"flightdeck 0.1.0","connection":"7"}}}"#);
    assert_eq!(machine::read_confirmation(&message), Ok(Some(granted)));
}

#[test]
fn refuse_a_registration() {
    let refusal = machine::Refusal::AlreadyRegistered(id("d"));
    let message = ServerMessage::error(refusal.to_string(), None);
    assert_snapshot!(wire(&message), @r#"{"type":"error","status":"error","error":"client_id 'd' is already registered; duplicate registrations are not allowed"}"#);
}

#[test]
fn heartbeat() {
    let message = ClientMessage {
        client_id: Some(id("d")),
        ..ClientMessage::new(ClientMessageType::Heartbeat, ClientType::Device)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"heartbeat","status":"ok","client_type":"device","client_id":"d"}"#);
}

#[test]
fn task() {
    let message = ClientMessage {
        status: Status::Continue,
        client_id: Some(id("g")),
        target_id: Some(id("d")),
        session_id: session(),
        task_name: Some("t".to_owned()),
        request: Some("Which kernel\n\"runs\" on d\u{e4}?".to_owned()),
        ..ClientMessage::new(ClientMessageType::Task, ClientType::Constellation)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"task","status":"continue","client_type":"constellation","session_id":"S","task_name":"t","client_id":"g","target_id":"d","request":"Which kernel\n\"runs\" on dä?"}"#);
}

#[test]
fn acknowledge_a_task() {
    let message = ServerMessage {
        session_id: session(),
        response_id: Some(response("A")),
        ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"heartbeat","status":"ok","session_id":"S","response_id":"A"}"#);
}

#[test]
fn command() {
    let message = ServerMessage {
        agent_name: Some("LinuxAgent".to_owned()),
        session_id: session(),
        task_name: Some("t".to_owned()),
        response_id: Some(response("R")),
        actions: Some(vec![uname(), list_tools()]),
        ..ServerMessage::new(ServerMessageType::Command, Status::Continue)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"command","status":"continue","agent_name":"LinuxAgent","actions":[{"tool_name":"execute_command","parameters":{"command":"uname -r"},"tool_type":"action","call_id":"C"},{"tool_name":"list_tools","tool_type":"data_collection","call_id":"D"}],"session_id":"S","task_name":"t","response_id":"R"}"#);
}

#[test]
fn results_of_a_command() {
    let failure = ActionResult::failure(call("D"), "no such tool: fly");
    let message = ClientMessage {
        status: Status::Continue,
        client_id: Some(id("d")),
        session_id: session(),
        prev_response_id: Some(response("R")),
        action_results: Some(vec![ran(), failure, ActionResult::skipped(call("E"))]),
        ..ClientMessage::new(ClientMessageType::CommandResults, ClientType::Device)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"command_results","status":"continue","client_type":"device","session_id":"S","client_id":"d","action_results":[{"status":"success","result":{"success":true,"exit_code":0,"stdout":"6.1\n","stderr":""},"namespace":"BashExecutor","call_id":"C"},{"status":"failure","error":"no such tool: fly","call_id":"D"},{"status":"skipped","error":"Skipped due to previous failure (early_exit=True).","call_id":"E"}],"prev_response_id":"R"}"#);
}

#[test]
fn end_of_a_task() {
    let message = ServerMessage {
        session_id: session(),
        response_id: Some(response("E")),
        ..ServerMessage::new(ServerMessageType::TaskEnd, Status::Completed)
    };
    let frame = codec::encode_server(&message, 64, |out| {
        codec::write_outcome(out, "Which kernel?", |out| {
            codec::write_list(out, [vec![ran()]], |out, step| {
                codec::write_list(out, &step, |out, result| {
                    codec::write_result(out, result.into());
                });
            });
        });
    });
    let text = std::str::from_utf8(&frame).unwrap();
    assert_snapshot!(text, @r#"{"type":"task_end","status":"completed","session_id":"S","response_id":"E","result":[{"request":"Which kernel?","result":[[{"status":"success","result":{"success":true,"exit_code":0,"stdout":"6.1\n","stderr":""},"namespace":"BashExecutor","call_id":"C"}]]}]}"#);

    let read = ServerMessage::decode(&frame).unwrap();
    assert_eq!(ServerMessage { result: None, ..read.clone() }, message);
    assert_eq!(wire(&read), text);
}

#[test]
fn end_of_a_task_whose_result_is_too_large() {
    let instead = payload(r#"{"truncated":true,"bytes":209715200,"task":"T"}"#);
    let message = ServerMessage {
        session_id: session(),
        ..ServerMessage::new(ServerMessageType::TaskEnd, Status::Completed)
    };
    let frame = codec::encode_server(&message, 64, |out| {
        codec::write_outcome(out, "r", |out| {
            let ran = ran();
            codec::write_result(
                out,
                codec::ResultFields { result: Some(&instead), ..(&ran).into() },
            );
        });
    });
    assert_snapshot!(std::str::from_utf8(&frame).unwrap(), @r#"{"type":"task_end","status":"completed","session_id":"S","result":[{"request":"r","result":{"status":"success","result":{"truncated":true,"bytes":209715200,"task":"T"},"namespace":"BashExecutor","call_id":"C"}}]}"#);
}

#[test]
fn failure_of_a_task() {
    let text = "Task was cancelled because target device disconnected ('d')";
    let message = ServerMessage {
        response_id: Some(response("E")),
        ..ServerMessage::task_failed(text, session().unwrap())
    };
    assert_snapshot!(wire(&message), @r#"{"type":"task_end","status":"failed","error":"Task was cancelled because target device disconnected ('d')","session_id":"S","response_id":"E"}"#);
    let frame = codec::encode_server(&message, 0, |_| {});
    assert_eq!(frame, message.encode(), "an outcome that is not written is left out");
}

#[test]
fn error_from_the_server() {
    let message = ServerMessage {
        response_id: Some(response("E")),
        ..ServerMessage::error("session_id 'S' is already running", session())
    };
    assert_snapshot!(wire(&message), @r#"{"type":"error","status":"error","error":"session_id 'S' is already running","session_id":"S","response_id":"E"}"#);
}

#[test]
fn error_from_a_client() {
    let message = ClientMessage {
        status: Status::Error,
        client_id: Some(id("d")),
        error: Some("Invalid message: missing field `type`".to_owned()),
        ..ClientMessage::new(ClientMessageType::Error, ClientType::Device)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"error","status":"error","client_type":"device","client_id":"d","error":"Invalid message: missing field `type`"}"#);
}

#[test]
fn ask_for_the_facts_of_a_device() {
    let message = ClientMessage {
        client_id: Some(id("g")),
        target_id: Some(id("d")),
        request_id: Some(RequestId::new("Q").unwrap()),
        ..ClientMessage::new(ClientMessageType::DeviceInfoRequest, ClientType::Constellation)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"device_info_request","status":"ok","client_type":"constellation","client_id":"g","target_id":"d","request_id":"Q"}"#);
}

#[test]
fn tell_the_facts_of_a_device() {
    let message = ServerMessage {
        response_id: Some(response("Q")),
        result: Some(payload(r#"{"device_id":"d","platform":"linux","tags":["lab"]}"#)),
        ..ServerMessage::new(ServerMessageType::DeviceInfoResponse, Status::Ok)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"device_info_response","status":"ok","response_id":"Q","result":{"device_id":"d","platform":"linux","tags":["lab"]}}"#);
}

#[test]
fn ask_a_device_for_its_facts() {
    let message = ServerMessage {
        response_id: Some(response("Q")),
        ..ServerMessage::new(ServerMessageType::DeviceInfoRequest, Status::Ok)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"device_info_request","status":"ok","response_id":"Q"}"#);
}

#[test]
fn tell_the_server_the_own_facts() {
    let message = ClientMessage {
        client_id: Some(id("d")),
        prev_response_id: Some(response("Q")),
        metadata: Some(payload(r#"{"device_id":"d","cpu_count":8}"#)),
        ..ClientMessage::new(ClientMessageType::DeviceInfoResponse, ClientType::Device)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"device_info_response","status":"ok","client_type":"device","client_id":"d","prev_response_id":"Q","metadata":{"device_id":"d","cpu_count":8}}"#);
}

#[test]
fn push_a_task_to_a_device() {
    let message = ServerMessage {
        user_request: Some("Tidy up".to_owned()),
        task_name: Some("t".to_owned()),
        session_id: session(),
        response_id: Some(response("E")),
        ..ServerMessage::new(ServerMessageType::Task, Status::Continue)
    };
    assert_snapshot!(wire(&message), @r#"{"type":"task","status":"continue","user_request":"Tidy up","session_id":"S","task_name":"t","response_id":"E"}"#);
}

#[test]
fn progress_of_a_task() {
    let message = progress(&Step::running(1, &uname()), "step 1: execute_command");
    assert_snapshot!(wire(&message), @r#"{"type":"heartbeat","status":"continue","messages":["step 1: execute_command"],"session_id":"S","result":{"flightdeck":{"step":{"n":1,"tool_name":"execute_command","parameters":{"command":"uname -r"},"status":"running","elapsed_ms":0}}}}"#);
}

#[test]
fn progress_of_a_task_whose_step_ended() {
    let step = Step::running(1, &uname()).ended(&ran(), 12, 20);
    let message = progress(&step, "step 1: execute_command success (12 ms)");
    assert_snapshot!(wire(&message), @r#"{"type":"heartbeat","status":"continue","messages":["step 1: execute_command success (12 ms)"],"session_id":"S","result":{"flightdeck":{"step":{"n":1,"tool_name":"execute_command","parameters":{"command":"uname -r"},"status":"success","result_head":"{\"success\":true,\"exi","elapsed_ms":12}}}}"#);
    assert_eq!(Step::of(message.result.as_ref()), Some(step));
}

#[test]
fn progress_shows_the_parameters_as_they_were_given() {
    let text = r#"{"z":123456789012345678901234567890,"a":1.50}"#;
    let command = Command { parameters: Some(payload(text)), ..uname() };
    let message = progress(&Step::running(1, &command), "step 1");
    assert!(wire(&message).contains(text), "{}", wire(&message));
}

/// The text of a message, once it is sure that reading it gives the same message.
fn wire<M: Wire + PartialEq + Debug>(message: &M) -> String {
    let frame = message.encode();
    assert_eq!(M::decode(&frame).as_ref(), Ok(message));
    String::from_utf8(frame.to_vec()).unwrap()
}

fn progress(step: &Step, line: &str) -> ServerMessage {
    ServerMessage {
        messages: Some(vec![line.to_owned()]),
        session_id: session(),
        result: step.to_result(),
        ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Continue)
    }
}

fn uname() -> Command {
    Command {
        tool_name: "execute_command".to_owned(),
        parameters: Some(payload(r#"{"command":"uname -r"}"#)),
        tool_type: ToolType::Action,
        call_id: call("C"),
    }
}

fn list_tools() -> Command {
    Command {
        tool_name: "list_tools".to_owned(),
        parameters: None,
        tool_type: ToolType::DataCollection,
        call_id: call("D"),
    }
}

fn ran() -> ActionResult {
    let result = payload(r#"{"success":true,"exit_code":0,"stdout":"6.1\n","stderr":""}"#);
    ActionResult::success(call("C"), Some("BashExecutor".to_owned()), result)
}

fn payload(text: &'static str) -> Payload {
    Payload::from_text(text).unwrap()
}

fn id(text: &str) -> ClientId {
    ClientId::new(text).unwrap()
}

fn session() -> Option<SessionId> {
    SessionId::new("S").ok()
}

fn response(text: &str) -> ResponseId {
    ResponseId::new(text).unwrap()
}

fn call(text: &str) -> Option<CallId> {
    CallId::new(text).ok()
}
