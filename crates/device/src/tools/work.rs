//! Runs what may block in the kernel on threads of its own: few of them, and never waited for without end.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::STOPPED;

/// Threads at work for one namespace at the same time. A thread that hangs in the kernel, such as on a network
/// file system that is gone, keeps its place.
const MAX_THREADS: usize = 16;

/// How long a call that was told to stop may take to notice.
const GRACE: Duration = Duration::from_secs(2);

/// The threads.
pub(super) struct Workers(Arc<Semaphore>);

impl Workers {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_THREADS)))
    }

    /// Runs `work`, which looks at `stop` itself. What it returns counts, also when it was told to stop.
    ///
    /// # Errors
    /// Those of `work`; and when it was stopped before it began, or does not come back.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        stop: &CancellationToken,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let place = tokio::select! {
            biased;
            place = self.0.clone().acquire_owned() => place,
            () = stop.cancelled() => return Err(STOPPED.to_owned()),
        };
        let mut running = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        let ended = tokio::select! {
            biased;
            ended = &mut running => ended,
            () = stop.cancelled() => match tokio::time::timeout(GRACE, running).await {
                Ok(ended) => ended,
                Err(_) => return Err(format!("{STOPPED}, but the file system still holds it up")),
            },
        };
        ended.map_err(|_| "the tool failed inside the device".to_owned())?
    }
}

/// Until when a call may go on.
pub(super) struct Watch {
    stop: CancellationToken,
    limit: Duration,
    deadline: Instant,
}

impl Watch {
    pub(super) fn new(stop: CancellationToken, limit: Duration) -> Self {
        Self { stop, limit, deadline: Instant::now() + limit }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub(super) fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Asks whether to go on; to be called after every piece of work.
    ///
    /// # Errors
    /// When the call was stopped, or its time is up.
    pub(super) fn check(&self) -> io::Result<()> {
        self.check_stop()?;
        if self.is_late() {
            let text = format!("it took longer than {} s", self.limit.as_secs_f64());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(())
    }

    /// The same for what has its bound already and is not given up for being slow.
    ///
    /// # Errors
    /// When the call was stopped.
    pub(super) fn check_stop(&self) -> io::Result<()> {
        if self.is_stopped() { Err(io::Error::other(STOPPED)) } else { Ok(()) }
    }
}
