//! What commands wrote whose requesters did not wait for it, in files beside the device's journal: each stream in pieces,
//! of which the oldest go when a command has written more than is kept.
//!
//! A command's folder outlives the device. It goes some time after the server has the command's results.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aip::message::{Channel, Chunk, Data, MAX_CHUNK_BYTES, whole_characters};
use link::private;

use crate::journal::CommandId;

/// The folder, in that of the journal.
const FOLDER: &str = "spool";

/// The file that says when the server had the results.
const ACKNOWLEDGED: &str = "acknowledged";

/// Into how many pieces the output of a command is divided: one of them goes at a time.
const PIECES: u64 = 16;

/// How many chunks answer one question.
const CHUNKS: usize = 4;

/// How much longer what a command wrote is kept whose results the server does not have: it may have gone for good.
const UNACKNOWLEDGED: Duration = Duration::from_secs(7 * 24 * 3600);

/// How much is kept of what commands write whose requesters do not wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolSettings {
    /// Most bytes of one command, both streams together; 0 keeps none.
    pub bytes: u64,
    /// Most commands; of more the oldest go.
    pub commands: usize,
    /// How long after the server has a command's results.
    pub time: Duration,
}

impl Default for SpoolSettings {
    fn default() -> Self {
        Self { bytes: 64 * 1024 * 1024, commands: 64, time: Duration::from_secs(24 * 3600) }
    }
}

/// All that is kept.
pub(crate) struct Spools {
    /// None where nothing is kept.
    folder: Option<PathBuf>,
    bounds: SpoolSettings,
}

impl Spools {
    /// What is kept beside a journal; nothing without one.
    pub(crate) fn new(journal: Option<&Path>, bounds: SpoolSettings) -> Self {
        let folder = journal.map(|journal| journal.join(FOLDER)).filter(|_| bounds.bytes > 0);
        Self { folder, bounds }
    }

    /// Begins to keep what a command writes, once there is room. What of others is due to go goes, unless they run.
    pub(crate) fn begin(&self, id: CommandId, runs: impl Fn(CommandId) -> bool) -> Option<Spool> {
        let folder = self.folder.as_ref()?;
        self.sweep(self.bounds.commands.saturating_sub(1), SystemTime::now(), runs);
        let own = folder.join(name(id));
        if let Err(error) = fs::create_dir_all(&own) {
            tracing::warn!(%error, "what a command writes cannot be kept");
            return None;
        }
        Some(Spool(Arc::new(Mutex::new(Writing {
            folder: own,
            most: self.bounds.bytes,
            sides: Default::default(),
            is_broken: false,
        }))))
    }

    /// The server has the results of a command.
    pub(crate) fn note_acknowledged(&self, id: CommandId) {
        let Some(own) = self.folder_of(id).filter(|own| own.exists()) else { return };
        // Without the file it stays for longer.
        let path = own.join(ACKNOWLEDGED);
        let _noted = private(OpenOptions::new().write(true).create(true).truncate(true)).open(path);
    }

    /// What is kept of a stream from an offset on; nothing of a command of which nothing is kept. Reads the disk.
    pub(crate) fn read(&self, id: CommandId, stream: Channel, from: u64, runs: bool) -> Vec<Chunk> {
        let Some(own) = self.folder_of(id).filter(|own| own.exists()) else {
            // It may not have come to it yet.
            let waits = runs && self.folder.is_some();
            return waits.then(|| chunk(stream, from, 0, &[], false)).into_iter().collect();
        };
        // A piece may go between two looks.
        let read = read(&own, stream, from, runs).or_else(|_| read(&own, stream, from, runs));
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, "what a command wrote cannot be read");
            Vec::new()
        })
    }

    /// Removes what is due to go: all but the newest so many, and what has been kept for its time.
    fn sweep(&self, most: usize, now: SystemTime, runs: impl Fn(CommandId) -> bool) {
        let Some(folder) = &self.folder else { return };
        let Ok(found) = fs::read_dir(folder) else { return };
        let mut kept: Vec<_> =
            found.flatten().filter_map(|entry| Some((id(&entry)?, entry.path()))).collect();
        kept.retain(|(id, path)| {
            let goes = !runs(*id) && self.is_over(path, now);
            if goes {
                remove(path);
            }
            !goes
        });
        kept.retain(|(id, _)| !runs(*id));
        kept.sort();
        let excess = kept.len().saturating_sub(most);
        kept.iter().take(excess).for_each(|(_, path)| remove(path));
    }

    fn is_over(&self, own: &Path, now: SystemTime) -> bool {
        let changed = |path: &Path| fs::metadata(path).and_then(|found| found.modified());
        let (since, time) = match changed(&own.join(ACKNOWLEDGED)) {
            Ok(since) => (since, self.bounds.time),
            Err(_) => {
                let Ok(since) = changed(own) else { return false };
                (since, self.bounds.time + UNACKNOWLEDGED)
            }
        };
        now.duration_since(since).is_ok_and(|age| age > time)
    }

    fn folder_of(&self, id: CommandId) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(name(id)))
    }
}

/// What one command writes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Spool(Arc<Mutex<Writing>>);

struct Writing {
    folder: PathBuf,
    most: u64,
    sides: [Side; 2],
    /// Whether the disk has refused something: what comes behind it is not kept either.
    is_broken: bool,
}

#[derive(Default)]
struct Side {
    /// The offsets at which its pieces begin.
    pieces: VecDeque<u64>,
    /// The last of them.
    file: Option<File>,
    end: u64,
}

impl Spool {
    /// Keeps some output. Does not wait for the disk, but for the system's own buffers.
    pub(crate) fn write(&self, stream: Channel, bytes: &[u8]) {
        let mut writing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if writing.is_broken {
            return;
        }
        if let Err(error) = writing.write(stream, bytes) {
            tracing::warn!(%error, "what a command writes cannot be kept any more");
            writing.is_broken = true;
        }
    }
}

impl Writing {
    fn write(&mut self, stream: Channel, mut bytes: &[u8]) -> io::Result<()> {
        let piece = (self.most / PIECES).max(1);
        while !bytes.is_empty() {
            let side = &mut self.sides[stream as usize];
            let begun = side.pieces.back().map_or(0, |at| side.end - at);
            let file = match &mut side.file {
                Some(file) if begun < piece => file,
                _ => {
                    let path = self.folder.join(piece_name(stream, side.end));
                    let file =
                        private(OpenOptions::new().write(true).create_new(true)).open(path)?;
                    side.pieces.push_back(side.end);
                    side.file.insert(file)
                }
            };
            let begun = side.pieces.back().map_or(0, |at| side.end - at);
            let room = usize::try_from(piece - begun).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            file.write_all(now)?;
            side.end += now.len() as u64;
            bytes = rest;
            self.keep_to_most();
        }
        Ok(())
    }

    /// Lets go of the oldest piece of the stream of which there is most, while there is too much.
    fn keep_to_most(&mut self) {
        loop {
            let kept = self
                .sides
                .each_ref()
                .map(|side| side.end - side.pieces.front().unwrap_or(&side.end));
            let fuller = if kept[0] >= kept[1] { Channel::Stdout } else { Channel::Stderr };
            let side = &mut self.sides[fuller as usize];
            if kept.iter().sum::<u64>() <= self.most || side.pieces.len() < 2 {
                return;
            }
            if let Some(at) = side.pieces.pop_front() {
                let _gone = fs::remove_file(self.folder.join(piece_name(fuller, at)));
            }
        }
    }
}

fn name(id: CommandId) -> String {
    id.to_response_id().map(|id| id.to_string()).unwrap_or_default()
}

fn id(entry: &fs::DirEntry) -> Option<CommandId> {
    CommandId::of(&entry.file_name().to_str()?.parse().ok()?)
}

fn piece_name(stream: Channel, offset: u64) -> String {
    format!("{}.{offset}", stream.as_str())
}

fn remove(own: &Path) {
    if let Err(error) = fs::remove_dir_all(own) {
        tracing::debug!(%error, "what a command wrote cannot be removed yet");
    }
}

fn read(own: &Path, stream: Channel, from: u64, runs: bool) -> io::Result<Vec<Chunk>> {
    let mut pieces = Vec::new();
    for entry in fs::read_dir(own)? {
        let name = entry?.file_name();
        let offset = name.to_str().and_then(|name| {
            name.strip_prefix(stream.as_str())?.strip_prefix('.')?.parse::<u64>().ok()
        });
        pieces.extend(offset);
    }
    pieces.sort_unstable();
    let held = pieces.first().copied().unwrap_or(0);
    let mut at = from.max(held);
    let mut bytes = Vec::new();
    for (n, begin) in pieces.iter().enumerate() {
        let is_before = pieces.get(n + 1).is_some_and(|next| *next <= at);
        let room = (CHUNKS * MAX_CHUNK_BYTES - bytes.len()) as u64;
        if is_before || room == 0 {
            continue;
        }
        let mut file = File::open(own.join(piece_name(stream, *begin)))?;
        file.seek(SeekFrom::Start(at.saturating_sub(*begin)))?;
        file.take(room).read_to_end(&mut bytes)?;
    }
    // Whatever it wrote before it ended is there.
    let is_end = !runs && bytes.len() < CHUNKS * MAX_CHUNK_BYTES;
    let (mut chunks, mut rest) = (Vec::new(), bytes.as_slice());
    while !rest.is_empty() {
        let most = rest.get(..MAX_CHUNK_BYTES).unwrap_or(rest);
        let whole = whole_characters(most);
        let own = if whole.is_empty() { most } else { whole };
        chunks.push(chunk(stream, at, held, own, false));
        at += own.len() as u64;
        rest = rest.get(own.len()..).unwrap_or_default();
    }
    if is_end || chunks.is_empty() {
        chunks.push(chunk(stream, at, held, &[], is_end));
    }
    Ok(chunks)
}

fn chunk(stream: Channel, offset: u64, held: u64, bytes: &[u8], end: bool) -> Chunk {
    Chunk { call_id: None, stream, n: 0, offset, held, data: Data::of(bytes), end }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: fn(CommandId) -> bool = |_| false;

    fn command(n: u8) -> CommandId {
        let text = format!("019a0000-0000-7000-8000-0000000000{n:02x}");
        CommandId::of(&text.parse().unwrap()).unwrap()
    }

    fn spools(folder: &Path, bytes: u64) -> Spools {
        Spools::new(Some(folder), SpoolSettings { bytes, commands: 3, ..SpoolSettings::default() })
    }

    /// All that is kept from an offset on: where it begins, the bytes, and whether they are all.
    fn all(spools: &Spools, stream: Channel, from: u64, runs: bool) -> (u64, Vec<u8>, bool) {
        let (mut begin, mut bytes) = (None, Vec::new());
        loop {
            let at = begin.unwrap_or(from) + bytes.len() as u64;
            let chunks = spools.read(command(1), stream, at, runs);
            assert!(!chunks.is_empty(), "nothing is kept");
            for chunk in chunks {
                let begin = *begin.get_or_insert(chunk.offset);
                assert_eq!(chunk.offset, begin + bytes.len() as u64);
                let more = chunk.data.to_bytes().unwrap();
                if chunk.end || more.is_empty() {
                    return (begin, bytes, chunk.end);
                }
                bytes.extend(more);
            }
        }
    }

    #[test]
    fn what_was_written_is_read_from_any_offset_while_it_is_written_and_after() {
        let folder = tempfile::tempdir().unwrap();
        let spools = spools(folder.path(), 1 << 20);
        let text = "é€🙂\n".repeat(60_000);
        let spool = spools.begin(command(1), NONE).unwrap();
        assert_eq!(all(&spools, Channel::Stderr, 0, true), (0, Vec::new(), false));
        text.as_bytes().chunks(1000).for_each(|bytes| spool.write(Channel::Stdout, bytes));
        spool.write(Channel::Stderr, b"\xff\x00");
        assert_eq!(all(&spools, Channel::Stdout, 0, true), (0, text.clone().into(), false));
        drop(spool);
        assert_eq!(all(&spools, Channel::Stdout, 0, false), (0, text.clone().into(), true));
        let rest = text.as_bytes()[100_001..].to_vec();
        assert_eq!(all(&spools, Channel::Stdout, 100_001, false), (100_001, rest, true));
        assert_eq!(all(&spools, Channel::Stderr, 1, false), (1, vec![0], true));
        assert_eq!(all(&spools, Channel::Stderr, 99, false), (99, Vec::new(), true));
    }

    #[test]
    fn of_more_than_is_kept_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let spools = spools(folder.path(), 16_000);
        let spool = spools.begin(command(1), NONE).unwrap();
        spool.write(Channel::Stderr, b"few");
        for n in 0..1000 {
            spool.write(Channel::Stdout, format!("{n:099}\n").as_bytes());
        }
        let (begin, bytes, is_end) = all(&spools, Channel::Stdout, 0, false);
        assert!(is_end && begin + bytes.len() as u64 == 100_000);
        assert!((14_000..=16_000).contains(&bytes.len()), "{}", bytes.len());
        assert_eq!(all(&spools, Channel::Stderr, 0, false), (0, b"few".to_vec(), true));
    }

    #[test]
    fn what_is_kept_goes_when_it_is_old_or_one_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let spools = spools(folder.path(), 1000);
        let is_kept = |n| !spools.read(command(n), Channel::Stdout, 0, false).is_empty();
        for n in 1..=4 {
            spools.begin(command(n), |id| id == command(1)).unwrap();
        }
        assert_eq!([1, 2, 3, 4].map(is_kept), [true, true, true, true], "one runs");
        spools.begin(command(5), NONE).unwrap();
        assert_eq!([1, 2, 3, 4, 5].map(is_kept), [false, false, true, true, true]);
        spools.note_acknowledged(command(4));
        spools.note_acknowledged(command(9));
        let day = SystemTime::now() + Duration::from_secs(25 * 3600);
        spools.sweep(3, day, NONE);
        assert_eq!([3, 4, 5].map(is_kept), [true, false, true]);
        spools.sweep(3, day + UNACKNOWLEDGED, NONE);
        assert_eq!([3, 5].map(is_kept), [false, false]);
        assert!(Spools::new(None, SpoolSettings::default()).begin(command(1), NONE).is_none());
    }
}
