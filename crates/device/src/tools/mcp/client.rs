//! A connection to an MCP server that stands: lists its tools and calls them.
//!
//! It must not know how the server was reached, nor what becomes of it when it dies.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use aip::Payload;
use rmcp::ClientHandler;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientConfig, ClientRequest,
    Implementation, ListToolsRequest, PaginatedRequestParams, ProgressNotificationParam,
    ProgressToken, ProtocolVersion, ServerResult, SubscriptionFilter,
};
use rmcp::service::{
    NotificationContext, Peer, PeerRequestOptions, RoleClient, ServiceError, Subscription,
};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::message::{self, MAX_MESSAGE_MIB};
use super::{http, result};
use crate::progress::Progress;
use crate::tools::{Call, STOPPED};

/// Longest wait for a server to take the news that a call is cancelled.
const CANCEL_TIME: Duration = Duration::from_secs(5);

/// Most lines of progress that are kept for calls which nobody listens to yet.
const MAX_EARLY: usize = 16;

/// The longest message of progress that is told, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// The version in the greeting that every server answers with its own.
const GREETED_AS: ProtocolVersion = ProtocolVersion::V_2025_11_25;

/// What a server is told of whom it serves.
const CLIENT_NAME: &str = "flightdeck";

/// A connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct McpClient {
    peer: Peer<RoleClient>,
    told: Told,
}

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum CallError {
    /// The tool or its server says no; the text is for the caller.
    Failed(String),
    /// What came was no answer. Other calls of this connection are as before.
    Unanswered(String),
    /// The server cannot be reached any more; the call was sent.
    Lost(String),
    /// The server could not be reached any more; the call was not sent.
    NotSent(String),
}

impl McpClient {
    pub(super) fn new(peer: Peer<RoleClient>, told: Told) -> Self {
        Self { peer, told }
    }

    /// Asks for a page of the list of tools: its text.
    ///
    /// # Errors
    /// When the server fails at it.
    pub(super) async fn list_page(&self, cursor: Option<String>) -> Result<String, String> {
        let params = Some(PaginatedRequestParams::default().with_cursor(cursor));
        let request = ListToolsRequest { params, ..ListToolsRequest::default() };
        let answer = self.peer.send_request(ClientRequest::ListToolsRequest(request)).await;
        message::text_of(answer.map_err(|error| explain(&error))?)
            .map_err(|error| message::unreadable_text(&error.to_string()))
    }

    /// Asks to be told of changes, where the server wants to be asked. One that does not know the question
    /// tells without.
    pub(super) async fn subscribe(&self) -> Option<Subscription> {
        let modern = self
            .peer
            .peer_info()
            .is_some_and(|info| info.protocol_version >= ProtocolVersion::NO_INITIALIZE);
        let filter = SubscriptionFilter::builder().tools_list_changed().build();
        if modern { self.peer.listen(filter).await.ok() } else { None }
    }

    /// Waits until the server says that its tools have changed.
    pub(super) async fn tools_changed(&self) {
        self.told.0.changed.notified().await;
    }

    /// Why the connection could not go on, if the server has done something that it cannot go on after.
    pub(super) fn why_broken_off(&self) -> Option<String> {
        self.told.why_broken_off()
    }

    /// Whether the server, a child process, was the one to end it.
    pub(super) fn has_ended(&self) -> bool {
        self.told.has_ended()
    }

    /// Waits until a call has found that the server cannot be reached any more.
    pub(super) async fn lost(&self) {
        self.told.0.lost.notified().await;
    }

    /// Waits until nothing more comes from the server.
    pub(super) async fn over(&self) {
        self.told.0.over.notified().await;
    }

    /// Waits until none of its calls is under way. It takes no more of them.
    pub(super) async fn idle(&self) {
        self.told.0.calls.close();
        self.told.0.calls.wait().await;
    }

    /// Whether both are the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.told.0, &other.told.0)
    }

    /// Calls a tool, and tells the server when nobody waits for the answer any more.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) async fn call(
        &self,
        tool_name: &str,
        wraps: bool,
        call: &Call<'_>,
        limit: Duration,
    ) -> Result<Payload, CallError> {
        let _under_way = self.told.0.calls.token();
        let called = self.try_call(tool_name, wraps, call, limit).await;
        if matches!(called, Err(CallError::Lost(_) | CallError::NotSent(_))) {
            self.told.0.lost.notify_one();
        }
        called
    }

    async fn try_call(
        &self,
        tool_name: &str,
        wraps: bool,
        call: &Call<'_>,
        limit: Duration,
    ) -> Result<Payload, CallError> {
        let arguments = call.arguments().map_err(CallError::Failed)?;
        let params = CallToolRequestParams::new(tool_name.to_owned()).with_arguments(arguments);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let options = PeerRequestOptions::no_options();
        let sent = tokio::select! {
            sent = self.peer.send_cancellable_request(request, options) => sent,
            () = call.stop.cancelled() => return Err(CallError::Failed(STOPPED.to_owned())),
        };
        let mut handle = sent.map_err(|_| CallError::NotSent(self.told.why_it_ended()))?;
        let _listening = self.told.listen(&handle.progress_token, call.progress);
        let why = tokio::select! {
            answer = &mut handle.rx => {
                let answer = answer.map_err(|_| CallError::Lost(self.told.why_it_ended()))?;
                return read(answer, wraps);
            }
            () = call.stop.cancelled() => STOPPED.to_owned(),
            () = tokio::time::sleep(limit) => {
                format!("Timed out after {} s and was told to stop", limit.as_secs_f64())
            }
        };
        // Nobody waits for it any more. A server that does not even take the news is of no use.
        match tokio::time::timeout(CANCEL_TIME, handle.cancel(Some(why.clone()))).await {
            Ok(_told_or_not) => Err(CallError::Failed(why)),
            Err(_) => {
                self.told.0.lost.notify_one();
                Err(CallError::Failed(format!(
                    "{why}; its MCP server reads nothing, and its connection is given up"
                )))
            }
        }
    }
}

fn read(answer: Result<ServerResult, ServiceError>, wraps: bool) -> Result<Payload, CallError> {
    let text = message::text_of(answer.map_err(|error| call_error(&error))?)
        .map_err(|error| CallError::Unanswered(message::unreadable_text(&error.to_string())))?;
    result::returned(text, wraps)
}

fn call_error(error: &ServiceError) -> CallError {
    match error {
        ServiceError::TransportSend(why) if http::is_an_answer(&*why.error) => {
            CallError::Unanswered(explain(error))
        }
        ServiceError::TransportSend(why) if http::is_unsent(&*why.error) => {
            CallError::NotSent(explain(error))
        }
        ServiceError::TransportSend(_) => CallError::Lost(explain(error)),
        ServiceError::McpError(why) if message::is_unreadable(why) => {
            CallError::Unanswered(explain(error))
        }
        // That of this call alone: the connection's own end has no error.
        ServiceError::TransportClosed => CallError::Unanswered(format!(
            "its answer broke off, or was longer than {MAX_MESSAGE_MIB} MiB"
        )),
        error => CallError::Failed(explain(error)),
    }
}

/// An error of the library, without its code for the common case.
pub(super) fn explain(error: &ServiceError) -> String {
    match error {
        ServiceError::McpError(error) => error.message.to_string(),
        ServiceError::TransportSend(error) => http::explain(&*error.error),
        error => without_address(&error.to_string()),
    }
}

/// What stands before an address in an error of the HTTP client.
const ADDRESS_BEGINS: &str = " for url (";

/// An error with all that it is about, but for the server's address.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = without_address(&error.to_string());
    let mut next = error.source();
    while let Some(source) = next {
        let cause = without_address(&source.to_string());
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }
    text
}

/// An error's text without the address that the HTTP client adds to it, which may have a key in it.
fn without_address(text: &str) -> String {
    let Some((before, after)) = text.split_once(ADDRESS_BEGINS) else { return text.to_owned() };
    // What follows the address is another error, or nothing.
    let rest = after.split_once("): ").map(|(_, rest)| format!(": {rest}")).unwrap_or_default();
    format!("{before}{}", without_address(&rest))
}

/// What becomes known of a connection beside the answers. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Told(Arc<Unasked>);

#[derive(Default)]
struct Unasked {
    changed: Notify,
    calls: TaskTracker,
    /// Told by our own calls: this connection is of no use any more.
    lost: Notify,
    /// Nothing more is read from the server.
    over: Notify,
    /// Why we ended it.
    broken: OnceLock<String>,
    /// Whether the server, a child process, ended it.
    ended: AtomicBool,
    progress: Mutex<Listeners>,
}

/// Who wants to hear of which call.
#[derive(Default)]
struct Listeners {
    /// An entry lives as long as its call.
    calls: HashMap<ProgressToken, Progress>,
    /// What nobody listened to, newest last: a fast server tells of a call before we have noted that it is sent.
    early: VecDeque<(ProgressToken, String)>,
}

impl Told {
    /// Notes what the server did that the connection cannot go on after; the first such thing counts.
    pub(super) fn break_off(&self, why: &str) {
        self.0.broken.get_or_init(|| why.to_owned());
        self.0.over.notify_one();
    }

    /// What that was, if there was such a thing.
    pub(super) fn why_broken_off(&self) -> Option<String> {
        self.0.broken.get().cloned()
    }

    /// Notes that the server reads or writes no more.
    pub(super) fn end(&self) {
        self.0.ended.store(true, Ordering::Relaxed);
        self.0.over.notify_one();
    }

    /// Whether that is so.
    pub(super) fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }

    fn why_it_ended(&self) -> String {
        self.why_broken_off().unwrap_or_else(|| "it ended the connection".to_owned())
    }

    /// Passes on what the server tells of one call, until the answer is dropped.
    fn listen(&self, token: &ProgressToken, progress: &Progress) -> Option<Listening<'_>> {
        progress.is_wanted().then(|| {
            let mut listeners = self.progress();
            listeners.calls.insert(token.clone(), progress.clone());
            let (early, others): (VecDeque<_>, VecDeque<_>) =
                listeners.early.drain(..).partition(|(whose, _)| whose == token);
            listeners.early = others;
            drop(listeners);
            early.iter().for_each(|(_, line)| progress.tell(line));
            Listening { told: self, token: token.clone() }
        })
    }

    /// Takes what the server tells of a call.
    fn tell(&self, token: ProgressToken, line: String) {
        let mut listeners = self.progress();
        match listeners.calls.get(&token).cloned() {
            Some(progress) => {
                drop(listeners);
                progress.tell(&line);
            }
            None => {
                if listeners.early.len() == MAX_EARLY {
                    listeners.early.pop_front();
                }
                listeners.early.push_back((token, line));
            }
        }
    }

    fn progress(&self) -> MutexGuard<'_, Listeners> {
        self.0.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Listening<'a> {
    told: &'a Told,
    token: ProgressToken,
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.told.progress().calls.remove(&self.token);
    }
}

impl ClientHandler for Told {
    fn get_info(&self) -> ClientConfig {
        let implementation = Implementation::new(CLIENT_NAME, env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), implementation)
            .with_protocol_version(GREETED_AS)
    }

    async fn on_progress(
        &self,
        params: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        let line = line(&params);
        self.tell(params.progress_token, line);
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.0.changed.notify_one();
    }
}

/// `3 of 10: copying`.
fn line(params: &ProgressNotificationParam) -> String {
    let mut line = params.progress.to_string();
    if let Some(total) = params.total {
        line.push_str(&format!(" of {total}"));
    }
    if let Some(message) = &params.message {
        let end = (0..=MAX_MESSAGE_BYTES.min(message.len())).rev();
        let end = end.into_iter().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        line.push_str(&format!(": {}", &message[..end]));
    }
    line
}

#[cfg(test)]
mod tests {
    use rmcp::model::NumberOrString;

    use super::*;

    #[test]
    fn what_a_server_tells_before_its_call_is_noted_is_told_too() {
        let told = Told::default();
        let token = |number| ProgressToken(NumberOrString::Number(number));
        for number in 0..20 {
            told.tell(token(7), format!("early {number}"));
        }
        told.tell(token(8), "another".to_owned());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = heard.clone();
        let progress = Progress::to(move |line| listener.lock().unwrap().push(line.to_owned()));
        let listening = told.listen(&token(7), &progress);
        told.tell(token(7), "late".to_owned());
        drop(listening);
        told.tell(token(7), "too late".to_owned());
        let heard = heard.lock().unwrap();
        assert_eq!((heard.len(), heard[0].as_str()), (MAX_EARLY, "early 5"));
        assert_eq!(heard.last().unwrap(), "late");
    }

    #[test]
    fn an_address_with_a_key_does_not_show_in_an_error() {
        for (text, shown) in [
            (
                "Client error: error sending request for url (http://h/?k=5ecret(1))",
                "Client error: error sending request",
            ),
            ("a for url (http://h/5ecret): b for url (http://h/5ecret): c", "a: b: c"),
            ("no address", "no address"),
        ] {
            assert_eq!(without_address(text), shown);
        }
    }
}
