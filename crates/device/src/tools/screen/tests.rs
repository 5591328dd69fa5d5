//! Tests what is seen of a real display.

use std::io::{BufRead, BufReader, Cursor};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use x11rb::connection::Connection;
use x11rb::protocol::xproto::{ChangeGCAux, ConnectionExt, CreateGCAux, Rectangle};

use super::*;

#[test]
fn a_wayland_display_goes_before_its_guest_for_x11() {
    let announced = |set: &[(&str, &str)]| {
        Display::announced(|asked| {
            set.iter().find(|(name, _)| *name == asked).map(|(_, value)| value.into())
        })
    };
    assert_eq!(announced(&[]), None);
    assert_eq!(announced(&[("DISPLAY", ""), ("WAYLAND_DISPLAY", "")]), None);
    assert_eq!(announced(&[("DISPLAY", ":1")]), Some(Display::X11(":1".into())));
    let both = announced(&[("DISPLAY", ":1"), ("WAYLAND_DISPLAY", "wayland-1")]);
    assert_eq!(both, Some(Display::Wayland(vec![("WAYLAND_DISPLAY", "wayland-1".into())])));
}

#[tokio::test]
async fn a_display_that_is_not_there_is_named() {
    let error = screenshot(Display::X11(":987".into()), None).await.unwrap_err();
    assert!(error.starts_with("Cannot take a picture: the display \":987\" cannot be"), "{error}");
    let error = screenshot(Display::X11("no display".into()), None).await.unwrap_err();
    assert!(error.contains("\"no display\""), "{error}");
    let nowhere = vec![("PATH", "/nowhere".into()), ("WAYLAND_DISPLAY", "none".into())];
    let error = screenshot(Display::Wayland(nowhere), None).await.unwrap_err();
    assert!(error.contains("the program `grim`, which is not installed"), "{error}");
}

#[tokio::test]
#[ignore = "needs Xvfb"]
async fn a_picture_shows_what_is_on_the_screen() {
    for depth in [24, 16] {
        let screen = Xvfb::start(&["-screen", "0", &format!("640x480x{depth}")]);
        // The colours of the X server's connection stay as long as it is open.
        let _connection = screen.draw();
        let shown = screenshot(screen.display(), None).await.unwrap();
        assert_eq!((&shown["type"], &shown["mimeType"]), (&json!("image"), &json!("image/png")));
        assert_eq!((&shown["width"], &shown["height"]), (&json!(640), &json!(480)));
        let picture = decoded(&shown);
        for (at, colour) in [
            ((0, 0), [255, 0, 0]),
            ((639, 0), [255, 0, 0]),
            ((99, 50), [255, 0, 0]),
            ((100, 50), [0, 255, 0]),
            ((299, 149), [0, 255, 0]),
            ((300, 150), [255, 0, 0]),
            ((639, 479), [0, 0, 255]),
        ] {
            assert_eq!(pixel(&picture, at), colour, "{at:?} at {depth} bits");
        }
        let small = screenshot(screen.display(), Some(320)).await.unwrap();
        assert_eq!((&small["width"], &small["height"]), (&json!(320), &json!(240)));
        assert_eq!(pixel(&decoded(&small), (50, 25)), [0, 255, 0]);
        keep(&shown);
    }
}

#[tokio::test]
#[ignore = "needs Xvfb"]
async fn a_display_that_wants_a_key_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    // A key of 16 bytes for every display, in the form of .Xauthority.
    let mut key = vec![0xff, 0xff, 0, 0, 0, 0, 0, 18];
    key.extend(b"MIT-MAGIC-COOKIE-1");
    key.extend([0, 16]);
    key.extend([7; 16]);
    std::fs::write(&keys, key).unwrap();
    let screen = Xvfb::start(&["-auth", keys.to_str().unwrap()]);
    let error = screenshot(screen.display(), None).await.unwrap_err();
    assert!(error.contains("refuses this device") && error.contains("XAUTHORITY"), "{error}");
}

/// Takes one of the display it is started on, such as `sway` with `WLR_BACKENDS=headless`, to be looked at.
#[tokio::test]
#[ignore = "needs a Wayland display and grim"]
async fn a_picture_of_a_wayland_display_can_be_taken() {
    let display = Display::announced(|name| std::env::var_os(name)).unwrap();
    assert!(matches!(display, Display::Wayland(_)), "{display:?}");
    let shown = screenshot(display, None).await.unwrap();
    assert!(decoded(&shown).width > 0);
    keep(&shown);
}

/// Leaves the picture in the file that the variable names.
fn keep(shown: &Value) {
    if let Some(path) = std::env::var_os("KEEP_SCREENSHOT") {
        std::fs::write(path, STANDARD.decode(shown["data"].as_str().unwrap()).unwrap()).unwrap();
    }
}

async fn screenshot(display: Display, max_width: Option<u32>) -> Result<Value, String> {
    Screen::new().screenshot(display, Screenshot { max_width }, &CancellationToken::new()).await
}

fn decoded(shown: &Value) -> Picture {
    let png = STANDARD.decode(shown["data"].as_str().unwrap()).unwrap();
    let mut reader = png::Decoder::new(Cursor::new(png)).read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut rgb).unwrap();
    assert_eq!((&shown["width"], &shown["height"]), (&json!(frame.width), &json!(frame.height)));
    Picture { width: frame.width, height: frame.height, rgb }
}

fn pixel(picture: &Picture, (x, y): (usize, usize)) -> [u8; 3] {
    let start = (y * picture.width as usize + x) * 3;
    picture.rgb[start..start + 3].try_into().unwrap()
}

/// An X server without a screen that anybody sees.
struct Xvfb {
    server: Child,
    name: String,
}

impl Xvfb {
    /// Starts it on a free display, whose number it tells once it listens.
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new("Xvfb");
        command.args(["-displayfd", "1"]).args(args).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().expect("Xvfb is installed");
        let mut number = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut number).unwrap();
        Self { server, name: format!(":{}", number.trim()) }
    }

    fn display(&self) -> Display {
        Display::X11(self.name.clone().into())
    }

    /// Fills the screen with red, with a green rectangle and a blue one in the corner.
    fn draw(&self) -> impl Connection + use<> {
        let (connection, number) = x11rb::connect(Some(&self.name)).unwrap();
        let root = connection.setup().roots[number].clone();
        let depth = root.root_depth;
        let (red, green, blue) =
            if depth == 16 { (0xf800, 0x7e0, 0x1f) } else { (0xff_0000, 0xff00, 0xff) };
        let gc = connection.generate_id().unwrap();
        connection.create_gc(gc, root.root, &CreateGCAux::new()).unwrap();
        for (colour, (x, y, width, height)) in
            [(red, (0, 0, 640, 480)), (green, (100, 50, 200, 100)), (blue, (600, 440, 40, 40))]
        {
            connection.change_gc(gc, &ChangeGCAux::new().foreground(colour)).unwrap();
            let rectangle = Rectangle { x, y, width, height };
            connection.poly_fill_rectangle(root.root, gc, &[rectangle]).unwrap();
        }
        // The answer comes after all that was asked before has been done.
        connection.get_input_focus().unwrap().reply().unwrap();
        connection
    }
}

impl Drop for Xvfb {
    fn drop(&mut self) {
        let _gone = self.server.kill();
        let _reaped = self.server.wait();
    }
}
