//! A transport that bounds what a server may ask: its questions are answered as it takes the answers, and
//! one that asks on without taking any would fill the device's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rmcp::model::JsonRpcMessage;
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use rmcp::{RoleClient, model::ClientJsonRpcMessage};

use super::client::Told;

/// The most questions of a server that may wait for their answers to be taken.
const MAX_UNANSWERED: usize = 256;

/// The transport `inner`, with that bound.
pub(super) struct Asked<T> {
    inner: T,
    told: Told,
    unanswered: Arc<AtomicUsize>,
}

impl<T> Asked<T> {
    pub(super) fn new(inner: T, told: Told) -> Self {
        Self { inner, told, unanswered: Arc::default() }
    }
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for Asked<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let is_answer = is_answer(&item);
        let unanswered = self.unanswered.clone();
        let sending = self.inner.send(item);
        async move {
            let sent = sending.await;
            if is_answer {
                unanswered.fetch_sub(1, Ordering::Relaxed);
            }
            sent
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        let message = self.inner.receive().await?;
        if matches!(message, JsonRpcMessage::Request(_))
            && self.unanswered.fetch_add(1, Ordering::Relaxed) >= MAX_UNANSWERED
        {
            self.told
                .break_off(&format!("it asked {MAX_UNANSWERED} things without taking the answers"));
            return None;
        }
        Some(message)
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.inner.close().await
    }
}

fn is_answer(message: &ClientJsonRpcMessage) -> bool {
    matches!(message, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_))
}
