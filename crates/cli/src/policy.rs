//! The file of the owner's rules: found, read, and its mistakes explained.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use aip::ToolType;
use anyhow::{Context, bail};
use device::policy::{DEFAULT_RULE, Decision, Effect, Policy, Rule};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use toml::Value;

use crate::settings::{likest, usual_path};
use crate::state::{check_is_file, check_only_owner_writes, expand_home};

/// The usual name of the file, beside the settings file.
pub(crate) const FILE_NAME: &str = "policy.toml";

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Longest name of a rule, in characters: it stands in answers to the server.
const MAX_NAME_CHARS: usize = 100;

/// The rules in force, and where they come from; no rules where there is no file.
#[derive(Debug, Default)]
pub(crate) struct PolicyFile {
    pub(crate) policy: Policy,
    pub(crate) path: Option<PathBuf>,
}

impl PolicyFile {
    /// Reads the file that was named, else the usual one if it is there.
    ///
    /// # Errors
    /// When it cannot be read, others than its owner can write it, or something in it is not a rule: a
    /// device must not start with less than its owner's rules.
    pub(crate) fn load(named: &str, config: Option<&Path>) -> anyhow::Result<Self> {
        let path = match named {
            "" => usual(config)?,
            named => Some(expand_home(Path::new(named))),
        };
        let Some(path) = path else { return Ok(Self::default()) };
        let shown = path.display();
        let text = read_text(&path).with_context(|| format!("cannot use the policy {shown}"))?;
        let rules = read(&text)
            .map_err(|error| anyhow::anyhow!("the policy {shown} is not valid: {error}"))?;
        Ok(Self { policy: Policy::new(rules), path: Some(path) })
    }

    /// One line on what is in force.
    pub(crate) fn summary(&self) -> String {
        let Some(path) = &self.path else { return "no policy file".to_owned() };
        let rules = self.policy.len();
        let s = if rules == 1 { "" } else { "s" };
        format!("{rules} rule{s} of {}", path.display())
    }
}

/// The file beside the settings file. One that is there but cannot be looked at is an error, as no rules
/// would be too few.
fn usual(config: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    let Some(settings) = config.map(Path::to_owned).or_else(usual_path) else { return Ok(None) };
    let path = settings.with_file_name(FILE_NAME);
    match path.symlink_metadata() {
        Ok(_) => Ok(Some(path)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot look for {}", path.display())),
    }
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    // Asked before it is opened: to open a pipe is to wait for its other end.
    check_is_file(path, &path.metadata()?)?;
    let file = File::open(path)?;
    check_only_owner_writes(path, &file.metadata()?)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        bail!("it is larger than {MAX_FILE_BYTES} bytes");
    }
    Ok(text)
}

fn read(text: &str) -> Result<Vec<Rule>, String> {
    let file: Written = toml::from_str(text).map_err(|error| {
        let hint = hint(error.message()).unwrap_or_default();
        format!("{}{hint}", error.to_string().trim_end())
    })?;
    Ok(file.rule.into_iter().map(|Clear(rule)| rule).collect())
}

/// What to do about an error of the TOML reader.
fn hint(message: &str) -> Option<String> {
    if message == "invalid type: map, expected a sequence" {
        return Some("\n  each rule begins with a line [[rule]]".to_owned());
    }
    if !message.starts_with("unknown ") {
        return None;
    }
    // It names the word, and then those it knows.
    let mut words = message.split('`').skip(1).step_by(2).map(str::to_owned);
    let unknown = words.next()?;
    let near = likest(&unknown, words)?;
    Some(format!("\n  did you mean `{near}`?"))
}

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    rule: Vec<Clear>,
}

/// A rule of which it is clear what it is about.
#[derive(Deserialize)]
#[serde(try_from = "WrittenRule")]
struct Clear(Rule);

impl TryFrom<WrittenRule> for Clear {
    type Error = String;

    fn try_from(written: WrittenRule) -> Result<Self, String> {
        if written.path.is_some() && written.effect.is_none() {
            return Err("`path` needs an `effect`: read, write or execute".to_owned());
        }
        if written.tool.is_none() && written.effect.is_none() {
            return Err("missing field `tool`, or an `effect`: read, write or execute".to_owned());
        }
        let rule = Rule::from(written);
        rule.unclear().map_or(Ok(Self(rule)), Err)
    }
}

/// One rule as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    name: Option<Name>,
    tool: Option<ToolPattern>,
    tool_type: Option<WrittenType>,
    effect: Option<WrittenEffect>,
    path: Option<FilePattern>,
    #[serde(default)]
    arguments: Arguments,
    decision: WrittenDecision,
}

impl From<WrittenRule> for Rule {
    fn from(written: WrittenRule) -> Self {
        Self {
            name: written.name.map(|Name(name)| name),
            // One on files is about every tool, unless it names some.
            tool: written.tool.map_or_else(|| "*".to_owned(), |ToolPattern(pattern)| pattern),
            tool_type: written.tool_type.map(|tool_type| match tool_type {
                WrittenType::Action => ToolType::Action,
                WrittenType::DataCollection => ToolType::DataCollection,
            }),
            effect: written.effect.map(|effect| match effect {
                WrittenEffect::Read => Effect::Read,
                WrittenEffect::Write => Effect::Write,
                WrittenEffect::Execute => Effect::Execute,
            }),
            path: written.path.map(|FilePattern(pattern)| pattern),
            arguments: written.arguments.0,
            decision: match written.decision {
                WrittenDecision::Allow => Decision::Allow,
                WrittenDecision::Ask => Decision::Ask,
                WrittenDecision::Deny => Decision::Deny,
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenDecision {
    Allow,
    Ask,
    Deny,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenType {
    Action,
    DataCollection,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenEffect {
    Read,
    Write,
    Execute,
}

/// A pattern on files; `~/` in front is the home folder.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct FilePattern(String);

impl TryFrom<String> for FilePattern {
    type Error = String;

    fn try_from(pattern: String) -> Result<Self, String> {
        if !pattern.starts_with(['/', '*', '~', '?']) {
            return Err(format!(
                "{pattern:?} fits no file: patterns are on whole paths, so begin with `/`, `~/` or `*`"
            ));
        }
        let expanded = expand_home(Path::new(&pattern));
        Ok(Self(expanded.into_os_string().into_string().unwrap_or(pattern)))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Name(String);

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.trim() {
            "" => Err("a rule's name must not be empty; leave it out instead".to_owned()),
            DEFAULT_RULE => {
                Err(format!("`{DEFAULT_RULE}` means that no rule fits; choose another name"))
            }
            _ if name.chars().count() > MAX_NAME_CHARS => {
                Err(format!("a rule's name has {MAX_NAME_CHARS} characters at most"))
            }
            _ => Ok(Self(name)),
        }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct ToolPattern(String);

impl TryFrom<String> for ToolPattern {
    type Error = String;

    fn try_from(pattern: String) -> Result<Self, String> {
        if pattern.contains(['.', '*']) || pattern.contains("::") {
            return Ok(Self(pattern));
        }
        Err(format!(
            "{pattern:?} names no tool: write NAMESPACE.TOOL, such as \"BashExecutor.execute_command\" \
             or \"Files.*\"; \"*.{pattern}\" is a tool of any namespace"
        ))
    }
}

/// Names of arguments with their patterns; a table inside stands for dots in the name.
#[derive(Default)]
struct Arguments(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut arguments = Self::default();
        arguments.add("", toml::Table::deserialize(deserializer)?).map_err(de::Error::custom)?;
        Ok(arguments)
    }
}

impl Arguments {
    fn add(&mut self, inside: &str, table: toml::Table) -> Result<(), String> {
        // A rule must not fit everything because what it was meant for is missing.
        if table.is_empty() {
            return Err("no argument is named here; leave it out instead".to_owned());
        }
        for (name, value) in table {
            if name.is_empty() {
                return Err("the name of an argument must not be empty".to_owned());
            }
            self.add_one(format!("{inside}{name}"), value)?;
        }
        Ok(())
    }

    fn add_one(&mut self, name: String, value: Value) -> Result<(), String> {
        let pattern = match value {
            Value::String(pattern) => pattern,
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => value.to_string(),
            Value::Table(table) => return self.add(&format!("{name}."), table),
            Value::Array(_) | Value::Datetime(_) => {
                return Err(format!(
                    "`{name}` must be one pattern in quotes; for several, write a rule for each"
                ));
            }
        };
        self.0.push((name, pattern));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read(text).unwrap_err()
    }

    #[test]
    fn rules_are_read_as_their_owner_wrote_them() {
        let rules = read(
            "[[rule]]\nname = \"no keys\"\ntool = \"Files.*\"\ntool_type = \"action\"\n\
             arguments = { path = \"*.pem\", options.deep = true, \"a.b\" = 22 }\ndecision = \"deny\"\n\
             [[rule]]\ntool = \"*\"\ndecision = \"ask\"\n",
        )
        .unwrap();
        let arguments = [("a.b", "22"), ("options.deep", "true"), ("path", "*.pem")];
        let mut read: Vec<_> =
            rules[0].arguments.iter().map(|(name, p)| (name.as_str(), p.as_str())).collect();
        read.sort_unstable();
        assert_eq!(read, arguments);
        assert_eq!(rules[0].name.as_deref(), Some("no keys"));
        assert_eq!(rules[0].tool_type, Some(ToolType::Action));
        assert_eq!((rules[0].decision, rules[1].decision), (Decision::Deny, Decision::Ask));
        assert!(rules[1].name.is_none() && rules[1].arguments.is_empty());
        assert!(super::read("").unwrap().is_empty());
        let clear = "[[rule]]\ntool = \"a::b\"\ndecision = \"allow\"\n\
                     [[rule]]\ntool = \"a.b.c\"\ndecision = \"deny\"\n";
        assert_eq!(super::read(clear).unwrap().len(), 2);
    }

    #[test]
    fn the_examples_in_the_docs_are_rules_that_do_what_is_said_of_them() {
        use device::policy::{Subject, Touch, Verdict};

        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/device.md");
        let docs = std::fs::read_to_string(docs).unwrap();
        let blocks = docs.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let rules =
            blocks.filter(|block| block.contains("[[rule]]")).map(|block| read(block).unwrap());
        let policy = Policy::new(rules.flatten());
        let judged = |namespace, tool_name, tool_type, touched: &[Touch], parameters: &str| {
            let parameters = aip::Payload::from_text(parameters.to_owned()).unwrap();
            let Verdict { decision, rule } = policy.judge(&Subject {
                namespace,
                tool_name,
                tool_type,
                parameters: Some(&parameters),
                file: None,
                touched,
                usual: Decision::Allow,
            });
            (decision, rule)
        };
        let (look, act) = (ToolType::DataCollection, ToolType::Action);
        let on = |effect, path: &str| [Touch::on(effect, path.to_owned(), path.to_owned())];
        let rule = |decision, name: &str| (decision, name.to_owned());
        let key = on(Effect::Read, "/srv/k.pem");
        let bash = ("BashExecutor", "execute_command");
        let denied = rule(Decision::Deny, "no keys");
        assert_eq!(judged("Files", "read_file", look, &key, "{}"), denied);
        assert_eq!(judged(bash.0, bash.1, act, &key, "{}"), denied, "`cat` reads it too");
        assert_eq!(judged(bash.0, bash.1, act, &[], "{}"), rule(Decision::Ask, "each command"));
        let inbox = on(Effect::Write, "/srv/inbox/new");
        assert_eq!(
            judged("Files", "write_file", act, &inbox, "{}"),
            rule(Decision::Allow, "inbox")
        );
        let other = on(Effect::Write, "/srv/new");
        assert_eq!(judged("Files", "write_file", act, &other, "{}").1, DEFAULT_RULE);
        let asked = rule(Decision::Ask, "before anything changes");
        assert_eq!(judged("docs", "change", act, &[], "{}"), asked);
        assert_eq!(judged("docs", "show", look, &[], "{}").1, DEFAULT_RULE);
        let title = r#"{"title": "my bank"}"#;
        assert_eq!(judged("windows", "picture", look, &[], title), rule(Decision::Deny, "no bank"));
    }

    #[test]
    fn a_rule_may_be_about_files_instead_of_tools() {
        let rules = read(
            "[[rule]]\neffect = \"read\"\npath = \"~/k/*.pem\"\ndecision = \"deny\"\n\
             [[rule]]\ntool = \"Files.*\"\neffect = \"write\"\ndecision = \"ask\"\n",
        )
        .unwrap();
        let home = crate::state::home().unwrap();
        let path = home.join("k/*.pem").to_string_lossy().into_owned();
        assert_eq!((rules[0].tool.as_str(), rules[0].effect), ("*", Some(Effect::Read)));
        assert_eq!(rules[0].path, Some(path));
        assert_eq!((rules[1].tool.as_str(), rules[1].effect), ("Files.*", Some(Effect::Write)));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_was_meant() {
        for (text, line, told) in [
            ("[[rule]]\ntool = \"a.b\"\ndecision = \"alow\"\n", 3, "did you mean `allow`?"),
            ("[[rule]]\ntool = \"a.b\"\ndecison = \"deny\"\n", 3, "did you mean `decision`?"),
            ("[[rules]]\ntool = \"a.b\"\n", 1, "did you mean `rule`?"),
            ("[rule]\ntool = \"a.b\"\n", 1, "begins with a line [[rule]]"),
            ("\n[[rule]]\ntool = \"a.b\"\n", 2, "missing field `decision`"),
            ("[[rule]]\ndecision = \"deny\"\n", 1, "missing field `tool`"),
            ("[[rule]]\neffect = \"reed\"\ndecision = \"deny\"\n", 2, "did you mean `read`?"),
            (
                "[[rule]]\ntool = \"*\"\npath = \"/a\"\ndecision = \"deny\"\n",
                1,
                "needs an `effect`",
            ),
            (
                "[[rule]]\neffect = \"read\"\npath = \"a.pem\"\ndecision = \"deny\"\n",
                3,
                "fits no file",
            ),
            ("[[rule]]\ntool = \"execute\"\ndecision = \"deny\"\n", 2, "write NAMESPACE.TOOL"),
            ("[[rule]]\nname = \" \"\ntool = \"*\"\ndecision = \"ask\"\n", 2, "must not be empty"),
            ("[[rule]]\nname = \"default\"\ntool = \"*\"\ndecision = \"ask\"\n", 2, "another name"),
            (
                "[[rule]]\ntool = \"*\"\ntool_type = \"actions\"\ndecision = \"ask\"\n",
                3,
                "`action`?",
            ),
            ("[[rule]]\ntool = \"*\"\narguments = {}\ndecision = \"allow\"\n", 3, "leave it out"),
            (
                "[[rule]]\ntool = \"*\"\narguments = { a = {} }\ndecision = \"allow\"\n",
                3,
                "leave it out",
            ),
            (
                "[[rule]]\ntool = \"*\"\narguments = { a = [1] }\ndecision = \"ask\"\n",
                3,
                "one pattern",
            ),
            ("[[rule]]\ntool = \"*\"\ntool = \"*\"\ndecision = \"ask\"\n", 3, "duplicate key"),
            ("[[rule]]\ntool = \"a.b.c\"\ndecision = \"allow\"\n", 1, "or \"a.b::c\""),
            ("[[rule\n", 1, "line 1"),
        ] {
            let error = error(text);
            assert!(error.contains(&format!("line {line}")), "{text}: {error}");
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn the_usual_file_lies_beside_the_settings_and_need_not_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        let load = || PolicyFile::load("", Some(&config));
        assert_eq!(load().unwrap().summary(), "no policy file");
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, "[[rule]]\ntool = \"*\"\ndecision = \"ask\"\n").unwrap();
        assert_eq!(load().unwrap().summary(), format!("1 rule of {}", path.display()));
        std::fs::write(&path, "[[rul]]").unwrap();
        let error = format!("{:#}", load().unwrap_err());
        assert!(error.contains("policy.toml is not valid"), "{error}");
        let missing = folder.path().join("other.toml");
        let error = PolicyFile::load(missing.to_str().unwrap(), None).unwrap_err();
        assert!(format!("{error:#}").contains("other.toml: No such file"), "{error:#}");
    }

    #[cfg(unix)]
    #[test]
    fn rules_that_others_can_write_are_refused_with_the_remedy() {
        use std::fs::{Permissions, set_permissions};
        use std::os::unix::fs::{PermissionsExt, symlink};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, "").unwrap();
        let refused = |path: &Path| {
            let error = PolicyFile::load(path.to_str().unwrap(), None).unwrap_err();
            format!("{error:#}")
        };
        set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
        let error = refused(&path);
        assert!(error.contains("mode 664") && error.contains("chmod go-w"), "{error}");

        set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(PolicyFile::load(path.to_str().unwrap(), None).is_ok());
        let open = folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::rename(&path, open.join("policy.toml")).unwrap();
        set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        let error = refused(&open.join("policy.toml"));
        assert!(error.contains("can replace it") && error.contains("mode 777"), "{error}");

        let config = folder.path().join("config.toml");
        symlink("nowhere", folder.path().join("policy.toml")).unwrap();
        assert!(PolicyFile::load("", Some(&config)).is_err(), "a link to nothing is not no policy");
    }
}
