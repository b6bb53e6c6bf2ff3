//! One case, measured for every contender by turns, so that what else the machine does meets all of
//! them, and set side by side: medians, what the processes spent, and how far the product is ahead
//! of the best peer that encrypts.

use anyhow::{Context as _, Result};
use tokio::time::timeout;

use crate::Plan;
use crate::account::{Meter, Spent};
use crate::lineup::{Contender, Kind, Lineup};
use crate::load::GRACE;
use crate::report::{Row, Verdict, Wanted, median, tell};
use crate::trace::Trace;

/// What one measurement of one contender gave.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// How much was done, in the unit of the case.
    pub(crate) amount: f64,
    /// Name with unit, and value.
    pub(crate) figures: Vec<(String, f64)>,
    /// What it cost, where that is not the cost of the whole run.
    spent: Option<Vec<Spent>>,
}

impl Measured {
    pub(crate) fn new(amount: f64) -> Self {
        Self {
            amount,
            figures: Vec::new(),
            spent: None,
        }
    }

    pub(crate) fn spent(mut self, spent: Vec<Spent>) -> Self {
        self.spent = Some(spent);
        self
    }

    pub(crate) fn figure(mut self, name: impl Into<String>, value: f64) -> Self {
        self.figures.push((name.into(), value));
        self
    }

    fn get(&self, name: &str) -> Option<f64> {
        let mut figures = self.figures.iter();
        figures
            .find(|figure| figure.0 == name)
            .map(|figure| figure.1)
    }
}

/// What the amount of a measurement counts, and so what its cost is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// GiB: CPU in seconds for each, wake-ups and system calls for each MiB.
    Gib,
    /// Requests or the like: CPU in microseconds, wake-ups and system calls for each.
    Each(&'static str),
    /// Nothing that a cost could be divided by.
    None,
}

impl Unit {
    /// Names and values of what this much work cost.
    fn costs(self, amount: f64, spent: &[Spent]) -> Vec<(String, f64)> {
        let cpu: f64 = spent.iter().map(|one| one.cpu).sum();
        let wakeups: f64 = spent.iter().map(|one| one.wakeups).sum();
        if spent.is_empty() || amount <= 0.0 {
            return Vec::new();
        }
        let (name, factor) = match self {
            Self::Gib => ("cpu_s_per_gib".to_owned(), 1.0),
            Self::Each(word) => (format!("cpu_us_per_{word}"), 1e6),
            Self::None => return Vec::new(),
        };
        let mut costs = vec![(name.clone(), cpu * factor / amount)];
        for one in spent {
            costs.push((format!("{}_{name}", one.name), one.cpu * factor / amount));
        }
        let (word, amount) = self.small(amount);
        costs.push((format!("wakeups_per_{word}"), wakeups / amount));
        costs
    }

    /// What small things are counted by.
    fn small(self, amount: f64) -> (&'static str, f64) {
        match self {
            Self::Gib => ("mib", amount * 1024.0),
            Self::Each(word) => (word, amount),
            Self::None => ("", amount),
        }
    }
}

/// How far the product should be ahead of the best peer that encrypts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) figure: &'static str,
    pub(crate) wanted: Wanted,
}

/// A case: what is done, and what is wanted of it.
pub(crate) struct Case<'a> {
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) goals: &'a [Goal],
}

/// Measures a case `plan.repeat` times. A peer that fails is left out, with a note that says why.
pub(crate) async fn compare(
    lineup: &Lineup,
    plan: &Plan,
    case: Case<'_>,
    run: impl AsyncFn(&Contender) -> Result<Measured>,
) -> Result<Row> {
    let contenders = &lineup.contenders;
    let mut runs: Vec<Vec<Measured>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut notes: Vec<String> = Vec::new();
    for _ in 0..plan.repeat {
        for (contender, runs) in contenders.iter().zip(&mut runs) {
            let limit = plan.time + 3 * GRACE;
            let measured = timeout(limit, metered(contender, case.unit, &run));
            match measured.await.context("it stalled").flatten() {
                Ok(measured) => runs.push(measured),
                Err(error) if contender.kind.is_peer() => {
                    notes.push(format!("{} failed once: {error:#}", contender.name));
                    tell(&format!(
                        "{}: {} failed: {error:#}",
                        case.what, contender.name
                    ));
                }
                Err(error) => return Err(error.context(contender.name)),
            }
        }
    }
    if plan.syscalls {
        for (contender, runs) in contenders.iter().zip(&mut runs) {
            if !contender.processes.is_empty() {
                let traced = timeout(plan.time + 6 * GRACE, traced(contender, case.unit, &run));
                match traced.await.context("it stalled").flatten() {
                    Ok((figure, note)) => {
                        // A figure of one run is as good as one of each.
                        for run in runs.iter_mut() {
                            run.figures.push(figure.clone());
                        }
                        notes.push(note);
                    }
                    Err(error) => {
                        notes.push(format!("{} failed under strace: {error:#}", contender.name));
                    }
                }
            }
        }
    }
    let mut row = table(&case, contenders, &runs);
    for note in notes {
        row.note(note);
    }
    Ok(row)
}

/// One run, and what it cost the processes.
async fn metered(
    contender: &Contender,
    unit: Unit,
    run: &impl AsyncFn(&Contender) -> Result<Measured>,
) -> Result<Measured> {
    let meter = Meter::start(&contender.processes)?;
    let mut measured = run(contender).await?;
    let spent = match measured.spent.take() {
        Some(spent) => spent,
        None => meter.spent()?,
    };
    measured.figures.extend(unit.costs(measured.amount, &spent));
    Ok(measured)
}

/// One more run with every system call counted, which slows it down; so nothing else is taken of it.
async fn traced(
    contender: &Contender,
    unit: Unit,
    run: &impl AsyncFn(&Contender) -> Result<Measured>,
) -> Result<((String, f64), String)> {
    let trace = Trace::start(&contender.processes).await?;
    let measured = run(contender).await?;
    let calls = trace.finish().await?;
    let (word, amount) = unit.small(measured.amount);
    let all: f64 = calls.iter().map(|(_, count)| count).sum();
    let most: Vec<String> = calls
        .iter()
        .take(6)
        .map(|(name, count)| format!("{name} {:.3}", count / amount))
        .collect();
    Ok((
        (format!("syscalls_per_{word}"), all / amount),
        format!(
            "{} system calls per {word}: {}",
            contender.name,
            most.join(", ")
        ),
    ))
}

/// Sets the medians side by side.
fn table(case: &Case<'_>, contenders: &[Contender], runs: &[Vec<Measured>]) -> Row {
    let mut names: Vec<&str> = Vec::new();
    for figure in runs.iter().flatten().flat_map(|run| &run.figures) {
        if !names.contains(&figure.0.as_str()) {
            names.push(&figure.0);
        }
    }
    let mut columns: Vec<String> = contenders.iter().map(|one| one.name.to_owned()).collect();
    let has_direct = contenders
        .first()
        .is_some_and(|one| one.kind == Kind::Direct);
    if has_direct {
        columns.push("of_direct".to_owned());
    }
    let mut row = Row::with_columns(&case.what, columns);
    for name in names {
        let mut values: Vec<Option<f64>> = runs
            .iter()
            .map(|runs| {
                let all: Vec<f64> = runs.iter().filter_map(|run| run.get(name)).collect();
                (!all.is_empty()).then(|| median(&all))
            })
            .collect();
        if let Some(goal) = case.goals.iter().find(|goal| goal.figure == name)
            && let Some(verdict) = judge(goal, contenders, &values)
        {
            row.verdict(verdict);
        }
        if has_direct {
            values.push(match values.as_slice() {
                [Some(direct), Some(product), ..] if *direct > 0.0 => Some(product / direct),
                _ => None,
            });
        }
        row.line(name, values);
    }
    row
}

/// The product against the best peer that encrypts; `None` where there is none.
fn judge(goal: &Goal, contenders: &[Contender], values: &[Option<f64>]) -> Option<Verdict> {
    let of = |kind: Kind| {
        contenders
            .iter()
            .zip(values)
            .filter(move |(contender, _)| contender.kind == kind)
            .filter_map(|(contender, value)| Some((contender.name, (*value)?)))
    };
    let (_, value) = of(Kind::Product).next()?;
    let peers = of(Kind::Encrypted);
    let (name, best) = match goal.wanted {
        Wanted::AtMost(_) => peers.min_by(|a, b| a.1.total_cmp(&b.1)),
        Wanted::AtLeast(_) => peers.max_by(|a, b| a.1.total_cmp(&b.1)),
    }?;
    Some(Verdict {
        figure: goal.figure.to_owned(),
        against: Some((format!("{name}, the best peer that encrypts"), best)),
        value,
        ratio: value / best,
        wanted: goal.wanted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &'static str, kind: Kind) -> Contender {
        Contender {
            name,
            kind,
            address: ([127, 0, 0, 1], 1).into(),
            udp: None,
            processes: Vec::new(),
        }
    }

    #[test]
    fn the_product_is_judged_by_the_best_peer_that_encrypts() {
        let contenders = [
            contender("direct", Kind::Direct),
            contender("product", Kind::Product),
            contender("ssh", Kind::Encrypted),
            contender("stunnel", Kind::Encrypted),
            contender("rathole", Kind::Plain),
        ];
        let values = [Some(0.1), Some(2.0), Some(5.0), Some(4.0), Some(1.0)];
        let least = Goal {
            figure: "cpu",
            wanted: Wanted::AtMost(0.67),
        };
        let verdict = judge(&least, &contenders, &values);
        let verdict = verdict.expect("there are peers");
        assert!(
            verdict
                .against
                .is_some_and(|(name, _)| name.starts_with("stunnel"))
        );
        assert!((verdict.ratio - 0.5).abs() < 1e-9);
        let most = Goal {
            figure: "rate",
            wanted: Wanted::AtLeast(1.4),
        };
        let verdict = judge(&most, &contenders, &values).expect("there are peers");
        assert!((verdict.ratio - 0.4).abs() < 1e-9);
        // Without a peer there is nothing to be ahead of.
        assert!(judge(&most, &contenders[..2], &values[..2]).is_none());
    }

    #[test]
    fn costs_are_per_unit() {
        let spent = [Spent {
            name: "node",
            cpu: 2.0,
            wakeups: 4096.0,
        }];
        let costs = Unit::Gib.costs(4.0, &spent);
        assert!(costs.contains(&("cpu_s_per_gib".to_owned(), 0.5)));
        assert!(costs.contains(&("node_cpu_s_per_gib".to_owned(), 0.5)));
        assert!(costs.contains(&("wakeups_per_mib".to_owned(), 1.0)));
        let costs = Unit::Each("request").costs(1e6, &spent);
        assert!(costs.contains(&("cpu_us_per_request".to_owned(), 2.0)));
        assert!(Unit::Gib.costs(0.0, &spent).is_empty());
    }
}
