//! Changes of a list by a person at a client: one command of the console, or the whole list.

use super::{Acl, AclCommand, AclEntry, Action};
use crate::Invalid;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AclEdit {
    /// Adds an entry; see [`Acl::add`].
    Add(AclEntry),
    /// Takes back what is said of a target; see [`Acl::remove`]. The action does not count.
    Remove(AclEntry),
    /// Empties the list, which denies everything.
    Reset,
    /// Replaces all entries. How paths are compared stays as it is.
    Replace {
        /// The entries in their order.
        entries: Vec<AclEntry>,
        /// What happens to targets that no entry names.
        unlisted: Action,
    },
}

impl AclEdit {
    /// The change that a command asks for; `None`: it asks for none.
    #[must_use]
    pub fn of(command: &AclCommand) -> Option<Self> {
        match command {
            AclCommand::Add(entry) => Some(Self::Add(entry.clone())),
            AclCommand::Remove(target) => Some(Self::Remove(target.clone())),
            AclCommand::Reset => Some(Self::Reset),
            AclCommand::Show => None,
        }
    }

    /// The change that makes a list out of any other.
    #[must_use]
    pub fn replace_by(acl: Acl) -> Self {
        Self::Replace {
            entries: acl.entries,
            unlisted: acl.unlisted,
        }
    }
}

impl Acl {
    /// Makes the change; returns whether anything is different now. The version stays, and so does the list when the
    /// change is refused.
    ///
    /// # Errors
    /// When the list is full, or entries of a replacement contradict each other.
    pub fn edit(&mut self, edit: &AclEdit) -> Result<bool, Invalid> {
        match edit {
            AclEdit::Add(entry) => self.add(entry.clone()),
            AclEdit::Remove(target) => Ok(self.remove(target)),
            AclEdit::Reset => self.apply(&AclCommand::Reset),
            AclEdit::Replace { entries, unlisted } => {
                let mut next = Self {
                    version: self.version,
                    path_prefix: self.path_prefix,
                    ..Self::default()
                };
                for entry in entries {
                    next.take_over(entry)?;
                }
                next.unlisted = *unlisted;
                let changed = next != *self;
                *self = next;
                Ok(changed)
            }
        }
    }

    /// Adds an entry of a complete list, in which nothing stands twice and nothing replaces anything.
    fn take_over(&mut self, entry: &AclEntry) -> Result<(), Invalid> {
        let before = self.entries.len();
        let everything = entry.is_everything() && entry.path.is_none();
        if !everything {
            self.add(entry.clone())?;
        }
        if self.entries.len() == before + 1 {
            return Ok(());
        }
        let problem = if everything {
            "what is said of everything belongs into unlisted".to_owned()
        } else {
            format!("{entry} stands there twice, or contradicts another entry")
        };
        Err(Invalid::new("entries", problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AclFile;

    fn acl(text: &str) -> Acl {
        AclFile::parse(text).unwrap().acl
    }

    fn edit(line: &str) -> AclEdit {
        AclEdit::of(&AclCommand::parse(line).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn commands_change_a_list_as_they_do_at_the_console() {
        let mut list = acl("");
        for (line, changed, file) in [
            ("allow a:1", true, "acl allow a:1\n"),
            ("allow a:1", false, "acl allow a:1\n"),
            ("deny a:1", true, "acl deny a:1\n"),
            ("no acl b:1", false, "acl deny a:1\n"),
            ("allow :", true, "acl deny a:1\nacl allow :\n"),
            ("no acl a:1", true, "acl allow :\n"),
            ("no acl", true, ""),
            ("no acl", false, ""),
        ] {
            assert_eq!(list.edit(&edit(line)), Ok(changed), "{line}");
            assert_eq!(list.to_file(), file, "{line}");
        }
        assert_eq!(AclEdit::of(&AclCommand::Show), None);
    }

    #[test]
    fn a_whole_list_replaces_all_but_version_and_mode() {
        let mut list = acl("acl allow a:1\n");
        list.version.generation = 7;
        list.path_prefix = crate::PrefixMode::Text;
        let next = AclEdit::replace_by(acl("acl deny b:1\nacl allow c:1/x\n"));
        assert_eq!(list.edit(&next), Ok(true));
        assert_eq!(list.edit(&next), Ok(false));
        assert_eq!(list.to_file(), "acl deny b:1\nacl allow c:1/x\n");
        assert_eq!(list.version.generation, 7);
        assert_eq!(list.path_prefix, crate::PrefixMode::Text);
        let all = AclEdit::replace_by(acl("acl deny b:1\nacl allow :\n"));
        assert_eq!(list.edit(&all), Ok(true));
        assert_eq!(list.to_file(), "acl deny b:1\nacl allow :\n");
    }

    #[test]
    fn a_list_that_contradicts_itself_changes_nothing() {
        let entry = |line: &str| match AclCommand::parse(line) {
            Ok(Some(AclCommand::Add(entry))) => entry,
            other => panic!("{other:?}"),
        };
        for lines in [
            ["allow a:1", "deny a:1"],
            ["allow a:1", "allow a:1"],
            ["allow a:1", "allow :"],
        ] {
            let mut list = acl("acl allow z:1\n");
            let replace = AclEdit::Replace {
                entries: lines.iter().map(|line| entry(line)).collect(),
                unlisted: Action::Deny,
            };
            assert!(list.edit(&replace).is_err(), "{lines:?}");
            assert_eq!(list, acl("acl allow z:1\n"));
        }
    }
}
