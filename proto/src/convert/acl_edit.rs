//! Changes of lists that clients ask for, on their way up, and what became of them, on the way down.

use sg_model::{AclEdit, AclEntry, AclVersion, Action, Invalid};

use super::acl::Fields;
use crate::node as wire;
use crate::node::acl_change::Change;

/// Longest encoded change that a client may send, in bytes.
pub const LONGEST_EDIT: usize = 1024 * 1024;
/// Bytes of a request id.
pub const REQUEST_ID: usize = 16;

impl From<&AclEdit> for wire::AclChange {
    fn from(edit: &AclEdit) -> Self {
        let change = match edit {
            AclEdit::Add(entry) => Change::Add(entry.into()),
            AclEdit::Remove(target) => Change::Remove(target.into()),
            AclEdit::Reset => Change::Reset(wire::AclReset {}),
            AclEdit::Replace { entries, unlisted } => Change::Replace(wire::AclReplacement {
                entries: entries.iter().map(wire::AclEntry::from).collect(),
                unlisted: unlisted.to_string(),
            }),
        };
        Self {
            change: Some(change),
        }
    }
}

impl TryFrom<&wire::AclChange> for AclEdit {
    type Error = Invalid;

    fn try_from(change: &wire::AclChange) -> Result<Self, Invalid> {
        let entry = |entry: &wire::AclEntry| AclEntry::try_from(Fields::from(entry));
        match &change.change {
            Some(Change::Add(added)) => entry(added).map(Self::Add),
            Some(Change::Remove(target)) => {
                let target = wire::AclEntry {
                    action: Action::Allow.to_string(),
                    ..target.clone()
                };
                entry(&target).map(Self::Remove)
            }
            Some(Change::Reset(wire::AclReset {})) => Ok(Self::Reset),
            Some(Change::Replace(all)) => {
                let list = super::acl::list(
                    AclVersion::default(),
                    all.entries.iter().map(Fields::from),
                    &all.unlisted,
                    "",
                )?;
                Ok(Self::replace_by(list))
            }
            None => Err(Invalid::new(
                "change",
                "is of a newer version, or there is none",
            )),
        }
    }
}

impl wire::AclEditResult {
    /// The change is made, or was not needed.
    #[must_use]
    pub fn done(version: AclVersion, changed: bool) -> Self {
        Self {
            epoch: version.epoch,
            generation: version.generation,
            changed,
            ..Self::default()
        }
    }

    /// It is not, and why.
    pub fn refused(reason: &str, message: impl Into<String>, retry: bool) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
            retry,
            ..Self::default()
        }
    }

    /// The version of the list, if the change was not refused.
    #[must_use]
    pub fn version(&self) -> Option<AclVersion> {
        self.reason.is_empty().then_some(AclVersion {
            epoch: self.epoch,
            generation: self.generation,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::{AclCommand, AclFile};

    use super::*;

    #[test]
    fn changes_round_trip() {
        for line in [
            "allow db:1-2",
            "deny 10.0.0.0/8:",
            "no acl web:80/x",
            "no acl",
        ] {
            let command = AclCommand::parse(line).unwrap().unwrap();
            let edit = AclEdit::of(&command).unwrap();
            let read = AclEdit::try_from(&wire::AclChange::from(&edit));
            assert_eq!(read, Ok(edit), "{line}");
        }
        let text = "acl deny a:1\nacl allow b:1/x\nacl allow :\n";
        let edit = AclEdit::replace_by(AclFile::parse(text).unwrap().acl);
        assert_eq!(AclEdit::try_from(&wire::AclChange::from(&edit)), Ok(edit));
    }

    #[test]
    fn what_is_not_understood_is_no_change() {
        let strange = wire::AclEntry {
            action: "allow-on-mondays".to_owned(),
            host: "db".to_owned(),
            ..wire::AclEntry::default()
        };
        for change in [
            None,
            Some(Change::Add(strange.clone())),
            Some(Change::Replace(wire::AclReplacement {
                entries: vec![strange],
                unlisted: "deny".to_owned(),
            })),
            Some(Change::Replace(wire::AclReplacement::default())),
        ] {
            assert!(AclEdit::try_from(&wire::AclChange { change }).is_err());
        }
    }
}
