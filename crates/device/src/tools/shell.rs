//! `execute_command`: one command line, run within the owner's limits.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aip::machine::LONGEST_WAIT;
use serde::Deserialize;
use serde_json::{Value, json};

use super::below;
use super::observe::{Observe, Program};
use super::work::{Watch, Workers};
use super::{Call, Exec, STOPPED, ToolSettings, touches};
use crate::confine::Confinement;
use crate::flow::Flow;
use crate::policy::{Decision, Effect, Policy, Subject, Touch};
use crate::process::{self, Output, RunError, Spec, Written};
use crate::watchdog::Watchdog;

/// The time limit of a command whose caller asks for none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How much is kept of each stream of a command whose requester gets all of it.
const STREAMED_KEPT: usize = 64 * 1024;

/// How much of an output is repeated in the text of a time-out or a stop, in characters.
const OUTPUT_HEAD_CHARS: usize = 500;

/// Runs commands.
pub(super) struct Shell {
    exec: Exec,
    observe: Observe,
    max_time: Option<Duration>,
    max_output: usize,
    confinement: Confinement,
    watchdog: Option<Arc<Watchdog>>,
    policy: Policy,
    workers: Workers,
}

/// The most variables that a caller may set for one command.
const MAX_VARIABLES: usize = 256;

/// Arguments of `execute_command`.
#[derive(Debug, Deserialize)]
pub(super) struct Arguments {
    command: String,
    /// Seconds.
    #[serde(default, deserialize_with = "crate::tools::optional")]
    timeout: Option<f64>,
    #[serde(default, deserialize_with = "crate::tools::optional")]
    cwd: Option<PathBuf>,
    /// Variables to set, beside what every command has.
    #[serde(default, deserialize_with = "crate::tools::optional")]
    env: Option<BTreeMap<String, String>>,
}

impl Shell {
    pub(super) fn new(
        settings: &ToolSettings,
        confinement: Confinement,
        watchdog: Option<Arc<Watchdog>>,
    ) -> Self {
        Self {
            exec: settings.exec,
            observe: Observe::new(&settings.roots, home()).keeping(settings.private()),
            max_time: settings.max_command_time,
            max_output: settings.max_output_bytes,
            confinement,
            watchdog,
            policy: settings.policy.clone(),
            workers: Workers::new(),
        }
    }

    /// What the tool does here, for an agent; `None` when it does nothing.
    pub(super) fn describe(&self) -> Option<String> {
        match self.exec {
            Exec::Off => None,
            Exec::Shell => Some(
                "Runs a command line with sh -c. Returns success, exit_code, stdout and stderr."
                    .to_owned(),
            ),
            Exec::Observe => {
                let allowed = Observe::commands().collect::<Vec<_>>().join(", ");
                Some(format!(
                    "Runs one command that only observes, without a shell (no pipes, no \
                     redirection, no patterns). Allowed: {allowed}. Returns success, exit_code, \
                     stdout and stderr."
                ))
            }
        }
    }

    /// Runs a command line. One that ran and exited non-zero is no error.
    ///
    /// # Errors
    /// When it is not allowed, could not start, took too long, or was stopped.
    pub(super) async fn execute(
        &self,
        arguments: Arguments,
        call: &Call<'_>,
    ) -> Result<Value, String> {
        let (mut spec, folders) = self.spec(&arguments, call.flow)?;
        if !folders.is_empty() {
            spec.confinement = self.hiding(folders, spec.timeout, call).await?;
        }
        let watchdog = self.watchdog.as_deref();
        let ran = process::run(spec, call.stop, watchdog, call.progress, call.flow).await;
        let is_streamed = call.flow.is_some_and(Flow::takes_output);
        ran.map(|output| result(&output, is_streamed))
            .map_err(|error| self.explain(&error, is_streamed))
    }

    /// What a call does to which files.
    ///
    /// # Errors
    /// When it is not allowed anyway.
    pub(super) fn touched(&self, arguments: &Arguments) -> Result<Vec<Touch>, String> {
        match self.exec {
            Exec::Off => Ok(Vec::new()),
            Exec::Shell => {
                let (_, _, cwd) = self.in_shell(arguments)?;
                Ok(touches::of_shell(&arguments.command, &cwd))
            }
            Exec::Observe => Ok(touches::of_program(&self.observed(arguments, true)?.0)),
        }
    }

    /// The limits of a command that reads all files below some folders: it does not see those that are kept from
    /// callers.
    ///
    /// # Errors
    /// When there are such files and they cannot be covered, or it takes too long to find them.
    async fn hiding(
        &self,
        folders: Vec<PathBuf>,
        limit: Duration,
        call: &Call<'_>,
    ) -> Result<Confinement, String> {
        let (observe, policy) = (self.observe.clone(), self.policy.clone());
        let (watch, confinement) = (Watch::new(call.stop.clone(), limit), self.confinement.clone());
        let hide = move || {
            let is_closed = |path: &Path| {
                let subject = Subject {
                    namespace: super::bash::NAMESPACE,
                    tool_name: super::bash::EXECUTE_COMMAND,
                    tool_type: aip::ToolType::Action,
                    parameters: None,
                    file: None,
                    touched: &[],
                    usual: Decision::Allow,
                };
                policy.closes(Effect::Read, &path.to_string_lossy(), &subject)
            };
            let found = below::private(folders, observe.bounds(), is_closed, &watch);
            let found =
                found.map_err(|error| format!("Blocked: before it reads a folder: {error}"))?;
            confinement.without(found).map_err(|error| format!("Blocked: {error}"))
        };
        self.workers.run(call.stop, hide).await
    }

    /// How a command line is run, and the folders in which it reads all files.
    fn spec(
        &self,
        arguments: &Arguments,
        flow: Option<&Flow>,
    ) -> Result<(Spec, Vec<PathBuf>), String> {
        let timeout = self.timeout(arguments.timeout)?;
        let mut folders = Vec::new();
        let (program, args, cwd) = match self.exec {
            Exec::Off => return Err("Running commands is switched off on this device".to_owned()),
            Exec::Shell => self.in_shell(arguments)?,
            Exec::Observe => {
                let has_input = flow.is_some_and(Flow::has_input);
                let (program, cwd) = self.observed(arguments, has_input)?;
                if program.reads_below {
                    folders.extend(program.named.into_iter().map(|named| named.path));
                }
                (program.path, program.args, cwd)
            }
        };
        let spec = Spec {
            program,
            args: args.into_iter().map(Into::into).collect(),
            cwd,
            timeout,
            max_output: match flow.is_some_and(Flow::takes_output) {
                true => self.max_output.min(STREAMED_KEPT),
                false => self.max_output,
            },
            env: self.environment(arguments.env.as_ref())?,
            confinement: self.confinement.clone(),
        };
        Ok((spec, folders))
    }

    /// The environment of a command. Those that only observe are steered by their checked arguments
    /// alone.
    ///
    /// # Errors
    /// When the caller sets what it may not, or what can be no variable.
    fn environment(
        &self,
        set: Option<&BTreeMap<String, String>>,
    ) -> Result<Vec<(OsString, OsString)>, String> {
        let mut environment = process::scrubbed_env();
        if let Some(set) = set.filter(|set| !set.is_empty()) {
            if self.exec == Exec::Observe {
                return Err(blocked(&NO_VARIABLES));
            }
            check_variables(set)?;
            environment
                .retain(|(name, _)| name.to_str().is_none_or(|name| !set.contains_key(name)));
            environment.extend(set.iter().map(|(name, value)| (name.into(), value.into())));
        }
        if self.exec == Exec::Observe {
            environment.retain(|(name, _)| name != "TZ" && name != "LC_ALL");
            environment.push(("LC_ALL".into(), "C.UTF-8".into()));
        }
        Ok(environment)
    }

    fn timeout(&self, seconds: Option<f64>) -> Result<Duration, String> {
        let most = self.max_time.unwrap_or(LONGEST_WAIT);
        let Some(seconds) = seconds else { return Ok(DEFAULT_TIMEOUT.min(most)) };
        if !(seconds.is_finite() && seconds > 0.0) {
            return Err("Bad arguments: timeout must be a number of seconds above 0".to_owned());
        }
        // Beyond what a duration can hold is beyond every limit too.
        Ok(Duration::try_from_secs_f64(seconds).unwrap_or(most).min(most))
    }

    /// Why there is no output, for the caller; a limit of the owner's with the name of its setting.
    fn explain(&self, error: &RunError, is_streamed: bool) -> String {
        // Who gets all of it as it is written has it already.
        let so_far = |stdout: &Written, stderr: &Written| match is_streamed {
            true => String::new(),
            false => so_far(&stdout.text, &stderr.text),
        };
        match error {
            RunError::TimedOut { after, stdout, stderr } => {
                let is_owners = self.max_time == Some(*after);
                let whose = if is_owners { " (this device's max_command_time)" } else { "" };
                let seconds = after.as_secs_f64();
                let how = format!("Timed out after {seconds} s{whose} and was stopped");
                how + &so_far(stdout, stderr)
            }
            RunError::Stopped { stdout, stderr } => format!("{STOPPED}{}", so_far(stdout, stderr)),
            RunError::NotStarted(why) => format!("Could not start: {why}"),
            RunError::Lost(why) => format!("Could not see how it ended: {why}"),
        }
    }

    fn observed(
        &self,
        arguments: &Arguments,
        has_input: bool,
    ) -> Result<(Program, PathBuf), String> {
        let cwd = match &arguments.cwd {
            Some(cwd) => self.observe.check_cwd(cwd).map_err(|refusal| blocked(&refusal))?,
            None => self.observe.default_cwd(),
        };
        let program = self
            .observe
            .check(&arguments.command, &cwd, has_input)
            .map_err(|refusal| blocked(&refusal))?;
        Ok((program, cwd))
    }

    fn in_shell(&self, arguments: &Arguments) -> Result<(PathBuf, Vec<String>, PathBuf), String> {
        let cwd = arguments.cwd.clone().or_else(home).unwrap_or_else(|| PathBuf::from("/"));
        if !cwd.is_dir() {
            return Err(format!("Bad arguments: cwd {cwd:?} is no folder"));
        }
        // A command line may begin with a dash.
        let args = ["-c", "--", &arguments.command, "sh"].map(str::to_owned);
        Ok((PathBuf::from("/bin/sh"), args.to_vec(), cwd))
    }
}

/// Why a device that lets commands only observe takes no variables: many programs run what one of them names.
const NO_VARIABLES: &str =
    "environment variables (env) can be set only where --exec shell allows any command";

/// Checks that variables can be set: names as a shell takes them, so that nothing is set that cannot be read.
fn check_variables(set: &BTreeMap<String, String>) -> Result<(), String> {
    if set.len() > MAX_VARIABLES {
        return Err(format!("Bad arguments: env has more than {MAX_VARIABLES} variables"));
    }
    for (name, value) in set {
        let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_word || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            let what = "is no name of a variable: letters, digits and _, no digit first";
            return Err(format!("Bad arguments: env: {name:?} {what}"));
        }
        if value.contains('\0') {
            return Err(format!("Bad arguments: env: the value of {name} has a NUL character"));
        }
    }
    Ok(())
}

/// The home folder of the user that this device runs as.
pub(super) fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| home != Path::new(""))
}

fn blocked(refusal: &impl std::fmt::Display) -> String {
    format!("Blocked: {refusal}")
}

/// As UFO's devices return it; with the number of bytes where the texts may be less than what was written.
fn result(output: &Output, is_streamed: bool) -> Value {
    let (stdout, stderr) = (&output.stdout, &output.stderr);
    let mut result = json!({
        "success": output.exit_code == 0,
        "exit_code": output.exit_code,
        "stdout": stdout.text,
        "stderr": stderr.text,
    });
    let is_cut = stdout.is_cut || stderr.is_cut;
    if is_cut || is_streamed {
        result["stdout_bytes"] = json!(stdout.bytes);
        result["stderr_bytes"] = json!(stderr.bytes);
    }
    if is_cut {
        result["truncated"] = json!(true);
    }
    result
}

/// The beginning of what a program wrote before it was ended.
fn so_far(stdout: &str, stderr: &str) -> String {
    let written = [("stdout", stdout), ("stderr", stderr)];
    let told =
        written.into_iter().filter(|(_, output)| !output.is_empty()).map(|(name, output)| {
            let head: String = output.chars().take(OUTPUT_HEAD_CHARS).collect();
            format!("; {name} so far: {head}")
        });
    told.collect()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::super::Caller;
    use super::*;
    use crate::progress::Progress;

    async fn execute(arguments: Value, progress: &Progress) -> Result<Value, String> {
        execute_until(&CancellationToken::new(), arguments, progress).await
    }

    async fn execute_until(
        stop: &CancellationToken,
        arguments: Value,
        progress: &Progress,
    ) -> Result<Value, String> {
        let settings = ToolSettings { exec: Exec::Shell, ..ToolSettings::default() };
        let shell = Shell::new(&settings, Confinement::new(100 << 20), None);
        let call =
            Call { parameters: None, caller: &Caller::default(), stop, progress, flow: None };
        shell.execute(serde_json::from_value(arguments).unwrap(), &call).await
    }

    async fn failed(arguments: Value) -> String {
        execute(arguments, &Progress::default()).await.unwrap_err()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_time_limit_is_named_with_what_came_until_then() {
        let error = failed(json!({"command": "echo so far; sleep 1000", "timeout": 0.5})).await;
        assert_eq!(error, "Timed out after 0.5 s and was stopped; stdout so far: so far\n");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_owners_limit_is_named_and_there_need_be_none() {
        let limit = |most| {
            let settings = ToolSettings { max_command_time: most, ..ToolSettings::default() };
            Shell::new(&settings, Confinement::default(), None)
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(limit(None).timeout(None), Ok(DEFAULT_TIMEOUT));
        assert_eq!(limit(None).timeout(Some(1e9)), Ok(Duration::from_secs(1_000_000_000)));
        assert_eq!(limit(None).timeout(Some(1e300)), Ok(LONGEST_WAIT));
        assert_eq!(limit(Some(hour)).timeout(Some(1e9)), Ok(hour));
        let over = |after| {
            let (stdout, stderr) = (Written::default(), Written::default());
            limit(Some(hour)).explain(&RunError::TimedOut { after, stdout, stderr }, false)
        };
        let named = "Timed out after 3600 s (this device's max_command_time) and was stopped";
        assert_eq!(over(hour), named);
        assert_eq!(over(hour / 2), "Timed out after 1800 s and was stopped");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_command_that_is_stopped_says_what_came_until_then() {
        let stop = CancellationToken::new();
        let heard = stop.clone();
        let progress = Progress::to(move |text| {
            if text.ends_with("oh") {
                heard.cancel();
            }
        });
        let arguments = json!({"command": "echo so far; echo oh >&2; sleep 1000"});
        let error = execute_until(&stop, arguments, &progress).await.unwrap_err();
        assert_eq!(error, "stopped; stdout so far: so far\n; stderr so far: oh\n");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_command_that_cannot_start_says_why() {
        let error = failed(json!({"command": format!(": {}", "x".repeat(200_000))})).await;
        assert!(error.starts_with("Could not start: Argument list too long"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_caller_may_set_variables_and_nothing_that_is_none() {
        let run = |env: Value| async move {
            let arguments = json!({"command": "echo \"$A:$LANG:$HOME\"", "env": env});
            execute(arguments, &Progress::default()).await
        };
        let ran = run(json!({"A": "x y\n$B", "LANG": "C"})).await.unwrap();
        let home = home().unwrap();
        assert_eq!(ran["stdout"], format!("x y\n$B:C:{}\n", home.display()));
        for none in [json!(null), json!({})] {
            assert_eq!(run(none).await.unwrap()["success"], true);
        }
        for (bad, why) in [
            (json!({"A=B": "x"}), "\"A=B\" is no name of a variable"),
            (json!({"1A": "x"}), "is no name"),
            (json!({"": "x"}), "is no name"),
            (json!({"A": "\u{0}"}), "has a NUL character"),
            (json!({"A": 1}), "invalid type"),
        ] {
            let Ok(arguments) =
                serde_json::from_value::<Arguments>(json!({"command": "true", "env": bad}))
            else {
                assert_eq!(why, "invalid type");
                continue;
            };
            let error = check_variables(arguments.env.as_ref().unwrap()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_only_observes_takes_no_variables() {
        let shell = Shell::new(&ToolSettings::default(), Confinement::new(100 << 20), None);
        let set = BTreeMap::from([("GIT_SSH_COMMAND".to_owned(), "touch /tmp/x".to_owned())]);
        let error = shell.environment(Some(&set)).unwrap_err();
        assert!(error.starts_with("Blocked: environment variables (env)"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_disk_and_a_memory_limit_are_failures_in_the_programs_own_words() {
        let words = [
            ("head -c 1 /dev/zero > /dev/full", "No space left on device"),
            ("perl -e 'my $n = 200 << 20; my $x = \"x\" x $n'", "Out of memory"),
        ];
        for (command, word) in words {
            let ran = execute(json!({"command": command}), &Progress::default()).await.unwrap();
            assert_eq!(ran["success"], false, "{ran}");
            assert!(ran["stderr"].as_str().unwrap().contains(word), "{ran}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_command_writes_is_told_to_whoever_listens() {
        let folder = tempfile::tempdir().unwrap();
        let heard = folder.path().join("heard");
        // The command ends only once all of it was told.
        let progress = Progress::to(move |text| {
            if text.ends_with("two") {
                std::fs::write(&heard, "").unwrap();
            }
        });
        let command = "echo one; echo two; until test -e heard; do :; done";
        let ran = execute(json!({"command": command, "cwd": folder.path()}), &progress).await;
        assert_eq!(ran.unwrap()["stdout"], "one\ntwo\n");
    }
}
