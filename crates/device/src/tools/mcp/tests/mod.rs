//! Against real child processes and a real HTTP server, most of which do something wrong.

mod hostile_http;
mod hostile_stdio;
mod http;
mod listing;
mod offers;
mod reached;
mod server;
mod standing;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use aip::{Payload, ToolType};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::server::{MANNERS, PATIENCE};
use super::*;
use crate::confine::Confinement;
use crate::progress::Progress;

#[test]
#[ignore = "it's an MCP server, which other tests start"]
fn plays_a_server() {
    server::serve();
}

fn settings(namespace: &str, manners: &str, cwd: &Path) -> ServerSettings {
    let name = concat!(module_path!(), "::plays_a_server");
    let name = name.split_once("::").unwrap().1;
    ServerSettings {
        namespace: namespace.to_owned(),
        transport: Transport::Stdio {
            command: std::env::current_exe().unwrap().to_str().unwrap().to_owned(),
            args: ["--ignored", "--exact", name].map(str::to_owned).to_vec(),
            env: BTreeMap::from([(MANNERS.to_owned(), manners.to_owned())]),
            cwd: Some(cwd.to_owned()),
        },
        sections: Vec::new(),
        trusted: true,
        reset: false,
        tool_types: Vec::new(),
    }
}

fn limits() -> Limits {
    Limits {
        start_timeout: PATIENCE,
        call_timeout: PATIENCE,
        trust: None,
        confinement: Confinement::default(),
    }
}

fn start(settings: &[ServerSettings], limits: &Limits) -> Host {
    Host::start(settings, limits, None, &(Arc::new(|_| {}) as OnEvent))
}

fn host(manners: &str, cwd: &Path) -> Host {
    start(&[settings("odd", manners, cwd)], &limits())
}

/// Calls a tool of the first server.
async fn call(host: &Host, tool: &str, arguments: Value) -> Result<Value, String> {
    let stop = CancellationToken::new();
    call_with(host, tool, arguments, &stop, &Progress::default()).await
}

async fn call_with(
    host: &Host,
    tool: &str,
    arguments: Value,
    stop: &CancellationToken,
    progress: &Progress,
) -> Result<Value, String> {
    payload_with(host, tool, arguments, stop, progress)
        .await
        .map(|payload| payload.parse().unwrap())
}

/// The same, as the text that it arrived as.
async fn payload(host: &Host, tool: &str, arguments: Value) -> Result<Payload, String> {
    let stop = CancellationToken::new();
    payload_with(host, tool, arguments, &stop, &Progress::default()).await
}

async fn payload_with(
    host: &Host,
    tool: &str,
    arguments: Value,
    stop: &CancellationToken,
    progress: &Progress,
) -> Result<Payload, String> {
    let parameters = Payload::from_value(&arguments).unwrap();
    let caller = Caller::default();
    let call = Call { parameters: Some(&parameters), caller: &caller, stop, progress, flow: None };
    timeout(PATIENCE, host.call(0, tool, &call)).await.expect("it takes too long")
}

/// Calls a tool of the first server for a session.
async fn call_of(
    host: &Host,
    session: &str,
    tool: &str,
    stop: &CancellationToken,
) -> Result<Payload, String> {
    let caller = Caller { session_id: session.parse().ok(), ..Caller::default() };
    let call = Call {
        parameters: None,
        caller: &caller,
        stop,
        progress: &Progress::default(),
        flow: None,
    };
    timeout(PATIENCE, host.call(0, tool, &call)).await.expect("it takes too long")
}

/// Waits until a server is as it should be.
async fn until(host: &Host, is: impl Fn(&ServerState) -> bool) -> ServerState {
    let mut now = host.servers[0].watch();
    let found = timeout(PATIENCE, now.wait_for(|now| is(&now.state))).await;
    found.expect("it never is").unwrap().state.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_returns_arrives_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    for value in
        [json!({"a": false, "b": 0, "c": "", "d": [], "n": 9007199254740993_i64}), json!({})]
    {
        assert_eq!(call(&host, "echo", value.clone()).await, Ok(value));
    }
    assert_eq!(call(&host, "fail", json!({})).await, Err("no such row".to_owned()));
    host.stop().await;
    assert_eq!(host.servers[0].state(), ServerState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_knows_only_the_newer_greeting_is_greeted_so() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("modern", folder.path());
    assert_eq!(call(&host, "echo", json!({"a": 1})).await, Ok(json!({"a": 1})));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stays_the_same_from_call_to_call_and_ends_with_its_host() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let id = call(&host, "pid", json!({})).await.unwrap();
    assert_eq!(call(&host, "pid", json!({})).await.unwrap(), id);
    host.stop().await;
    let id: u32 = id.as_str().unwrap().parse().unwrap();
    crate::group::testing::all_gone(&[id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_gets_nothing_of_the_devices_environment_but_a_short_list_and_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let names = call(&host, "env", json!({})).await.unwrap();
    let names: Vec<_> = names.as_str().unwrap().split(' ').collect();
    assert!(names.contains(&"PATH") && names.contains(&MANNERS), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("CARGO")), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_floods_on_its_output_disturb_nobody() {
    let folder = tempfile::tempdir().unwrap();
    for manners in ["garbage", "floods", "complains for ever"] {
        let host = host(manners, folder.path());
        for _ in 0..20 {
            assert_eq!(
                call(&host, "echo", json!({"a": 1})).await,
                Ok(json!({"a": 1})),
                "{manners}"
            );
        }
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_in_a_call_fails_the_call_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let before = call(&host, "pid", json!({})).await.unwrap();
    let error = call(&host, "die", json!({})).await.unwrap_err();
    assert!(error.contains("lost in the middle of the call"), "{error}");
    let down = until(&host, |state| matches!(state, ServerState::Down { .. })).await;
    let ServerState::Down { why, .. } = down else { unreachable!() };
    assert!(why.contains("exit status: 7") && why.contains("out of luck"), "{why}");
    let tools = host.tools(&Caller::default());
    assert!(!tools.is_empty(), "its tools are still listed");
    until(&host, |state| matches!(state, ServerState::Up { .. })).await;
    let after = call(&host, "pid", json!({})).await.unwrap();
    assert_ne!(before, after);
    // The news of that loss does not end the new one.
    for _ in 0..20 {
        assert_eq!(call(&host, "pid", json!({})).await.unwrap(), after);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_start_says_why_and_the_others_serve() {
    let folder = tempfile::tempdir().unwrap();
    let mut missing = settings("missing", "", folder.path());
    if let Transport::Stdio { command, .. } = &mut missing.transport {
        *command = "no-such-program".to_owned();
    }
    let servers = [
        settings("good", "good", folder.path()),
        settings("dies", "dies at its start", folder.path()),
        settings("endless", "lists for ever", folder.path()),
        missing,
    ];
    let host = start(&servers, &limits());
    timeout(PATIENCE, host.settled()).await.unwrap();
    assert_eq!(call(&host, "echo", json!({})).await, Ok(json!({})));
    let text = host.out_of_service().join("; ");
    for part in [
        "'dies' does not run",
        "npm error 404",
        "'endless' does not run: it lists more than 1000 tools",
        "there is no program 'no-such-program'",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("'good'"), "{text}");
    let short = host.missing().unwrap();
    assert!(short.starts_with("MCP servers that are not available: 'dies' ("), "{short}");
    assert!(
        short.contains("exit status: 3") && short.contains("'missing' (there is no"),
        "{short}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_for_a_tool_is_told_of_a_few_servers_that_do_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let dead = |number: usize| {
        let mut dead = settings(&format!("s{number}"), "", folder.path());
        if let Transport::Stdio { command, .. } = &mut dead.transport {
            *command = format!("no-such-program-{}", "x".repeat(1000));
        }
        dead
    };
    let host = start(&(0..12).map(dead).collect::<Vec<_>>(), &limits());
    timeout(PATIENCE, host.settled()).await.unwrap();
    let text = host.missing().unwrap();
    assert!(text.ends_with("…), 's3', 's4', 's5', 's6', 's7', 's8', 's9', 2 more"), "{text}");
    assert!(
        text.starts_with("MCP servers that are not available: 's0' (") && text.len() < 1000,
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_has_a_time_limit_and_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let servers =
        [settings("good", "good", folder.path()), settings("silent", "silent", folder.path())];
    let limits = Limits { start_timeout: Duration::from_millis(300), ..limits() };
    let host = start(&servers[1..], &limits);
    timeout(PATIENCE, host.settled()).await.unwrap();
    let text = host.out_of_service().join("; ");
    // What became of it then is our doing.
    let told = "The MCP server 'silent' does not run: it did not start within 0.3 s";
    assert_eq!(text, told);
    let good = start(&servers, &self::limits());
    assert_eq!(call(&good, "echo", json!({})).await, Ok(json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_stopped_or_takes_too_long_is_cancelled_at_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let stop = CancellationToken::new();
    let (told, heard) = std::sync::mpsc::channel();
    let stopper = stop.clone();
    let told = Mutex::new(told);
    let progress = Progress::to(move |line| {
        told.lock().unwrap().send(line.to_owned()).unwrap();
        stopper.cancel();
    });
    let stopped = call_with(&host, "slow", json!({}), &stop, &progress).await;
    assert_eq!(stopped, Err("stopped".to_owned()));
    assert_eq!(heard.recv().unwrap(), "1 of 2: half");
    let file = folder.path().join("cancelled");
    crate::group::testing::until("the server heard of it", || {
        std::fs::read_to_string(&file).ok().filter(|reason| reason == "stopped")
    });

    let limits = Limits { call_timeout: Duration::from_millis(200), ..limits() };
    let host = start(&[settings("odd", "good", folder.path())], &limits);
    let error = call(&host, "nothing", json!({})).await.unwrap_err();
    assert!(error.contains("Timed out after 0.2 s"), "{error}");
    assert_eq!(call(&host, "echo", json!({})).await, Ok(json!({})), "it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_reads_nothing_holds_up_no_call() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { call_timeout: Duration::from_millis(200), ..limits() };
    let host = start(&[settings("odd", "deaf", folder.path())], &limits);
    let more_than_a_pipe_holds = json!({"text": "x".repeat(1 << 20)});
    for _ in 0..2 {
        let error = call(&host, "echo", more_than_a_pipe_holds.clone()).await.unwrap_err();
        assert!(error.contains("Timed out after 0.2 s"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_and_takes_no_answer_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("asks", folder.path());
    let down = until(&host, |state| matches!(state, ServerState::Down { .. })).await;
    let ServerState::Down { why, .. } = down else { unreachable!() };
    assert!(why.contains("without taking the answers"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_cannot_pass_for_another_namespaces() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    timeout(PATIENCE, host.settled()).await.unwrap();
    let tools = host.tools(&Caller::default());
    assert!(!tools.iter().any(|tool| tool.info.tool_name.contains("Files")));
    assert!(!tools.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_that_come_later_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    call(&host, "grow", json!({})).await.unwrap();
    until(&host, |state| *state == ServerState::Up { tools: 14 }).await;
    let tools = host.tools(&Caller::default());
    assert!(tools.iter().any(|tool| tool.info.tool_name == "grown"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_of_many_megabytes_passes() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let bytes = 20 << 20;
    let text = call(&host, "huge", json!({"bytes": bytes})).await.unwrap();
    assert_eq!(text.as_str().unwrap().len(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_every_limit_ends_the_server_with_a_reason_and_not_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let error = call(&host, "endless", json!({})).await.unwrap_err();
    let told = "lost in the middle of the call (it wrote a message of more than 256 MiB)";
    assert!(error.contains(told), "{error}");
    let down = until(&host, |state| matches!(state, ServerState::Down { .. })).await;
    let ServerState::Down { why, .. } = down else { unreachable!() };
    assert!(why.contains("a message of more than 256 MiB"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_reset_is_fresh_for_each_task_and_the_same_within_one() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ServerSettings { reset: true, ..settings("odd", "good", folder.path()) };
    let host = start(&[settings], &limits());
    let mut ids = Vec::new();
    for session in ["one", "one", "two", "two", "one"] {
        let id = call_of(&host, session, "pid", &CancellationToken::new()).await.unwrap();
        ids.push(id.as_str().to_owned());
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[2], ids[3]);
    assert!(ids[0] != ids[2] && ids[2] != ids[4] && ids[0] != ids[4], "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_for_a_fresh_server_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ServerSettings { reset: true, ..settings("odd", "good", folder.path()) };
    let host = start(&[settings], &limits());
    let (goes_on, stopped) = (CancellationToken::new(), CancellationToken::new());
    stopped.cancel();
    let others = async {
        tokio::join!(
            call_of(&host, "one", "nothing", &goes_on),
            call_of(&host, "two", "pid", &goes_on),
        )
    };
    // The first has the server, the second waits to have it fresh, and the third for both.
    tokio::select! {
        biased;
        answers = others => panic!("they end: {answers:?}"),
        third = call_of(&host, "one", "pid", &stopped) => assert_eq!(third.unwrap_err(), "stopped"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_observes_is_said_by_the_settings_else_by_hints_which_a_stranger_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = settings("trusted", "good", folder.path());
    let stranger = ServerSettings {
        namespace: "stranger".to_owned(),
        trusted: false,
        tool_types: vec![("p?d".to_owned(), ToolType::DataCollection)],
        ..trusted.clone()
    };
    let host = start(&[trusted, stranger], &limits());
    timeout(PATIENCE, host.settled()).await.unwrap();
    let tools = host.tools(&Caller::default());
    let types = |namespace: &str, name: &str| {
        let tool = tools
            .iter()
            .find(|tool| tool.info.namespace == namespace && tool.info.tool_name == name);
        tool.map(|tool| (tool.info.tool_type, tool.believed)).unwrap()
    };
    let (observes, changes) = (ToolType::DataCollection, ToolType::Action);
    assert_eq!(types("trusted", "echo"), (observes, observes));
    assert_eq!(types("trusted", "pid"), (changes, changes));
    assert_eq!(types("stranger", "echo"), (observes, changes));
    assert_eq!(types("stranger", "pid"), (observes, observes));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sections_of_an_mcp_yaml_say_who_is_offered_what() {
    let folder = tempfile::tempdir().unwrap();
    let section = |agent: &str, root: &str, tool_type| Section {
        agent: agent.to_owned(),
        root: root.to_owned(),
        tool_type,
    };
    let (observes, changes) = (ToolType::DataCollection, ToolType::Action);
    let with = |namespace: &str, sections: Vec<Section>| ServerSettings {
        sections,
        ..settings(namespace, "good", folder.path())
    };
    let host = start(
        &[
            with("both", vec![section("A", "default", observes), section("A", "default", changes)]),
            with("word", vec![section("A", "word.exe", changes)]),
            with("other", vec![section("B", "default", changes)]),
            with("all", vec![]),
        ],
        &limits(),
    );
    let offered = |agent: Option<&str>, root: Option<&str>| {
        let caller = Caller {
            agent_name: agent.map(str::to_owned),
            root_name: root.map(str::to_owned),
            session_id: None,
            ..Caller::default()
        };
        host.namespaces(&caller).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(offered(Some("A"), None), "both all");
    assert_eq!(offered(Some("A"), Some("word.exe")), "word all");
    assert_eq!(offered(Some("A"), Some("excel.exe")), "both all");
    assert_eq!(offered(Some("B"), Some("")), "other all");
    assert_eq!(offered(Some("C"), None), "all");
    assert_eq!(offered(None, None), "both word other all");
    timeout(PATIENCE, host.settled()).await.unwrap();
    let caller = Caller { agent_name: Some("A".to_owned()), ..Caller::default() };
    let tools = host.tools(&caller);
    let types: Vec<_> = tools
        .iter()
        .filter(|tool| tool.info.namespace == "both" && tool.info.tool_name == "pid")
        .map(|tool| tool.info.tool_type)
        .collect();
    assert_eq!(types, [changes, observes]);
}
