//! The state machines that both ends of a connection need. Each takes the time as an argument and
//! returns what to do; none waits, sends or reads a clock.

mod backoff;
mod liveness;
mod peer;
mod pending;
mod registration;

pub use backoff::{Backoff, Reconnect};
pub use liveness::{LONGEST_WAIT, Liveness, Sign};
pub use peer::{AsSent, CommandResults, Peer, Rejection, Request, TaskRequest};
pub use pending::{CannotWait, Pending};
pub use registration::{Refusal, Registration, confirm, read_confirmation};
