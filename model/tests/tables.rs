//! The tables of spellings: `data/paths.txt` and `data/hosts.txt`. They were written by hand; nothing in them comes
//! from the code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use sg_model::{Acl, AclFile, CanonicalPath, Host, HostPattern, HostPort, Scope};

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

/// Row 9: what only looks different is the same, and what is written oddly is refused.
#[test]
fn threat_09_every_spelling_of_a_host_becomes_what_the_table_says() {
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

/// Row 9: an entry for one spelling decides over all others of the same host, and over no other host.
#[test]
fn threat_09_a_denied_host_is_denied_in_every_spelling() {
    let rows = rows(include_str!("data/hosts.txt"));
    let mut decided = 0;
    for (written, becomes) in &rows {
        let Ok(canonical) = becomes else { continue };
        let Ok(HostPattern::Host(_)) = HostPattern::parse(written.trim_end()) else {
            continue;
        };
        let bracketed = match canonical.contains(':') {
            true => format!("[{canonical}]"),
            false => (*canonical).to_owned(),
        };
        let list = format!("acl allow :\nacl deny {bracketed}:443");
        let Ok(file) = AclFile::parse(&list) else {
            panic!("{list}");
        };
        let written = match written.trim_end() {
            v6 if v6.contains(':') && !v6.starts_with('[') => format!("[{v6}]"),
            other => other.to_owned(),
        };
        let Ok(target) = format!("{written}:443").parse::<HostPort>() else {
            // Refused where it is written: nobody reaches anything by it.
            continue;
        };
        assert!(!file.acl.decide(&target).allowed, "{written} with {list}");
        decided += 1;
    }
    assert!(decided > 100, "{decided}");
}

/// Row 11: an entry for everything does not cover what must be named, in whichever spelling, by address or by a name
/// that leads there.
#[test]
fn threat_11_no_spelling_of_a_special_address_is_covered_by_everything() {
    let everything = [
        "acl allow :",
        "acl allow :80",
        "acl allow 0.0.0.0/0:\nacl allow ::/0:",
        "no acl",
    ];
    let lists: Vec<Acl> = everything
        .iter()
        .filter_map(|text| AclFile::parse(text).ok())
        .map(|file| file.acl)
        .collect();
    assert!(lists.len() >= 3);
    let spellings: Vec<&str> = include_str!("data/special.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert!(spellings.len() > 70);
    let mut addresses = 0;
    for special in spellings {
        let Ok(target) = format!("{special}:80").parse::<HostPort>() else {
            continue;
        };
        let Host::Ip(address) = target.host() else {
            panic!("{special} is taken for a name");
        };
        addresses += 1;
        for list in &lists {
            assert!(!list.decide(&target).allowed, "{special}");
            let named: HostPort = "any.example:80".parse().unwrap();
            assert!(
                !list.allows_address(&named, *address, Scope::Stream),
                "{special} by a name"
            );
        }
    }
    assert!(addresses > 30, "{addresses}");
}
