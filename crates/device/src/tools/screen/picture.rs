//! A picture in memory: made smaller, and written as PNG.
//!
//! It must not know where it comes from.

/// Most pixels of a picture: two screens of 8K.
pub(super) const MAX_PIXELS: usize = 1 << 26;

/// A picture of 8 bits for each of red, green and blue, row by row from the top.
pub(super) struct Picture {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) rgb: Vec<u8>,
}

impl Picture {
    /// The same, not wider than `max_width`; `None` if it is not anyway. Each pixel is the mean of those that
    /// it stands for.
    pub(super) fn narrowed(&self, max_width: u32) -> Option<Self> {
        let width = max_width.max(1);
        if width >= self.width {
            return None;
        }
        let height =
            (u64::from(self.height) * u64::from(width) / u64::from(self.width)).max(1) as u32;
        let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
        for y in 0..height {
            let rows = span(y, height, self.height);
            for x in 0..width {
                rgb.extend(self.mean(span(x, width, self.width), rows.clone()));
            }
        }
        Some(Self { width, height, rgb })
    }

    fn mean(&self, columns: std::ops::Range<usize>, rows: std::ops::Range<usize>) -> [u8; 3] {
        let count = (columns.len() * rows.len()) as u64;
        let mut sums = [0_u64; 3];
        for y in rows {
            let row = y * self.width as usize;
            let pixels = &self.rgb[(row + columns.start) * 3..(row + columns.end) * 3];
            for pixel in pixels.chunks_exact(3) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += u64::from(*value);
                }
            }
        }
        sums.map(|sum| (sum / count) as u8)
    }

    /// Writes it as PNG.
    ///
    /// # Errors
    /// When it has no pixels.
    pub(super) fn png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let mut written = Vec::new();
        let mut encoder = png::Encoder::new(&mut written, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&self.rgb)?;
        Ok(written)
    }
}

/// What part `number` of `parts` covers of `whole`; never nothing.
fn span(number: u32, parts: u32, whole: u32) -> std::ops::Range<usize> {
    let at = |number: u32| (u64::from(number) * u64::from(whole) / u64::from(parts)) as usize;
    at(number)..at(number + 1).max(at(number) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrowed_picture_has_the_mean_of_its_pixels() {
        let grey = |values: &[u8]| values.iter().flat_map(|value| [*value; 3]).collect::<Vec<_>>();
        let picture = Picture { width: 4, height: 2, rgb: grey(&[0, 10, 20, 30, 0, 30, 40, 50]) };
        let half = picture.narrowed(2).unwrap();
        assert_eq!((half.width, half.height, half.rgb), (2, 1, grey(&[10, 35])));
        let third = picture.narrowed(3).unwrap();
        assert_eq!((third.width, third.height, third.rgb), (3, 1, grey(&[0, 20, 35])));
        assert_eq!(picture.narrowed(1).unwrap().height, 1, "never without a row");
        assert!(picture.narrowed(4).is_none() && picture.narrowed(u32::MAX).is_none());
        assert_eq!(picture.narrowed(0).unwrap().width, 1);
    }
}
