//! The owner's say: which calls are allowed, denied, or asked about. [`Policy::judge`] is pure; [`Ask`] is who is
//! asked, and a [`MeantFile`] is what a `path` of `Files` means.
//!
//! It must not know how a tool works, nor where its rules or answers come from.

mod arguments;
mod effect;
mod rule;

use std::cmp::Reverse;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use aip::{Payload, SessionId, ToolInfo, ToolType};

use self::arguments::Arguments;
pub use self::effect::{Effect, Touch};
use self::rule::Ready;
pub use self::rule::Rule;

/// The name under which the usual decision of a tool is told, where no rule fits.
pub const DEFAULT_RULE: &str = "default";

/// The argument by which tools are told of a file.
pub const PATH: &str = "path";

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// It runs.
    Allow,
    /// The owner is asked.
    Ask,
    /// It does not run.
    Deny,
}

impl Decision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Ask, Self::Deny];

    /// As it stands in the owner's rules.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        }
    }
}

/// A call that the policy judges.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Where the tool lives.
    pub namespace: &'a str,
    /// The tool's plain name.
    pub tool_name: &'a str,
    /// Whether it observes or changes, as far as that can be believed.
    pub tool_type: ToolType,
    /// Its arguments.
    pub parameters: Option<&'a Payload>,
    /// The file that its argument `path` means, where that is known.
    pub file: Option<&'a MeantFile>,
    /// What it does to which files, where some rule [looks at that](Policy::looks_at_effects).
    pub touched: &'a [Touch],
    /// What holds where no rule speaks.
    pub usual: Decision,
}

/// The file that a path means. Patterns on `path` that deny or ask hold for either; one that allows must fit the
/// file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeantFile {
    /// Absolute, and without links, `.` or `..`.
    pub path: String,
    /// Whether the path was that of this file as it stands, or below the folder it starts from.
    pub is_plain: bool,
}

/// What the policy says, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of the call.
    pub decision: Decision,
    /// The name of the rule.
    pub rule: String,
}

/// What the policy says of a tool before anybody calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// What becomes of a call, unless its arguments fit a rule.
    pub verdict: Verdict,
    /// What becomes of one whose arguments do; the strictest first.
    pub unless: Vec<Verdict>,
}

/// The owner's rules. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: Arc<[Ready]>,
}

impl Policy {
    /// The rules in the order of the owner's file, from which those without a name get their number.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let ready = |(index, rule)| Ready::new(index + 1, rule);
        Self { rules: rules.into_iter().enumerate().map(ready).collect() }
    }

    /// Judges a call: any rule that denies wins, then one that asks, then one that allows. Arguments that
    /// name something twice are denied, since a tool may not see the one of both that was judged.
    #[must_use]
    pub fn judge(&self, subject: &Subject<'_>) -> Verdict {
        self.decide(subject)
            .unwrap_or_else(|fault| Verdict { decision: Decision::Deny, rule: fault })
    }

    fn decide(&self, subject: &Subject<'_>) -> Result<Verdict, String> {
        let concerned: Vec<&Ready> = self.concerned(subject).collect();
        let looked_at = concerned.iter().flat_map(|rule| rule.argument_names());
        let arguments = Arguments::read(subject.parameters, looked_at)?;
        let fits = |rule: &&Ready| rule.fits(&arguments, subject.file, subject.touched);
        let fitting = concerned.into_iter().filter(fits);
        Ok(strictest(fitting).unwrap_or_else(|| usual(subject)))
    }

    /// Whether some rule looks at this argument of a call.
    #[must_use]
    pub fn looks_at(&self, argument: &str, subject: &Subject<'_>) -> bool {
        self.concerned(subject).any(|rule| rule.argument_names().any(|name| name == argument))
    }

    /// Whether some rule looks at what a call does to files.
    #[must_use]
    pub fn looks_at_effects(&self, subject: &Subject<'_>) -> bool {
        self.concerned(subject).any(|rule| rule.effect.is_some())
    }

    /// Whether a rule denies, or asks about, this effect of a call on one file among many. Nobody can be asked about
    /// each of them.
    #[must_use]
    pub fn closes(&self, effect: Effect, path: &str, subject: &Subject<'_>) -> bool {
        let mut restricting =
            self.concerned(subject).filter(|rule| rule.decision != Decision::Allow);
        restricting.any(|rule| rule.is_on_file(effect, path))
    }

    /// What the policy says of a tool whatever the arguments of the subject are.
    #[must_use]
    pub fn outlook(&self, subject: &Subject<'_>) -> Outlook {
        let (conditional, always): (Vec<_>, Vec<_>) = self.concerned(subject).partition(|rule| {
            !rule.always_fits(subject.namespace, subject.tool_name, subject.tool_type)
        });
        let by_rule = strictest(always.into_iter());
        let outweighs =
            |rule: &&Ready| by_rule.as_ref().is_none_or(|verdict| rule.decision > verdict.decision);
        let mut unless: Vec<_> =
            conditional.into_iter().filter(outweighs).map(Ready::verdict).collect();
        unless.sort_by_key(|verdict| Reverse(verdict.decision));
        Outlook { verdict: by_rule.unwrap_or_else(|| usual(subject)), unless }
    }

    /// The rule that denies a tool whatever its arguments, if there is one: such a tool is not offered.
    #[must_use]
    pub fn never_allows(
        &self,
        namespace: &str,
        tool_name: &str,
        tool_type: ToolType,
    ) -> Option<&str> {
        let denies = |rule: &&Ready| rule.decision == Decision::Deny;
        let concerns = |rule: &&Ready| {
            rule.concerns(namespace, tool_name, tool_type)
                && rule.always_fits(namespace, tool_name, tool_type)
        };
        self.rules.iter().filter(denies).find(concerns).map(|rule| rule.name.as_str())
    }

    /// The rules that never decide about a call of one of these tools, and why, in words: most often a name
    /// is written wrong.
    #[must_use]
    pub fn idle_rules(&self, tools: &[ToolInfo]) -> Vec<String> {
        let idle = |rule: &Ready| rule.idle(tools).or_else(|| self.outweighed(rule, tools));
        self.rules.iter().filter_map(idle).collect()
    }

    /// Why a rule changes nothing: of each tool that it is about something stricter is said anyway.
    fn outweighed(&self, rule: &Ready, tools: &[ToolInfo]) -> Option<String> {
        let outweighs = |other: &&Ready| other.decision > rule.decision;
        let stricter = |tool: &ToolInfo| {
            let holds = |other: &&Ready| {
                other.is_about(tool)
                    && other.always_fits(&tool.namespace, &tool.tool_name, tool.tool_type)
            };
            self.rules.iter().filter(outweighs).find(holds)
        };
        let mut winners = tools.iter().filter(|tool| rule.is_about(tool)).map(stricter);
        let winner = &winners.next()??.label;
        let why = || format!("{}: it never decides, since {winner} is stricter", rule.label);
        winners.all(|winner| winner.is_some()).then(why)
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none, so that every tool's usual decision holds.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    fn concerned(&self, subject: &Subject<'_>) -> impl Iterator<Item = &Ready> {
        let &Subject { namespace, tool_name, tool_type, .. } = subject;
        self.rules.iter().filter(move |rule| rule.concerns(namespace, tool_name, tool_type))
    }
}

/// Of several that are as strict, the first one names itself.
fn strictest<'a>(rules: impl Iterator<Item = &'a Ready>) -> Option<Verdict> {
    rules.min_by_key(|rule| Reverse(rule.decision)).map(Ready::verdict)
}

fn usual(subject: &Subject<'_>) -> Verdict {
    Verdict { decision: subject.usual, rule: DEFAULT_RULE.to_owned() }
}

/// What the owner is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Where the tool lives.
    pub namespace: String,
    /// The tool.
    pub tool_name: String,
    /// Its arguments, as they came: a stranger's text, to be escaped before it is shown.
    pub parameters: Option<Payload>,
    /// The task.
    pub session_id: Option<SessionId>,
    /// The rule that asks.
    pub rule: String,
}

/// How an owner answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This call may run.
    Yes,
    /// It may not.
    No,
    /// There is nobody to ask.
    Nobody,
}

/// Asks the owner. Dropping the future takes the question back.
pub trait Ask: Send + Sync {
    /// Asks one question; several may wait at the same time.
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>>;
}

#[cfg(test)]
mod tests;
