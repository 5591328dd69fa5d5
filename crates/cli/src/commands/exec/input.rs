//! Standard input of `exec`: passed on to the command of one device.

use std::convert::Infallible;
use std::future;
use std::io::IsTerminal;

use constellation::TaskInput;
use tokio::io::{AsyncReadExt, Stdin};

/// Whether there may be something on standard input that is meant for the command: not from a keyboard, and not where it
/// is closed or /dev/null.
pub(super) fn is_there() -> bool {
    let input = std::io::stdin();
    !input.is_terminal() && !is_null(&input)
}

/// A closed one is opened as /dev/null before a program of Rust begins.
#[cfg(unix)]
fn is_null(input: &std::io::Stdin) -> bool {
    use std::os::unix::fs::MetadataExt;

    let null = std::fs::metadata("/dev/null").map(|null| null.rdev());
    match (rustix::fs::fstat(input), null) {
        (Ok(input), Ok(null)) => {
            let is_device = rustix::fs::FileType::from_raw_mode(input.st_mode)
                == rustix::fs::FileType::CharacterDevice;
            is_device && input.st_rdev == null
        }
        (Err(_), _) => true,
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_null(_: &std::io::Stdin) -> bool {
    false
}

/// Passes standard input on until its end, or until the command reads no more.
pub(super) async fn pass_on(input: &TaskInput, source: &mut Stdin) -> Infallible {
    let mut buffer = Vec::new();
    while let Some(room) = input.room().await {
        buffer.resize(room, 0);
        match source.read(&mut buffer).await {
            Ok(count) if count > 0 => input.send(buffer.get(..count).unwrap_or_default()),
            _ => {
                input.end();
                break;
            }
        }
    }
    future::pending().await
}

/// Waits until something comes that nobody takes.
pub(super) async fn something_comes(source: &mut Stdin) {
    let mut byte = [0];
    if !matches!(source.read(&mut byte).await, Ok(1)) {
        future::pending::<()>().await;
    }
}
