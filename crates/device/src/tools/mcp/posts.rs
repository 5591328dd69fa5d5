//! The library's requests over HTTP, with their answers read as [`message`] reads them: the library passes
//! over an event that it cannot read, and waits for an answer that names no request of its own.

use std::collections::HashMap;
use std::future::ready;
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

use super::message::{self, Form, MAX_MESSAGE_BYTES};

/// The largest event on the stream that stands for what a server tells unasked, in bytes: no answer to a call
/// comes there, and none has to wait for one.
const MAX_STANDING_BYTES: usize = 4 << 20;

type Answer<T> = Result<T, StreamableHttpError<reqwest::Error>>;

/// The HTTP client. Cheap to clone.
#[derive(Clone)]
pub(super) struct Posts(reqwest::Client);

/// What was asked with a request: all that is answered to it, is the answer to this.
#[derive(Clone)]
struct Question {
    id: RequestId,
    form: Form,
}

impl Posts {
    pub(super) fn new(client: reqwest::Client) -> Self {
        Self(client)
    }
}

impl Question {
    fn of(message: &ClientJsonRpcMessage) -> Option<Self> {
        let JsonRpcMessage::Request(request) = message else { return None };
        let form = match request.request {
            ClientRequest::CallToolRequest(_) => Form::Text,
            ClientRequest::ListToolsRequest(_) => Form::ListOrText,
            _ => Form::Read,
        };
        Some(Self { id: request.id.clone(), form })
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
        // One that goes on from an event may bring the answer to a call.
        let is_standing = last_event.is_none();
        let most = if is_standing { MAX_STANDING_BYTES } else { MAX_MESSAGE_BYTES };
        let events = self
            .0
            .get_stream_with_max_sse_event_size(uri, session, last_event, auth, headers, most)
            .await?;
        Ok(readable(if is_standing { reopened(events) } else { events }, None))
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

/// The events until one cannot be taken. The library gives the stream up for good at some errors, and opens it
/// anew a while after its end.
fn reopened(events: BoxedSseResponse) -> BoxedSseResponse {
    let taken = events.take_while(|event| {
        if let Err(error) = event {
            let error = error.to_string();
            tracing::debug!(error = %error.escape_debug(), "its standing stream broke off");
        }
        ready(event.is_ok())
    });
    taken.boxed()
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
    let form = |id: &RequestId| {
        question.filter(|question| question.id == *id).map_or(Form::Read, |question| question.form)
    };
    match message::read(data.as_bytes(), form) {
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
