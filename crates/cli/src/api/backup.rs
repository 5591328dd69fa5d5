//! Copies of the store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{Api, MAX_SHORT_BYTES};
use crate::Failure;

/// Longest wait for a copy of the store.
const TIMEOUT: Duration = Duration::from_secs(6 * 60 * 60);

/// How often to look whether the server is alive meanwhile: it says nothing before the copy is made.
const PACE: Duration = Duration::from_secs(5);

/// A copy of the store that was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Backup {
    pub(crate) folder: PathBuf,
    pub(crate) bytes: u64,
}

impl Api<'_> {
    /// Has the server copy its store into a folder of its machine.
    pub(crate) async fn backup(&self, folder: &Path) -> Result<Backup, Failure> {
        let wanted = serde_json::json!({ "folder": folder });
        let request = self.request(Method::POST, "/api/v1/backup", &[])?.json(&wanted);
        let answer = tokio::select! {
            biased;
            answer = self.answer(request, TIMEOUT, MAX_SHORT_BYTES) => answer?,
            failure = self.until_silent() => return Err(failure),
        };
        self.read(&answer, "copy")
    }

    /// Waits until the server does not answer any more.
    async fn until_silent(&self) -> Failure {
        loop {
            if let Err(failure) = self.get("/healthz", &[]).await {
                return failure;
            }
            tokio::time::sleep(PACE).await;
        }
    }
}
