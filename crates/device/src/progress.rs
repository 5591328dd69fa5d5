//! What a tool tells while it runs. It promises nothing: it is the first to be dropped.

use std::fmt;
use std::sync::Arc;

/// Where the lines go that a running tool tells; nowhere, where nobody asked for them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Tell>>);

type Tell = dyn Fn(&str) + Send + Sync;

impl Progress {
    /// Gives every text to `tell`, which must not block.
    pub fn to(tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    /// Whether anybody wants to know. Without, nothing needs to be gathered.
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Tells a text: one line or several, without a line break at the end. Whoever takes it bounds how much
    /// of it and how often it is passed on.
    pub fn tell(&self, text: &str) {
        if let Some(tell) = &self.0 {
            tell(text);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({})", self.is_wanted())
    }
}
