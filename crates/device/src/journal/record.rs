//! The records of a journal: how each is written, and read again.
//!
//! A record is the length of its body, the body's crc32c, and the body: a letter that says what it is, and its fields,
//! of which the longest is the last one. Numbers are little-endian.

use super::CommandId;

/// Bytes before a record's body.
const HEAD: usize = 8;

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// The store that the journal is for, from here on.
    Store(&'a str),
    /// The machine's boot in which what follows was written.
    Boot(&'a str),
    /// The greatest id that a receipt was written for, and the greatest one forgotten for good.
    Marks { newest: Option<CommandId>, horizon: Option<CommandId> },
    /// The receipt of a COMMAND.
    Received { id: CommandId, session: &'a str, command: &'a [u8] },
    /// Its first action is about to start.
    Running(CommandId),
    /// The result of an action that others follow.
    Action { id: CommandId, result: &'a [u8] },
    /// Its results; whether it was stopped on the way.
    Done { id: CommandId, was_stopped: bool, results: &'a [u8] },
    /// Its results lie in a file of their own.
    DoneAside { id: CommandId, was_stopped: bool, len: u64, crc: u32 },
    /// Its results may be forgotten, its id not yet.
    Forgotten(CommandId),
}

/// Why no record can be read at some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The journal ends in the middle of it.
    Torn,
    /// It is not what was written.
    Damaged,
}

impl<'a> Record<'a> {
    /// Appends the record.
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        let start = to.len();
        to.extend([0; HEAD]);
        self.write_body(to);
        let body = to.get(start + HEAD..).unwrap_or_default();
        // No message is longer than 100 MiB.
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
        let crc = crc32c::crc32c(body).to_le_bytes();
        for (at, byte) in to.iter_mut().skip(start).zip(len.into_iter().chain(crc)) {
            *at = byte;
        }
    }

    fn write_body(&self, to: &mut Vec<u8>) {
        match *self {
            Self::Store(store) => {
                to.push(b'S');
                to.extend(store.as_bytes());
            }
            Self::Boot(boot) => {
                to.push(b'B');
                to.extend(boot.as_bytes());
            }
            Self::Marks { newest, horizon } => {
                to.push(b'M');
                for id in [newest, horizon] {
                    // No UUID is nil.
                    to.extend(id.map_or(0, |id| id.0).to_le_bytes());
                }
            }
            Self::Received { id, session, command } => {
                to.push(b'C');
                to.extend(id.0.to_le_bytes());
                // An id is at most 1 KiB.
                to.extend(u16::try_from(session.len()).unwrap_or(0).to_le_bytes());
                to.extend(session.as_bytes());
                to.extend(command);
            }
            Self::Running(id) => {
                to.push(b'R');
                to.extend(id.0.to_le_bytes());
            }
            Self::Action { id, result } => {
                to.push(b'A');
                to.extend(id.0.to_le_bytes());
                to.extend(result);
            }
            Self::Done { id, was_stopped, results } => {
                to.push(b'D');
                to.extend(id.0.to_le_bytes());
                to.push(u8::from(was_stopped));
                to.extend(results);
            }
            Self::DoneAside { id, was_stopped, len, crc } => {
                to.push(b'L');
                to.extend(id.0.to_le_bytes());
                to.push(u8::from(was_stopped));
                to.extend(len.to_le_bytes());
                to.extend(crc.to_le_bytes());
            }
            Self::Forgotten(id) => {
                to.push(b'F');
                to.extend(id.0.to_le_bytes());
            }
        }
    }

    /// Reads the record at the beginning of some bytes, and how many it takes.
    pub(super) fn read(bytes: &'a [u8]) -> Result<(Self, usize), Unreadable> {
        let mut head = bytes;
        let (len, crc) = number(&mut head)
            .map(u32::from_le_bytes)
            .zip(number(&mut head).map(u32::from_le_bytes))
            .ok_or(Unreadable::Torn)?;
        let len = usize::try_from(len).map_err(|_| Unreadable::Damaged)?;
        // What was written last may be there in part only; then the file is shorter than the length says.
        let Some(body) = head.get(..len) else {
            let is_whole = begins_with_body(head, crc);
            return Err(if is_whole { Unreadable::Damaged } else { Unreadable::Torn });
        };
        let record = (crc32c::crc32c(body) == crc).then(|| Self::read_body(body)).flatten();
        record.map(|record| (record, HEAD + len)).ok_or(Unreadable::Damaged)
    }

    fn read_body(body: &'a [u8]) -> Option<Self> {
        let (kind, mut rest) = body.split_first()?;
        let rest = &mut rest;
        let record = match kind {
            b'S' => Self::Store(text(rest)?),
            b'B' => Self::Boot(text(rest)?),
            b'M' => {
                let mark = |id| Some(CommandId(u128::from_le_bytes(id))).filter(|id| id.0 != 0);
                Self::Marks { newest: mark(number(rest)?), horizon: mark(number(rest)?) }
            }
            b'C' => {
                let (id, len) = (id(rest)?, u16::from_le_bytes(number(rest)?));
                let (session, command) = rest.split_at_checked(usize::from(len))?;
                Self::Received { id, session: std::str::from_utf8(session).ok()?, command }
            }
            b'R' => Self::Running(id(rest)?),
            b'A' => Self::Action { id: id(rest)?, result: rest },
            b'D' => Self::Done { id: id(rest)?, was_stopped: flag(rest)?, results: rest },
            b'L' => Self::DoneAside {
                id: id(rest)?,
                was_stopped: flag(rest)?,
                len: u64::from_le_bytes(number(rest)?),
                crc: u32::from_le_bytes(number(rest)?),
            },
            b'F' => Self::Forgotten(id(rest)?),
            _ => return None,
        };
        Some(record)
    }

    /// How many bytes its last field takes, if that is one that is read again later.
    pub(super) const fn tail(&self) -> usize {
        match self {
            Self::Received { command: tail, .. }
            | Self::Action { result: tail, .. }
            | Self::Done { results: tail, .. } => tail.len(),
            _ => 0,
        }
    }
}

/// Whether a body with this checksum is there, so that it is its length that is wrong.
fn begins_with_body(bytes: &[u8], crc: u32) -> bool {
    let mut so_far = 0;
    bytes.iter().any(|byte| {
        so_far = crc32c::crc32c_append(so_far, &[*byte]);
        so_far == crc
    })
}

fn number<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*number)
}

fn id(bytes: &mut &[u8]) -> Option<CommandId> {
    number(bytes).map(u128::from_le_bytes).map(CommandId)
}

fn flag(bytes: &mut &[u8]) -> Option<bool> {
    number::<1>(bytes).map(|[flag]| flag != 0)
}

fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(std::mem::take(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: CommandId = CommandId(7);

    fn all() -> [Record<'static>; 9] {
        [
            Record::Store("store"),
            Record::Boot("boot"),
            Record::Marks { newest: Some(ID), horizon: None },
            Record::Received { id: ID, session: "S", command: b"{}" },
            Record::Running(ID),
            Record::Action { id: ID, result: b"[]" },
            Record::Done { id: ID, was_stopped: true, results: b"results" },
            Record::DoneAside { id: ID, was_stopped: false, len: 1 << 40, crc: 5 },
            Record::Forgotten(ID),
        ]
    }

    #[test]
    fn what_was_written_is_read_again() {
        let mut bytes = Vec::new();
        all().iter().for_each(|record| record.write(&mut bytes));
        let mut rest = bytes.as_slice();
        for record in all() {
            let (read, len) = Record::read(rest).unwrap();
            assert_eq!(read, record);
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_torn_end_is_told_from_damage() {
        for record in all() {
            let mut bytes = Vec::new();
            record.write(&mut bytes);
            for len in 0..bytes.len() {
                assert_eq!(Record::read(&bytes[..len]), Err(Unreadable::Torn), "{record:?} {len}");
            }
            for behind in [0, 9] {
                bytes.extend(vec![0; behind]);
                for at in 0..bytes.len() - behind {
                    bytes[at] ^= 1;
                    assert_eq!(Record::read(&bytes), Err(Unreadable::Damaged), "{record:?} {at}");
                    bytes[at] ^= 1;
                }
            }
        }
    }
}
