//! The library's requests over HTTP, with their answers read as [`message`] reads them: the library passes
//! over an event that it cannot read, and waits for an answer that names no request of its own.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use reqwest::header::{HeaderName, HeaderValue};
use rmcp::model::{
    ClientJsonRpcMessage, ClientRequest, JsonRpcMessage, RequestId, ServerJsonRpcMessage,
};
use rmcp::transport::common::client_side_sse::BoxedSseResponse;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};

use super::message::{self, MAX_MESSAGE_BYTES};

type Answer<T> = Result<T, StreamableHttpError<reqwest::Error>>;

/// The HTTP client. Cheap to clone.
#[derive(Clone)]
pub(super) struct Posts(reqwest::Client);

/// What was asked with a request: all that is answered to it, is the answer to this.
#[derive(Clone)]
struct Question {
    id: RequestId,
    is_call: bool,
}

impl Posts {
    pub(super) fn new(client: reqwest::Client) -> Self {
        Self(client)
    }
}

impl Question {
    fn of(message: &ClientJsonRpcMessage) -> Option<Self> {
        let JsonRpcMessage::Request(request) = message else { return None };
        let is_call = matches!(request.request, ClientRequest::CallToolRequest(_));
        Some(Self { id: request.id.clone(), is_call })
    }

    /// The answer with the id that it should have. Servers that refuse a request before they have read it
    /// give another, or none.
    fn answered(&self, message: ServerJsonRpcMessage) -> ServerJsonRpcMessage {
        match message {
            JsonRpcMessage::Error(error) => {
                JsonRpcMessage::error(error.error, Some(self.id.clone()))
            }
            JsonRpcMessage::Response(answer) if message::given(answer.id.clone()) != self.id => {
                message::unreadable(self.id.clone(), "it is the answer to another request")
            }
            message => message,
        }
    }
}

impl StreamableHttpClient for Posts {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Answer<StreamableHttpPostResponse> {
        let most = MAX_MESSAGE_BYTES;
        self.post_message_with_max_sse_event_size(uri, message, session, auth, headers, most).await
    }

    async fn post_message_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
        most: usize,
    ) -> Answer<StreamableHttpPostResponse> {
        let question = Question::of(&message);
        let has_session = session.is_some();
        let posted = self
            .0
            .post_message_with_max_sse_event_size(uri, message, session, auth, headers, most)
            .await?;
        Ok(match (posted, question) {
            (StreamableHttpPostResponse::Json(message, session), Some(question)) => {
                StreamableHttpPostResponse::Json(question.answered(message), session)
            }
            (StreamableHttpPostResponse::Sse(events, session), question) => {
                StreamableHttpPostResponse::Sse(readable(events, question), session)
            }
            // Without a session there is no other stream on which the answer could still come.
            (StreamableHttpPostResponse::Accepted, Some(_)) if !has_session => {
                let why = "it took the request and gives no answer".into();
                return Err(StreamableHttpError::UnexpectedServerResponse(why));
            }
            (posted, _) => posted,
        })
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Answer<BoxedSseResponse> {
        let most = MAX_MESSAGE_BYTES;
        self.get_stream_with_max_sse_event_size(uri, session, last_event, auth, headers, most).await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
        most: usize,
    ) -> Answer<BoxedSseResponse> {
        let events = self
            .0
            .get_stream_with_max_sse_event_size(uri, session, last_event, auth, headers, most)
            .await?;
        Ok(readable(events, None))
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Answer<()> {
        self.0.delete_session(uri, session, auth, headers).await
    }
}

/// The events with messages that the library can read, where that is possible.
fn readable(events: BoxedSseResponse, question: Option<Question>) -> BoxedSseResponse {
    let events = events.map(move |event| {
        event.map(|mut event| {
            if matches!(event.event.as_deref(), None | Some("" | "message")) {
                event.data = event.data.map(|data| rewritten(data, question.as_ref()));
            }
            event
        })
    });
    events.boxed()
}

/// A message as the library can read it; notifications, and what is no message, as they came.
fn rewritten(data: String, question: Option<&Question>) -> String {
    let is_call =
        |id: &RequestId| question.is_some_and(|question| question.is_call && question.id == *id);
    match message::read(data.as_bytes(), is_call) {
        None | Some(JsonRpcMessage::Notification(_)) => data,
        Some(message) => {
            let message = match question {
                Some(question) => question.answered(message),
                None => message,
            };
            serde_json::to_string(&message).unwrap_or(data)
        }
    }
}
