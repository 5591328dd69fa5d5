//! Which devices an `exec` is for: by their ids, by patterns on ids, by tags, or all of them.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context, anyhow};
use constellation::ClientId;
use globset::{GlobBuilder, GlobMatcher};
use jiff::Timestamp;

use super::super::tasks::between;
use crate::api::{Api, Device};
use crate::args::Exec;
use crate::connect::Target;
use crate::output::{human, safe_line};
use crate::{Code, Failure};

/// What stands in front of a tag.
pub(crate) const TAG: &str = "tag:";

/// What makes a pattern of an id.
const PATTERN: [char; 4] = ['*', '?', '[', '{'];

/// The longest pattern, in bytes.
const MAX_PATTERN: usize = 200;

/// The most devices or tags that are named where a pattern fits none.
const MAX_NAMED: usize = 30;

/// The feature of a device that takes `--env`.
const ENV: &str = "env";

/// The devices that are meant.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Those to run on.
    pub(super) devices: Vec<ClientId>,
    /// Those that cannot run it, and why.
    pub(super) left_out: Vec<(ClientId, Failure)>,
}

impl Chosen {
    pub(super) fn len(&self) -> usize {
        self.devices.len() + self.left_out.len()
    }
}

/// Finds the devices that are meant. The server is asked only where ids alone do not say it.
///
/// # Errors
/// When the server cannot be asked, when something fits no device, or when it is no id and no pattern.
pub(super) async fn choose(args: &Exec, target: &Target) -> Result<Chosen, Failure> {
    let needs_list = args.all || !args.env.is_empty() || args.on.iter().any(|on| is_pattern(on));
    if !needs_list {
        let ids = args.on.iter().map(|on| id(on)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut seen = HashSet::new();
        let devices = ids.into_iter().filter(|id| seen.insert(id.clone())).collect();
        return Ok(Chosen { devices, left_out: Vec::new() });
    }
    let known = Api::new(target)?.devices().await?;
    let wanted = if args.all {
        vec![Wanted::All]
    } else {
        args.on.iter().map(|on| Wanted::read(on, &known)).collect::<anyhow::Result<_>>()?
    };
    let now = Timestamp::now();
    let mut chosen = Chosen::default();
    let mut seen = HashSet::new();
    for wanted in &wanted {
        for (id, device) in wanted.of(&known)? {
            if !seen.insert(id.clone()) {
                continue;
            }
            match device.and_then(|device| obstacle(device, args, now)) {
                Some(failure) => chosen.left_out.push((id, failure)),
                None => chosen.devices.push(id),
            }
        }
    }
    Ok(chosen)
}

fn id(text: &str) -> anyhow::Result<ClientId> {
    text.parse().with_context(|| format!("--on {text:?}"))
}

fn is_pattern(text: &str) -> bool {
    text.starts_with(TAG) || text.contains(PATTERN)
}

/// Why a device that is known cannot run it.
fn obstacle(device: &Device, args: &Exec, now: Timestamp) -> Option<Failure> {
    if !device.is_online() {
        let long = device.away_since.map(|at| format!(" for {}", human(between(at, now))));
        let error = anyhow!("the device is away{}", long.unwrap_or_default());
        return Some(Failure { code: Code::UNREACHABLE, error });
    }
    let takes_env = device.extension.iter().any(|feature| feature == ENV);
    (!args.env.is_empty() && !takes_env).then(|| {
        let error = anyhow!(
            "this device, or its server, does not know --env; set variables within the command \
             there: sh -c 'A=B command'"
        );
        Failure { code: Code::FAILED, error }
    })
}

/// What stands after one `--on`.
#[derive(Debug)]
enum Wanted {
    All,
    Id(ClientId),
    Ids(String, GlobMatcher),
    Tag(String, GlobMatcher),
}

impl Wanted {
    /// A text that is the id of a device means that device, whatever is in it.
    fn read(text: &str, known: &[Device]) -> anyhow::Result<Self> {
        let is_known = known.iter().any(|device| device.id == text);
        if is_known || !is_pattern(text) {
            return id(text).map(Self::Id);
        }
        let (tag, pattern) = match text.strip_prefix(TAG) {
            Some(tag) => (true, tag),
            None => (false, text),
        };
        anyhow::ensure!(!pattern.is_empty(), "--on {text:?}: which tag?");
        // What is made of a longer one could be too large to be searched for.
        anyhow::ensure!(
            pattern.len() <= MAX_PATTERN,
            "--on: a pattern has {MAX_PATTERN} bytes at most"
        );
        let glob = GlobBuilder::new(pattern).build();
        let glob = glob.map_err(|error| anyhow!("--on {text:?}: {}", error.kind()))?;
        let (text, glob) = (pattern.to_owned(), glob.compile_matcher());
        Ok(if tag { Self::Tag(text, glob) } else { Self::Ids(text, glob) })
    }

    fn is_for(&self, device: &Device) -> bool {
        match self {
            Self::All => true,
            Self::Id(id) => device.id == id.as_str(),
            Self::Ids(_, glob) => glob.is_match(&device.id),
            Self::Tag(_, glob) => device.tags.iter().any(|tag| glob.is_match(tag)),
        }
    }

    /// The devices that are meant, with what is known of each; of an id also one that nobody knows.
    ///
    /// # Errors
    /// When there is none.
    fn of<'a>(&self, known: &'a [Device]) -> Result<Vec<(ClientId, Option<&'a Device>)>, Failure> {
        let found = known.iter().filter(|device| self.is_for(device));
        let found = found.map(|device| Ok((id(&device.id)?, Some(device))));
        let found = found.collect::<anyhow::Result<Vec<_>>>()?;
        match self {
            _ if !found.is_empty() => Ok(found),
            Self::Id(id) => Ok(vec![(id.clone(), None)]),
            _ => Err(Failure { code: Code::EXEC_UNREACHABLE, error: self.nothing(known) }),
        }
    }

    /// Says what is there instead.
    fn nothing(&self, known: &[Device]) -> anyhow::Error {
        if known.is_empty() || matches!(self, Self::All) {
            return anyhow!("no device is online; make this machine one: flightdeck device");
        }
        let devices = known.iter().map(|device| match device.is_online() {
            true => device.id.clone(),
            false => format!("{} (away)", device.id),
        });
        let devices = named(devices.collect());
        let Self::Tag(tag, _) = self else {
            let pattern = match self {
                Self::Ids(pattern, _) => pattern,
                _ => "",
            };
            return anyhow!("no device fits --on '{pattern}'; there are: {devices}");
        };
        let tags: BTreeSet<&String> = known.iter().flat_map(|device| &device.tags).collect();
        if tags.is_empty() {
            return anyhow!("no device has the tag '{tag}', or any; there are: {devices}");
        }
        let tags = named(tags.into_iter().cloned().collect());
        anyhow!("no device has the tag '{tag}'; the tags are: {tags}; the devices: {devices}")
    }
}

/// The first of some names.
fn named(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MAX_NAMED);
    names.truncate(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.iter().map(|name| safe_line(name)).collect::<Vec<_>>().join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Device> {
        serde_json::from_str(
            r#"[{"id":"db","platform":"linux","tags":["eu","gpu-a100"]},
                {"id":"web-1","platform":"linux","tags":["eu"]},
                {"id":"web-2","platform":"linux","connected":false},
                {"id":"web-*","platform":"linux"}]"#,
        )
        .unwrap()
    }

    fn found(on: &str) -> Vec<String> {
        let known = known();
        let found = Wanted::read(on, &known).unwrap().of(&known).unwrap();
        found.into_iter().map(|(id, _)| id.to_string()).collect()
    }

    #[test]
    fn devices_are_chosen_by_patterns_and_tags() {
        for (on, expected) in [
            ("web-?", &["web-1", "web-2", "web-*"][..]),
            ("web-[12]", &["web-1", "web-2"]),
            ("{db,web-1}", &["db", "web-1"]),
            // A device of this very name is meant before all that fit.
            ("web-*", &["web-*"]),
            ("w*", &["web-1", "web-2", "web-*"]),
            ("tag:eu", &["db", "web-1"]),
            ("tag:gpu-*", &["db"]),
            ("elsewhere", &["elsewhere"]),
        ] {
            assert_eq!(found(on), expected, "{on}");
        }
    }

    #[test]
    fn what_fits_nothing_says_what_is_there() {
        let known = known();
        for (on, expected) in [
            ("mail-*", "no device fits --on 'mail-*'; there are: db, web-1, web-2 (away), web-*"),
            ("tag:us", "no device has the tag 'us'; the tags are: eu, gpu-a100; the devices: db,"),
        ] {
            let failure = Wanted::read(on, &known).unwrap().of(&known).unwrap_err();
            let error = failure.error.to_string();
            assert!(error.starts_with(expected), "{error}");
            assert_eq!(failure.code, Code::EXEC_UNREACHABLE);
        }
        let (deep, long) = ("{".repeat(MAX_PATTERN + 1), "*".repeat(MAX_PATTERN + 1));
        assert!(Wanted::read(&"*".repeat(MAX_PATTERN), &known).is_ok());
        for bad in ["web-[", "tag:", "{a", &deep, &long] {
            assert!(Wanted::read(bad, &known).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_many_names_the_first_are_told() {
        let names: Vec<_> = (0..100).map(|n| n.to_string()).collect();
        assert!(named(names).ends_with("28, 29 and 70 more"));
    }
}
