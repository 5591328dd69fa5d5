//! Follows the frames of a WebSocket by their headers, as their bytes go by: how much of a message has come, and when a
//! large one is about to. The WebSocket library takes as much memory as a frame announces, before it has come.

/// The longest header of a frame, in bytes.
const MAX_HEADER_BYTES: usize = 14;

/// A frame with a payload over this size is large, in bytes.
const LARGE_BYTES: usize = crate::budget::SMALL_MESSAGE_BYTES;

/// Where a stream of frames stands.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// The header that comes, as far as it has.
    header: [u8; MAX_HEADER_BYTES],
    header_len: u8,
    is_large: bool,
    is_control: bool,
    is_final: bool,
    /// Whether a message has begun that is not complete.
    is_in_message: bool,
    /// Whether one was completed since this was asked last.
    has_completed: bool,
    /// What has still to come of the frame's payload, in bytes.
    left: usize,
    /// What has come of a message that is not complete, without headers, in bytes.
    message: usize,
}

impl Frames {
    /// Whether a part of a frame or of a message has come.
    pub(crate) const fn is_amid(&self) -> bool {
        self.header_len > 0 || self.left > 0 || self.is_in_message
    }

    /// Whether a message was completed since this was asked last.
    pub(crate) const fn take_completed(&mut self) -> bool {
        std::mem::replace(&mut self.has_completed, false)
    }

    /// What has come of a message that is not complete, without headers, in bytes.
    pub(crate) const fn message(&self) -> usize {
        self.message
    }

    /// What has still to come of a large frame, in bytes.
    pub(crate) fn large_left(&self) -> Option<usize> {
        (self.is_large && self.left > 0).then_some(self.left)
    }

    /// Follows the bytes that come next. Returns how many there are up to where the header of a large frame would be
    /// complete, all if there is none, and the size of its payload. `may_be_large` says that the first one may come.
    pub(crate) fn follow(
        &mut self,
        bytes: &[u8],
        mut may_be_large: bool,
    ) -> (usize, Option<usize>) {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let came = self.left.min(bytes.len() - at);
                at += came;
                self.take(came);
                continue;
            }
            let (start, had) = (at, self.header_len);
            while at < bytes.len() && !self.has_header() {
                self.header[usize::from(self.header_len)] = bytes[at];
                self.header_len += 1;
                at += 1;
            }
            if !self.has_header() {
                break;
            }
            let payload = self.payload();
            if payload > LARGE_BYTES && !std::mem::take(&mut may_be_large) {
                self.header_len = had;
                return (start, Some(payload));
            }
            self.begin(payload);
        }
        (at, None)
    }

    fn has_header(&self) -> bool {
        self.header_len >= 2 && usize::from(self.header_len) == self.header_bytes()
    }

    /// How long the header is, which its second byte says.
    fn header_bytes(&self) -> usize {
        let length = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    /// The size that a whole header announces, in bytes.
    fn payload(&self) -> usize {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        match self.header[1] & 0x7f {
            126 => number(&self.header[2..4]),
            127 => number(&self.header[2..10]),
            short => usize::from(short),
        }
    }

    fn begin(&mut self, payload: usize) {
        self.is_final = self.header[0] & 0x80 != 0;
        self.is_control = self.header[0] & 0x08 != 0;
        self.is_large = payload > LARGE_BYTES;
        self.left = payload;
        self.is_in_message |= !self.is_control;
        self.header_len = 0;
        self.take(0);
    }

    /// So much of the payload came.
    fn take(&mut self, bytes: usize) {
        self.left -= bytes;
        if !self.is_control {
            self.message += bytes;
            if self.left == 0 && self.is_final {
                self.message = 0;
                self.is_in_message = false;
                self.has_completed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A masked frame of zeros.
    fn frame(first: u8, payload: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match payload {
            ..126 => frame.push(0x80 | u8::try_from(payload).unwrap()),
            126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        frame.resize(frame.len() + 4 + payload, 0);
        frame
    }

    #[test]
    fn what_came_of_a_message_is_known_in_whatever_pieces_it_comes() {
        // A text in two frames with a ping in between, then whole ones.
        let parts = [(0x01, 200), (0x89, 5), (0x80, 3), (0x81, 0), (0x81, 70_000), (0x81, 9)];
        let frames: Vec<Vec<u8>> = parts.map(|(first, payload)| frame(first, payload)).to_vec();
        let after = [200, 200, 0, 0, 0, 0];
        for piece in [1, 2, 3, 7, 100, 4096, 100_000] {
            let mut known = Frames::default();
            for (frame, after) in frames.iter().zip(after) {
                for piece in frame.chunks(piece) {
                    assert_eq!(known.follow(piece, true), (piece.len(), None));
                }
                assert_eq!(known.message(), after);
                assert_eq!(known.is_amid(), after > 0);
            }
        }
    }

    #[test]
    fn frames_without_a_payload_take_no_room_and_are_a_part_of_a_message_all_the_same() {
        let mut frames = Frames::default();
        for first in [0x01, 0x00, 0x00] {
            frames.follow(&frame(first, 0), false);
            assert_eq!((frames.message(), frames.is_amid()), (0, true));
        }
        assert!(!frames.take_completed());
        frames.follow(&frame(0x80, 0), false);
        assert!(!frames.is_amid() && frames.take_completed() && !frames.take_completed());
    }

    #[test]
    fn a_large_frame_is_known_before_its_header_is_complete() {
        let (small, large) = (frame(0x81, 10), frame(0x81, 70_000));
        let both = [&small[..], &large[..100]].concat();
        let mut frames = Frames::default();
        assert_eq!(frames.follow(&both, false), (small.len(), Some(70_000)));
        assert_eq!(frames.follow(&large[..100], false), (0, Some(70_000)));
        assert_eq!(frames.follow(&large[..5], false), (5, None));
        assert_eq!(frames.follow(&large[5..100], false), (0, Some(70_000)), "however it is cut");
        assert_eq!(frames.follow(&large[5..100], true), (95, None));
        assert_eq!(frames.large_left(), Some(large.len() - 100));
        assert_eq!(frames.follow(&large[100..], false), (large.len() - 100, None));
        assert!(!frames.is_amid());
    }
}
