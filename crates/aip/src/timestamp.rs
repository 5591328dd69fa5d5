//! Timestamps as AIP writes them: RFC 3339, UTC, microseconds. What peers send is kept as text and
//! never trusted.

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::Offset;

const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// Formats a time as `2026-01-01T00:00:00.123456+00:00`.
#[must_use]
pub fn format(time: Timestamp) -> String {
    PRINTER.timestamp_with_offset_to_string(&time, Offset::UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_form_of_the_python_peers() {
        let time = Timestamp::from_microsecond(1_767_225_600_123_456).unwrap();
        assert_eq!(format(time), "2026-01-01T00:00:00.123456+00:00");
        let whole = Timestamp::from_second(1_767_225_600).unwrap();
        assert_eq!(format(whole), "2026-01-01T00:00:00.000000+00:00");
    }
}
