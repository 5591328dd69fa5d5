//! What a tool tells while it runs. It promises nothing: it is the first to be dropped.

use std::fmt;
use std::sync::Arc;

use aip::message::Channel;

use crate::spool::Spool;

/// Where the lines go that a running tool tells; nowhere, where nobody asked for them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Progress {
    tell: Option<Arc<Tell>>,
    spool: Option<Spool>,
}

type Tell = dyn Fn(&str) + Send + Sync;

impl Progress {
    /// Gives every text to `tell`, which must not block.
    pub fn to(tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { tell: Some(Arc::new(tell)), spool: None }
    }

    /// The same, with all that a command writes kept there as well.
    pub(crate) fn keeping(self, spool: Option<Spool>) -> Self {
        Self { spool, ..self }
    }

    /// Keeps what a command has written, where that is wanted.
    pub(crate) fn keep(&self, stream: Channel, bytes: &[u8]) {
        if let Some(spool) = &self.spool {
            spool.write(stream, bytes);
        }
    }

    /// Whether anybody wants to know. Without, nothing needs to be gathered.
    pub fn is_wanted(&self) -> bool {
        self.tell.is_some()
    }

    /// Tells a text: one line or several, without a line break at the end. Whoever takes it bounds how much
    /// of it and how often it is passed on.
    pub fn tell(&self, text: &str) {
        if let Some(tell) = &self.tell {
            tell(text);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({})", self.is_wanted())
    }
}
