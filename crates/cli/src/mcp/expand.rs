//! What stands for something else in a value: `${VAR}`, and `~/` at the start of a path.

use std::path::{Path, PathBuf};

use crate::state::expand_home;

/// The longest text after its variables were put in, in bytes: as much as Linux lets one argument or
/// variable of a program be.
const MAX_TEXT_BYTES: usize = 128 * 1024;

/// Where the values of one file are read: what its variables are, and what its paths start from.
pub(super) struct Place<'a> {
    /// The folder that relative paths start from; absolute.
    pub(super) base: PathBuf,
    /// The variables of the environment.
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Place<'_> {
    /// Puts in the variables: `${VAR}`, or `${VAR:-DEFAULT}`, whose default counts also where the variable
    /// is empty. `$${` stands for `${`; any other `$` for itself.
    ///
    /// # Errors
    /// What is wrong, in words that repeat nothing of the text but the name of a variable.
    pub(super) fn expand(&self, text: &str) -> Result<String, String> {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            if let Some(before) = before.strip_suffix('$') {
                out.push_str(before);
                out.push_str("${");
                rest = after;
            } else {
                let (inside, after) = after.split_once('}').ok_or_else(unclosed)?;
                out.push_str(before);
                out.push_str(&self.value(inside)?);
                rest = after;
            }
            check_length(out.len())?;
        }
        out.push_str(rest);
        check_length(out.len())?;
        if out.contains('\0') {
            return Err("it holds a null character".to_owned());
        }
        Ok(out)
    }

    /// What `NAME` or `NAME:-DEFAULT` stands for.
    fn value(&self, inside: &str) -> Result<String, String> {
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if !is_name(name) || default.is_some_and(|default| default.contains("${")) {
            return Err(unclosed());
        }
        let value = (self.variable)(name);
        match (value, default) {
            (Some(value), None) => Ok(value),
            (Some(value), Some(_)) if !value.is_empty() => Ok(value),
            (_, Some(default)) => Ok(default.to_owned()),
            (None, None) => Err(format!(
                "the variable {name} is not set; set it, or write ${{{name}:-DEFAULT}}"
            )),
        }
    }

    /// The program that is meant: a path if there is a separator in it, else a name to look for in PATH.
    pub(super) fn program(&self, command: &str) -> String {
        let path = expand_home(Path::new(command));
        match path.components().count() {
            0 | 1 => command.to_owned(),
            _ => self.base.join(path).to_string_lossy().into_owned(),
        }
    }

    pub(super) fn folder(&self, folder: &str) -> PathBuf {
        self.base.join(expand_home(Path::new(folder)))
    }
}

/// Whether the text itself may hold a secret, rather than name a variable that does.
pub(super) fn is_literal(text: &str) -> bool {
    !text.is_empty() && !text.contains("${")
}

fn is_name(name: &str) -> bool {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn unclosed() -> String {
    "a '${' in it does not begin a ${NAME} or ${NAME:-DEFAULT}; write $${ for the two characters \
     themselves"
        .to_owned()
}

fn check_length(length: usize) -> Result<(), String> {
    if length <= MAX_TEXT_BYTES {
        return Ok(());
    }
    Err(format!("it is longer than {MAX_TEXT_BYTES} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Option<String> {
        match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            "LONG" => Some("x".repeat(100_000)),
            _ => None,
        }
    }

    fn expand(text: &str) -> Result<String, String> {
        Place { base: PathBuf::from("/etc/mcp"), variable: &variable }.expand(text)
    }

    #[test]
    fn a_variable_is_put_in_and_all_else_stays_as_it_is() {
        for (text, expected) in [
            ("", ""),
            ("a ${SET} b${SET}", "a value bvalue"),
            ("${EMPTY}", ""),
            ("${SET:-x}", "value"),
            ("${EMPTY:-x}", "x"),
            ("${UNSET:-}", ""),
            ("${UNSET:-a:-b}", "a:-b"),
            ("$SET $$ $ {SET} }", "$SET $$ $ {SET} }"),
            ("$${SET} $$${SET}", "${SET} $${SET}"),
        ] {
            assert_eq!(expand(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_put_in_is_said_without_the_text() {
        let unset = "the variable UNSET is not set; set it, or write ${UNSET:-DEFAULT}";
        assert_eq!(expand("s3cret${UNSET}").unwrap_err(), unset);
        for text in ["${SET", "${}", "${1}", "${env:SET}", "${SET-s3cret}", "${UNSET:-${SET}}"] {
            let error = expand(text).unwrap_err();
            assert!(error.contains("write $${ for") && !error.contains("s3cret"), "{error}");
        }
        assert!(expand("${LONG}${LONG}").unwrap_err().contains("longer than 131072 bytes"));
        assert!(expand("a\0b").unwrap_err().contains("null character"));
    }

    #[test]
    fn paths_start_from_the_folder_of_the_file() {
        let place = Place { base: PathBuf::from("/etc/mcp"), variable: &variable };
        assert_eq!(place.program("npx"), "npx");
        assert_eq!(place.program("/bin/sh"), "/bin/sh");
        assert_eq!(place.program("bin/run"), "/etc/mcp/bin/run");
        assert_eq!(place.program("./run"), "/etc/mcp/./run");
        assert_eq!(place.folder("work"), Path::new("/etc/mcp/work"));
        assert_eq!(place.folder("/srv"), Path::new("/srv"));
        let home = crate::state::home().unwrap();
        assert_eq!(Path::new(&place.program("~/run")), home.join("run"));
        assert_eq!(place.folder("~/work"), home.join("work"));
    }
}
