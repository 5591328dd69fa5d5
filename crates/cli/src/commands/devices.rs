//! `flightdeck devices`: who is online.

use std::time::Duration;

use jiff::Timestamp;

use crate::api::{self, Device};
use crate::args::{Devices, Global};
use crate::connect::Target;
use crate::output::{human, print, print_line, safe_line, table};
use crate::{Code, Ended};

const HEADINGS: [&str; 5] = ["ID", "PLATFORM", "FEATURES", "SINCE", "BUSY WITH"];

pub(crate) async fn run(args: Devices, global: Global) -> Ended {
    let target = Target::new(args.client, &global)?;
    let devices = api::devices(&target).await?;
    if args.json {
        for device in &devices {
            print_line(&serde_json::to_string(device).unwrap_or_default())?;
        }
    } else if devices.is_empty() {
        say!("No device is online. Make this machine one: flightdeck device");
    } else {
        print(&table(HEADINGS, &devices.iter().map(row).collect::<Vec<_>>()))?;
    }
    Ok(Code::COMPLETED)
}

fn row(device: &Device) -> [String; 5] {
    let since = Timestamp::now().duration_since(device.connected_since);
    [
        safe_line(&device.id),
        safe_line(&device.platform),
        safe_line(&device.features.join(" ")),
        human(Duration::try_from(since).unwrap_or_default()),
        safe_line(&busy(device)),
    ]
}

fn busy(device: &Device) -> String {
    let (waiting, placed): (Vec<_>, Vec<_>) =
        device.tasks.iter().partition(|task| task.state == "queued");
    let name = |task: &&api::Task| {
        let name = task.task_name.as_deref().unwrap_or("somebody else's task");
        let stopping = if task.state == "stopping" { " (stopping)" } else { "" };
        format!("{name}{stopping}")
    };
    let names: Vec<String> = placed.iter().map(name).collect();
    match (names.is_empty(), waiting.len()) {
        (true, _) => "–".to_owned(),
        (false, 0) => names.join(", "),
        (false, n) => format!("{} (+{n} waiting)", names.join(", ")),
    }
}
