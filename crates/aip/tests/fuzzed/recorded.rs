//! The recorded frames of the golden transcripts: what all fuzzing begins with.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// One frame that somebody really sent.
#[allow(dead_code, reason = "not everybody asks for all of it")]
pub(crate) struct Recorded {
    /// The transcript it is from.
    pub(crate) transcript: String,
    /// The connection within the transcript.
    pub(crate) link: String,
    /// Whether a client sent it, not the server.
    pub(crate) from_client: bool,
    pub(crate) frame: String,
}

/// All frames of the transcripts in a folder, in the order of their names.
pub(crate) fn recorded(folder: &Path) -> Vec<Recorded> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let transcript = file.file_stem().unwrap().to_string_lossy().into_owned();
        for line in fs::read_to_string(&file).unwrap().lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            let Some(frame) = event["frame"].as_str() else { continue };
            all.push(Recorded {
                transcript: transcript.clone(),
                link: event["link"].as_str().unwrap().to_owned(),
                from_client: event["dir"] == "c2s",
                frame: frame.to_owned(),
            });
        }
    }
    all
}
