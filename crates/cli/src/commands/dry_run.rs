//! `flightdeck device --dry-run`: the tools, and what the policy says of each. Nothing is connected.

use std::path::PathBuf;

use device::DeviceSettings;
use device::confine::{Confinement, can_hide};
use device::policy::Verdict;
use device::tools::{Exec, Overview, ToolSettings, ToolView};
use serde_json::{Value, json};

use crate::output::{print, print_json, safe_line, table};
use crate::policy::PolicyFile;
use crate::{Code, Ended};

const HEADINGS: [&str; 4] = ["NAMESPACE", "TOOL", "TYPE", "POLICY"];

/// Shows what a device with these settings would offer.
pub(crate) async fn run(settings: &DeviceSettings, policy: &PolicyFile, as_json: bool) -> Ended {
    let overview = Overview::of(&settings.tools).await.map_err(anyhow::Error::from)?;
    for warning in &overview.warnings {
        say!("warning: {}", safe_line(warning));
    }
    if as_json {
        for tool in &overview.tools {
            print_json(&json_line(tool).to_string())?;
        }
    } else {
        print(&table(HEADINGS, &overview.tools.iter().map(row).collect::<Vec<_>>()))?;
        print(&limits(&settings.tools, policy))?;
    }
    Ok(Code::COMPLETED)
}

fn row(tool: &ToolView) -> [String; 4] {
    let says = if tool.is_disabled { "disabled".to_owned() } else { says(tool) };
    let cells = [&tool.namespace, &tool.tool_name, &tool_type(tool), &says];
    cells.map(|cell| safe_line(cell))
}

/// What the policy takes it for, and what its server says where that is not believed.
fn tool_type(tool: &ToolView) -> String {
    let (believed, said) = (tool.believed.as_str(), tool.tool_type.as_str());
    if believed == said { said.to_owned() } else { format!("{believed} (it says {said})") }
}

/// What the policy says of a tool, in words.
fn says(tool: &ToolView) -> String {
    let verdict = |verdict: &Verdict| format!("{} ({})", verdict.decision.as_str(), verdict.rule);
    let unless: Vec<_> = tool.outlook.unless.iter().map(verdict).collect();
    let usual = verdict(&tool.outlook.verdict);
    match unless.is_empty() {
        true => usual,
        false => format!("{usual}; where the arguments fit: {}", unless.join(", ")),
    }
}

fn json_line(tool: &ToolView) -> Value {
    let verdict =
        |verdict: &Verdict| json!({"decision": verdict.decision.as_str(), "rule": verdict.rule});
    let mut line = json!({
        "namespace": tool.namespace,
        "tool_name": tool.tool_name,
        "tool_type": tool.tool_type,
        "believed_type": tool.believed,
        "disabled": tool.is_disabled,
        "unless": tool.outlook.unless.iter().map(verdict).collect::<Vec<_>>(),
    });
    line["decision"] = json!(tool.outlook.verdict.decision.as_str());
    line["rule"] = json!(tool.outlook.verdict.rule);
    line
}

/// The limits that hold whatever the policy says.
fn limits(tools: &ToolSettings, policy: &PolicyFile) -> String {
    let exec = match tools.exec {
        Exec::Observe => "observe: execute_command runs what only observes, without a shell",
        Exec::Shell => "shell: execute_command runs anything",
        Exec::Off => "off: there is no execute_command",
    };
    let roots: Vec<_> = tools.roots.iter().map(|root| root.display().to_string()).collect();
    let roots = match roots.is_empty() {
        true => "the home folder without its dot files".to_owned(),
        false => roots.join(", "),
    };
    let (policy, roots) = (safe_line(&policy.summary()), safe_line(&roots));
    let (sandbox, private) = (sandbox(tools), private(tools));
    format!(
        "\nexec    {exec}\nroots   {roots}\npolicy  {policy}\nsandbox {sandbox}\nkept    {private}\n"
    )
}

/// What holds commands back, and what could.
fn sandbox(tools: &ToolSettings) -> String {
    let writing = match (tools.sandbox, Confinement::default().sandboxed(&tools.roots)) {
        (true, _) => "on: commands and MCP servers write below the roots only".to_owned(),
        (false, Ok(_)) => "off: --sandbox keeps commands from writing elsewhere".to_owned(),
        (false, Err(_)) => "off: this system has none".to_owned(),
    };
    let folders = match can_hide() {
        Ok(()) => "what reads whole folders (grep -r) does not see what is kept".to_owned(),
        Err(why) => {
            format!("what reads whole folders (grep -r) is refused around what is kept ({why})")
        }
    };
    safe_line(&format!("{writing}; {folders}"))
}

/// Which files are kept from callers.
fn private(tools: &ToolSettings) -> String {
    let shown = |paths: &[PathBuf]| {
        paths.iter().map(|path| safe_line(&path.display().to_string())).collect::<Vec<_>>()
    };
    let there: Vec<_> = tools.private.iter().filter(|path| path.exists()).cloned().collect();
    let kept = shown(&there).into_iter().chain(["what looks like a private key".to_owned()]);
    let kept = kept.collect::<Vec<_>>().join("\n        ");
    match tools.reveal.as_slice() {
        [] => kept,
        reveal => format!("{kept}\nshown   {}", shown(reveal).join(", ")),
    }
}
