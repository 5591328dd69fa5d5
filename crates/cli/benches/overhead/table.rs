//! What was measured, as a table.

use std::fmt;
use std::time::Duration;

/// Times of one kind of call.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn add(&mut self, counts: bool, time: Duration) {
        if counts {
            self.0.push(time);
        }
    }

    fn sorted(mut self) -> Self {
        self.0.sort_unstable();
        self
    }

    /// Of sorted ones, in microseconds.
    fn at(&self, percent: usize) -> f64 {
        self.0[(self.0.len() - 1) * percent / 100].as_secs_f64() * 1e6
    }
}

/// The calls of one tool, with and without a device.
struct Row {
    name: &'static str,
    budget: Duration,
    alone: Times,
    through: Times,
}

pub(crate) struct Measured {
    rows: Vec<Row>,
    /// Round trips of the WebSocket alone.
    echoes: Times,
}

impl Measured {
    pub(crate) fn new(rows: Vec<(&'static str, Duration, Times, Times)>, echoes: Times) -> Self {
        let row = |(name, budget, alone, through): (_, _, Times, Times)| Row {
            name,
            budget,
            alone: alone.sorted(),
            through: through.sorted(),
        };
        Self { rows: rows.into_iter().map(row).collect(), echoes: echoes.sorted() }
    }

    pub(crate) fn is_within_budget(&self) -> bool {
        self.rows.iter().all(Row::is_within_budget)
    }
}

impl Row {
    fn overhead(&self) -> f64 {
        self.through.at(50) - self.alone.at(50)
    }

    fn is_within_budget(&self) -> bool {
        self.overhead() <= self.budget.as_secs_f64() * 1e6
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let echoes = &self.echoes;
        writeln!(f, "{} rounds; all times in microseconds.", echoes.0.len())?;
        let [median, p95, p99] = [50, 95, 99].map(|percent| echoes.at(percent));
        writeln!(
            f,
            "A WebSocket echo between two processes: {median:.0} (p95 {p95:.0}, p99 {p99:.0}).\n"
        )?;
        writeln!(
            f,
            "{:27} {:>7}{:>7}{:>7}  {:>7}{:>7}{:>7}  {:>8} {:>11} {:>7}",
            "", "direct", "p95", "p99", "device", "p95", "p99", "overhead", "less echo", "budget"
        )?;
        for row in &self.rows {
            write!(f, "{:27} ", row.name)?;
            for (times, gap) in [(&row.alone, "  "), (&row.through, "  ")] {
                for percent in [50, 95, 99] {
                    write!(f, "{:7.0}", times.at(percent))?;
                }
                f.write_str(gap)?;
            }
            let (overhead, budget) = (row.overhead(), row.budget.as_micros());
            write!(f, "{overhead:8.0} {:11.0} {budget:7}", overhead - median)?;
            writeln!(f, "{}", if row.is_within_budget() { "" } else { "  OVER" })?;
        }
        f.write_str("\ndirect, device: medians. overhead: their difference, which counts.")
    }
}
