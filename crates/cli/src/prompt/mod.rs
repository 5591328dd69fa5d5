//! Asks the owner on the terminal, one question at a time.
//!
//! Only what is typed while a question stands there answers it, and what it shows is a stranger's text.
//! Whatever else there is to say [waits](crate::held) until it is over.

mod question;
mod terminal;

use std::collections::HashSet;
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard as StdMutexGuard, PoisonError};
use std::time::Duration;

use device::policy::{Answer, Ask, Question};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use self::question::{Text, name};
use self::terminal::Terminal;
use crate::held;
use crate::output::{BOLD, DIM};

/// After a question is over, answered or taken back, how long the next one waits: what is still typed then, such as
/// a second `y`, was meant for the first and is thrown away.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);

/// The owner at the terminal.
#[derive(Default)]
pub(crate) struct Prompt {
    /// Whose turn it is, in the order of the calls; when the last question was over.
    turn: Mutex<Option<Instant>>,
    /// What was answered with `always`.
    always: StdMutex<HashSet<Kind>>,
}

/// What `always` holds for: a rule that asks about something else asks again.
#[derive(PartialEq, Eq, Hash)]
struct Kind {
    namespace: String,
    tool_name: String,
    rule: String,
}

/// What the owner typed.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Yes,
    No,
    Always,
    View,
    Other,
}

impl Prompt {
    /// The owner, if both ends of the talk are at a terminal.
    pub(crate) fn at_terminal() -> Option<Arc<Self>> {
        let is_terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        is_terminal.then(Arc::default)
    }

    async fn put(&self, question: &Question) -> Answer {
        let mut unasked = Unasked(Some(question));
        let turn = self.turn.lock().await;
        if let Some(over) = *turn {
            tokio::time::sleep_until(over + BETWEEN_QUESTIONS).await;
        }
        unasked.0 = None;
        if lock(&self.always).contains(&Kind::of(question)) {
            return Answer::Yes;
        }
        let open = Open::new(self, turn);
        // As the last thing before the question is shown.
        match Terminal::open() {
            Some(terminal) => open.answer(question, &terminal).await,
            None => open.nobody(),
        }
    }
}

impl Ask for Prompt {
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(async move { self.put(&question).await })
    }
}

/// A question that stands on the terminal; dropped without an answer, it is taken back.
struct Open<'a> {
    prompt: &'a Prompt,
    turn: MutexGuard<'a, Option<Instant>>,
    is_over: bool,
}

impl<'a> Open<'a> {
    fn new(prompt: &'a Prompt, turn: MutexGuard<'a, Option<Instant>>) -> Self {
        held::hold();
        Self { prompt, turn, is_over: false }
    }

    /// There is nobody to answer, and nothing was shown.
    fn nobody(mut self) -> Answer {
        self.is_over = true;
        Answer::Nobody
    }

    async fn answer(mut self, question: &Question, terminal: &Terminal) -> Answer {
        let mut text = Text::new(question);
        self.say(&text.brief());
        let answer = loop {
            held::put(text.options().as_bytes());
            let line = terminal.line().await;
            match line.as_deref().map(typed) {
                Some(Typed::Yes) => break Answer::Yes,
                Some(Typed::No) => break Answer::No,
                Some(Typed::Always) => {
                    lock(&self.prompt.always).insert(Kind::of(question));
                    break Answer::Yes;
                }
                Some(Typed::View) => self.say(&text.next_page()),
                Some(Typed::Other) => {}
                None => {
                    self.say(&format!("\n{DIM}nobody answers here: refused{DIM:#}"));
                    break Answer::Nobody;
                }
            }
        };
        (self.is_over, *self.turn) = (true, Some(Instant::now()));
        answer
    }

    /// Says a line at once.
    fn say(&self, text: &str) {
        held::put(format!("{text}\n").as_bytes());
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            *self.turn = Some(Instant::now());
            self.say(&format!(
                "\n{BOLD}taken back{BOLD:#}: no answer in time, or the task was stopped; refused"
            ));
        }
        held::release();
    }
}

/// A question that waits for its turn; dropped before, the owner is told that there was one.
struct Unasked<'a>(Option<&'a Question>);

impl Drop for Unasked<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.0.map(name) {
            say!(
                "{BOLD}refused without asking{BOLD:#}: {name}; its time was over, or its task was stopped"
            );
        }
    }
}

impl Kind {
    fn of(question: &Question) -> Self {
        Self {
            namespace: question.namespace.clone(),
            tool_name: question.tool_name.clone(),
            rule: question.rule.clone(),
        }
    }
}

fn typed(line: &str) -> Typed {
    match line.trim().to_lowercase().as_str() {
        "y" | "yes" => Typed::Yes,
        "n" | "no" => Typed::No,
        "a" | "always" => Typed::Always,
        "v" | "view" => Typed::View,
        _ => Typed::Other,
    }
}

fn lock<T>(mutex: &StdMutex<T>) -> StdMutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_word_is_an_answer() {
        for (line, expected) in [
            ("y\n", Typed::Yes),
            (" YES \r\n", Typed::Yes),
            ("n", Typed::No),
            ("always\n", Typed::Always),
            ("v\n", Typed::View),
            ("\n", Typed::Other),
            ("yy\n", Typed::Other),
            ("y\0\n", Typed::Other),
        ] {
            assert_eq!(typed(line), expected, "{line:?}");
        }
    }
}
