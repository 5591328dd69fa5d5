//! `docs/openapi.json` is what the code says, and makes sense by itself.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use server::{Config, Keys, Server};

fn description() -> String {
    Server::new(Config::default(), Keys::local("key".to_owned().into())).openapi()
}

/// Each operation with its path and method.
fn operations(description: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = description["paths"].as_object().unwrap().iter();
    paths.flat_map(|(path, item)| {
        let operations = item.as_object().unwrap().iter();
        operations.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    })
}

#[test]
fn the_description_in_the_docs_is_what_the_code_says() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let generated = description();
    if fs::read_to_string(committed).unwrap_or_default() != generated {
        let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openapi.json");
        fs::write(&fresh, generated).unwrap();
        panic!("docs/openapi.json is out of date: run `cp {} docs/openapi.json`", fresh.display());
    }
}

#[test]
fn every_operation_has_its_own_name_and_says_what_its_parameters_and_answers_are() {
    let description: Value = serde_json::from_str(&description()).unwrap();
    let mut names = HashSet::new();
    for (path, method, operation) in operations(&description) {
        let place = format!("{method} {path}");
        let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{place}: no name"));
        assert!(names.insert(name), "{place}: {name} is the name of another one too");
        assert!(operation["summary"].is_string() && operation["tags"][0].is_string(), "{place}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            let is_in_path = path.contains(&format!("{{{name}}}"));
            assert_eq!(parameter["in"] == "path", is_in_path, "{place}: {name}");
            assert_eq!(parameter["required"] == true, is_in_path, "{place}: {name}");
            assert!(parameter["description"].is_string(), "{place}: {name}");
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert_ne!(response["description"], "", "{place} {status}");
            // Some answers have no body.
            for (kind, content) in response["content"].as_object().into_iter().flatten() {
                let is_problem = content["schema"]["$ref"] == "#/components/schemas/Problem";
                assert_eq!(kind == "application/problem+json", is_problem, "{place} {status}");
            }
        }
    }
    assert!(names.len() > 10, "{names:?}");
}
