//! With real tools, and a server at the other end of a wire in memory.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use aip::codec::MAX_MESSAGE_BYTES;
use aip::{Payload, ResponseId, ServerMessageType, ToolType};
use link::connection::Watch;
use link::memory::pair;
use link::outbox::OutboxLimits;
use link::{Connection, Event};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::*;
use crate::confine::Confinement;
use crate::journal::JournalSettings;
use crate::policy::{Answer, Ask, Question};
use crate::tools::{Exec, ToolSettings};

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// An owner who says yes to one question each time that he is told to.
#[derive(Default)]
struct Owner {
    asked: Notify,
    yes: Notify,
    panics: AtomicBool,
}

impl Ask for Owner {
    fn ask(&self, _: Question) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        assert!(!self.panics.load(Ordering::Relaxed), "meant to");
        self.asked.notify_one();
        Box::pin(async {
            self.yes.notified().await;
            Answer::Yes
        })
    }
}

/// An executor with one place, in a folder of its own, where writing asks.
struct Bench {
    executor: Executor,
    state: Arc<StateKeeper>,
    owner: Arc<Owner>,
    outbox: Arc<Outbox>,
    /// The device's end, until somebody reads at the other one.
    near: Option<Connection<ServerMessage>>,
    server: Connection<ClientMessage>,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(capacity: Capacity) -> Self {
        let (folder, owner) = (tempfile::tempdir().unwrap(), Arc::new(Owner::default()));
        let settings = ToolSettings {
            exec: Exec::Shell,
            roots: vec![folder.path().to_owned()],
            parallel_commands: 1,
            ask: Some(owner.clone()),
            ask_timeout: PATIENCE,
            ..ToolSettings::default()
        };
        let nobody: crate::tools::mcp::OnEvent = Arc::new(|_| {});
        let tools = Toolbox::start(&settings, &Confinement::default(), None, &nobody);
        let (state, outbox) = (Arc::new(StateKeeper::new()), outbox());
        let (near, far, _switch) = pair();
        let watch = Watch { ping_every: PATIENCE, timeout: PATIENCE * 2 };
        let near = Some(Connection::new(near, outbox.clone(), watch, None));
        let server = Connection::new(far, self::outbox(), watch, None);
        let ambient = link::Ambient::system();
        let journals = Journals::in_memory(&JournalSettings::default(), "boot");
        let id = "d".parse().unwrap();
        let executor = Executor::new(
            id,
            tools,
            capacity,
            journals,
            crate::spool::Spools::new(None, crate::SpoolSettings::default()),
            state.clone(),
            ambient,
        );
        executor.handle_connected(Line {
            outbox: outbox.clone(),
            tells: false,
            confirms: false,
            journal: None,
        });
        Self { executor, state, owner, outbox, near, server, folder }
    }

    /// Has it run actions: each a tool and its arguments.
    fn start(&self, id: &str, actions: &[(&str, Value)]) {
        let action = |(tool, parameters): &(&str, Value)| Command {
            tool_name: (*tool).to_owned(),
            parameters: Some(Payload::from_value(parameters).unwrap()),
            tool_type: ToolType::Action,
            call_id: Some(tool.parse().unwrap()),
        };
        let command = ServerMessage {
            session_id: Some("S".parse().unwrap()),
            response_id: ResponseId::new(id).ok(),
            actions: Some(actions.iter().map(action).collect()),
            ..ServerMessage::new(ServerMessageType::Command, Status::Continue)
        };
        self.executor.start(command, || {});
    }

    /// A file that is written once the owner says so.
    fn start_asking(&self, id: &str) {
        let path = self.folder.path().join(id);
        self.start(id, &[("write_file", json!({"path": path, "content": "x"}))]);
    }

    /// The next COMMAND that is answered, and its results.
    async fn answered(&mut self) -> (String, Vec<ActionResult>) {
        if let Some(mut near) = self.near.take() {
            tokio::spawn(async move { near.next_event(None).await });
        }
        let next = timeout(PATIENCE, self.server.next_event(None)).await.expect("no answer");
        let Event::Message(answer) = next else { panic!("{next:?}") };
        (answer.prev_response_id.unwrap().to_string(), answer.action_results.unwrap())
    }

    /// The next answer, which must be to this COMMAND and a failure of its first action. Returns its text.
    async fn failed(&mut self, id: &str) -> String {
        let (answered, results) = self.answered().await;
        assert_eq!(answered, id, "{results:?}");
        results[0].error.clone().unwrap_or_default()
    }

    async fn succeeded(&mut self, id: &str) {
        let (answered, results) = self.answered().await;
        assert_eq!((answered.as_str(), &results[0].error), (id, &None));
    }

    /// Waits until so many COMMANDs run and so many wait.
    async fn until(&self, running: usize, waiting: usize) {
        let mut state = self.state.watch();
        let is_so =
            state.wait_for(|state| (state.running.len(), state.waiting) == (running, waiting));
        let is_so = timeout(PATIENCE, is_so).await.map(|state| state.is_ok());
        assert!(is_so.is_ok(), "{:?}", self.state.watch().borrow());
    }
}

/// The most bytes that wait for the server, beside one message of any size.
const OUTBOX_BYTES: usize = 4000;

fn outbox() -> Arc<Outbox> {
    Arc::new(Outbox::new(OutboxLimits { bytes: OUTBOX_BYTES, ..OutboxLimits::default() }))
}

fn many() -> Capacity {
    Capacity { commands: 10, bytes: 1 << 20 }
}

fn sh(command: &str) -> (&'static str, Value) {
    ("execute_command", json!({"command": command, "timeout": 300}))
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_to_the_owner_hold_up_nothing_else() {
    let mut bench = Bench::new(many());
    for id in ["asks-1", "asks-2"] {
        bench.start_asking(id);
        bench.owner.asked.notified().await;
    }
    bench.until(0, 2).await;
    bench
        .start("R", &[sh("echo hello"), ("list_tools", json!({})), ("get_system_info", json!({}))]);
    let (id, results) = bench.answered().await;
    assert_eq!((id.as_str(), results.len()), ("R", 3));
    assert!(results.iter().all(|result| result.error.is_none()), "{results:?}");
    for _ in 0..2 {
        bench.owner.yes.notify_one();
        let (id, results) = bench.answered().await;
        assert!(id.starts_with("asks") && results[0].error.is_none(), "{results:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_no_time_waits_for_nobody() {
    let mut bench = Bench::new(many());
    bench.start("slow", &[sh("sleep 1000")]);
    bench.until(1, 0).await;
    bench.start("waits", &[sh("echo")]);
    bench.until(1, 1).await;
    for tool in ["list_tools", "get_system_info"] {
        bench.start(tool, &[(tool, json!({}))]);
        bench.succeeded(tool).await;
    }
    bench.executor.stop_all(LEAVING);
    let mut texts = Vec::new();
    for _ in 0..2 {
        let (id, mut results) = bench.answered().await;
        texts.push((id, results.remove(0).error.unwrap()));
    }
    texts.sort();
    let text = |id: &str, text: &str| (id.to_owned(), format!("This device is stopping: {text}"));
    let slow = text("slow", "stopped; its outcome is unknown");
    assert_eq!(texts, [slow, text("waits", "it did not run")]);
    bench.until(0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_stopped_says_why_and_what_came_until_then() {
    let mut bench = Bench::new(many());
    let ready = bench.folder.path().join("ready");
    let line = format!("echo so far; : > {}; sleep 1000", ready.display());
    bench.start("R", &[sh(&line), sh("echo")]);
    let looking = async {
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, looking).await.unwrap();
    bench.executor.stop_session(&"S".parse().unwrap());
    let (_, results) = bench.answered().await;
    let texts: Vec<_> = results.iter().filter_map(|result| result.error.as_deref()).collect();
    let skipped = "Skipped due to previous failure (early_exit=True).";
    assert_eq!(texts, ["Its task has ended: stopped; stdout so far: so far\n", skipped]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_taken_back_when_its_task_ends() {
    let mut bench = Bench::new(many());
    bench.start_asking("R");
    bench.owner.asked.notified().await;
    bench.executor.stop_session(&"S".parse().unwrap());
    assert_eq!(bench.failed("R").await, "Its task has ended: it did not run");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_actions_of_a_command_run_in_their_order() {
    let mut bench = Bench::new(many());
    let file = bench.folder.path().join("file");
    let path = file.display();
    bench.start(
        "R",
        &[
            sh(&format!("echo one >> {path}")),
            ("list_tools", json!({})),
            ("read_file", json!({"path": file})),
            sh(&format!("echo two >> {path}; cat {path}")),
        ],
    );
    let (_, results) = bench.answered().await;
    let read: Value = results[2].result.as_ref().unwrap().parse().unwrap();
    let ran: Value = results[3].result.as_ref().unwrap().parse().unwrap();
    assert_eq!((&read["content"], &ran["stdout"]), (&json!("one\n"), &json!("one\ntwo\n")));
}

/// Three results of which the queue has room for one, and nobody who reads.
async fn three_large_results() -> Bench {
    let bench = Bench::new(many());
    for id in ["1", "2", "3"] {
        bench.start(id, &[sh(&format!("head -c {OUTBOX_BYTES} /dev/zero"))]);
    }
    let mut state = bench.state.watch();
    let three = state.wait_for(|state| state.counts.commands == 3);
    timeout(PATIENCE, three).await.expect("they take too long").unwrap();
    bench
}

#[tokio::test(flavor = "multi_thread")]
async fn large_results_wait_for_each_other_on_a_slow_connection() {
    let mut bench = three_large_results().await;
    let mut answered = Vec::new();
    for _ in 0..3 {
        let (id, results) = bench.answered().await;
        assert!(results[0].error.is_none(), "{results:?}");
        answered.push(id);
    }
    answered.sort();
    assert_eq!(answered, ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_wait_for_no_connection_that_is_gone() {
    let bench = three_large_results().await;
    bench.outbox.abort(aip::CloseCode::NORMAL, "gone");
    timeout(PATIENCE, bench.executor.finished()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_panics_fails_and_what_ran_before_it_is_told() {
    let mut bench = Bench::new(many());
    bench.owner.panics.store(true, Ordering::Relaxed);
    let write = ("write_file", json!({"path": "a", "content": "x"}));
    bench.start("R", &[sh("echo done"), write, sh("echo")]);
    let (_, results) = bench.answered().await;
    let statuses: Vec<_> = results.iter().map(|result| result.status).collect();
    assert_eq!(statuses, [ResultStatus::Success, ResultStatus::Failure, ResultStatus::Skipped]);
    assert_eq!(results[1].error.as_deref(), Some("the tool failed inside the device"));
    bench.start("next", &[sh("echo")]);
    bench.succeeded("next").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_beyond_what_a_device_may_hold_is_answered_at_once() {
    let mut bench = Bench::new(Capacity { commands: 10, bytes: 4000 });
    bench.start("heavy", &[("write_file", json!({"path": "a", "content": "x".repeat(5000)}))]);
    bench.owner.asked.notified().await;
    bench.start("R", &[("list_tools", json!({}))]);
    let text = bench.failed("R").await;
    assert!(text.contains("is over its limit of 4000 bytes; try again later"), "{text}");
    bench.owner.yes.notify_one();
    bench.succeeded("heavy").await;
    bench.start("next", &[("list_tools", json!({}))]);
    bench.succeeded("next").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_too_many_for_a_message_are_a_failure_each() {
    let bench = Bench::new(many());
    let id = "i".repeat(200);
    let action = Command {
        tool_name: String::new(),
        parameters: None,
        tool_type: ToolType::Action,
        call_id: Some(id.parse().unwrap()),
    };
    let command = ServerMessage::new(ServerMessageType::Command, Status::Continue);
    let actions = vec![action; MAX_RESULTS];
    let job = Job::of(ServerMessage {
        response_id: ResponseId::new("R").ok(),
        actions: Some(actions),
        ..command
    });
    // Each takes six times its length on the wire.
    let failure = ActionResult::failure(Some(id.parse().unwrap()), "\u{1}".repeat(2000));
    let answer = bench.executor.answer(&job, vec![failure; MAX_RESULTS]);
    assert!(answer.len() <= MAX_MESSAGE_BYTES);
    let results = ClientMessage::decode(&answer).unwrap().action_results.unwrap();
    assert_eq!(results.len(), MAX_RESULTS);
    let text = results[9].error.as_deref().unwrap();
    assert!(text.starts_with("The results of ") && text.ends_with("do not fit into a message"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_fills_in_every_argument_with_nothing_is_understood() {
    let mut bench = Bench::new(many());
    let file = bench.folder.path().join("file");
    std::fs::write(&file, "one\n").unwrap();
    bench.start(
        "R",
        &[
            ("execute_command", json!({"command": "cat file || true", "timeout": "", "cwd": ""})),
            (
                "read_file",
                json!({"path": file, "offset": "", "length": "", "from_line": "", "line_count": ""}),
            ),
            ("list_directory", json!({"path": ""})),
            ("search_files", json!({"path": file, "pattern": "", "content": "one"})),
            ("list_tools", json!({"tool_type": "", "namespace": "", "remove_meta": ""})),
        ],
    );
    let (_, results) = bench.answered().await;
    let errors: Vec<_> = results.iter().filter_map(|result| result.error.as_deref()).collect();
    assert_eq!((results.len(), errors), (5, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_argument_of_the_wrong_kind_is_named() {
    let mut bench = Bench::new(many());
    bench.start("R", &[("execute_command", json!({"command": "pwd", "timeout": "soon"}))]);
    let error = bench.failed("R").await;
    assert_eq!(error, r#"Bad arguments: timeout: invalid type: string "soon", expected f64"#);
    bench.start("R2", &[("read_file", json!({}))]);
    assert_eq!(bench.failed("R2").await, "Bad arguments: missing field `path`");
}
