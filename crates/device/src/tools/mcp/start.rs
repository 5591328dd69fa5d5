//! From the settings of an MCP server to a connection that stands, and back.

use std::pin::pin;
use std::time::Duration;

use rmcp::model::ProtocolVersion;
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, ClientServiceExt, RoleClient, RunningService,
};
use rmcp::transport::IntoTransport;
use tokio::time::timeout;

use super::client::{Client, Told};
use super::listing::Listed;
use super::server::Limits;
use super::settings::{ServerSettings, Transport};
use super::stdio::Program;
use super::{client, http};
use crate::tools::catalog::Origin;
use crate::watchdog::Watchdog;

/// The versions that are tried first; a server that knows none of them is greeted in the older way.
const PREFERRED: [ProtocolVersion; 1] = [ProtocolVersion::V_2026_07_28];

/// The version of the older greeting, which every server answers with its own.
const OLDER: ProtocolVersion = ProtocolVersion::V_2025_11_25;

/// The longest name of a tool, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// Longest wait for the library to put a connection away.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// A server that has started.
pub(super) struct Started {
    pub(super) client: Client,
    pub(super) tools: Vec<Listed>,
    service: Service,
    /// The child process, where it is one.
    program: Option<Program>,
}

type Service = RunningService<RoleClient, Told>;

/// Starts a server and lists its tools, all within its time limit.
///
/// # Errors
/// Why it did not start, for its owner.
pub(super) async fn start(
    origin: Origin,
    settings: &ServerSettings,
    limits: &Limits,
    watchdog: Option<&Watchdog>,
) -> Result<Started, String> {
    let limit = limits.start_timeout;
    let (program, connected) = match &settings.transport {
        Transport::Stdio { command, args, env, cwd } => {
            let (program, transport) = Program::start(
                (command, args),
                env,
                cwd.as_deref(),
                &limits.confinement,
                watchdog,
            )?;
            (Some(program), timeout(limit, connect(transport, origin, settings)).await)
        }
        Transport::Http { url, headers } => {
            let transport = http::transport(url, headers, limits.trust.as_ref())?;
            (None, timeout(limit, connect(transport, origin, settings)).await)
        }
    };
    let why = match connected {
        Ok(Ok((client, service, tools))) => {
            return Ok(Started { client, tools, service, program });
        }
        Ok(Err(why)) => why,
        Err(_) => format!("it did not start within {} s", limit.as_secs_f64()),
    };
    Err(match program {
        Some(program) => format!("{why} ({})", program.end().await),
        None => why,
    })
}

async fn connect<T, E, A>(
    transport: T,
    origin: Origin,
    settings: &ServerSettings,
) -> Result<(Client, Service, Vec<Listed>), String>
where
    T: IntoTransport<RoleClient, E, A>,
    E: std::error::Error + Send + Sync + 'static,
{
    let told = Told::default();
    let lifecycle = ClientLifecycleMode::Auto {
        preferred_versions: PREFERRED.to_vec(),
        legacy_version: Some(OLDER),
    };
    let service = Box::pin(told.clone().serve_with_lifecycle(transport, lifecycle))
        .await
        .map_err(|error| explain(&error))?;
    let client = Client::new(service.peer().clone(), told);
    let tools = list(&client, origin, settings).await?;
    Ok((client, service, tools))
}

/// The tools of a server, as the settings have them.
pub(super) async fn list(
    client: &Client,
    origin: Origin,
    settings: &ServerSettings,
) -> Result<Vec<Listed>, String> {
    let (tools, strange): (Vec<_>, Vec<_>) =
        client.list().await?.into_iter().partition(|tool| is_name(&tool.name));
    if !strange.is_empty() {
        let (server, tools) = (&settings.namespace, strange.len());
        tracing::warn!(%server, tools, "tools are left out: their names are empty, too long, or no text");
    }
    Ok(tools.into_iter().map(|tool| Listed::new(tool, settings, origin)).collect())
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control)
}

impl Started {
    /// Waits until `end` comes or the connection is gone, and puts the server away. Says what came, and how
    /// a child process ended.
    pub(super) async fn until<T>(
        self,
        end: impl Future<Output = T>,
    ) -> (Option<T>, Option<String>) {
        let cancel = self.service.cancellation_token();
        let mut closed = pin!(self.service.waiting());
        let came = tokio::select! {
            came = end => Some(came),
            _closed = &mut closed => None,
        };
        if came.is_some() {
            // It ends the server's standard input, or says goodbye to it over HTTP.
            cancel.cancel();
            let _closed = timeout(CLOSE_TIME, closed).await;
        }
        let how = match self.program {
            Some(program) => Some(program.end().await),
            None => None,
        };
        (came, how)
    }
}

fn explain(error: &ClientInitializeError) -> String {
    match error {
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => explain(fallback),
        ClientInitializeError::JsonRpcError(error) => {
            format!("it refuses the connection: {}", error.message)
        }
        ClientInitializeError::TransportError { error, .. }
            if http::is_an_answer(&*error.error) =>
        {
            format!("what answers is no MCP server: {}", client::chain(&*error.error))
        }
        ClientInitializeError::TransportError { error, .. } => {
            format!("it cannot be reached: {}", client::chain(&*error.error))
        }
        ClientInitializeError::ConnectionClosed(_) => "it ended before it had started".to_owned(),
        ClientInitializeError::ExpectedInitResponse(_)
        | ClientInitializeError::ExpectedInitResult(_) => {
            "what answers is no MCP server".to_owned()
        }
        error => client::chain(error),
    }
}
