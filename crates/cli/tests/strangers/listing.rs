//! What `list_tools` says of them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::Home;
use crate::machine::{Fast, Machine, everything, filesystem};

fn all_of<'a>(tools: &'a [Value], key: &str) -> BTreeSet<&'a str> {
    tools.iter().map(|tool| tool[key].as_str().unwrap()).collect()
}

fn tool<'a>(tools: &'a [Value], namespace: &str, name: &str) -> &'a Value {
    let is_it = |tool: &&Value| tool["namespace"] == namespace && tool["tool_name"] == name;
    tools.iter().find(is_it).unwrap_or_else(|| panic!("no {namespace}::{name} in {tools:?}"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn all_servers_are_listed_with_the_tools_of_the_device() {
    let (folder, fast) = (Home::new(), Fast::start().await);
    let machine =
        Machine::with(json!({"everything": everything(), "fs": filesystem(folder.path()),
        "fast": fast.entry()}))
        .await;

    let tools = machine.tools(json!({})).await;
    let namespaces = ["BashExecutor", "Files", "everything", "fast", "fs"];
    assert_eq!(all_of(&tools, "namespace"), BTreeSet::from(namespaces));
    assert_eq!(all_of(&tools, "tool_key").len(), tools.len(), "each has a key of its own");

    // A name that two have stays reachable, and one that only one has stays short.
    for (namespace, name, key) in [
        ("Files", "read_file", "data_collection::Files::read_file"),
        ("fs", "read_file", "data_collection::fs::read_file"),
        ("fs", "directory_tree", "data_collection::directory_tree"),
        ("fast", "integer", "data_collection::integer"),
        ("fast", "zero", "action::zero"),
        ("everything", "get-sum", "data_collection::get-sum"),
    ] {
        assert_eq!(tool(&tools, namespace, name)["tool_key"], key);
    }
    let integer = tool(&tools, "fast", "integer");
    assert_eq!(integer["annotations"]["readOnlyHint"], true);
    assert_eq!(integer["output_schema"]["properties"]["result"]["type"], "integer");
    let sum = tool(&tools, "everything", "get-sum");
    assert_eq!(sum["input_schema"]["required"], json!(["a", "b"]));
    assert!(sum["title"].is_string() && sum["description"].is_string(), "{sum}");

    let of_one = machine.tools(json!({"namespace": "fs"})).await;
    assert_eq!(all_of(&of_one, "namespace"), BTreeSet::from(["fs"]));
    let observing = machine.tools(json!({"tool_type": "data_collection"})).await;
    let changing = machine.tools(json!({"tool_type": "action"})).await;
    assert_eq!(observing.len() + changing.len(), tools.len());
    assert_eq!(all_of(&observing, "tool_type"), BTreeSet::from(["data_collection"]));
    let both = json!({"tool_type": "action", "namespace": "fs"});
    let changing = machine.tools(both).await;
    let names = ["create_directory", "edit_file", "move_file", "write_file"];
    assert_eq!(all_of(&changing, "tool_name"), BTreeSet::from(names));

    let with_meta = machine.tools(json!({"remove_meta": false})).await;
    assert!(!all_of(&tools, "tool_name").contains("list_tools"));
    assert!(all_of(&with_meta, "tool_name").contains("list_tools"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn a_name_that_two_servers_have_means_neither_until_it_says_which() {
    let folder = Home::new();
    std::fs::write(folder.path().join("note"), "from the folder").unwrap();
    let machine = Machine::with(json!({"fs": filesystem(folder.path())})).await;
    std::fs::write(machine.home.path().join("note"), "from home").unwrap();

    // While a server is still starting, a name that it will share means what there is.
    machine.tools(json!({})).await;
    let parameters = json!({"path": folder.path().join("note")});
    let error = machine.failure("read_file", parameters.clone()).await;
    assert!(error.contains("say which: Files::read_file or fs::read_file"), "{error}");
    for name in ["fs::read_file", "data_collection::fs::read_file"] {
        let read = machine.value(name, parameters.clone()).await;
        assert!(read.to_string().contains("from the folder"), "{read}");
    }
    let read = machine.value("Files::read_file", json!({"path": "note"})).await;
    assert_eq!(read["content"], "from home");
}
