//! The settings of a server. A plain struct: reading files, flags and variables is for `cli`.

use std::collections::BTreeMap;
use std::time::Duration;

use aip::Payload;
use aip::machine::LONGEST_WAIT;
use link::{OutboxLimits, Pin};

use crate::hosts::{HostPattern, OriginPattern};
use crate::hub::Limits;
use crate::store::HistoryLimits;
use link::connection::Watch;

/// What a queue must hold: the answers to what a connection reads in one go, before it writes.
pub const MIN_OUTBOX_MESSAGES: usize = 128;

/// The least room for messages in flight, in bytes.
pub const MIN_BYTES_IN_FLIGHT: usize = 1024 * 1024;

/// Longest time for one command, where neither the task nor the server's owner says another.
pub(crate) const DEFAULT_COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// Longest time for one task, where neither it nor the server's owner says another.
pub(crate) const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(3600);

/// The limits and waits of a server, each with its default. A wait beyond [`LONGEST_WAIT`] is as good as that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Sessions of any kind that run on one device at the same time: a desktop has one pair of hands.
    pub sessions_per_device: usize,
    /// Sessions that run on one device at the same time, however many that allows, as long as all of them run only
    /// commands and the tools for files.
    pub shared_per_device: usize,
    /// Tasks of one client that may wait for one device; a further one is refused at once. The clients of a key share
    /// twice as many places, all keys four times, and a newcomer may take half of what the others leave.
    pub queue_per_device: usize,
    /// Longest time for one command, from when it is sent, where its task says none. `None`:
    /// 300 s, or no limit for a task that wants none.
    pub command_timeout: Option<Duration>,
    /// The most that a task may ask for as its `command_timeout`, or have without one; `None` for no limit.
    pub max_command_timeout: Option<Duration>,
    /// Longest time for one task, from when it starts to run. `None`: an hour, or no limit for a task
    /// that wants none.
    pub session_timeout: Option<Duration>,
    /// Most steps of one task.
    pub max_steps: u32,
    /// Longest task text, in bytes.
    pub max_request_bytes: usize,
    /// Most bytes of results that one task may collect.
    pub max_task_bytes: usize,
    /// After a command was cancelled or timed out, how long its device may take to confirm before the
    /// next task gets its place.
    pub stop_grace: Duration,
    /// Longest wait for the first message of a connection.
    pub registration_timeout: Duration,
    /// Silence after which a peer counts as gone.
    pub liveness_timeout: Duration,
    /// Time between pings.
    pub ping_interval: Duration,
    /// Longest time for the head of an HTTP request.
    pub header_timeout: Duration,
    /// Longest time for the body of an HTTP request.
    pub body_timeout: Duration,
    /// Longest time for which an HTTP client may take nothing of its answer.
    pub write_timeout: Duration,
    /// Names and addresses that the server goes by, beside those it knows itself.
    pub allowed_hosts: Vec<HostPattern>,
    /// Origins whose pages may use the server, beside its own.
    pub allowed_origins: Vec<OriginPattern>,
    /// The machine's names.
    pub host_names: Vec<String>,
    /// The public key of the TLS proxy that devices reach this server through, if there is one.
    pub proxy_pin: Option<Pin>,
    /// The public key that the server, or that proxy, will have next.
    pub next_pin: Option<Pin>,
    /// Wrong keys that one address may show in a minute before the server answers it with a wait.
    pub failed_keys_per_minute: u32,
    /// Most connections of one address that have not shown a valid key within two seconds.
    pub max_unproven_per_address: usize,
    /// Most WebSocket connections at the same time, and as many plain HTTP connections.
    pub max_connections: usize,
    /// Most messages that wait to be sent to one peer.
    pub outbox_messages: usize,
    /// Most bytes that wait to be sent to one peer, beside one message of any size.
    pub outbox_bytes: usize,
    /// How long a peer whose queue is over these bounds may take no byte before it is cut.
    pub slow_after: Duration,
    /// Most bytes of large messages that are in flight over all connections: being read, made of them, the
    /// results of tasks that are not over, and what waits to be sent. Beyond it reading waits.
    pub max_bytes_in_flight: usize,
    /// How long a device that is away is waited for: its tasks stand still meanwhile.
    pub resume_window: Duration,
    /// Time between pings on the link of such a device; after as much silence more it counts as away.
    pub resume_ping: Duration,
    /// How long a device may take to say what became of a command that was cancelled.
    pub cancel_wait: Duration,
    /// How long an outcome is kept for a requester that does not acknowledge it, and how long such a requester is known
    /// after it last had a connection, an open task or an outcome to fetch.
    pub outcome_time: Duration,
    /// How long a device that keeps a journal is known after that.
    pub device_time: Duration,
    /// Most clients of one key that are known again when they come back.
    pub identities_per_key: usize,
    /// Most bytes of outcomes of one key that were not acknowledged.
    pub undelivered_bytes: usize,
    /// At shutdown, how long running commands may take to finish.
    pub shutdown_grace: Duration,
    /// Ended tasks that are remembered, newest first.
    pub history_tasks: usize,
    /// Most bytes of ended tasks that are remembered; beyond it their payloads go, oldest first.
    pub history_bytes: usize,
    /// Most bytes of results that are kept whole for requesters that have still to fetch them over HTTP.
    pub unfetched_bytes: usize,
    /// How long they are kept.
    pub unfetched_time: Duration,
    /// The agent name for Linux devices: the section of a Python device's `mcp.yaml`.
    pub agent_name_linux: String,
    /// The agent name for Windows devices.
    pub agent_name_windows: String,
    /// The agent name for mobile devices.
    pub agent_name_mobile: String,
    /// What to add to the facts of a device, by its id.
    pub devices: BTreeMap<String, BTreeMap<String, Payload>>,
    /// Whether the audit log has the arguments of each tool that is called.
    pub audit_arguments: bool,
}

impl Default for Config {
    fn default() -> Self {
        let outbox = OutboxLimits::default();
        Self {
            sessions_per_device: 1,
            shared_per_device: 64,
            queue_per_device: 100,
            command_timeout: None,
            max_command_timeout: None,
            session_timeout: None,
            max_steps: 1000,
            max_request_bytes: 8 * 1024 * 1024,
            max_task_bytes: 256 * 1024 * 1024,
            stop_grace: Duration::from_secs(60),
            registration_timeout: Duration::from_secs(10),
            liveness_timeout: Duration::from_secs(90),
            ping_interval: Duration::from_secs(30),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            host_names: Vec::new(),
            proxy_pin: None,
            next_pin: None,
            failed_keys_per_minute: 10,
            max_unproven_per_address: 100,
            max_connections: 20_000,
            outbox_messages: outbox.messages,
            outbox_bytes: outbox.bytes,
            slow_after: Duration::from_secs(10),
            max_bytes_in_flight: 1024 * 1024 * 1024,
            resume_window: Duration::from_secs(120),
            resume_ping: Duration::from_secs(20),
            cancel_wait: Duration::from_secs(10),
            outcome_time: Duration::from_hours(24),
            device_time: Duration::from_hours(30 * 24),
            identities_per_key: 10_000,
            undelivered_bytes: 1024 * 1024 * 1024,
            shutdown_grace: Duration::from_secs(10),
            history_tasks: 1000,
            history_bytes: 16 * 1024 * 1024,
            unfetched_bytes: 512 * 1024 * 1024,
            unfetched_time: Duration::from_hours(24),
            agent_name_linux: "LinuxAgent".to_owned(),
            agent_name_windows: "HostAgent".to_owned(),
            agent_name_mobile: "MobileAgent".to_owned(),
            devices: BTreeMap::new(),
            audit_arguments: false,
        }
    }
}

impl Config {
    /// The same with at least one of what a server cannot do without, and no wait beyond [`LONGEST_WAIT`].
    pub(crate) fn sound(mut self) -> Self {
        self.sessions_per_device = self.sessions_per_device.max(1);
        self.outbox_messages = self.outbox_messages.max(MIN_OUTBOX_MESSAGES);
        self.max_bytes_in_flight = self.max_bytes_in_flight.max(MIN_BYTES_IN_FLIGHT);
        for wait in self.waits() {
            *wait = LONGEST_WAIT.min(*wait);
        }
        self
    }

    fn waits(&mut self) -> impl Iterator<Item = &mut Duration> {
        let limits =
            [&mut self.command_timeout, &mut self.max_command_timeout, &mut self.session_timeout];
        let waits = [
            &mut self.stop_grace,
            &mut self.registration_timeout,
            &mut self.liveness_timeout,
            &mut self.ping_interval,
            &mut self.header_timeout,
            &mut self.body_timeout,
            &mut self.write_timeout,
            &mut self.slow_after,
            &mut self.resume_window,
            &mut self.resume_ping,
            &mut self.cancel_wait,
            &mut self.outcome_time,
            &mut self.device_time,
            &mut self.shutdown_grace,
            &mut self.unfetched_time,
        ];
        limits.into_iter().flatten().chain(waits)
    }

    /// Longest time for one command of a task that names none itself.
    pub(crate) fn command_limit(&self, wants_none: bool) -> Duration {
        let none = || self.max_command_timeout.unwrap_or(LONGEST_WAIT);
        let usual = || if wants_none { none() } else { DEFAULT_COMMAND_TIMEOUT };
        self.command_timeout.unwrap_or_else(usual)
    }

    /// The most that a task may ask for as its longest time for a command.
    pub(crate) fn longest_command(&self) -> Duration {
        let most = self.max_command_timeout.unwrap_or(LONGEST_WAIT);
        most.max(self.command_limit(false))
    }

    /// Longest time for one task.
    pub(crate) fn session_limit(&self, wants_none: bool) -> Duration {
        let usual = if wants_none { LONGEST_WAIT } else { DEFAULT_SESSION_TIMEOUT };
        self.session_timeout.unwrap_or(usual)
    }

    /// A command's time limit that is over, in words: with its setting, unless the task itself had named it.
    pub(crate) fn limit_in_words(&self, limit: Duration) -> String {
        let setting = if limit == self.command_limit(false) {
            " (the server's command_timeout)"
        } else if Some(limit) == self.max_command_timeout {
            " (the server's max_command_timeout)"
        } else {
            ""
        };
        format!("{} s{setting}", limit.as_secs_f64())
    }

    /// How many tasks may be at work on a device that takes so many that go together.
    pub(crate) fn places(&self, at_once: usize) -> Limits {
        Limits { any: self.sessions_per_device, together: at_once.min(self.shared_per_device) }
    }

    /// Bounds of each connection's outgoing queue.
    #[must_use]
    pub fn outbox(&self) -> OutboxLimits {
        OutboxLimits { messages: self.outbox_messages, bytes: self.outbox_bytes }
    }

    /// How much is remembered of ended tasks.
    #[must_use]
    pub const fn history(&self) -> HistoryLimits {
        HistoryLimits {
            tasks: self.history_tasks,
            bytes: self.history_bytes,
            unfetched_bytes: self.unfetched_bytes,
            unfetched_time: self.unfetched_time,
        }
    }

    /// Pings and silence.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { ping_every: self.ping_interval, timeout: self.liveness_timeout }
    }

    /// Pings and silence on the link of a device that comes back: its loss is noticed soon.
    #[must_use]
    pub fn resume_watch(&self) -> Watch {
        let ping_every = self.resume_ping.min(self.ping_interval);
        Watch { ping_every, timeout: (ping_every * 2).min(self.liveness_timeout) }
    }

    /// The agent name for a platform, as Python devices know it.
    #[must_use]
    pub fn agent_name(&self, platform: &str) -> &str {
        match platform {
            "linux" => &self.agent_name_linux,
            "mobile" => &self.agent_name_mobile,
            _ => &self.agent_name_windows,
        }
    }
}
