//! A picture of a Wayland display, by the program `grim`.
//!
//! Compositors let programs take pictures by protocols of their own making; `grim` follows those of Sway,
//! Hyprland and their like. GNOME and KDE let nobody do so without asking whoever sits there each time.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::super::quote::quote;
use super::picture::{MAX_PIXELS, Picture};

/// Most bytes of what `grim` says of its own troubles.
const MAX_ERROR_BYTES: u64 = 4096;

/// Room for the head of a picture.
const HEAD_BYTES: u64 = 64;

/// Takes a picture of all outputs as they lie beside each other. `grim` gets `variables` and nothing else of our
/// environment, and does not outlive the call.
///
/// # Errors
/// When `grim` is not there or cannot take it, and when it was stopped.
pub(super) async fn take(
    variables: Vec<(&'static str, OsString)>,
    stop: &CancellationToken,
) -> Result<Picture, String> {
    let mut grim = start(variables)?;
    let (stdout, stderr) = (grim.stdout.take(), grim.stderr.take());
    let written = async {
        let most = MAX_PIXELS as u64 * 3 + HEAD_BYTES;
        let (picture, error) = tokio::join!(read(stdout, most), read(stderr, MAX_ERROR_BYTES));
        (picture, error, grim.wait().await)
    };
    let (picture, error, status) = tokio::select! {
        written = written => written,
        () = stop.cancelled() => return Err(crate::tools::STOPPED.to_owned()),
    };
    if !status.is_ok_and(|status| status.success()) {
        let error = quote(String::from_utf8_lossy(&error).trim());
        return Err(format!("the program `grim`, which does so on Wayland, says {error}"));
    }
    parsed(&picture).ok_or_else(|| "what `grim` wrote is no picture, or too large".to_owned())
}

fn start(variables: Vec<(&'static str, OsString)>) -> Result<Child, String> {
    let mut grim = Command::new("grim");
    grim.args(["-t", "ppm", "-"]).env_clear().envs(variables).process_group(0);
    grim.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    grim.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            "on Wayland that takes the program `grim`, which is not installed".to_owned()
        }
        _ => format!("`grim` cannot be started: {error}"),
    })
}

async fn read(stream: Option<impl AsyncRead + Unpin>, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let _what_came_counts = stream.take(most).read_to_end(&mut bytes).await;
    }
    bytes
}

/// Reads a binary PPM: `P6`, width, height and 255, with white space between them, and the pixels.
fn parsed(ppm: &[u8]) -> Option<Picture> {
    let mut parts = ppm.splitn(5, |byte| byte.is_ascii_whitespace());
    let mut next = || std::str::from_utf8(parts.next()?).ok();
    let (kind, width, height, most) = (next()?, next()?, next()?, next()?);
    if (kind, most) != ("P6", "255") {
        return None;
    }
    let (width, height): (u32, u32) = (width.parse().ok()?, height.parse().ok()?);
    let rgb = parts.next()?;
    let bytes = u128::from(width) * u128::from(height) * 3;
    (rgb.len() as u128 == bytes).then(|| Picture { width, height, rgb: rgb.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_read_whole_or_not_at_all() {
        let picture = parsed(b"P6\n2 1\n255\n\n23456").unwrap();
        assert_eq!((picture.width, picture.height), (2, 1));
        assert_eq!(picture.rgb, b"\n23456");
        for broken in
            ["", "P6", "P6\n2 1\n255\n12345", "P6\n2 1\n255\n1234567", "P5\n2 1\n255\n123456"]
        {
            assert!(parsed(broken.as_bytes()).is_none(), "{broken:?}");
        }
        assert!(parsed(b"P6\n4294967295 4294967295\n255\n").is_none());
    }
}
