//! One rule: which calls it is about, and what becomes of them.

use aip::{ToolInfo, ToolType};
use wildmatch::WildMatch;

use super::arguments::Arguments;
use super::effect::Effects;
use super::{Decision, Effect, MeantFile, PATH, Touch, Verdict};

/// One rule, as its owner wrote it. In patterns `*` stands for any characters and `?` for one; upper and
/// lower case differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it is called where it decides; its number if none.
    pub name: Option<String>,
    /// A pattern on `NAMESPACE.TOOL`, or one on each, `NAMESPACE::TOOL`; see [`Rule::unclear`].
    pub tool: String,
    /// Which kind of tool it is about; both if none.
    pub tool_type: Option<ToolType>,
    /// What a call must do to some file, by whichever tool; anything if none.
    pub effect: Option<Effect>,
    /// A pattern on that file: on its absolute path without links, or where the rule asks or denies also on what
    /// was asked for. A rule that allows must fit every file that the call touches.
    pub path: Option<String>,
    /// Names of arguments, those inside others with dots between, each with a pattern. All must be there
    /// and fit: the text of a string, the JSON text of anything else; of a list every item where the rule
    /// allows, any item where it asks or denies.
    pub arguments: Vec<(String, String)>,
    /// What becomes of a call that fits.
    pub decision: Decision,
}

impl Rule {
    /// Why it allows nothing, in words with the remedy: which dot ends the namespace is not said. `None` for
    /// a rule that is clear, and for one that does not allow.
    #[must_use]
    pub fn unclear(&self) -> Option<String> {
        let tools = Tools::new(&self.tool);
        if self.decision != Decision::Allow || !tools.is_unclear() {
            return None;
        }
        let (tool, (short, in_short)) = (&self.tool, self.tool.split_once('.')?);
        let (long, in_long) = self.tool.rsplit_once('.')?;
        Some(format!(
            "\"{tool}\" may be a tool of \"{short}\" or of \"{long}\"; a rule that allows has to say \
             which: write \"{short}::{in_short}\" or \"{long}::{in_long}\""
        ))
    }
}

/// Which tools a rule is about. Namespaces and tools may have dots in their names, and an MCP server names
/// its tools as it likes: `docs.sub.*` may be all tools of `docs.sub`, or some of `docs`. What restricts
/// holds for both; what allows has to say which, by a single dot or by `::`.
#[derive(Debug)]
struct Tools {
    /// Held against the whole name, whichever dot ends the namespace.
    whole: WildMatch,
    /// Held against the namespace and the tool, where the owner said which is which.
    parts: Option<(WildMatch, WildMatch)>,
    dots: usize,
}

impl Tools {
    fn new(pattern: &str) -> Self {
        let dots = pattern.matches('.').count();
        // No namespace has `::` in its name.
        let one_dot = || pattern.split_once('.').filter(|_| dots == 1);
        let parts = pattern.split_once("::").or_else(one_dot);
        let parts = parts.map(|(space, tool)| (WildMatch::new(space), WildMatch::new(tool)));
        Self { whole: WildMatch::new(pattern), parts, dots }
    }

    fn is_unclear(&self) -> bool {
        self.parts.is_none() && self.dots > 1
    }

    /// Whether a tool is meant: for what allows surely, for what restricts perhaps.
    fn hold(&self, namespace: &str, tool_name: &str, decision: Decision) -> bool {
        let is_whole = || self.whole.matches(&format!("{namespace}.{tool_name}"));
        let is_part = self
            .parts
            .as_ref()
            .map(|(space, tool)| space.matches(namespace) && tool.matches(tool_name));
        match decision {
            Decision::Allow => is_part.unwrap_or_else(|| !self.is_unclear() && is_whole()),
            Decision::Ask | Decision::Deny => is_part == Some(true) || is_whole(),
        }
    }
}

/// A rule that is ready to judge.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) name: String,
    /// The same with its number, which no other rule has.
    pub(super) label: String,
    pub(super) decision: Decision,
    pub(super) effect: Option<Effect>,
    path: Option<WildMatch>,
    tools: Tools,
    tool_type: Option<ToolType>,
    arguments: Vec<(String, WildMatch)>,
}

impl Ready {
    pub(super) fn new(number: usize, rule: Rule) -> Self {
        let pattern = |(name, pattern): (String, String)| (name, WildMatch::new(&pattern));
        let numbered = format!("rule {number}");
        Self {
            label: match &rule.name {
                Some(name) => format!("{numbered} \"{name}\""),
                None => numbered.clone(),
            },
            name: rule.name.unwrap_or(numbered),
            decision: rule.decision,
            effect: rule.effect,
            path: rule.path.map(|pattern| WildMatch::new(&pattern)),
            tools: Tools::new(&rule.tool),
            tool_type: rule.tool_type,
            arguments: rule.arguments.into_iter().map(pattern).collect(),
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        Verdict { decision: self.decision, rule: self.name.clone() }
    }

    /// Whether it is about this tool at all.
    pub(super) fn concerns(&self, namespace: &str, tool_name: &str, tool_type: ToolType) -> bool {
        let may_be = |effect| Effects::of(namespace, tool_name, tool_type).may_be(effect);
        self.tool_type.is_none_or(|wanted| wanted == tool_type)
            && self.effect.is_none_or(may_be)
            && self.tools.hold(namespace, tool_name, self.decision)
    }

    /// The same of a tool as it is listed.
    pub(super) fn is_about(&self, tool: &ToolInfo) -> bool {
        self.concerns(&tool.namespace, &tool.tool_name, tool.tool_type)
    }

    /// Whether it fits each call of a tool that it is about.
    pub(super) fn always_fits(
        &self,
        namespace: &str,
        tool_name: &str,
        tool_type: ToolType,
    ) -> bool {
        let surely = |effect| Effects::of(namespace, tool_name, tool_type).surely_are(effect);
        self.arguments.is_empty() && self.path.is_none() && self.effect.is_none_or(surely)
    }

    /// Whether it is a rule on files that fits this effect on this one.
    pub(super) fn is_on_file(&self, effect: Effect, path: &str) -> bool {
        let fits = |pattern: &WildMatch| pattern.matches(path);
        self.effect == Some(effect) && self.path.as_ref().is_some_and(fits)
    }

    /// The arguments that it looks at.
    pub(super) fn argument_names(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().map(|(name, _)| name.as_str())
    }

    /// Whether the arguments of a call fit, of a tool that it is about.
    pub(super) fn fits(
        &self,
        arguments: &Arguments,
        file: Option<&MeantFile>,
        touched: &[Touch],
    ) -> bool {
        self.fit_touches(touched) && self.fit_arguments(arguments, file)
    }

    /// Whether what a call does to files fits: something of it, and all of it where the rule allows.
    fn fit_touches(&self, touched: &[Touch]) -> bool {
        let Some(effect) = self.effect else { return true };
        let allows = self.decision == Decision::Allow;
        let fits = |touch: &Touch| {
            let names = touch.names.iter().take(if allows { 1 } else { usize::MAX });
            let is_meant =
                |pattern: &WildMatch| names.into_iter().any(|name| pattern.matches(name));
            touch.effect == effect && self.path.as_ref().is_none_or(is_meant)
        };
        match allows {
            true => {
                !touched.is_empty() && touched.iter().all(|touch| touch.is_known && fits(touch))
            }
            false => touched.iter().any(fits),
        }
    }

    fn fit_arguments(&self, arguments: &Arguments, file: Option<&MeantFile>) -> bool {
        let allows = self.decision == Decision::Allow;
        self.arguments.iter().all(|(name, pattern)| {
            // One good item of a list must not let the others in.
            let fits_as_written = arguments.fit(name, pattern, allows);
            match file.filter(|_| name == PATH) {
                Some(file) => {
                    pattern.matches(&file.path) || (fits_as_written && (file.is_plain || !allows))
                }
                None => fits_as_written,
            }
        })
    }

    /// Why it can never fit a call of one of these tools.
    pub(super) fn idle(&self, tools: &[ToolInfo]) -> Option<String> {
        let concerned: Vec<_> = tools.iter().filter(|tool| self.is_about(tool)).collect();
        if concerned.is_empty() {
            let of_type = self.tool_type.map(|kind| format!(" of type {}", kind.as_str()));
            let of_type = of_type.unwrap_or_default();
            let effect = self.effect.map(|effect| format!(" that may {} files", effect.as_str()));
            let effect = effect.unwrap_or_default();
            let (label, pattern) = (&self.label, &self.tools.whole);
            return Some(format!("{label}: no tool here is \"{pattern}\"{of_type}{effect}"));
        }
        let unknown = |name: &&String| !concerned.iter().any(|tool| may_take(tool, name));
        let name = self.arguments.iter().map(|(name, _)| name).find(unknown)?;
        Some(format!("{}: no tool it is about takes an argument \"{name}\"", self.label))
    }
}

/// Whether a tool takes this argument as far as its schema says.
fn may_take(tool: &ToolInfo, name: &str) -> bool {
    let properties = tool.input_schema.as_ref().and_then(|schema| schema.get("properties"));
    let Some(properties) = properties.and_then(|properties| properties.as_object()) else {
        return true;
    };
    properties.keys().any(|known| {
        name.strip_prefix(known.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}
