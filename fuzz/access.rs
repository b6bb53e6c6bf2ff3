//! What the fuzzers of access control do with their input. Shared by the entry points here, which need libFuzzer, and by
//! `model/tests/fuzz_corpus.rs`, which replays the committed inputs with a stable compiler.
//!
//! * [`path_matcher`]: a path is refused, or has one form that reads the same again and hides nothing.
//! * [`acl_matcher`]: a list reads the same again, and its order decides nothing.

use sg_model::{Acl, AclFile, CanonicalPath, HostPort, PathPrefix, PrefixMode, Scope, lint};

/// The first line is a rule's path, the rest a request's.
pub fn path_matcher(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let (prefix, target) = text.split_once('\n').unwrap_or(("/", text));
    let Ok(path) = CanonicalPath::parse(target) else {
        return;
    };
    let again = CanonicalPath::parse(path.target());
    assert_eq!(
        again.as_ref(),
        Ok(&path),
        "canonical paths stay as they are"
    );
    let shown = path.as_str();
    assert!(shown.is_ascii() && shown.starts_with('/') && !shown.contains("//"));
    assert!(!shown.contains(['\\', '#', '?', ' ']));
    assert!(
        !shown
            .split('/')
            .any(|segment| segment == "." || segment == "..")
    );
    let decoded = path.segments().collect::<Vec<_>>();
    assert!(
        decoded
            .iter()
            .all(|segment| !segment.contains(['/', '\\', '\0']))
    );
    let Ok(prefix) = prefix.parse::<PathPrefix>() else {
        return;
    };
    let segment = path.is_within(&prefix, PrefixMode::Segment);
    assert!(
        !segment || path.is_within(&prefix, PrefixMode::Text),
        "text is the wider"
    );
    // The naive way, segment by segment.
    let own = CanonicalPath::parse(prefix.as_str()).expect("a rule's path is canonical");
    let mut wanted: Vec<&str> = own.segments().collect();
    let below = wanted.last() == Some(&"");
    if below {
        wanted.pop();
    }
    let naive = decoded.starts_with(&wanted)
        && (!below || wanted.is_empty() || decoded.len() > wanted.len());
    assert_eq!(segment, naive, "{prefix} {path}");
}

/// Lines of a list, and lines that begin with `?` and a target to decide on.
pub fn acl_matcher(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let lines: String = text
        .lines()
        .filter(|line| !line.starts_with('?'))
        .flat_map(|line| [line, "\n"])
        .collect();
    let Ok(file) = AclFile::parse(&lines) else {
        return;
    };
    assert_eq!(file.lines.len(), file.acl.entries.len());
    let again = AclFile::parse(&file.acl.to_file()).expect("a list that was written can be read");
    assert_eq!(again.acl, file.acl);
    let mut reversed: Acl = file.acl.clone();
    reversed.entries.reverse();
    let path = CanonicalPath::parse("/a/b").expect("it is one");
    for target in text.lines().filter_map(|line| line.strip_prefix('?')) {
        let Ok(target) = target.trim().parse::<HostPort>() else {
            continue;
        };
        for scope in [Scope::Stream, Scope::AnyPath, Scope::Path(&path)] {
            let decision = file.acl.decide_for(&target, scope);
            assert_eq!(
                decision.allowed,
                reversed.decide_for(&target, scope).allowed
            );
            if let Some(entry) = decision.entry {
                assert!(entry.matches(&target));
            }
        }
        // A narrower question is never answered wider.
        let any = file.acl.decide_for(&target, Scope::AnyPath).allowed;
        assert!(any || !file.acl.decide(&target).allowed);
        assert!(any || !file.acl.decide_path(&target, &path).allowed);
    }
    if file.acl.entries.len() < 64 {
        let findings = lint(&file.acl, None);
        // At most two for an entry, and one for everything unlisted.
        assert!(findings.len() <= 2 * file.acl.entries.len() + 1);
    }
}
