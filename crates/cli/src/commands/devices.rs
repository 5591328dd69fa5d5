//! `flightdeck devices`: who is online or expected back, and busy with what.

use jiff::Timestamp;

use super::exec::TAG;
use super::tasks::between;
use crate::api::{Api, Device, DeviceTask};
use crate::args::{Devices, Global};
use crate::connect::Target;
use crate::output::{human, print, print_json, safe_line, table};
use crate::{Code, Ended};

const HEADINGS: [&str; 5] = ["ID", "PLATFORM", "FEATURES", "SINCE", "BUSY WITH"];

pub(crate) async fn run(args: Devices, global: Global) -> Ended {
    let target = Target::new(args.client, &global)?;
    let devices = Api::new(&target)?.devices().await?;
    if args.json {
        for device in &devices {
            print_json(&serde_json::to_string(device).unwrap_or_default())?;
        }
    } else if devices.is_empty() {
        say!("No device is online. Make this machine one: flightdeck device");
    } else {
        let now = Timestamp::now();
        let rows: Vec<_> = devices.iter().map(|device| row(device, now)).collect();
        print(&table(HEADINGS, &rows))?;
    }
    Ok(Code::COMPLETED)
}

fn row(device: &Device, now: Timestamp) -> [String; 5] {
    [
        safe_line(&device.id),
        safe_line(&device.platform),
        safe_line(&features(device)),
        since(device, now),
        safe_line(&busy(device)),
    ]
}

/// What it can do, and its tags as `exec --on` takes them.
fn features(device: &Device) -> String {
    let tags = device.tags.iter().map(|tag| format!("{TAG}{tag}"));
    device.features.iter().cloned().chain(tags).collect::<Vec<_>>().join(" ")
}

/// How long it has been there, or away.
fn since(device: &Device, now: Timestamp) -> String {
    let long = |at: Option<Timestamp>| at.map(|at| human(between(at, now)));
    if device.is_online() {
        return long(device.connected_since).unwrap_or_default();
    }
    match long(device.away_since) {
        Some(long) => format!("away for {long}"),
        None => "away".to_owned(),
    }
}

fn busy(device: &Device) -> String {
    let (waiting, placed): (Vec<_>, Vec<_>) =
        device.tasks.iter().partition(|task| task.state == "queued");
    let names: Vec<String> = placed.iter().map(|task| name(task)).collect();
    match (names.is_empty(), waiting.len()) {
        (true, 0) => "–".to_owned(),
        (true, n) => format!("{n} waiting"),
        (false, 0) => names.join(", "),
        (false, n) => format!("{} (+{n} waiting)", names.join(", ")),
    }
}

/// A task by its command and its requester, as far as they may be seen.
fn name(task: &DeviceTask) -> String {
    let about = task.summary.as_deref().filter(|summary| !summary.is_empty());
    let name = about.or(task.task_name.as_deref()).unwrap_or("somebody else's task");
    let by = task.requester.as_ref().map(|by| format!(" for {by}")).unwrap_or_default();
    let stopping = if task.state == "stopping" { " (stopping)" } else { "" };
    format!("{name}{by}{stopping}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Device {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_device_says_for_whom_it_runs_what_and_since_when_it_is_away() {
        let now: Timestamp = "2026-01-01T00:02:05Z".parse().unwrap();
        let since = "2026-01-01T00:00:00Z";
        let busy = device(&format!(
            r#"{{"id":"a","platform":"linux","features":["cli"],"tags":["gpu"],
                "connected_since":"{since}","tasks":[
                {{"state":"running","since":"{since}","summary":"df -h","requester":"g"}},
                {{"state":"stopping","since":"{since}"}},{{"state":"queued","since":"{since}"}}]}}"#
        ));
        let cells = row(&busy, now);
        assert_eq!(cells[2], "cli tag:gpu");
        assert_eq!(cells[3], "2 min 5 s");
        assert_eq!(cells[4], "df -h for g, somebody else's task (stopping) (+1 waiting)");
        let away = device(&format!(
            r#"{{"id":"b","platform":"linux","connected":false,"away_since":"{since}",
                "tasks":[{{"state":"queued","since":"{since}"}}]}}"#
        ));
        let cells = row(&away, now);
        assert_eq!((cells[3].as_str(), cells[4].as_str()), ("away for 2 min 5 s", "1 waiting"));
    }
}
