//! The one grammar of lists: lines of files, commands of the client's console, and what `sgctl acl load` reads.
//!
//! ```text
//! acl allow TARGET [PATH]    acl deny TARGET    no acl [TARGET]    show acl    # comment
//! ```
//!
//! Keywords may be in any case. In a file the order of lines does not matter: deny beats allow on one target. Two
//! things are done in the order of lines, as Secure Gateway does them: `no acl`, and that an `acl allow TARGET`
//! takes an earlier `acl allow :` back.

use super::{Acl, AclEntry, Action};
use crate::Invalid;

/// What one line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AclCommand {
    /// `acl allow TARGET` or `acl deny TARGET`.
    Add(AclEntry),
    /// `no acl TARGET`: what is said of the target, or of one of its paths. The action does not count.
    Remove(AclEntry),
    /// `no acl`: empties the list, which denies everything.
    Reset,
    /// `show acl`, which changes nothing.
    Show,
}

impl AclCommand {
    /// Reads one line; `None` for one that is blank or a comment.
    ///
    /// # Errors
    /// When it is no command, or its target or path is none.
    pub fn parse(line: &str) -> Result<Option<Self>, Invalid> {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        // No target begins with this sign, so the rest is for people.
        if let Some(comment) = words.iter().position(|word| word.starts_with('#')) {
            words.truncate(comment);
        }
        let is = |at: usize, word: &str| {
            words
                .get(at)
                .is_some_and(|have| have.eq_ignore_ascii_case(word))
        };
        let arguments = |from: usize| words.get(from..).unwrap_or_default();
        let command = if words.is_empty() {
            return Ok(None);
        } else if is(0, "acl") && is(1, "allow") {
            add(Action::Allow, arguments(2), line)?
        } else if is(0, "acl") && is(1, "deny") {
            add(Action::Deny, arguments(2), line)?
        } else if is(0, "allow") {
            add(Action::Allow, arguments(1), line)?
        } else if is(0, "deny") {
            add(Action::Deny, arguments(1), line)?
        } else if is(0, "no") && is(1, "acl") {
            match arguments(2) {
                [] => Self::Reset,
                given => Self::Remove(entry(Action::Allow, given, line)?),
            }
        } else if is(0, "show") && is(1, "acl") && words.len() == 2 {
            Self::Show
        } else {
            return Err(no_command(line));
        };
        Ok(Some(command))
    }
}

fn add(action: Action, arguments: &[&str], line: &str) -> Result<AclCommand, Invalid> {
    entry(action, arguments, line).map(AclCommand::Add)
}

fn entry(action: Action, arguments: &[&str], line: &str) -> Result<AclEntry, Invalid> {
    match arguments {
        [target] => AclEntry::parse(action, target),
        [target, path] if path.starts_with('/') => AclEntry::parse_with_path(action, target, path),
        _ => Err(no_command(line)),
    }
}

fn no_command(line: &str) -> Invalid {
    let problem = format!(
        "'{}' is no command; write acl allow HOST:PORT[/PATH], acl deny HOST:PORT or no acl [HOST:PORT]",
        line.trim().escape_debug()
    );
    Invalid::new("command", problem)
}

/// A file that was read.
#[derive(Debug)]
pub struct AclFile {
    /// The list that the lines make.
    pub acl: Acl,
    /// For each entry of the list, the number of its line, from 1.
    pub lines: Vec<usize>,
    /// Lines that did less than they say, or undid another: number from 1, and what became of it.
    pub notes: Vec<(usize, String)>,
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

impl AclFile {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// The first line that is no command, or whose target is none.
    pub fn parse(text: &str) -> Result<Self, AclFileError> {
        let mut reader = Reader::default();
        for (number, line) in (1..).zip(text.lines()) {
            // Editors on other systems begin a file with this mark.
            let line = line.trim_start_matches('\u{feff}');
            let failed = |error: Invalid| AclFileError {
                line: number,
                problem: error.to_string(),
            };
            if let Some(command) = AclCommand::parse(line).map_err(failed)? {
                reader.apply(number, command).map_err(failed)?;
            }
        }
        let (lines, entries) = reader.entries.into_iter().unzip();
        Ok(Self {
            acl: Acl {
                entries,
                unlisted: reader.unlisted.unwrap_or(Action::Deny),
                ..Acl::default()
            },
            lines,
            notes: reader.notes,
        })
    }
}

/// A list while its lines are read, each entry with the number of its line.
#[derive(Default)]
struct Reader {
    entries: Vec<(usize, AclEntry)>,
    unlisted: Option<Action>,
    notes: Vec<(usize, String)>,
}

impl Reader {
    fn apply(&mut self, line: usize, command: AclCommand) -> Result<(), Invalid> {
        match command {
            AclCommand::Add(entry) if entry.action == Action::Deny => self.deny(line, entry),
            AclCommand::Add(entry) => self.allow(line, entry),
            AclCommand::Remove(target) => self.remove(line, &target),
            AclCommand::Reset => {
                self.entries.clear();
                self.unlisted = None;
            }
            AclCommand::Show => {
                let note = "`show acl` is for the console";
                self.notes.push((line, note.to_owned()));
            }
        }
        if self.entries.len() > Acl::MAX_ENTRIES {
            let problem = format!("a list has at most {} entries", Acl::MAX_ENTRIES);
            return Err(Invalid::new("entries", problem));
        }
        Ok(())
    }

    fn allow(&mut self, line: usize, entry: AclEntry) {
        if entry.is_everything() && entry.path.is_none() {
            self.unlisted = Some(Action::Allow);
            return;
        }
        if !entry.is_everything() && self.unlisted == Some(Action::Allow) {
            self.unlisted = None;
            let note = "takes `acl allow :` back, as a more specific `acl allow` does";
            self.notes.push((line, note.to_owned()));
        }
        let contradicts = |old: &AclEntry| old.action == Action::Deny && old.same_target(&entry);
        let first = self
            .entries
            .iter()
            .find(|(_, old)| *old == entry || contradicts(old));
        match first {
            None => self.entries.push((line, entry)),
            Some((first, old)) => {
                let note = match old.action {
                    Action::Allow => format!("line {first} says it already"),
                    Action::Deny => {
                        let target = entry.target();
                        format!("line {first} denies {target}, and deny beats allow")
                    }
                };
                self.notes.push((line, note));
            }
        }
    }

    fn deny(&mut self, line: usize, entry: AclEntry) {
        let note = format!(
            "line {line} denies {}, and deny beats allow",
            entry.target()
        );
        let beaten = |old: &AclEntry| old.action == Action::Allow && old.same_target(&entry);
        for (first, _) in self.entries.iter().filter(|(_, old)| beaten(old)) {
            self.notes.push((*first, note.clone()));
        }
        self.entries.retain(|(_, old)| !beaten(old));
        if entry.is_everything() {
            self.unlisted = Some(Action::Deny);
        } else if let Some((first, _)) = self.entries.iter().find(|(_, old)| *old == entry) {
            self.notes
                .push((line, format!("line {first} says it already")));
        } else {
            self.entries.push((line, entry));
        }
    }

    fn remove(&mut self, line: usize, target: &AclEntry) {
        let before = self.entries.len();
        self.entries.retain(|(_, old)| !old.falls_with(target));
        let everything = target.is_everything() && target.path.is_none();
        let was_said = everything && self.unlisted.take().is_some();
        if self.entries.len() == before && !was_said {
            let note = format!("nothing is said of {}", target.target_and_path());
            self.notes.push((line, note));
        }
    }
}

impl Acl {
    /// Applies one command of the console; returns whether anything changed.
    ///
    /// # Errors
    /// When the list is full.
    pub fn apply(&mut self, command: &AclCommand) -> Result<bool, Invalid> {
        match command {
            AclCommand::Add(entry) => self.add(entry.clone()),
            AclCommand::Remove(target) => Ok(self.remove(target)),
            AclCommand::Reset => {
                let changed = !self.entries.is_empty() || self.unlisted != Action::Deny;
                self.reset();
                Ok(changed)
            }
            AclCommand::Show => Ok(false),
        }
    }

    /// The list as a file that makes the same list again.
    #[must_use]
    pub fn to_file(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            text.push_str("acl ");
            text.push_str(&entry.to_string());
            text.push('\n');
        }
        // Last, as an entry that allows would take it back.
        if self.unlisted == Action::Allow {
            text.push_str("acl allow :\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(text: &str, target: &str) -> bool {
        let file = AclFile::parse(text).unwrap();
        file.acl.decide(&target.parse().unwrap()).allowed
    }

    #[test]
    fn every_form_of_a_line_is_read() {
        let text = "\u{feff}# comment\r\n\r\n  ACL Allow db.example:5432\r\nacl deny db.example:22\nacl allow :80 # all of them\nallow [::1]:443\nacl allow web\n";
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
        let file = AclFile::parse(text).unwrap();
        assert_eq!(file.lines, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn an_empty_file_denies_and_everything_can_be_allowed_and_taken_back() {
        assert!(!allowed("", "a:1"));
        assert!(allowed("acl allow :", "a:1"));
        assert!(allowed("acl allow :\nacl deny b:1", "a:1"));
        assert!(!allowed("acl allow :\nacl allow b:1", "a:1"));
        assert!(!allowed("acl allow :\nacl allow b:1/x", "a:1"));
        assert!(!allowed("acl allow :\nacl deny :", "a:1"));
        assert!(!allowed("acl deny :\nacl deny b:1", "a:1"));
        assert!(!allowed("acl allow a:1\nno acl a:1", "a:1"));
        assert!(!allowed("acl allow :\nno acl", "a:1"));
        assert!(!allowed("acl allow :\nno acl :", "a:1"));
    }

    #[test]
    fn the_order_of_lines_does_not_matter_and_deny_beats_allow() {
        for text in [
            "acl deny a:1\nacl allow a:1",
            "acl allow a:1\nacl deny a:1",
            "acl allow a:1/x\nacl deny a:1",
        ] {
            assert!(!allowed(text, "a:1"), "{text}");
            let file = AclFile::parse(text).unwrap();
            assert_eq!(file.acl.entries.len(), 1, "{text}");
            assert_eq!(file.notes.len(), 1, "{text}");
        }
    }

    #[test]
    fn an_error_names_the_line() {
        for (text, line) in [
            ("acl allow a:1\nacl permit b:1", 2),
            ("acl allow a:99999", 1),
            ("\n\nacl", 3),
            ("acl deny a:80/x", 1),
            ("acl allow a:80 x", 1),
            ("acl allow a:80/x /y", 1),
            ("acl allow", 1),
            ("acl allow # a:80", 1),
            ("show acl now", 1),
        ] {
            assert_eq!(AclFile::parse(text).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn lines_stay_with_their_entries() {
        let text = "acl allow a:1\nacl allow b:1/x\nacl allow b:1/y\nno acl b:1/x\nacl allow c:1\nacl deny a:1\n";
        let file = AclFile::parse(text).unwrap();
        assert_eq!(
            file.acl.to_file(),
            "acl allow b:1/y\nacl allow c:1\nacl deny a:1\n"
        );
        assert_eq!(file.lines, [3, 5, 6]);
        let again = AclFile::parse(&file.acl.to_file()).unwrap();
        assert_eq!(again.acl, file.acl);
    }
}
