//! A requester as a process of its own: this same test program, started anew. It keeps its tasks in a file, as any
//! orchestrator can, and writes down what becomes of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use constellation::{
    ClientSettings, Constellation, Keep, NewTask, OnDisconnect, Outcome, Refused, Task,
};
use tokio::task::JoinSet;

use super::DEVICES;
use super::common::{Process, Server, http_client};

/// Tasks that one requester has open at a time.
const OPEN: usize = 8;

const FOLDER: &str = "PROOF_FOLDER";

/// Starts one for these tasks.
pub(crate) fn start(server: &Server, folder: &Path, n: usize, tasks: Range<u64>) -> Process {
    let program = std::env::current_exe().unwrap();
    let args = ["--exact", "requester::requester", "--ignored", "--nocapture"];
    let mut command = tokio::process::Command::new(program);
    command
        .args(args)
        .env(FOLDER, folder)
        .env("PROOF_N", n.to_string())
        .env("PROOF_TASKS", format!("{} {}", tasks.start, tasks.end))
        .env("PROOF_URL", server.url())
        .env("PROOF_KEY", server.key())
        .kill_on_drop(true);
    Process::start(&mut command)
}

pub(crate) fn log_of(folder: &Path, n: usize) -> PathBuf {
    folder.join(format!("requester-{n}.log"))
}

/// Where a device's commands write their lines.
pub(crate) fn lines_of(folder: &Path, device: &str) -> PathBuf {
    folder.join(format!("lines-{device}"))
}

/// The ending of each task that a requester has written down.
pub(crate) fn endings(folder: &Path, n: usize) -> BTreeMap<u64, String> {
    let text = fs::read_to_string(log_of(folder, n)).unwrap_or_default();
    let ended = text.lines().filter_map(|line| line.strip_prefix("ended "));
    let pairs = ended.filter_map(|line| line.split_once(' '));
    pairs.map(|(task, ending)| (task.parse().unwrap(), ending.to_owned())).collect()
}

/// What a requester knows from before it was killed.
struct Log {
    file: fs::File,
    /// Tasks that it was about to submit, by the id of the request where it knows that.
    submitted: BTreeMap<String, u64>,
    about: BTreeSet<u64>,
    /// The one that it was about to submit last.
    last: Option<u64>,
    ended: BTreeSet<u64>,
}

impl Log {
    fn open(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        let mut log = Self {
            file,
            submitted: BTreeMap::new(),
            about: BTreeSet::new(),
            last: None,
            ended: BTreeSet::new(),
        };
        // A line without its end was being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["about", task] => log.note_about(task.parse().unwrap()),
                ["submitted", task, request] => {
                    log.submitted.insert(request.to_owned(), task.parse().unwrap());
                }
                ["ended", task, _] => drop(log.ended.insert(task.parse().unwrap())),
                _ => {}
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            log.write("");
        }
        log
    }

    fn note_about(&mut self, task: u64) {
        self.about.insert(task);
        self.last = Some(task);
    }

    fn write(&mut self, line: &str) {
        self.file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Which task a request is for. Of the one that was submitted last the id may not be written down yet.
    fn task_of(&mut self, request: &str) -> u64 {
        if let Some(task) = self.submitted.get(request) {
            return *task;
        }
        let task = self.last.unwrap();
        self.note_submitted(task, request);
        task
    }

    fn note_submitted(&mut self, task: u64, request: &str) {
        self.submitted.insert(request.to_owned(), task);
        self.write(&format!("submitted {task} {request}"));
    }

    fn note_ended(&mut self, task: u64, ending: &str) {
        if self.ended.insert(task) {
            self.write(&format!("ended {task} {ending}"));
        }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap()
}

#[tokio::test]
#[ignore = "a part of the proof, which starts it"]
async fn requester() {
    let (folder, n) = (PathBuf::from(variable(FOLDER)), variable("PROOF_N"));
    let range = variable("PROOF_TASKS");
    let (first, end) = range.split_once(' ').unwrap();
    let tasks: Range<u64> = first.parse().unwrap()..end.parse().unwrap();
    let mut log = Log::open(&log_of(&folder, n.parse().unwrap()));
    let mut settings = ClientSettings::constellation(variable("PROOF_URL").parse().unwrap());
    settings.token = Some(variable("PROOF_KEY").into());
    settings.max_retries = None;
    settings.backoff_base = Duration::from_millis(50);
    let keep = Keep::open(&folder.join(format!("requester-{n}.keep")), &settings.ambient).unwrap();
    let id = format!("requester-{n}").parse().unwrap();
    let constellation = Constellation::connect_keeping(settings, id, keep).await.unwrap();

    let mut open = JoinSet::new();
    let mut held = BTreeSet::new();
    for task in constellation.held() {
        let number = log.task_of(task.request_id().as_str());
        held.insert(number);
        open.spawn(follow(number, task));
    }
    // What ended in the moment in which it was killed is told by the server.
    let unknown: BTreeSet<u64> = &(&log.about - &log.ended) - &held;
    for task in unknown {
        if let Some(ending) = ask(task).await {
            log.note_ended(task, &ending);
        }
    }
    let left = tasks.filter(|task| !held.contains(task) && !log.ended.contains(task));
    let mut left: Vec<u64> = left.collect();
    left.reverse();
    loop {
        while open.len() < OPEN
            && let Some(task) = left.pop()
        {
            log.note_about(task);
            log.write(&format!("about {task}"));
            match constellation.submit(new_task(&folder, task)) {
                Ok(submitted) => {
                    log.note_submitted(task, submitted.request_id().as_str());
                    open.spawn(follow(task, submitted));
                }
                Err(_) => {
                    // Not connected right now.
                    left.push(task);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        let Some(ended) = open.join_next().await else { break };
        let (task, outcome) = ended.unwrap();
        if outcome.refused == Some(Refused::Retry) || outcome.refused == Some(Refused::Final) {
            // Its device is away: nothing was done.
            left.push(task);
            tokio::time::sleep(Duration::from_millis(50)).await;
        } else {
            log.note_ended(task, if outcome.completed { "completed" } else { "failed" });
        }
    }
    constellation.close().await;
}

async fn follow(number: u64, task: Task) -> (u64, Outcome) {
    (number, task.outcome().await)
}

fn new_task(folder: &Path, task: u64) -> NewTask {
    let device = DEVICES[usize::try_from(task).unwrap() % DEVICES.len()];
    let lines = lines_of(folder, device);
    let command = format!("echo {task} >> {}", lines.display());
    let action = serde_json::json!({
        "tool_name": "execute_command",
        "parameters": {"command": command},
        "tool_type": "action",
    });
    let plan = serde_json::json!({"commands": [action]}).to_string();
    let mut new = NewTask::new(device.parse().unwrap(), plan);
    new.task_name = Some(format!("t-{task}"));
    new.on_disconnect = OnDisconnect::Continue;
    new
}

/// What the server says that became of a task; `None` if it knows none.
async fn ask(task: u64) -> Option<String> {
    let url = variable("PROOF_URL").replace("ws://", "http://").replace("/ws", "");
    let url = format!("{url}/api/v1/tasks?task_name=t-{task}");
    loop {
        let asked = http_client().get(&url).bearer_auth(variable("PROOF_KEY")).send().await;
        if let Ok(response) = asked
            && let Ok(page) = response.json::<serde_json::Value>().await
        {
            let state = page["tasks"][0]["state"].as_str().map(str::to_owned);
            return state.filter(|state| state == "completed" || state == "failed");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
