//! Some bytes of a stream, as JSON has them.

use base64_simd::STANDARD;
use bytes::Bytes;
use memchr::{memchr, memchr_iter, memmem};
use serde::de;

use crate::json_string;
use crate::payload::{self, Payload};

/// Some bytes of a stream, as JSON has them: whoever passes them on does not look into them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A JSON string: the text itself.
    Text(Payload),
    /// A JSON string: base64 of bytes that are no text.
    Base64(Payload),
}

impl Data {
    /// These bytes: as text where they are UTF-8, unless that would need more room than base64.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let coded = STANDARD.encoded_length(bytes.len());
        match payload::text(bytes).ok().and_then(|text| json_string::within(text, coded)) {
            Some(json) => Self::Text(Payload::trusted(json)),
            None => {
                let mut json = String::with_capacity(coded + 2);
                json.push('"');
                STANDARD.encode_append(bytes, &mut json);
                json.push('"');
                Self::Base64(Payload::trusted(json.into_bytes()))
            }
        }
    }

    /// How many bytes they are; `None` if they cannot be read.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        let length = match self {
            Self::Text(text) => text_length(inner(text)?)?,
            Self::Base64(coded) => {
                let coded = inner(coded)?;
                let padding = coded.iter().rev().take(2).take_while(|byte| **byte == b'=').count();
                (coded.len() % 4 == 0).then_some(coded.len() / 4 * 3 - padding.min(coded.len()))?
            }
        };
        u64::try_from(length).ok()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The bytes, as a part of what they came in where it has them as they are; `None` if they cannot be read.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Bytes> {
        match self {
            Self::Text(text) => {
                let inner = inner(text)?;
                match memchr(b'\\', inner) {
                    Some(_) => json_string::read(inner).map(Bytes::from),
                    None => Some(text.to_bytes().slice_ref(inner)),
                }
            }
            Self::Base64(coded) => STANDARD.decode_to_vec(inner(coded)?).ok().map(Bytes::from),
        }
    }

    pub(super) const fn key(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Base64(_) => "base64",
        }
    }

    pub(super) const fn payload(&self) -> &Payload {
        match self {
            Self::Text(payload) | Self::Base64(payload) => payload,
        }
    }

    pub(super) fn read<E: de::Error>(
        text: Option<Payload>,
        base64: Option<Payload>,
    ) -> Result<Self, E> {
        let is_string = |payload: &Payload| payload.as_bytes().first() == Some(&b'"');
        let data = match (text, base64) {
            (Some(text), None) => Self::Text(text),
            (None, Some(coded)) => Self::Base64(coded),
            (None, None) => Self::Text(Payload::string("")),
            (Some(_), Some(_)) => return Err(E::custom("a chunk has either text or base64")),
        };
        match is_string(data.payload()) {
            true => Ok(data),
            false => Err(E::custom("the bytes of a chunk are a string")),
        }
    }
}

/// What stands between the quotes of a JSON string.
fn inner(payload: &Payload) -> Option<&[u8]> {
    payload.as_bytes().strip_prefix(b"\"")?.strip_suffix(b"\"")
}

/// How many bytes of UTF-8 a JSON string is, from between its quotes; `None` of one that is no Unicode.
fn text_length(mut rest: &[u8]) -> Option<usize> {
    // Where no backslash stands for itself or begins a number, each is one of two bytes that stand for one.
    if memmem::find(rest, b"\\u").is_none() && memmem::find(rest, b"\\\\").is_none() {
        return Some(rest.len() - memchr_iter(b'\\', rest).count());
    }
    let mut length = 0;
    while let Some(at) = memchr(b'\\', rest) {
        let (c, escape) = json_string::escape(rest.get(at + 1..)?)?;
        length += at + c.len_utf8();
        rest = rest.get(at + 1 + escape..)?;
    }
    Some(length + rest.len())
}

/// Cuts bytes so that no character is in two parts: the first part, which may be all of them.
#[must_use]
pub fn whole_characters(bytes: &[u8]) -> &[u8] {
    let cut = match payload::text(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    };
    bytes.get(..cut).unwrap_or(bytes)
}
