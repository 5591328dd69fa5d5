//! The tools themselves, called as directly as can be.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::{common, echo};

pub(crate) enum Direct {
    /// All of the call counts as overhead.
    Nothing,
    Read(PathBuf),
    Run(Command),
    Stdio(Pipe, String),
    Http(reqwest::RequestBuilder),
}

impl Direct {
    pub(crate) fn run(words: &[&str]) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        Self::Run(command)
    }

    pub(crate) fn stdio(arguments: &Value) -> Self {
        Self::Stdio(Pipe::open(), call(arguments))
    }

    /// With a client that keeps its connection.
    pub(crate) fn post(url: String, arguments: &Value) -> Self {
        let request = common::http_client().post(url).body(call(arguments));
        let accepts = "application/json, text/event-stream";
        Self::Http(request.header("content-type", "application/json").header("accept", accepts))
    }

    pub(crate) async fn call(&mut self) {
        match self {
            Self::Nothing => {}
            Self::Read(path) => drop(std::fs::read_to_string(path).unwrap()),
            Self::Run(command) => assert!(command.output().unwrap().status.success()),
            Self::Stdio(pipe, message) => drop(pipe.ask(message)),
            Self::Http(request) => {
                let answer = request.try_clone().unwrap().send().await.unwrap();
                drop(answer.error_for_status().unwrap().bytes().await.unwrap());
            }
        }
    }
}

/// The call of the tool, as it is told to an MCP server directly.
fn call(arguments: &Value) -> String {
    let params = json!({"name": "echo", "arguments": arguments});
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string()
}

/// An MCP server over stdio, spoken to line by line.
pub(crate) struct Pipe {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Pipe {
    fn open() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command.arg(echo::STDIO).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, stdin, stdout: BufReader::new(stdout) }
    }

    fn ask(&mut self, message: &str) -> String {
        self.stdin.write_all(format!("{message}\n").as_bytes()).unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
