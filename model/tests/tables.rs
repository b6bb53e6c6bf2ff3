//! The tables of spellings: `data/paths.txt` and `data/hosts.txt`. They were written by hand; nothing in them comes
//! from the code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use sg_model::{CanonicalPath, HostPattern};

/// What is written, and what it becomes; `Err` has what stands behind the `!`.
type Row<'a> = (&'a str, Result<&'a str, &'a str>);

fn rows(table: &str) -> Vec<Row<'_>> {
    table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
        .map(|line| {
            let (written, becomes) = line.rsplit_once(" => ").unwrap_or_else(|| panic!("{line}"));
            let becomes = becomes.strip_prefix('!').map_or(Ok(becomes), Err);
            (written, becomes)
        })
        .collect()
}

#[test]
fn every_spelling_of_a_path_becomes_what_the_table_says() {
    let rows = rows(include_str!("data/paths.txt"));
    assert!(rows.len() >= 400, "{}", rows.len());
    let mut wrong = Vec::new();
    for (written, expected) in &rows {
        let parsed = CanonicalPath::parse(written);
        let have = match &parsed {
            Ok(path) => Ok(path.target()),
            Err(refusal) => Err(refusal.word()),
        };
        if have != *expected {
            wrong.push(format!("{written}: {have:?}, not {expected:?}"));
        }
        if let Ok(once) = &parsed {
            assert_eq!(
                CanonicalPath::parse(once.target()).as_ref(),
                Ok(once),
                "{written}"
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_spelling_of_a_host_becomes_what_the_table_says() {
    let rows = rows(include_str!("data/hosts.txt"));
    assert!(rows.len() >= 300, "{}", rows.len());
    let mut wrong = Vec::new();
    for (written, expected) in &rows {
        let parsed = HostPattern::parse(written.trim_end());
        let have = parsed.as_ref().map(ToString::to_string).map_err(|_| "");
        if have.as_deref() != expected.as_ref().copied().map_err(|_| &"") {
            wrong.push(format!("{written}: {have:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_entry_for_one_spelling_matches_all_of_the_same_host_and_no_other() {
    let rows = rows(include_str!("data/hosts.txt"));
    let patterns: Vec<(&str, HostPattern)> = rows
        .iter()
        .filter_map(|(written, becomes)| {
            Some((
                (*becomes).ok()?,
                HostPattern::parse(written.trim_end()).ok()?,
            ))
        })
        .collect();
    let kinds: BTreeSet<&str> = patterns.iter().map(|(canonical, _)| *canonical).collect();
    assert!(kinds.len() > 50);
    for (one, pattern) in &patterns {
        for (other, target) in &patterns {
            if let (HostPattern::Host(_), HostPattern::Host(host)) = (pattern, target) {
                assert_eq!(pattern.matches(host), one == other, "{one} {other}");
            }
        }
    }
}
