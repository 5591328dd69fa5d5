//! Reads a line from the terminal while a question is open, and never else: what is typed between
//! questions is nobody's answer, and a device that was sent to the background must not be stopped there.

#[cfg(unix)]
pub(super) use unix::Terminal;

#[cfg(not(unix))]
pub(super) use elsewhere::Terminal;

#[cfg(unix)]
mod unix {
    use std::io::{PipeReader, pipe, stdin};
    use std::thread;

    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::{Errno, read};
    use rustix::process::getpgrp;
    use rustix::termios::{QueueSelector, tcflush, tcgetpgrp};
    use tokio::sync::oneshot;

    /// Longer than the longest line that a terminal hands over, in bytes.
    const LINE_BYTES: usize = 8 * 1024;

    /// The terminal that we were started from.
    pub(crate) struct Terminal(());

    impl Terminal {
        /// The terminal, if it is ours to read just now. What was typed before is thrown away.
        pub(crate) fn open() -> Option<Self> {
            if is_in_background() {
                return None;
            }
            tcflush(stdin(), QueueSelector::IFlush).ok()?;
            Some(Self(()))
        }

        /// The next line; `None` at the end of the input, or when the terminal is not ours any more.
        /// Dropped before, nothing goes on reading.
        pub(crate) async fn line(&self) -> Option<String> {
            let (stop, _open_while_wanted) = pipe().ok()?;
            let (tell, told) = oneshot::channel();
            let reading = thread::Builder::new().name("prompt".to_owned());
            // Whoever asked may have gone; then nobody needs the line.
            reading.spawn(move || tell.send(read_line(&stop))).ok()?;
            told.await.ok()?
        }
    }

    /// Waits for a line, or for the other end of `stop` to close.
    fn read_line(stop: &PipeReader) -> Option<String> {
        let stdin = stdin();
        loop {
            let mut files = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match poll(&mut files, None) {
                Err(Errno::INTR) => continue,
                Err(_) => return None,
                Ok(_) if !files[1].revents().is_empty() || is_in_background() => return None,
                Ok(_) => {}
            }
            let mut bytes = [0; LINE_BYTES];
            match read(&stdin, &mut bytes) {
                Err(Errno::INTR) => {}
                Err(_) | Ok(0) => return None,
                Ok(read) => return Some(String::from_utf8_lossy(&bytes[..read]).into_owned()),
            }
        }
    }

    /// Whether the terminal belongs to others, as after `flightdeck device &`: whoever reads it then is
    /// stopped by the system.
    fn is_in_background() -> bool {
        // Without job control everybody may read.
        tcgetpgrp(stdin()).is_ok_and(|group| group != getpgrp())
    }
}

/// Where this is not written yet nobody is there to be asked.
#[cfg(not(unix))]
mod elsewhere {
    pub(crate) struct Terminal;

    impl Terminal {
        pub(crate) fn open() -> Option<Self> {
            None
        }

        pub(crate) async fn line(&self) -> Option<String> {
            None
        }
    }
}
