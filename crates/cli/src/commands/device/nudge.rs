//! What makes a device that waits for its next try go at once: a change of the files that say how it reaches its
//! server, and for a service SIGHUP.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use device::DeviceState;
use tokio::sync::{Notify, watch};

/// How often the files are looked at while there is no connection.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one state of a file from another; `None` where it is not there.
type Version = Option<(SystemTime, u64)>;

/// Nudges a device that is not connected whenever one of these files has changed, for ever.
pub(super) async fn watch_files(
    files: Vec<PathBuf>,
    nudge: Arc<Notify>,
    mut state: watch::Receiver<DeviceState>,
) {
    let mut seen: Vec<Version> = files.iter().map(|file| version(file)).collect();
    while state.wait_for(|state| !state.is_connected).await.is_ok() {
        tokio::time::sleep(LOOK).await;
        let looked = files.clone();
        // A disk that hangs holds up no thread of the runtime.
        let looking = tokio::task::spawn_blocking(move || {
            looked.iter().map(|file| version(file)).collect::<Vec<_>>()
        });
        let Ok(found) = looking.await else { continue };
        if found != seen {
            seen = found;
            tracing::info!("a file has changed that says how the server is reached");
            nudge.notify_one();
        }
    }
}

fn version(file: &Path) -> Version {
    let found = fs::metadata(file).ok()?;
    Some((found.modified().ok()?, found.len()))
}

/// SIGHUP, where it is no word of a terminal that goes away: for a service.
pub(super) struct Hangups {
    #[cfg(unix)]
    signal: Option<tokio::signal::unix::Signal>,
}

impl Hangups {
    /// Of a program without a terminal; `None` for one that has one, and ends with it.
    pub(super) fn of_service() -> Option<Self> {
        // It opens for who has a terminal, wherever standard input leads.
        if File::open("/dev/tty").is_ok() {
            return None;
        }
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Some(Self { signal: signal(SignalKind::hangup()).ok() })
        }
        #[cfg(not(unix))]
        None
    }

    pub(super) async fn next(this: Option<&mut Self>) {
        #[cfg(unix)]
        if let Some(signal) = this.and_then(|hangups| hangups.signal.as_mut())
            && signal.recv().await.is_some()
        {
            return;
        }
        #[cfg(not(unix))]
        let _none = this;
        std::future::pending::<()>().await;
    }
}
