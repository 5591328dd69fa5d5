//! `Screen`: what the display shows, where there is one.
//!
//! A picture of an X11 display is taken by ourselves, one of a Wayland display by the program `grim`, which
//! knows the protocols that its compositors have for this and how their outputs lie beside each other.

mod picture;
#[cfg(test)]
mod tests;
#[cfg(unix)]
mod wayland;
#[cfg(unix)]
mod x11;

use std::ffi::OsString;
use std::time::Duration;

use aip::ToolType;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::picture::Picture;
use super::catalog::Origin;
use super::work::Workers;
use super::{Call, Tool};

/// The namespace of these tools.
pub(super) const NAMESPACE: &str = "Screen";

/// Longest time for one picture.
const MAX_TIME: Duration = Duration::from_secs(20);

/// The display of this machine, if it has one.
pub(super) struct Screen {
    workers: Workers,
}

/// A display that was announced to this device.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Display {
    /// With the variables that lead to it.
    Wayland(Vec<(&'static str, OsString)>),
    /// By its name.
    X11(OsString),
}

/// Arguments of `screenshot`.
#[derive(Debug, Deserialize)]
struct Screenshot {
    #[serde(default, deserialize_with = "crate::tools::optional")]
    max_width: Option<u32>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { workers: Workers::new() }
    }

    /// The tools; none, where no display is announced.
    pub(super) fn tools(&self) -> Vec<Tool> {
        let there = Display::announced(|name| std::env::var_os(name));
        let about = "Takes a picture of the whole screen. Returns it as PNG: type (image), mimeType, data \
            in base64, width and height in pixels.";
        let screenshot = |_| {
            Tool::built_in(Origin::Screen, NAMESPACE, "screenshot", ToolType::DataCollection)
                .titled("Take a picture of the screen", about)
                .taking(json!({"type": "object", "properties": {
                    "max_width": {"type": "integer", "minimum": 1, "description":
                        "Makes a wider picture smaller, to this many pixels of width"},
                }}))
                .asking()
        };
        there.map(screenshot).into_iter().collect()
    }

    /// Runs one of them.
    ///
    /// # Errors
    /// Why there is no picture.
    pub(super) async fn call(&self, tool_name: &str, call: &Call<'_>) -> Result<Value, String> {
        match tool_name {
            "screenshot" => {
                let display = Display::announced(|name| std::env::var_os(name));
                let display = display.ok_or("This device has no display any more")?;
                self.screenshot(display, call.arguments()?, call.stop).await
            }
            _ => Err(format!("Unknown tool '{tool_name}'")),
        }
    }

    async fn screenshot(
        &self,
        display: Display,
        Screenshot { max_width }: Screenshot,
        stop: &CancellationToken,
    ) -> Result<Value, String> {
        let taken = tokio::time::timeout(MAX_TIME, self.take(display, stop)).await;
        let picture = taken.map_err(|_| {
            let seconds = MAX_TIME.as_secs();
            format!("Cannot take a picture: the display did not answer within {seconds} s")
        })??;
        self.workers.run(stop, move || content(&picture, max_width)).await
    }

    #[cfg(unix)]
    async fn take(&self, display: Display, stop: &CancellationToken) -> Result<Picture, String> {
        let taken = match display {
            Display::X11(name) => self.workers.run(stop, move || x11::take(&name)).await,
            Display::Wayland(variables) => wayland::take(variables, stop).await,
        };
        taken.map_err(|error| format!("Cannot take a picture: {error}"))
    }

    #[cfg(not(unix))]
    async fn take(&self, _: Display, _: &CancellationToken) -> Result<Picture, String> {
        Err("Pictures of the screen are not there yet on this system".to_owned())
    }
}

impl Display {
    /// Finds the display that is announced. Where there are both, the X11 one is only the guest of the
    /// Wayland one, and a picture of it is black.
    fn announced(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        if !cfg!(unix) || cfg!(target_os = "macos") {
            return None;
        }
        if variable("WAYLAND_DISPLAY").is_some() {
            let known = ["WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "PATH"];
            let known = known.into_iter().filter_map(|name| Some((name, variable(name)?)));
            return Some(Self::Wayland(known.collect()));
        }
        variable("DISPLAY").map(Self::X11)
    }
}

/// The picture as an MCP server would give it.
fn content(picture: &Picture, max_width: Option<u32>) -> Result<Value, String> {
    let narrowed = max_width.and_then(|max_width| picture.narrowed(max_width));
    let picture = narrowed.as_ref().unwrap_or(picture);
    let png = picture.png().map_err(|error| format!("Cannot write the picture as PNG: {error}"))?;
    Ok(json!({
        "type": "image",
        "mimeType": "image/png",
        "data": STANDARD.encode(png),
        "width": picture.width,
        "height": picture.height,
    }))
}
