//! A picture of an X11 display.

use std::ffi::OsStr;

use x11rb::connection::Connection;
use x11rb::errors::{ConnectError, ReplyError};
use x11rb::protocol::xproto::{
    ConnectionExt, GetImageReply, ImageFormat, ImageOrder, Screen, Setup, Visualtype,
};
use x11rb::rust_connection::RustConnection;

use super::super::quote::quote;
use super::picture::{MAX_PIXELS, Picture};

/// Takes a picture of the whole root window, with all that lies on it. May wait for the display.
///
/// # Errors
/// When the display is not there, refuses us, or shows colours by a palette.
pub(super) fn take(display: &OsStr) -> Result<Picture, String> {
    let name = display.to_string_lossy();
    let (connection, number) =
        x11rb::connect(Some(&name)).map_err(|error| not_connected(&name, &error))?;
    let lost = |error: ReplyError| format!("the display {}: {error}", quote(&name));
    let setup = connection.setup();
    let screen = setup.roots.get(number).ok_or("the display has no screen")?;
    let (width, height) = size(&connection, screen).map_err(lost)?;
    if usize::from(width) * usize::from(height) > MAX_PIXELS {
        return Err(format!("the screen is too large, with {width} x {height} pixels"));
    }
    let image = image(&connection, screen, (width, height)).map_err(lost)?;
    let layout = Layout::of(&image, setup, screen, width)?;
    let rgb =
        layout.rgb(&image.data, height).ok_or("the display sent too little of its picture")?;
    Ok(Picture { width: width.into(), height: height.into(), rgb })
}

/// The size of the screen now: the one that the display told at first may have changed since.
fn size(connection: &RustConnection, screen: &Screen) -> Result<(u16, u16), ReplyError> {
    let geometry = connection.get_geometry(screen.root)?.reply()?;
    Ok((geometry.width, geometry.height))
}

fn image(
    connection: &RustConnection,
    screen: &Screen,
    (width, height): (u16, u16),
) -> Result<GetImageReply, ReplyError> {
    let format = ImageFormat::Z_PIXMAP;
    connection.get_image(format, screen.root, 0, 0, width, height, !0)?.reply()
}

fn not_connected(name: &str, error: &ConnectError) -> String {
    let name = quote(name);
    let refused = |reason: &[u8]| {
        let reason = quote(String::from_utf8_lossy(reason).trim());
        format!(
            "the display {name} refuses this device: {reason}; the variable XAUTHORITY of the device has to \
             name the file with the key of that display"
        )
    };
    match error {
        ConnectError::SetupFailed(setup) => refused(&setup.reason),
        ConnectError::SetupAuthenticate(setup) => refused(&setup.reason),
        error => format!("the display {name} cannot be reached: {error}"),
    }
}

/// How the pixels of an image lie in its bytes.
struct Layout {
    width: usize,
    bytes_per_pixel: usize,
    bytes_per_row: usize,
    order: ImageOrder,
    /// Where red, green and blue are.
    masks: [u32; 3],
}

impl Layout {
    fn of(
        image: &GetImageReply,
        setup: &Setup,
        screen: &Screen,
        width: u16,
    ) -> Result<Self, String> {
        let mut formats = setup.pixmap_formats.iter();
        let format = formats.find(|format| format.depth == image.depth);
        let format = format.filter(|format| [16, 24, 32].contains(&format.bits_per_pixel));
        let visual = visual(screen).filter(|visual| visual.red_mask != 0);
        let (Some(format), Some(visual)) = (format, visual) else {
            return Err(format!("colours of {} bits are not known here", image.depth));
        };
        let (width, bits) = (usize::from(width), usize::from(format.bits_per_pixel));
        let pad = usize::from(format.scanline_pad).max(8);
        Ok(Self {
            width,
            bytes_per_pixel: bits / 8,
            bytes_per_row: (width * bits).next_multiple_of(pad) / 8,
            order: setup.image_byte_order,
            masks: [visual.red_mask, visual.green_mask, visual.blue_mask],
        })
    }

    fn rgb(&self, data: &[u8], height: u16) -> Option<Vec<u8>> {
        let data = data.get(..self.bytes_per_row * usize::from(height))?;
        let mut rgb = Vec::with_capacity(self.width * usize::from(height) * 3);
        for row in data.chunks_exact(self.bytes_per_row) {
            for pixel in row.chunks_exact(self.bytes_per_pixel).take(self.width) {
                let pixel = self.value(pixel);
                rgb.extend(self.masks.map(|mask| channel(pixel, mask)));
            }
        }
        Some(rgb)
    }

    fn value(&self, bytes: &[u8]) -> u32 {
        let add = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        match self.order {
            ImageOrder::MSB_FIRST => bytes.iter().fold(0, add),
            _ => bytes.iter().rev().fold(0, add),
        }
    }
}

/// The visual of the root window.
fn visual(screen: &Screen) -> Option<&Visualtype> {
    let mut visuals = screen.allowed_depths.iter().flat_map(|depth| &depth.visuals);
    visuals.find(|visual| visual.visual_id == screen.root_visual)
}

/// The part of a pixel under `mask`, from 0 to 255 however many bits it has.
fn channel(pixel: u32, mask: u32) -> u8 {
    let shift = mask.trailing_zeros().min(31);
    let (value, most) = ((pixel & mask) >> shift, mask >> shift);
    match most {
        0 => 0,
        255 => value as u8,
        most => (u64::from(value) * 255 / u64::from(most)) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_read_in_each_layout() {
        let layout = |bytes_per_pixel, bytes_per_row, order, masks| Layout {
            width: 1,
            bytes_per_pixel,
            bytes_per_row,
            order,
            masks,
        };
        let (low, high) = (ImageOrder::LSB_FIRST, ImageOrder::MSB_FIRST);
        let plain = [0xff_0000, 0xff00, 0xff];
        for (layout, data, expected) in [
            (layout(4, 4, low, plain), vec![3, 2, 1, 0], [1, 2, 3]),
            (layout(4, 4, high, plain), vec![0, 1, 2, 3], [1, 2, 3]),
            (layout(4, 4, low, [0xff, 0xff00, 0xff_0000]), vec![1, 2, 3, 9], [1, 2, 3]),
            (layout(3, 4, low, plain), vec![3, 2, 1, 9], [1, 2, 3]),
            (layout(2, 4, low, [0xf800, 0x7e0, 0x1f]), vec![0xe0, 0xff, 9, 9], [255, 255, 0]),
            (
                layout(4, 4, low, [0x3ff << 20, 0x3ff << 10, 0x3ff]),
                (0x3ff_u32 << 20 | 0x200 << 10).to_le_bytes().to_vec(),
                [255, 127, 0],
            ),
        ] {
            assert_eq!(layout.rgb(&data, 1).unwrap(), expected, "{data:?}");
            assert!(layout.rgb(&data, 2).is_none(), "too little");
        }
    }
}
