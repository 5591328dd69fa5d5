//! `write_file`: a file as a whole, at once.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::folder::{Folder, split};
use super::{Reach, Watch, failed};

/// Arguments of `write_file`.
#[derive(Debug, Deserialize)]
pub(super) struct WriteFile {
    path: String,
    content: String,
    #[serde(default, deserialize_with = "crate::tools::optional")]
    encoding: Option<Encoding>,
}

#[derive(Debug, Deserialize)]
enum Encoding {
    #[serde(rename = "utf-8", alias = "utf8", alias = "UTF-8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

/// Writes a file. Where the path is a symbolic link, it is what it leads to that is written.
///
/// # Errors
/// When the content is no base64, the path is refused, or the file cannot be written; then the one that was
/// there is untouched.
pub(super) fn write_file(
    reach: &Reach,
    arguments: &WriteFile,
    watch: &Watch,
) -> Result<Value, String> {
    let content = content(arguments)?;
    let path = reach.resolve(&arguments.path)?;
    let write = || {
        let (folder, name) = split(&path)?;
        Folder::make(folder)?.replace(name, &content, || watch.check_stop())
    };
    let created = write().map_err(|error| failed("write", &arguments.path, &error))?;
    Ok(json!({"size": content.len(), "created": created}))
}

fn content(arguments: &WriteFile) -> Result<Cow<'_, [u8]>, String> {
    match arguments.encoding {
        None | Some(Encoding::Utf8) => Ok(arguments.content.as_bytes().into()),
        Some(Encoding::Base64) => match STANDARD.decode(&arguments.content) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(format!("Bad arguments: content is no base64: {error}")),
        },
    }
}
