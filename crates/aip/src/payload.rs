//! JSON that Flightdeck only carries: results, parameters, metadata. Kept as the text it came as.
//!
//! A value that is large, and a good part of its frame, is a slice of the frame's own memory: reading it copies
//! nothing. Any other is copied, since as a slice it would keep much more alive than is counted.

mod hollow;

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::str::Utf8Error;

use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer, ser};
use serde_json::value::RawValue;

use self::hollow::Hollow;
use crate::json_string;

/// Payloads below this size are copied out of their frame: sharing would keep the connection's read
/// buffer alive for a few bytes.
const SHARE_FROM_BYTES: usize = 16 * 1024;

/// A payload shares its frame's memory only if it is at least this part of it, so that what is kept
/// is never much more than what is counted.
const SHARE_FROM_PART: usize = 4;

thread_local! {
    /// The frame that is being decoded on this thread, so that a large payload can be a slice of it
    /// instead of a copy. Set by [`Within`] only.
    static FRAME: RefCell<Option<Frame>> = const { RefCell::new(None) };
}

struct Frame {
    bytes: Bytes,
    /// What of it is read instead.
    hollow: Option<Hollow>,
}

/// One JSON value as its text, byte for byte as its sender wrote it (big integers, key order). Cheap
/// to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Bytes);

impl Payload {
    /// Writes a value as JSON.
    ///
    /// # Errors
    /// When the value cannot be JSON, such as a map whose keys are no strings.
    pub fn from_value<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::to_vec(value).map(|text| Self(text.into()))
    }

    /// Checks that a text is one JSON value and takes it.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn from_text(text: impl Into<Bytes>) -> Result<Self, serde_json::Error> {
        let text = text.into();
        // Without the blanks around it, as a value inside a frame is.
        let value = serde_json::from_slice::<&RawValue>(&text)?.get().as_bytes();
        Ok(Self(text.slice_ref(value)))
    }

    /// What was written as JSON here.
    pub(crate) fn trusted(json: Vec<u8>) -> Self {
        Self(json.into())
    }

    /// A JSON string.
    #[must_use]
    pub fn string(text: &str) -> Self {
        let mut out = Vec::with_capacity(text.len() + 2);
        json_string::write(&mut out, text);
        Self(out.into())
    }

    /// The JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Every way to make a payload has checked it; a fault here must still not take the server down.
        text(&self.0).unwrap_or("null")
    }

    /// Whether it is `null`, which the wire does not tell from a missing field.
    #[must_use]
    pub fn is_null(&self) -> bool {
        &*self.0 == b"null"
    }

    /// The JSON text's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The JSON text's bytes, shared.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// Length of the JSON text in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: JSON is at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the JSON as a type of Rust, to any depth that the codec lets in.
    ///
    /// # Errors
    /// When it does not have the type's shape.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        parse(self.as_str())
    }

    /// Reads the JSON as a type that carries payloads itself; large ones share this one's memory.
    ///
    /// # Errors
    /// When it does not have the type's shape.
    pub fn parse_carried<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        carried(&self.0, self.as_str(), true, parse)
    }

    /// Takes the text out of the frame that is being decoded: shares large ones, copies small ones.
    fn capture(raw: &str) -> Self {
        let shared = FRAME.with_borrow_mut(|frame| frame.as_mut()?.share(raw));
        Self(shared.unwrap_or_else(|| Bytes::copy_from_slice(raw.as_bytes())))
    }
}

impl Frame {
    /// A value's own text; `None` if it stands somewhere else, or is too small a part to be shared.
    fn share(&mut self, raw: &str) -> Option<Bytes> {
        let range = match &mut self.hollow {
            Some(hollow) => hollow.carry(raw)?,
            None => {
                let start = raw.as_ptr().addr().checked_sub(self.bytes.as_ptr().addr())?;
                start..start.checked_add(raw.len()).filter(|end| *end <= self.bytes.len())?
            }
        };
        let least = SHARE_FROM_BYTES.max(self.bytes.len() / SHARE_FROM_PART);
        match range.len() >= least {
            true => Some(self.bytes.slice(range)),
            false => self.bytes.get(range).map(Bytes::copy_from_slice),
        }
    }
}

/// Bytes as text: as [`std::str::from_utf8`], faster.
///
/// # Errors
/// When they are no UTF-8.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Utf8Error> {
    simdutf8::basic::from_utf8(bytes).or_else(|_| std::str::from_utf8(bytes))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.disable_recursion_limit();
    T::deserialize(&mut deserializer)
}

/// Has `read` read a frame, whose text it is, with the frame as the memory that large payloads may share. It is read
/// without what stands in its long strings where all these are only carried, as nearly all are. `is_json` says that it is
/// known to be some.
pub(crate) fn carried<T, E>(
    frame: &Bytes,
    text: &str,
    is_json: bool,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<T, E> {
    if let Some(hollow) = Hollow::of(text, is_json) {
        let left = hollow.text();
        let within = Within::new(Frame { bytes: frame.clone(), hollow: Some(hollow) });
        let read = read(&left);
        if read.is_ok() && within.is_all_carried() {
            return read;
        }
    }
    let _within = Within::new(Frame { bytes: frame.clone(), hollow: None });
    read(text)
}

/// While it is there, a frame is decoded on this thread. Behind it, what was there before is, also when decoding panics.
struct Within(Option<Frame>);

impl Within {
    fn new(frame: Frame) -> Self {
        Self(FRAME.replace(Some(frame)))
    }

    /// Whether nothing of the frame was looked at that is missing in what is read.
    fn is_all_carried(&self) -> bool {
        FRAME.with_borrow(|frame| {
            let hollow = frame.as_ref().and_then(|frame| frame.hollow.as_ref());
            hollow.is_none_or(Hollow::is_all_carried)
        })
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        FRAME.set(self.0.take());
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|raw| Self::capture(raw.get()))
    }
}

impl Serialize for Payload {
    /// Writes the text as it is. This checks it again, so it is for small payloads; messages write
    /// theirs through [`crate::codec`].
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(self.as_str())
            .map_err(ser::Error::custom)?
            .serialize(serializer)
    }
}

impl fmt::Debug for Payload {
    /// Shows the size only: a payload has no place in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

/// What must be written as a JSON object. By itself serde would also take an array for the fields of a
/// struct in their order, which no description of a protocol mentions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// Reads a list of objects, `null` or missing.
///
/// # Errors
/// When it is something else.
pub fn optional_objects<'de, T, D>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let list = Option::<Vec<Object<T>>>::deserialize(deserializer)?;
    Ok(list.map(|list| list.into_iter().map(|Object(item)| item).collect()))
}

/// Reads a list of objects.
///
/// # Errors
/// When it is something else.
pub fn objects<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let list = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(list.into_iter().map(|Object(item)| item).collect())
}

/// Reads a payload that must be a JSON object, `null` or missing.
///
/// # Errors
/// When it is something else.
pub fn optional_object<'de, D>(deserializer: D) -> Result<Option<Payload>, D::Error>
where
    D: Deserializer<'de>,
{
    let payload = Option::<Payload>::deserialize(deserializer)?;
    match payload {
        Some(payload) if payload.as_bytes().first() != Some(&b'{') => {
            Err(de::Error::custom("expected an object or null"))
        }
        payload => Ok(payload),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_payload_shares_its_frame_and_a_small_one_does_not() {
        for (len, shared) in [(10, false), (SHARE_FROM_BYTES * 2, true)] {
            let frame = Bytes::from(format!("[\"{}\"]", "x".repeat(len)));
            let text = str::from_utf8(&frame).unwrap();
            let payloads: Vec<Payload> = carried(&frame, text, false, parse).unwrap();
            let inside = frame.as_ptr_range().contains(&payloads[0].as_bytes().as_ptr());
            assert_eq!(inside, shared, "{len}");
        }
    }

    #[test]
    fn what_is_carried_is_read_the_same_without_what_stands_in_its_long_strings() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Shape {
            carried: Vec<Payload>,
            #[serde(default)]
            read: String,
        }

        let long = |text: &str| format!("\"{}\"", text.repeat(1500));
        let texts = [
            long("x"),
            long("é🙂"),
            long(r"\n\u001b\ud83d\ude42"),
            "1".to_owned(),
            "\"\"".to_owned(),
        ];
        let mut inputs = Vec::new();
        for a in &texts {
            for b in &texts {
                inputs.push(format!(r#"{{"carried":[{a}, {{ {b} :[{a},{b}]}},{b}]}}"#));
                inputs.push(format!(r#"{{"read":{a},"carried":[{b},{a}]}}"#));
                inputs.push(format!(r#"{{"carried":[{b}],{a}:{b}}}"#));
                inputs.push(format!(r#"{{"carried":[{a},{b}"#));
                inputs.push(format!(r#"{{"carried":[{a} {b}]}}"#));
                inputs.push(format!(r#"{{"carried":[{a},[{}1]]}}"#, "1,".repeat(20_000)));
            }
        }
        for input in inputs {
            let frame = Bytes::from(input.clone());
            let told =
                |read: Result<Shape, serde_json::Error>| read.map_err(|error| error.to_string());
            let read = told(carried(&frame, &input, false, parse));
            assert_eq!(read, told(parse(&input)), "{} bytes", input.len());
        }
    }

    #[test]
    fn an_array_is_no_object() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Pair {
            a: u8,
            b: Payload,
        }

        #[derive(Deserialize)]
        struct List {
            #[serde(default, deserialize_with = "optional_objects")]
            list: Option<Vec<Pair>>,
        }

        let read = |text: &str| serde_json::from_str::<List>(text).map(|read| read.list);
        let pair = Pair { a: 1, b: Payload::from_text("[2.50]").unwrap() };
        assert_eq!(read(r#"{"list":[{"a":1,"b":[2.50]}]}"#).unwrap(), Some(vec![pair]));
        for none in ["{}", r#"{"list":null}"#] {
            assert_eq!(read(none).unwrap(), None);
        }
        let error = read(r#"{"list":[[1,[2.50]]]}"#).unwrap_err().to_string();
        assert!(error.starts_with("invalid type: sequence, expected an object"), "{error}");
    }

    #[test]
    fn nothing_of_a_payload_is_changed() {
        let text = r#"{"b": 123456789012345678901234567890, "a":1.50,  "é":"\ud83d\ude00"}"#;
        assert_eq!(Payload::from_text(text).unwrap().as_str(), text);
    }
}
