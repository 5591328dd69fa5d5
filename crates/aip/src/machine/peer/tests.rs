use bytes::Bytes;

use super::*;
use crate::codec::Wire;

fn peer(client_type: ClientType, target: Option<&str>) -> Peer {
    Peer {
        client_id: ClientId::new("me").unwrap(),
        client_type,
        target_id: target.map(|id| ClientId::new(id).unwrap()),
        is_bound: true,
        features: Features::default(),
    }
}

fn says(peer: &Peer, text: &str) -> Result<Request, String> {
    let message = ClientMessage::decode(&Bytes::copy_from_slice(text.as_bytes())).unwrap();
    peer.admit(message).map_err(|rejection| rejection.text)
}

#[test]
fn nobody_speaks_for_another() {
    let device = peer(ClientType::Device, None);
    for kind in ["heartbeat", "task", "command_results", "error", "device_info_response"] {
        let text = format!(r#"{{"type":"{kind}","client_id":"you"}}"#);
        let refused = says(&device, &text).unwrap_err();
        assert_eq!(refused, "client_id does not match the registered connection", "{kind}");
    }
    for kind in ["task", "command_results", "device_info_request"] {
        let text = format!(r#"{{"type":"{kind}","client_type":"constellation","client_id":"me"}}"#);
        let refused = says(&device, &text).unwrap_err();
        assert_eq!(refused, "client_type does not match the registered connection", "{kind}");
    }
}

#[test]
fn a_heartbeat_may_claim_any_role() {
    let constellation = peer(ClientType::Constellation, None);
    let galaxy = r#"{"type":"heartbeat","client_type":"device","client_id":"me"}"#;
    assert_eq!(says(&constellation, galaxy), Ok(Request::Heartbeat));
}

#[test]
fn what_a_tool_tells_is_a_heartbeat_of_a_device_that_continues() {
    let device = peer(ClientType::Device, None);
    let tells = r#"{"type":"heartbeat","status":"continue","session_id":"S","prev_response_id":"R",
        "metadata":{"flightdeck":{"output":{"lines":["a","b"]}}}}"#;
    let Ok(Request::Output { session_id, output, .. }) = says(&device, tells) else { panic!() };
    assert_eq!((session_id.as_str(), output.lines.join(",")), ("S", "a,b".to_owned()));
    let constellation = peer(ClientType::Constellation, None);
    assert_eq!(says(&constellation, tells), Ok(Request::Heartbeat));
    for broken in [("continue", "ok"), ("\"S\"", "null"), ("lines", "words")] {
        let text = tells.replace(broken.0, broken.1);
        assert_eq!(says(&device, &text), Ok(Request::Heartbeat), "{text}");
    }
}

#[test]
fn who_may_have_which_task_run() {
    let device = peer(ClientType::Device, None);
    let own = r#"{"type":"task","request":"r"}"#;
    assert!(
        matches!(says(&device, own), Ok(Request::Task(task)) if task.target_id.as_str() == "me")
    );
    let others = r#"{"type":"task","request":"r","target_id":"d"}"#;
    assert_eq!(says(&device, others).unwrap_err(), "Device clients may not target other devices");

    let task = |target: &str| {
        format!(r#"{{"type":"task","client_type":"constellation","request":"r"{target}}}"#)
    };
    let free = peer(ClientType::Constellation, None);
    assert!(says(&free, &task(r#","target_id":"d""#)).is_ok());
    let without = says(&free, &task("")).unwrap_err();
    assert_eq!(without, "Constellation task requests require target_id");
    let bound = peer(ClientType::Constellation, Some("d"));
    assert!(says(&bound, &task(r#","target_id":"d""#)).is_ok());
    let other = says(&bound, &task(r#","target_id":"e""#)).unwrap_err();
    assert_eq!(other, "Not authorized to run tasks on this device");
    let features =
        Features::granted(&[Feature::Ack, Feature::RequestId], ClientType::Constellation);
    let may_repeat = Peer { features, ..bound };
    let repeated = task(r#","target_id":"e","request_id":"q""#);
    let Ok(Request::Task(task)) = says(&may_repeat, &repeated) else { panic!() };
    assert_eq!(may_repeat.may_submit(&task), Err(&*other), "its server asks when it is new");
}

#[test]
fn a_task_without_content_is_refused() {
    let device = peer(ClientType::Device, None);
    for request in ["", r#","request":"""#, r#","request":"  ""#, r#","request":null"#] {
        let text = format!(r#"{{"type":"task"{request}}}"#);
        assert_eq!(says(&device, &text).unwrap_err(), "Empty task content");
    }
}

#[test]
fn facts_are_for_constellations_to_ask_and_devices_to_tell() {
    let device = peer(ClientType::Device, None);
    let ask = |role: &str| {
        format!(r#"{{"type":"device_info_request","client_type":"{role}","target_id":"d"}}"#)
    };
    let refused = says(&device, &ask("device")).unwrap_err();
    assert_eq!(refused, "DEVICE_INFO_REQUEST is permitted only for constellation clients");
    let bound = peer(ClientType::Constellation, Some("e"));
    let refused = says(&bound, &ask("constellation")).unwrap_err();
    assert_eq!(refused, "Not authorized to request device info for this device");
    let tell = r#"{"type":"device_info_response","client_type":"constellation","metadata":{}}"#;
    assert!(says(&bound, tell).is_err());
    assert!(says(&device, tell).is_ok());
}

#[test]
fn what_is_unknown_is_named() {
    let device = peer(ClientType::Device, None);
    for kind in ["register", "teleport", "task_end"] {
        let text = format!(r#"{{"type":"{kind}"}}"#);
        assert_eq!(says(&device, &text), Err(format!("Unknown message type: {kind}")));
    }
}

#[test]
fn acknowledgements_and_cancels_are_read_from_those_who_were_granted_them() {
    let all = [Feature::Ack, Feature::RequestId, Feature::Cancel, Feature::Resume];
    let granted = |role| Peer { features: Features::granted(&all, role), ..peer(role, None) };
    let requester = granted(ClientType::Constellation);
    let ack = r#"{"type":"task_end","status":"ok","session_id":"S","prev_response_id":"T"}"#;
    let said = says(&requester, ack);
    assert!(matches!(said, Ok(Request::Acknowledge { task }) if task.as_str() == "T"));
    let cancel = r#"{"type":"task_end","status":"failed","session_id":"S","request_id":"q",
        "metadata":{"flightdeck":{"cancel":"request"}}}"#;
    let said = says(&requester, cancel);
    assert!(matches!(said, Ok(Request::Cancel { task: None, .. })), "{said:?}");
    let confirmed = r#"{"type":"task_end","status":"ok","session_id":"S","prev_response_id":"R",
        "metadata":{"flightdeck":{"cancel":"stopped"}}}"#;
    let device = granted(ClientType::Device);
    let said = says(&device, confirmed);
    assert!(matches!(said, Ok(Request::Stopped { word: Word::Stopped, .. })), "{said:?}");
    for (peer, text) in [
        (&device, ack),
        (&device, cancel),
        (&requester, confirmed),
        (&peer(ClientType::Constellation, None), ack),
    ] {
        assert_eq!(says(peer, text), Err("Unknown message type: task_end".to_owned()));
    }
}

#[test]
fn who_may_asks_after_a_task_and_leaves_it_running() {
    let text = r#"{"type":"task","client_type":"constellation","session_id":"S","request_id":"q",
        "target_id":"d","metadata":{"flightdeck":{"task":"T","on_disconnect":"continue"}}}"#;
    let legacy = peer(ClientType::Constellation, None);
    let whole = text.replace(r#""target_id""#, r#""request":"r","target_id""#);
    assert!(says(&legacy, &whole).unwrap_err().contains("on_disconnect was not granted"));
    let asked = [Feature::Ack, Feature::RequestId, Feature::Detach];
    let features = Features::granted(&asked, ClientType::Constellation);
    let peer = Peer { features, ..legacy };
    assert!(matches!(says(&peer, text), Ok(Request::AskAfter { task, .. }) if task == "T"));
    let text = text.replace(r#""task":"T""#, r#""store":"s""#);
    let text = text.replace(r#""target_id""#, r#""request":"r","target_id""#);
    let Ok(Request::Task(task)) = says(&peer, &text) else { panic!() };
    assert_eq!(task.on_disconnect, OnDisconnect::Continue);
    assert_eq!(task.store.as_deref(), Some("s"));
}

#[test]
fn an_error_without_text_is_an_unknown_error() {
    let device = peer(ClientType::Device, None);
    let error = |text: &str| match says(&device, text) {
        Ok(Request::Error { text, .. }) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(error(r#"{"type":"error","error":"it broke"}"#), "it broke");
    assert_eq!(error(r#"{"type":"error","error":""}"#), "Unknown error");
    assert_eq!(error(r#"{"type":"error"}"#), "Unknown error");
}
