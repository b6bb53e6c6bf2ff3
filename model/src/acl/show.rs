//! How a list is shown to people, by the console and by `sgctl` alike.

use super::{Acl, Action};
use crate::{PathPrefix, PrefixMode};

impl Acl {
    /// What happens to the unlisted, and a table: number, host and port, path, value.
    #[must_use]
    pub fn show(&self) -> String {
        let unlisted = match self.unlisted {
            Action::Allow => "allowed",
            Action::Deny => "denied",
        };
        let mut text = format!("Connections to unlisted rules are currently: {unlisted}\n");
        if self.path_prefix == PrefixMode::Text {
            text.push_str("Paths are compared as text, not by segments\n");
        }
        if self.entries.is_empty() {
            return text;
        }
        let mut rows = vec![["#", "HOSTNAME:PORT", "PATH", "VALUE"].map(str::to_owned)];
        for (number, entry) in (1..).zip(&self.entries) {
            let path = entry.path.as_ref().map_or("-", PathPrefix::as_str);
            rows.push([
                format!("{number}"),
                entry.target(),
                path.to_owned(),
                entry.action.to_string(),
            ]);
        }
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let (number, target, path) = (width(0), width(1), width(2));
        text.push('\n');
        for [n, t, p, value] in &rows {
            text.push_str(&format!(
                "{n:<number$}  {t:<target$}  {p:<path$}  {value}\n"
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use crate::AclFile;

    #[test]
    fn a_list_is_a_table_with_numbers() {
        let shown = |text: &str| AclFile::parse(text).unwrap().acl.show();
        assert_eq!(
            shown("acl allow web:80/api\nacl deny [::1]:\n"),
            "Connections to unlisted rules are currently: denied\n\
             \n\
             #  HOSTNAME:PORT  PATH  VALUE\n\
             1  web:80         /api  allow\n\
             2  [::1]:         -     deny\n"
        );
        assert_eq!(
            shown("acl allow :"),
            "Connections to unlisted rules are currently: allowed\n"
        );
    }
}
