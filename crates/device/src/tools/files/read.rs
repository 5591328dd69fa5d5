//! `read_file`: a file, or a range of it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::str;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Reach, Watch, failed};

/// Arguments of `read_file`.
#[derive(Debug, Deserialize)]
pub(super) struct ReadFile {
    path: String,
    #[serde(default, deserialize_with = "crate::tools::optional")]
    offset: Option<u64>,
    #[serde(default, deserialize_with = "crate::tools::optional")]
    length: Option<u64>,
    /// Counted from 1.
    #[serde(default, deserialize_with = "crate::tools::optional")]
    from_line: Option<u64>,
    #[serde(default, deserialize_with = "crate::tools::optional")]
    line_count: Option<u64>,
}

/// A piece of a file.
struct Piece {
    bytes: Vec<u8>,
    /// Where it begins in the file.
    offset: u64,
    /// Whether the file goes on behind it.
    has_more: bool,
}

/// Reads a file, at most `max_bytes` of it.
///
/// # Errors
/// When the ranges contradict each other, the path is refused, or the file cannot be read.
pub(super) fn read_file(
    reach: &Reach,
    arguments: &ReadFile,
    watch: &Watch,
) -> Result<Value, String> {
    let by_bytes = arguments.offset.is_some() || arguments.length.is_some();
    let by_lines = arguments.from_line.is_some() || arguments.line_count.is_some();
    if by_bytes && by_lines {
        return Err("Bad arguments: give offset and length, or from_line and line_count".to_owned());
    }
    let path = reach.resolve(&arguments.path)?;
    let read = || {
        let file = reach.open(&path)?;
        let size = file.metadata()?.len();
        match by_lines {
            true => lines(file, arguments, reach.max_bytes, watch).map(|read| (size, read)),
            false => bytes(file, arguments, reach.max_bytes).map(|piece| (size, (piece, None))),
        }
    };
    let (size, (piece, next_line)) =
        read().map_err(|error| failed("read", &arguments.path, &error))?;
    Ok(result(piece, size, next_line))
}

fn bytes(mut file: File, arguments: &ReadFile, max: usize) -> io::Result<Piece> {
    let offset = arguments.offset.unwrap_or(0);
    let asked = arguments.length.map_or(max, |length| usize::try_from(length).unwrap_or(max));
    let length = asked.min(max);
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    // One byte more tells whether there is more. What the kernel makes up has no size to go by.
    file.take(length as u64 + 1).read_to_end(&mut bytes)?;
    let has_more = bytes.len() > length;
    bytes.truncate(length);
    if has_more {
        drop_cut_character(&mut bytes);
    }
    Ok(Piece { bytes, offset, has_more })
}

/// Reads whole lines, as many as there is room for; the first is cut where it alone is too long. With them
/// comes the number of the line at which to go on.
fn lines(
    file: File,
    arguments: &ReadFile,
    max: usize,
    watch: &Watch,
) -> io::Result<(Piece, Option<u64>)> {
    let from_line = arguments.from_line.unwrap_or(1).max(1);
    let mut reader = BufReader::new(file);
    let offset = skip_lines(&mut reader, from_line - 1, watch)?;
    let mut reader = reader.take(max as u64 + 1);
    let (mut bytes, mut line) = (Vec::new(), from_line);
    while line - from_line < arguments.line_count.unwrap_or(u64::MAX) {
        let start = bytes.len();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        if bytes.len() > max {
            let is_first = start == 0;
            bytes.truncate(if is_first { max } else { start });
            drop_cut_character(&mut bytes);
            let next_line = (!is_first).then_some(line);
            return Ok((Piece { bytes, offset, has_more: true }, next_line));
        }
        line += 1;
        watch.check()?;
    }
    let has_more = !reader.fill_buf()?.is_empty();
    Ok((Piece { bytes, offset, has_more }, has_more.then_some(line)))
}

/// Goes behind that many lines, or to the end, and tells how many bytes that was.
fn skip_lines(reader: &mut impl BufRead, lines: u64, watch: &Watch) -> io::Result<u64> {
    let (mut skipped, mut left) = (0, lines);
    while left > 0 {
        watch.check()?;
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        let mut used = 0;
        while left > 0 && used < buffer.len() {
            let end = buffer[used..].iter().position(|byte| *byte == b'\n');
            used = end.map_or(buffer.len(), |end| used + end + 1);
            left -= u64::from(end.is_some());
        }
        reader.consume(used);
        skipped += used as u64;
    }
    Ok(skipped)
}

/// Leaves out a character of which only the beginning is there, so that text stays text. What comes next
/// begins with it.
fn drop_cut_character(bytes: &mut Vec<u8>) {
    if let Err(error) = str::from_utf8(bytes)
        && error.error_len().is_none()
        && error.valid_up_to() > 0
    {
        bytes.truncate(error.valid_up_to());
    }
}

fn result(piece: Piece, size: u64, next_line: Option<u64>) -> Value {
    let Piece { bytes, offset, has_more } = piece;
    let length = bytes.len() as u64;
    let (content, encoding) = match String::from_utf8(bytes) {
        Ok(text) => (text, "utf-8"),
        Err(error) => (STANDARD.encode(error.as_bytes()), "base64"),
    };
    let mut result = json!({
        "content": content,
        "encoding": encoding,
        "offset": offset,
        "length": length,
        "size": size,
        "truncated": has_more,
    });
    if has_more {
        result["next_offset"] = json!(offset + length);
    }
    if let Some(line) = next_line {
        result["next_line"] = json!(line);
    }
    result
}
