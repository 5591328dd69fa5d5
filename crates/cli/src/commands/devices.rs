//! `flightdeck devices`: who is online.

use std::time::Duration;

use jiff::Timestamp;

use crate::api::{self, Device};
use crate::args::{Devices, Global};
use crate::connect::Target;
use crate::output::{BOLD, human, print, print_line, safe_line};
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
        eprintln!("No device is online. Make this machine one: flightdeck device");
    } else {
        print(&table(&devices.iter().map(row).collect::<Vec<_>>()))?;
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
    let (running, waiting): (Vec<_>, Vec<_>) =
        device.tasks.iter().partition(|task| task.state == "running");
    let names: Vec<&str> = running.iter().map(|task| task.task_name.as_str()).collect();
    match (names.is_empty(), waiting.len()) {
        (true, _) => "–".to_owned(),
        (false, 0) => names.join(", "),
        (false, n) => format!("{} (+{n} waiting)", names.join(", ")),
    }
}

fn table(rows: &[[String; 5]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADINGS[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |cells: [&str; 5]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut table = format!("{BOLD}{}{BOLD:#}\n", line(HEADINGS));
    for row in rows {
        table.push_str(&line(row.each_ref().map(String::as_str)));
        table.push('\n');
    }
    table
}
