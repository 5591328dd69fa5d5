//! Room on the disk that is given up when it is full, so that the outcomes of open tasks fit.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::folder::{open_private, room};

/// The file that keeps the room. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(super) struct Reserve {
    path: Arc<Path>,
    bytes: usize,
    /// Whether the disk is full: no new tasks are taken until there is room for the reserve again.
    is_given_up: Arc<AtomicBool>,
}

impl Reserve {
    /// Makes the reserve, unless it is there. A disk that has no room for it now may still take tasks.
    pub(super) fn make(path: &Path, bytes: usize) -> Self {
        let reserve = Self { path: path.into(), bytes, is_given_up: Arc::default() };
        if let Err(error) = reserve.fill() {
            tracing::warn!(%error, bytes, "the disk has no room for the store's reserve");
            reserve.remove();
        }
        reserve
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// The disk is full. `true` if it was not before, so that there is room now.
    pub(super) fn give_up(&self) -> bool {
        self.remove();
        let is_new = !self.is_given_up.swap(true, Ordering::AcqRel);
        if is_new {
            tracing::error!("the disk is full: no new tasks are taken until there is room");
        }
        is_new
    }

    /// Makes it again, if there is room. `true` if so.
    pub(super) fn restore(&self) -> bool {
        // A little more, so that what comes next fits beside it.
        let needed = self.bytes.saturating_add(self.bytes / 4);
        let is_room = self.path.parent().and_then(room).is_none_or(|room| room >= needed as u64);
        if !is_room {
            return false;
        }
        if self.fill().is_err() {
            self.remove();
            return false;
        }
        self.is_given_up.store(false, Ordering::Release);
        tracing::info!("there is room on the disk: new tasks are taken again");
        true
    }

    fn fill(&self) -> io::Result<()> {
        if self.bytes == 0
            || fs::metadata(&self.path).is_ok_and(|found| found.len() == self.bytes as u64)
        {
            return Ok(());
        }
        let mut file = open_private(&self.path)?;
        file.set_len(0)?;
        allocate(&mut file, self.bytes)
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the store's reserve could not be given up");
        }
    }
}

/// Takes room for a file. A file system that cannot only reserve it gets zeros.
fn allocate(file: &mut File, bytes: usize) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(&*file, FallocateFlags::empty(), 0, bytes as u64) {
            Err(Errno::OPNOTSUPP) => {}
            taken => return taken.map_err(io::Error::from),
        }
    }
    io::copy(&mut io::repeat(0).take(bytes as u64), file).map(drop)
}
