//! The transport to a child process: a message a line, each way. Writing is the library's; reading is ours,
//! since the library passes over lines that are too long or that it cannot read.

use std::collections::HashSet;

use futures_util::TryFutureExt;
use rmcp::RoleClient;
use rmcp::model::{ClientRequest, JsonRpcMessage, RequestId};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use rmcp::transport::async_rw::AsyncRwTransport;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, Empty, empty};

use super::client::Told;
use super::message::{self, Form, MAX_MESSAGE_BYTES, MAX_MESSAGE_MIB};

/// The way to a program, and back from it.
pub(super) struct Pipes<R, W: AsyncWrite> {
    from: BufReader<R>,
    /// What has come of the next line.
    line: Vec<u8>,
    to: AsyncRwTransport<RoleClient, Empty, W>,
    /// Questions whose answers the library reads: all that have none yet, but for lists and calls of tools.
    questions: HashSet<RequestId>,
    told: Told,
}

impl<R, W> Pipes<R, W>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    pub(super) fn new(from: R, to: W, told: Told) -> Self {
        Self {
            from: BufReader::new(from),
            line: Vec::new(),
            to: AsyncRwTransport::new(empty(), to),
            questions: HashSet::new(),
            told,
        }
    }

    /// The next line without its end; none when there is no more, or when it is too long. May be dropped
    /// while it waits: what has come is kept.
    async fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let piece = match self.from.fill_buf().await {
                Ok(piece) => piece,
                Err(error) => {
                    tracing::debug!(%error, "its output cannot be read");
                    return None;
                }
            };
            let end = piece.iter().position(|byte| *byte == b'\n');
            let count = end.unwrap_or(piece.len());
            if piece.is_empty() {
                self.told.end();
                return None;
            }
            if self.line.len() + count > MAX_MESSAGE_BYTES {
                self.told
                    .break_off(&format!("it wrote a message of more than {MAX_MESSAGE_MIB} MiB"));
                return None;
            }
            self.line.extend_from_slice(&piece[..count]);
            self.from.consume(count + usize::from(end.is_some()));
            if end.is_some() {
                return Some(std::mem::take(&mut self.line));
            }
        }
    }
}

impl<R, W> Transport<RoleClient> for Pipes<R, W>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    type Error = std::io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        if let JsonRpcMessage::Request(question) = &item
            && !matches!(
                question.request,
                ClientRequest::CallToolRequest(_) | ClientRequest::ListToolsRequest(_)
            )
        {
            self.questions.insert(question.id.clone());
        }
        let (sending, told) = (self.to.send(item), self.told.clone());
        sending.inspect_err(move |_| told.end())
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let line = self.next_line().await?;
            let questions = &self.questions;
            let form = |id: &RequestId| match questions.contains(id) {
                true => Form::Read,
                false => Form::Text,
            };
            let Some(message) = message::read(&line, form) else { continue };
            if let JsonRpcMessage::Response(answer) = &message {
                self.questions.remove(&answer.id);
            }
            return Some(message);
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.to.close().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_line_that_is_too_long_is_the_end() {
        let half = vec![b'x'; MAX_MESSAGE_BYTES / 2];
        let text = [&half, &half, &b"\nmore\r\n"[..], &half, &half, b"x"].concat();
        let told = Told::default();
        let mut pipes = Pipes::new(&text[..], tokio::io::sink(), told.clone());
        assert_eq!(pipes.next_line().await.map(|line| line.len()), Some(MAX_MESSAGE_BYTES));
        assert_eq!(pipes.next_line().await.unwrap(), b"more\r");
        assert_eq!(told.why_broken_off(), None);
        assert!(pipes.next_line().await.is_none());
        assert_eq!(told.why_broken_off().unwrap(), "it wrote a message of more than 256 MiB");
    }
}
