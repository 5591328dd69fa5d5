//! JSON strings, many bytes at a time: most of what passes through is the text of somebody's output.

use memchr::{memchr, memchr2};

/// Strings up to this length are looked through for what needs an escape before they are written:
/// ids and timestamps never have any.
const SHORT_BYTES: usize = 64;

/// Writes one JSON string.
pub(crate) fn write(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    match text.len() <= SHORT_BYTES && !text.as_bytes().iter().any(is_special) {
        true => out.extend_from_slice(text.as_bytes()),
        false => {
            let _whole = write_escaped(out, text, usize::MAX);
        }
    }
    out.push(b'"');
}

/// One JSON string, unless it is longer than `most` bytes without its quotes.
pub(crate) fn within(text: &str, most: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(most.min(text.len() + text.len() / 8) + 2);
    out.push(b'"');
    let whole = write_escaped(&mut out, text, most);
    out.push(b'"');
    (whole && out.len() <= most.saturating_add(2)).then_some(out)
}

/// Writes a text with what JSON needs escaped in it; `false` once there are more than `most` bytes.
fn write_escaped(out: &mut Vec<u8>, text: &str, most: usize) -> bool {
    let mut rest = text.as_bytes();
    while let Some(at) = position_special(rest) {
        if out.len() > most {
            return false;
        }
        let (plain, behind) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, behind)) = behind.split_first() else { break };
        let short = match byte {
            b'"' | b'\\' => *byte,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x08 => b'b',
            0x0c => b'f',
            _ => {
                let digit =
                    |nibble: u8| char::from_digit(nibble.into(), 16).map_or(b'0', |c| c as u8);
                let digits = [digit(byte >> 4), digit(byte & 15)];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&digits);
                rest = behind;
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', short]);
        rest = behind;
    }
    out.extend_from_slice(rest);
    true
}

/// How long a string is between its quotes, of which `rest` begins behind the first. `None` if JSON has no such string;
/// whether halves of a pair stand alone is not looked at.
pub(crate) fn length(rest: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += position_special(rest.get(at..)?)?;
        at += match rest.get(at)? {
            b'"' => return Some(at),
            b'\\' => 1 + escape_length(rest.get(at + 1..)?)?,
            _ => return None,
        };
    }
}

/// The same of what is known to be JSON.
pub(crate) fn length_of_valid(rest: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', rest.get(at..)?)?;
        match rest.get(at)? {
            b'"' => return Some(at),
            _ => at += 2,
        }
    }
}

/// How long an escape is behind its backslash.
fn escape_length(rest: &[u8]) -> Option<usize> {
    match rest.first()? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(1),
        b'u' => rest.get(1..5)?.iter().all(u8::is_ascii_hexdigit).then_some(5),
        _ => None,
    }
}

/// What a string says, from between its quotes; `None` of one that is no Unicode.
pub(crate) fn read(mut inner: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(inner.len());
    while let Some(at) = memchr(b'\\', inner) {
        let (plain, behind) = inner.split_at(at);
        out.extend_from_slice(plain);
        let (c, length) = escape(behind.get(1..)?)?;
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        inner = behind.get(1 + length..)?;
    }
    out.extend_from_slice(inner);
    Some(out)
}

/// What an escape stands for behind its backslash, and how long it is.
pub(crate) fn escape(rest: &[u8]) -> Option<(char, usize)> {
    let c = match rest.first()? {
        b'u' => return numbered(rest),
        byte @ (b'"' | b'\\' | b'/') => char::from(*byte),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        _ => return None,
    };
    Some((c, 1))
}

/// The same of one that is a number, or the two of a pair.
fn numbered(rest: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = rest.get(at..at + 4).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        u16::from_str_radix(std::str::from_utf8(digits?).ok()?, 16).ok()
    };
    let first = unit(1)?;
    if !(0xD800..0xDC00).contains(&first) {
        return Some((char::from_u32(first.into())?, 5));
    }
    rest.get(5..)?.strip_prefix(b"\\u")?;
    let c = char::decode_utf16([first, unit(7)?]).next()?.ok()?;
    Some((c, 11))
}

const fn is_special(byte: &u8) -> bool {
    *byte < b' ' || *byte == b'"' || *byte == b'\\'
}

/// Where the first byte is that cannot stand in a JSON string as it is. Looks at eight bytes at a time: a loop that the
/// compiler would have to widen is slow in a program that is built to be small.
fn position_special(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // The high bit of each byte says whether it is zero; only one behind such a byte may say so wrongly.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let special = control | zero(word ^ (ONES * 0x22)) | zero(word ^ (ONES * 0x5C));
        if special != 0 {
            return Some(n * 8 + special.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(is_special).map(|at| words.len() * 8 + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<String> {
        let every: Vec<char> = ('\0'..='\u{2ff}').chain(['€', '🙂']).collect();
        let plain =
            ["", "x", "1234567", "12345678", "é€🙂é€🙂", &"y".repeat(63), &"long line ".repeat(40)];
        let with = |plain: &str, c: &char| format!("{plain}{c}{plain}{c}{c}{plain}");
        plain.iter().flat_map(|plain| every.iter().map(move |c| with(plain, c))).collect()
    }

    #[test]
    fn a_string_is_written_as_the_library_writes_it() {
        for text in samples() {
            let mut written = Vec::new();
            write(&mut written, &text);
            assert_eq!(written, serde_json::to_vec(&text).unwrap(), "{text:?}");
            let length = written.len() - 2;
            assert_eq!(within(&text, length), Some(written), "{text:?}");
            assert_eq!(
                length.checked_sub(1).and_then(|most| within(&text, most)),
                None,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_string_is_read_as_the_library_reads_it() {
        let escapes =
            [r"\u0041", r"\u00e9", r"\u20ac", r"\ud83d\ude42", r"\/", r"\b\f\n\r\t\u001b"];
        let written = samples().into_iter().map(|text| serde_json::to_string(&text).unwrap());
        let escaped = escapes.iter().map(|escape| format!("\"{escape}x{escape}{escape}\""));
        for json in written.chain(escaped) {
            let (inner, behind) =
                (&json.as_bytes()[1..json.len() - 1], format!("{}: 1", &json[1..]));
            assert_eq!(length(behind.as_bytes()), Some(inner.len()), "{json}");
            assert_eq!(length_of_valid(behind.as_bytes()), Some(inner.len()), "{json}");
            let text: String = serde_json::from_str(&json).unwrap();
            assert_eq!(read(inner).unwrap(), text.as_bytes(), "{json}");
        }
    }

    #[test]
    fn what_is_no_string_is_not_taken_for_one() {
        for no in
            ["", "x", r"\", r#"\""#, r#"\x""#, r#"\u12g4""#, r#"\u+123""#, "\n\"", "\0\"", r"\u123"]
        {
            assert_eq!(length(no.as_bytes()), None, "{no:?}");
        }
        for no in [
            r"\",
            r"\x",
            r"\u12g4",
            r"\u+123",
            r"\ud800",
            r"\ud800x",
            r"\ud800\n",
            r"\ud800\u0041",
            r"\udc00",
        ] {
            assert_eq!(read(no.as_bytes()), None, "{no:?}");
        }
    }
}
