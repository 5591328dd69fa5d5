//! Where output leaves the program: without a thread that waits for it, where that can be.

use std::io::{self, Write};

use bytes::Bytes;
use constellation::Channel;

/// Standard output or standard error.
pub(super) struct End {
    channel: Channel,
    /// Says when it takes more; made when it first took none.
    #[cfg(target_os = "linux")]
    ready: Option<here::Ready>,
}

impl End {
    pub(super) const fn new(channel: Channel) -> Self {
        Self {
            channel,
            #[cfg(target_os = "linux")]
            ready: None,
        }
    }

    /// Writes all of it. What was not written is lost if this is dropped.
    pub(super) async fn write(&mut self, mut bytes: Bytes) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        here::write(self, &mut bytes).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        let channel = self.channel;
        tokio::task::spawn_blocking(move || write_out(channel, &bytes)).await?
    }
}

fn write_out(channel: Channel, bytes: &[u8]) -> io::Result<()> {
    let mut end: Box<dyn Write> = match channel {
        Channel::Stdout => Box::new(io::stdout()),
        Channel::Stderr => Box::new(io::stderr()),
    };
    end.write_all(bytes)?;
    end.flush()
}

/// On this thread, as far as that can be.
#[cfg(target_os = "linux")]
mod here {
    use std::io::{self, IoSlice};
    use std::os::fd::{AsFd, OwnedFd};

    use bytes::{Buf, Bytes};
    use constellation::Channel;
    use rustix::fs::{FileType, fstat};
    use rustix::io::{Errno, ReadWriteFlags, pwritev2};
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    use super::{End, write_out};

    pub(super) type Ready = AsyncFd<OwnedFd>;

    /// Where the end stands, rather than an offset.
    const HERE: u64 = u64::MAX;

    /// Writes what does not have to wait in a thread; the rest is left.
    pub(super) async fn write(end: &mut End, bytes: &mut Bytes) -> io::Result<()> {
        let own = match end.channel {
            Channel::Stdout => rustix::stdio::stdout(),
            Channel::Stderr => rustix::stdio::stderr(),
        };
        while !bytes.is_empty() {
            let written = match &end.ready {
                Some(ready) => ready.async_io(Interest::WRITABLE, |end| at_once(end, bytes)).await,
                None => at_once(own, bytes),
            };
            let error = match written {
                Ok(count) => {
                    bytes.advance(count);
                    continue;
                }
                Err(error) => error,
            };
            match Errno::from_io_error(&error) {
                Some(Errno::INTR) => {}
                Some(Errno::AGAIN) => match awaited(own.try_clone_to_owned()?) {
                    Ok(ready) => end.ready = Some(ready),
                    Err(_) => break,
                },
                // Terminals and older systems know no such thing, nor do files, which make nobody wait.
                Some(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                    let kind = FileType::from_raw_mode(fstat(own)?.st_mode);
                    if kind == FileType::RegularFile {
                        write_out(end.channel, bytes)?;
                        bytes.clear();
                    }
                    break;
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }

    fn at_once(end: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
        Ok(pwritev2(end, &[IoSlice::new(bytes)], HERE, ReadWriteFlags::NOWAIT)?)
    }

    #[allow(
        deprecated,
        reason = "what it warns of cannot befall a descriptor that is owned; the other way is unsafe"
    )]
    fn awaited(end: OwnedFd) -> io::Result<Ready> {
        AsyncFd::with_interest(end, Interest::WRITABLE)
    }
}
