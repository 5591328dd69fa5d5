//! From the settings of an MCP server to a connection that stands, and back.

use std::io;
use std::pin::pin;
use std::time::Duration;

use rmcp::model::ProtocolVersion;
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, ClientServiceExt, RoleClient, RunningService,
};
use rmcp::transport::IntoTransport;
use tokio::time::timeout;

use super::asked::Asked;
use super::client::{McpClient, Told};
use super::entry::{MAX_TOOLS, Page};
use super::listing::Listing;
use super::server::Limits;
use super::settings::{ServerSettings, Transport};
use super::stdio::Program;
use super::{client, http, message};
use crate::tools::catalog::Origin;
use crate::watchdog::Watchdog;

/// What is said of a server that never came to be of use.
#[derive(Clone, Copy)]
struct Words {
    /// It took too long.
    late: &'static str,
    /// It left.
    ended: &'static str,
}

impl Words {
    const fn of(transport: &Transport) -> Self {
        match transport {
            Transport::Stdio { .. } => {
                Self { late: "it did not start", ended: "it ended before it had started" }
            }
            Transport::Http { .. } => {
                Self { late: "it did not answer", ended: "its first answer broke off, or was none" }
            }
        }
    }
}

/// Longest wait for the library to put a connection away.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// A server that has started.
pub(super) struct Started {
    pub(super) client: McpClient,
    pub(super) listing: Listing,
    service: Service,
    /// The child process, where it is one.
    program: Option<Program>,
}

type Service = RunningService<RoleClient, Told>;

/// Why a server did not start.
enum Failure {
    /// It refuses the greeting that every older server knows: it may know the newer one.
    Greeting(String),
    Other(String),
}

/// Starts a server and lists its tools, each try within its time limit. It is greeted as all servers know it
/// (`initialize`), and if it refuses that, anew as only newer ones do (`server/discover`). The other way
/// round, an older server that is slow to start would answer the newer greeting too late, which ends it.
///
/// # Errors
/// Why it did not start, for its owner.
pub(super) async fn start(
    origin: Origin,
    settings: &ServerSettings,
    limits: &Limits,
    watchdog: Option<&Watchdog>,
) -> Result<Started, String> {
    let newer =
        ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::NO_INITIALIZE] };
    let tried = start_as(ClientLifecycleMode::Initialize, origin, settings, limits, watchdog).await;
    let refusal = match tried {
        Ok(started) => return Ok(started),
        Err(Failure::Other(why)) => return Err(why),
        Err(Failure::Greeting(why)) => why,
    };
    start_as(newer, origin, settings, limits, watchdog).await.map_err(|_| refusal)
}

async fn start_as(
    lifecycle: ClientLifecycleMode,
    origin: Origin,
    settings: &ServerSettings,
    limits: &Limits,
    watchdog: Option<&Watchdog>,
) -> Result<Started, Failure> {
    let (limit, words) = (limits.start_timeout, Words::of(&settings.transport));
    let told = Told::default();
    let (program, connected) = match &settings.transport {
        Transport::Stdio { command, args, env, cwd } => {
            let confinement = &limits.confinement;
            let (program, transport) =
                Program::start((command, args), env, cwd.as_deref(), confinement, watchdog, &told)
                    .map_err(Failure::Other)?;
            let connecting = connect(transport, told.clone(), lifecycle, origin, settings);
            (Some(program), timeout(limit, connecting).await)
        }
        Transport::Http { url, headers } => {
            let transport = http::transport(url, headers, limits.trust.as_ref());
            let transport = transport.map_err(Failure::Other)?;
            let connecting = connect(transport, told.clone(), lifecycle, origin, settings);
            (None, timeout(limit, connecting).await)
        }
    };
    let failure = match connected {
        Ok(Ok((client, service, listing))) => {
            return Ok(Started { client, listing, service, program });
        }
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Other(format!("{} within {} s", words.late, limit.as_secs_f64())),
    };
    Err(match program {
        Some(program) => failure.with(program.end(told.has_ended()).await),
        None => failure,
    })
}

impl Failure {
    /// The same with what there is to tell of a child process.
    fn with(self, how: Option<String>) -> Self {
        match (self, how) {
            (Self::Greeting(why), Some(how)) => Self::Greeting(format!("{why} ({how})")),
            (Self::Other(why), Some(how)) => Self::Other(format!("{why} ({how})")),
            (failure, None) => failure,
        }
    }
}

async fn connect<T, E, A>(
    transport: T,
    told: Told,
    lifecycle: ClientLifecycleMode,
    origin: Origin,
    settings: &ServerSettings,
) -> Result<(McpClient, Service, Listing), Failure>
where
    T: IntoTransport<RoleClient, E, A>,
    E: std::error::Error + Send + Sync + 'static,
{
    let transport = Asked::new(transport.into_transport(), told.clone());
    let words = Words::of(&settings.transport);
    let service = Box::pin(told.clone().serve_with_lifecycle(transport, lifecycle)).await.map_err(
        |error| told.why_broken_off().map_or_else(|| explain(&error, words), Failure::Other),
    )?;
    let client = McpClient::new(service.peer().clone(), told);
    let listing = list(&client, origin, settings)
        .await
        .map_err(|why| Failure::Other(client.why_broken_off().unwrap_or(why)))?;
    Ok((client, service, listing))
}

/// The tools of a server, of all pages, as the settings have them.
///
/// # Errors
/// When the server fails at it, or has more than [`MAX_TOOLS`].
pub(super) async fn list(
    client: &McpClient,
    origin: Origin,
    settings: &ServerSettings,
) -> Result<Listing, String> {
    let (mut listing, mut cursor) = (Listing::default(), None);
    // An empty page is no end: only as many as there may be tools.
    for _ in 0..MAX_TOOLS {
        let text = client.list_page(cursor).await?;
        let page = Page::read(&text)?;
        page.entries.iter().for_each(|entry| listing.add(entry, settings, origin));
        cursor = page.next;
        if cursor.is_none() || listing.is_too_long() {
            break;
        }
    }
    if cursor.is_some() || listing.is_too_long() {
        return Err(format!("it lists more than {MAX_TOOLS} tools, or never ends listing them"));
    }
    Ok(listing)
}

impl Started {
    /// Waits until `end` comes or the connection is gone, and puts the server away. Says what came, and what
    /// there is to tell of a child process.
    pub(super) async fn until<T>(
        self,
        end: impl Future<Output = T>,
    ) -> (Option<T>, Option<String>) {
        let cancel = self.service.cancellation_token();
        let mut closed = pin!(self.service.waiting());
        let (came, is_closed) = tokio::select! {
            came = end => (Some(came), false),
            _closed = &mut closed => (None, true),
            // The library still waits until its answers are taken, and a server may take none any more.
            () = self.client.over() => (None, false),
        };
        if !is_closed {
            // It ends the server's standard input, or says goodbye to it over HTTP.
            cancel.cancel();
            let _closed = timeout(CLOSE_TIME, closed).await;
        }
        let how = match self.program {
            Some(program) => program.end(self.client.has_ended()).await,
            None => None,
        };
        (came, how)
    }
}

fn explain(error: &ClientInitializeError, words: Words) -> Failure {
    let text = match error {
        ClientInitializeError::JsonRpcError(error) if message::is_unreadable(error) => {
            error.message.to_string()
        }
        ClientInitializeError::JsonRpcError(error) => {
            return Failure::Greeting(format!("it refuses the connection: {}", error.message));
        }
        ClientInitializeError::TransportError { error, .. }
            if http::is_an_answer(&*error.error) =>
        {
            format!("what answers is no MCP server: {}", client::chain(&*error.error))
        }
        // It reads its input no more.
        ClientInitializeError::TransportError { error, .. } if error.error.is::<io::Error>() => {
            words.ended.to_owned()
        }
        ClientInitializeError::TransportError { error, .. } => {
            format!("it cannot be reached: {}", http::explain(&*error.error))
        }
        ClientInitializeError::ConnectionClosed(_) => words.ended.to_owned(),
        ClientInitializeError::ExpectedInitResponse(_)
        | ClientInitializeError::ExpectedInitResult(_) => {
            return Failure::Greeting("what answers is no MCP server".to_owned());
        }
        error => client::chain(error),
    };
    Failure::Other(text)
}
