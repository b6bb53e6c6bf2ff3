//! Reads an access control file: `acl allow HOST:PORT`, `acl deny HOST:PORT`, `no acl [HOST:PORT]`,
//! one per line, `#` before comments. Later lines work on what earlier ones left.
//!
//! A line that this version cannot enforce makes the list narrower, never wider, and is reported.

use sg_model::{Acl, AclEntry, Action};

/// A file that was read.
#[derive(Debug)]
pub struct AclFile {
    /// The list that the lines make.
    pub acl: Acl,
    /// Lines that had no effect: number from 1, and why.
    pub ignored: Vec<(usize, String)>,
}

/// A line that cannot be understood. Whoever wrote the file is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct AclFileError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// Reads the text of a file.
///
/// # Errors
/// The first line that is no command, or whose target is none.
pub fn parse(text: &str) -> Result<AclFile, AclFileError> {
    let mut reader = Reader::default();
    for (number, line) in (1..).zip(text.lines()) {
        // Editors on other systems begin a file with this mark.
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let problem = |problem| AclFileError {
            line: number,
            problem,
        };
        if let Some(why) = reader.apply(line).map_err(problem)? {
            reader.ignored.push((number, why));
        }
    }
    reader.finish().map_err(|problem| AclFileError {
        line: text.lines().count(),
        problem,
    })
}

#[derive(Default)]
struct Reader {
    acl: Acl,
    /// Targets that have rules with a path. Such a rule narrows the one without; as it cannot be
    /// enforced yet, the target is denied.
    with_path: Vec<AclEntry>,
    ignored: Vec<(usize, String)>,
}

impl Reader {
    /// Applies one command; answers why it does less than it says, if it does.
    fn apply(&mut self, line: &str) -> Result<Option<String>, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let lower: Vec<String> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        match (lower.as_slice(), words.as_slice()) {
            (["acl", "allow", _] | ["allow", _], [.., target]) => self.allow(target),
            (["acl", "allow", _, path], [.., target, _]) if path.starts_with('/') => {
                self.allow_path(target)
            }
            (["acl", "deny", _] | ["deny", _], [.., target]) => {
                let entry = entry(Action::Deny, target)?;
                self.acl.add(entry).map_err(|error| error.to_string())?;
                Ok(None)
            }
            (["no", "acl", _], [.., target]) => {
                let (target, path) = split_path(target);
                let entry = entry(Action::Deny, target)?;
                self.with_path.retain(|other| !other.same_target(&entry));
                if path.is_none() {
                    self.acl.remove(&entry);
                }
                Ok(None)
            }
            (["no", "acl"], _) => {
                self.acl.reset();
                self.with_path.clear();
                Ok(None)
            }
            (["show", "acl"], _) => Ok(Some("`show acl` is for the console".to_owned())),
            _ => Err(format!("'{}' is no command", line.escape_debug())),
        }
    }

    fn allow(&mut self, target: &str) -> Result<Option<String>, String> {
        if let (target, Some(_)) = split_path(target) {
            return self.allow_path(target);
        }
        self.acl
            .add(entry(Action::Allow, target)?)
            .map_err(|error| error.to_string())?;
        Ok(None)
    }

    fn allow_path(&mut self, target: &str) -> Result<Option<String>, String> {
        let entry = entry(Action::Deny, target)?;
        let why = format!(
            "rules with a path are not enforced yet, so {} is denied",
            entry.target()
        );
        self.with_path.push(entry);
        Ok(Some(why))
    }

    fn finish(mut self) -> Result<AclFile, String> {
        for entry in self.with_path {
            self.acl.add(entry).map_err(|error| error.to_string())?;
        }
        Ok(AclFile {
            acl: self.acl,
            ignored: self.ignored,
        })
    }
}

fn entry(action: Action, target: &str) -> Result<AclEntry, String> {
    AclEntry::parse(action, target).map_err(|error| error.to_string())
}

fn split_path(target: &str) -> (&str, Option<&str>) {
    match target.split_once('/') {
        Some((target, path)) => (target, Some(path)),
        None => (target, None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn allowed(text: &str, target: &str) -> bool {
        parse(text)
            .unwrap()
            .acl
            .decide(&target.parse().unwrap())
            .allowed
    }

    #[test]
    fn every_form_of_a_line_is_read() {
        let text = "\u{feff}# comment\r\n\r\n  ACL Allow db.example:5432\r\nacl deny db.example:22\nacl allow :80\nallow [::1]:443\nacl allow web\n";
        for (target, expected) in [
            ("db.example:5432", true),
            ("DB.example:22", false),
            ("anything:80", true),
            ("[::1]:443", true),
            ("web:1", true),
            ("db.example:1", false),
        ] {
            assert_eq!(allowed(text, target), expected, "{target}");
        }
    }

    #[test]
    fn an_empty_file_denies_and_everything_can_be_allowed_and_taken_back() {
        assert!(!allowed("", "a:1"));
        assert!(allowed("acl allow :", "a:1"));
        assert!(!allowed("acl allow :\nacl allow b:1", "a:1"));
        assert!(!allowed("acl allow a:1\nno acl a:1", "a:1"));
        assert!(!allowed("acl allow :\nno acl", "a:1"));
    }

    #[test]
    fn a_rule_with_a_path_denies_its_target_and_is_reported() {
        for text in [
            "acl allow a:80/my/api",
            "acl allow a:80 /my/api\nacl allow a:80\nacl allow a:",
        ] {
            let file = parse(text).unwrap();
            assert!(!file.acl.decide(&"a:80".parse().unwrap()).allowed, "{text}");
            assert_eq!((file.ignored.len(), file.ignored[0].0), (1, 1), "{text}");
        }
        assert!(allowed(
            "acl allow a:80/x\nacl allow a:\nno acl a:80",
            "a:80"
        ));
        assert!(parse("acl deny a:80/x").is_err());
    }

    #[test]
    fn an_error_names_the_line() {
        for (text, line) in [
            ("acl allow a:1\nacl permit b:1", 2),
            ("acl allow a:99999", 1),
            ("\n\nacl", 3),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text}");
        }
    }
}
