//! `flightdeck config show` and `flightdeck config reference`.

use std::collections::BTreeMap;

use clap::{Args, FromArgMatches};
use serde_json::{Map, Value, json};

use crate::args::{Config, Global};
use crate::mcp;
use crate::output::print;
use crate::settings::{self, ClientKeys, DeviceKeys, File, Row, ServerKeys};
use crate::{Code, Ended};

/// Tables by the name of their section.
type Tables = BTreeMap<&'static str, toml::Table>;

pub(crate) fn run(args: &Config, global: &Global) -> Ended {
    match args {
        Config::Reference => print(&settings::reference())?,
        Config::Show { json } => {
            let file = File::load(global.config.as_deref())?;
            let tables = tables(&file);
            let rows = in_force(file)?;
            let text = if *json { as_json(&rows, &tables) } else { as_toml(&rows, &tables) };
            print(&text)?;
        }
    }
    Ok(Code::COMPLETED)
}

/// What stands in the file alone, under the names of its sections.
fn tables(file: &File) -> Tables {
    let devices = file.devices.iter().map(|(id, facts)| (id.clone(), facts.clone().into()));
    let mcp = mcp::redacted(&file.mcp);
    let all = [("devices", devices.collect()), ("mcp", mcp)];
    all.into_iter().filter(|(_, table)| !table.is_empty()).collect()
}

/// The settings that a command without flags would run with.
fn in_force(file: File) -> anyhow::Result<Vec<Row>> {
    let mut rows = from_environment::<ServerKeys>()?.resolve(file.server).rows();
    rows.extend(from_environment::<ClientKeys>()?.resolve(file.client).rows());
    rows.extend(from_environment::<DeviceKeys>()?.resolve(file.device).rows());
    Ok(rows)
}

/// What the variables say, read by the same rules as a command line without flags.
fn from_environment<K: Args + FromArgMatches>() -> anyhow::Result<K> {
    let command = K::augment_args(clap::Command::new("flightdeck").no_binary_name(true));
    let matches = command.try_get_matches_from(std::iter::empty::<String>())?;
    Ok(K::from_arg_matches(&matches)?)
}

fn as_toml(rows: &[Row], tables: &Tables) -> String {
    let (mut text, mut section) = (String::new(), "");
    for row in rows {
        if row.section != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            section = row.section;
            text.push_str(&format!("{gap}[{section}]\n"));
        }
        text.push_str(&format!("{} = {}\n", row.key, toml_value(row)));
    }
    if !tables.is_empty() {
        // What was read as TOML can be written as TOML.
        let tables = toml::to_string(tables).unwrap_or_default();
        text.push_str(&format!("\n{tables}"));
    }
    text
}

fn as_json(rows: &[Row], tables: &Tables) -> String {
    let mut sections = Map::new();
    for row in rows {
        let section = sections.entry(row.section).or_insert_with(|| json!({}));
        let number = serde_json::from_str(&row.value).ok().filter(|_| !row.is_text);
        section[row.key] = number.unwrap_or_else(|| json!(row.value));
    }
    for (section, table) in tables {
        sections.insert((*section).to_owned(), json!(table));
    }
    format!("{}\n", Value::Object(sections))
}

fn toml_value(row: &Row) -> String {
    if row.is_text { toml::Value::from(row.value.as_str()).to_string() } else { row.value.clone() }
}
