//! `flightdeck device`: makes this machine a device, shows how it is doing, or has it run as a service.

mod checks;
mod install;
mod join;
mod log;
mod nudge;
mod private;
mod record;
mod rejoin;
mod status;
mod status_file;
mod unit;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aip::ServerMessage;
use aip::message::Platform;
use anyhow::Context;
use device::policy::Ask;
use device::tools::ToolSettings;
use device::tools::mcp::{ServerEvent, ServerState};
use device::watchdog::Watchdog;
use device::{
    Capacity, Device, DeviceError, DeviceEvent, DeviceSettings, Exec, Features, JournalSettings,
    SpoolSettings,
};
use link::connection::Watch;
use link::{ClientSettings, Exit, Retention, ServerUrl};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::join::Asked;
use self::nudge::Hangups;
use self::status_file::{StatusFile, file_word};
use crate::args::{Device as Args, DeviceCommand, Global};
use crate::commands::dry_run;
use crate::connect::{Target, key_anew, trust_hint};
use crate::held;
use crate::mcp::{self, Listed, Source};
use crate::output::{DIM, GREEN, RED, human, print_line, safe, safe_line};
use crate::policy::PolicyFile;
use crate::prompt::Prompt;
use crate::settings::{DeviceValues, ExecMode, FeatureList, File, at_least_one};
use crate::state::{StateFolder, create_private_folder, expand_home};
use crate::tls;
use crate::{Code, Ended, Failure, Interrupts, block_on_one_thread};

/// The most commands of a journal: a REGISTER lists no more.
const MAX_JOURNAL_COMMANDS: usize = 4096;

pub(crate) fn run(args: Args, global: Global) -> Ended {
    match args.command {
        None => block_on_one_thread(run_device(args, global)),
        Some(DeviceCommand::Status(args)) => status::run(&args, &global),
        Some(DeviceCommand::Log(args)) => log::run(&args, &global),
        Some(DeviceCommand::Rejoin(args)) => block_on_one_thread(rejoin::run(*args, global)),
        Some(DeviceCommand::Install(args)) => install::install(*args, &global),
        Some(DeviceCommand::Uninstall(args)) => install::uninstall(&args, &global),
    }
}

async fn run_device(args: Args, global: Global) -> Ended {
    // What the device starts is among them, and the key is in its memory and may be in its environment.
    if let Err(error) = device::confine::close_to_others() {
        tracing::warn!(%error, "other programs of this user can read the device's memory");
    }
    let file = File::load(global.config.as_deref())?;
    let mut values = args.device.resolve(file.device);
    let policy = PolicyFile::load(&values.policy, global.config.as_deref())?;
    let variable = |name: &str| std::env::var(name).ok();
    let mut client_keys = args.client.clone();
    client_keys.server = client_keys.server.or_else(|| file.client.server.clone());
    let client = args.client.clone().resolve(file.client.clone());
    let private = private::files(&values, &client, &file.server, &global);
    let servers = listed_servers(file.path.zip(Some(file.mcp)), &values, &variable).servers;
    if args.dry_run {
        let mut settings = settings(&values, &ServerUrl::default())?;
        settings.tools.servers = servers;
        settings.tools.policy = policy.policy.clone();
        settings.tools.private = private;
        let named = (!client.ca_file.is_empty()).then(|| tls::trust(&client.ca_file));
        settings.tools.trust = named.transpose()?;
        return dry_run::run(&settings, &policy, args.json).await;
    }
    let keys = args.client.clone();
    let asked = Asked {
        join: args.join.as_ref(),
        is_insecure: args.insecure,
        id: &values.id,
        keys: &client_keys,
        values: &client,
    };
    let target = match join::find(&asked, &global).await? {
        Some(joined) => {
            values.id = joined.id.to_string();
            joined.target
        }
        None => Target::keyed(args.client, &global)?,
    };
    let mut settings = settings(&values, &target.server)?;
    if policy.path.is_some() {
        say!("{DIM}policy: {}{DIM:#}", safe_line(&policy.summary()));
    }
    settings.tools.policy = policy.policy;
    settings.tools.private = private;
    settings.tools.ask = Prompt::at_terminal().map(|prompt| prompt as Arc<dyn Ask>);
    settings.tools.trust = target.trust_of_servers(&servers)?;
    settings.tools.servers = servers;
    for warning in settings.tools.warnings() {
        say!("warning: {}", safe_line(&warning));
    }
    settings.client = target.apply(settings.client);
    // Who has joined shows no key.
    if settings.client.device_key.is_none() {
        settings.client.token_source = Some(key_anew(&keys, &target.server, &global));
    }
    let nudge = Arc::new(Notify::new());
    settings.client.nudge = Some(nudge.clone());
    settings.request = args.request;
    settings.task_name = args.task_name;

    settings.journal.folder = journal_folder(&global, settings.id.as_str());
    settings.tools.on_call = record::keeper(&values, settings.journal.folder.as_deref());

    let (id, exec) = (settings.id.clone(), settings.tools.exec);
    let server = target.server.clone();
    let status = StatusFile::open(&values.status_file, &global, &id, &server);
    let device = Device::new(settings, watchdog(), move |event| {
        show(&event, id.as_str(), exec, &server);
    })
    .map_err(explain)?;
    let state = device.state();
    let keeping = status.as_ref().map(|status| tokio::spawn(status.clone().keep(state.clone())));
    let files = nudge::watch_files(target.key_files(&global), nudge.clone(), state.clone());
    let watching = tokio::spawn(files);
    let mut hangups = Hangups::of_service();
    // One for both signals: between two of them the second would be lost.
    let mut interrupts = Interrupts::listen_but_hangup(hangups.is_some());
    let stop = CancellationToken::new();
    let running = device.run(stop.clone());
    tokio::pin!(running);
    let interrupted = async {
        loop {
            tokio::select! {
                () = interrupts.next() => return interrupts,
                () = Hangups::next(hangups.as_mut()) => {
                    if !state.borrow().is_connected {
                        say!("Trying again at once.");
                        nudge.notify_one();
                    }
                }
            }
        }
    };
    let exit = tokio::select! {
        exit = &mut running => exit,
        mut interrupts = interrupted => {
            // What stands on the terminal is not what its owner is about any more.
            held::interrupt();
            say!("Stopping.");
            stop.cancel();
            tokio::select! {
                exit = running => exit,
                () = interrupts.next() => Exit::Stopped,
            }
        }
    };
    watching.abort();
    held::interrupt();
    if let Some((keeping, status)) = keeping.zip(status) {
        keeping.abort();
        status.close(&exit, state.borrow().clone());
    }
    match exit {
        Exit::Stopped => Ok(Code::COMPLETED),
        exit => Err(target.explain(exit)),
    }
}

/// The folder of a device's journal, in the state folder. Without one the device forgets its commands when it ends,
/// which is said.
fn journal_folder(global: &Global, id: &str) -> Option<PathBuf> {
    let made = StateFolder::new(global.state_dir.clone()).and_then(|state| {
        state.note_elsewhere();
        state.create()?;
        let folder = state.path().join(format!("journal-{}", file_word(id)));
        create_private_folder(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(folder)
    });
    made.inspect_err(|error| {
        say!("warning: the device forgets its commands when it ends: {error:#}");
    })
    .ok()
}

fn explain(error: DeviceError) -> anyhow::Error {
    let is_taken = matches!(error, DeviceError::Identity(_));
    let error = anyhow::Error::from(error);
    match is_taken {
        true => error.context(
            "a device with this id runs here already; name this one otherwise with --id, or give it a folder of \
             its own with --state-dir",
        ),
        false => error,
    }
}

/// The settings of a device of `server`.
pub(crate) fn settings(
    values: &DeviceValues,
    server: &ServerUrl,
) -> Result<DeviceSettings, Failure> {
    let id = if values.id.is_empty() { device::info::host_name() } else { values.id.clone() };
    let id = id.parse().with_context(|| format!("--id {id:?}"))?;
    at_least_one(&[
        ("parallel_commands", values.parallel_commands),
        ("max_commands", values.max_commands),
        ("journal_commands", values.journal_commands),
        ("max_output_bytes", values.max_output_bytes),
        ("record_max_bytes", values.record_max_bytes),
    ])?;
    if values.heartbeat_interval.0.is_zero() {
        return Err(anyhow::anyhow!("heartbeat_interval must be more than 0").into());
    }
    let (ping_every, timeout) = (values.ping_interval.0, values.liveness_timeout.0);
    if ping_every.is_zero() || ping_every >= timeout {
        return Err(anyhow::anyhow!(
            "ping_interval must be more than 0 and less than liveness_timeout: a server that is never \
             pinged in time counts as gone"
        )
        .into());
    }
    let (first_wait, max_wait) = reconnect_waits(values)?;
    let roots: Vec<_> = values.root.0.iter().map(|root| expand_home(root)).collect();
    for root in &roots {
        if !root.is_dir() {
            return Err(
                anyhow::anyhow!("--root {}: there is no such folder", root.display()).into()
            );
        }
    }
    let resume_timeout = values.resume_liveness_timeout.0;
    if resume_timeout.is_zero() {
        return Err(anyhow::anyhow!("resume_liveness_timeout must be more than 0").into());
    }
    if values.journal_commands > MAX_JOURNAL_COMMANDS {
        return Err(anyhow::anyhow!(
            "journal_commands must be at most {MAX_JOURNAL_COMMANDS}: more cannot be told to a server"
        )
        .into());
    }
    let exec = match values.exec {
        ExecMode::Observe => Exec::Observe,
        ExecMode::Shell => Exec::Shell,
        ExecMode::Off => Exec::Off,
    };
    Ok(DeviceSettings {
        client: ClientSettings {
            heartbeat_interval: values.heartbeat_interval.0,
            watch: Watch { ping_every, timeout },
            resume_watch: Watch {
                ping_every: ping_every.min(resume_timeout / 2),
                timeout: timeout.min(resume_timeout),
            },
            max_retries: values.max_retries.0,
            backoff_base: first_wait,
            backoff_cap: max_wait,
            ..ClientSettings::device(server.clone())
        },
        id,
        platform: platform(&values.platform)?,
        features: match values.features {
            FeatureList::Auto => Features::Auto,
            FeatureList::Ufo => Features::Ufo,
        },
        tags: tags(values)?,
        tools: ToolSettings {
            exec,
            roots,
            parallel_commands: values.parallel_commands,
            max_command_time: values.max_command_time.0,
            max_output_bytes: values.max_output_bytes,
            max_memory_bytes: values.max_memory_bytes as u64,
            sandbox: values.sandbox,
            disabled: values.disable.0.clone(),
            reveal: values.reveal.0.iter().map(|path| expand_home(path)).collect(),
            mcp_start_timeout: values.mcp_start_timeout.0,
            mcp_call_timeout: values.mcp_call_timeout.0,
            ask_timeout: values.ask_timeout.0,
            ..ToolSettings::default()
        },
        commands: Capacity { commands: values.max_commands, bytes: values.max_commands_bytes },
        spool: SpoolSettings {
            bytes: values.spool_bytes as u64,
            commands: values.spool_commands,
            time: values.spool_time.0,
        },
        journal: JournalSettings {
            folder: None,
            commands: values.journal_commands,
            bytes: values.journal_bytes,
            forgotten: values.journal_ids,
            retention: Retention { stores: values.journal_stores, time: values.journal_time.0 },
        },
        finish_time: values.finish_time.0,
        request: None,
        task_name: None,
        facts: None,
    })
}

/// The most tags of a device, and the longest of one, in characters.
const MAX_TAGS: usize = 64;
const MAX_TAG_CHARS: usize = 64;

/// The words by which the device can be chosen.
///
/// # Errors
/// When there are too many, or one could be no word.
fn tags(values: &DeviceValues) -> anyhow::Result<Vec<String>> {
    let tags = &values.tags.0;
    anyhow::ensure!(tags.len() <= MAX_TAGS, "--tag: a device has at most {MAX_TAGS} tags");
    for tag in tags {
        let is_word = tag.chars().all(|c| c.is_alphanumeric() || "-_.:/=".contains(c));
        anyhow::ensure!(
            is_word && tag.chars().count() <= MAX_TAG_CHARS,
            "--tag {tag:?}: a tag has letters, digits and - _ . : / =, at most {MAX_TAG_CHARS}"
        );
    }
    Ok(tags.clone())
}

/// The longest first and the longest wait between tries to reach the server.
///
/// # Errors
/// When the device would try without a pause, or the first wait is over the longest.
fn reconnect_waits(values: &DeviceValues) -> anyhow::Result<(Duration, Duration)> {
    let (first, longest) = (values.reconnect_first_wait.0, values.reconnect_max_wait.0);
    anyhow::ensure!(
        !first.is_zero() && first <= longest,
        "reconnect_first_wait must be more than 0 and at most reconnect_max_wait"
    );
    Ok((first, longest))
}

/// The MCP servers of the settings file and of `--mcp`. What is wrong with some of them is said, and no
/// reason for the others, or the device, to stay away.
fn listed_servers(
    settings_file: Option<(PathBuf, toml::Table)>,
    values: &DeviceValues,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Listed {
    let settings = settings_file.map(|(path, servers)| Source::Settings { path, servers });
    let files = values.mcp.0.iter().cloned().map(Source::File);
    let listed = mcp::read(settings.into_iter().chain(files), variable);
    for problem in &listed.problems {
        say!("{RED}warning:{RED:#} {problem}");
    }
    listed
}

fn platform(given: &str) -> anyhow::Result<String> {
    if given.is_empty() {
        return Ok(device::info::default_platform().to_owned());
    }
    let known = Platform::from_word(given).with_context(|| {
        format!("--platform {given:?}: a server knows windows, linux and mobile")
    })?;
    Ok(known.to_string())
}

/// This program again, watching over what the device starts: it cleans up even after a `kill -9`.
pub(crate) fn watchdog() -> Option<Arc<Watchdog>> {
    let started =
        std::env::current_exe().and_then(|program| Watchdog::start(&program, &["watchdog"]));
    match started {
        Ok(watchdog) => Some(Arc::new(watchdog)),
        Err(error) => {
            tracing::warn!(%error, "no watchdog: children may outlive a device that is killed");
            None
        }
    }
}

fn show(event: &DeviceEvent, id: &str, exec: Exec, server: &ServerUrl) {
    match event {
        DeviceEvent::Connected => {
            let may = match exec {
                Exec::Observe => "commands that only observe",
                Exec::Shell => "any command",
                Exec::Off => "no commands",
            };
            say!("{GREEN}connected{GREEN:#} to {server} as '{}', runs {may}", safe_line(id));
        }
        DeviceEvent::Disconnected { why, retry: Some(wait) } => {
            let (why, wait) = (safe_line(why), human(*wait));
            say!("{RED}not connected{RED:#}: {why}; trying again in {wait}");
            if why.contains("already registered") {
                say!("  another device has this id: choose one with --id");
            }
            if let Some(hint) = trust_hint(&why) {
                say!("  {hint}");
            }
        }
        // The reason comes with the exit.
        DeviceEvent::Disconnected { retry: None, .. } => {}
        DeviceEvent::TaskAccepted(session) => {
            say!("{DIM}task accepted: {}{DIM:#}", safe_line(session.as_str()));
        }
        DeviceEvent::TaskEnded(end) => show_outcome(end),
        DeviceEvent::McpServer(event) => show_server(event),
        DeviceEvent::ServerError(error) => {
            say!("{RED}the server reports{RED:#}: {}", safe_line(error));
        }
    }
}

fn show_server(event: &ServerEvent) {
    let name = safe_line(&event.namespace);
    match &event.state {
        ServerState::Up { .. } => {
            say!("{DIM}MCP server '{name}' {event}{DIM:#}");
        }
        // Told once for each reason, however often it is tried in vain.
        ServerState::Down { .. } => {
            let how = safe_line(&event.to_string());
            say!("{RED}MCP server '{name}'{RED:#} {how}; trying again");
        }
        ServerState::Starting | ServerState::Stopped => {}
    }
}

fn show_outcome(end: &ServerMessage) {
    let error = end.error.as_deref().map(|error| format!(": {}", safe_line(error)));
    say!("task {}{}", end.status, error.unwrap_or_default());
    if let Some(result) = &end.result
        && let Err(error) = print_line(&safe(result.as_str()))
    {
        say!("{RED}error:{RED:#} {error:#}");
    }
}
