//! Commands that a person types at the client's console: Secure Gateway's letters and their long forms. Unlike the
//! lines of a file they are case-sensitive, because the letters of other commands differ from these in nothing else.

use std::path::PathBuf;

use super::AclCommand;
use crate::Invalid;

/// What a person asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleCommand {
    /// `A`, `D`, `N`, `S`: change the list, or show it.
    Acl(AclCommand),
    /// `F FILE`: replace the list by the lines of a file.
    File(PathBuf),
    /// `help`.
    Help,
    /// `q`.
    Quit,
}

impl ConsoleCommand {
    /// What `help` prints.
    pub const HELP: &'static str = "\
A  acl allow HOST:PORT[/PATH]   let clients reach it
D  acl deny HOST:PORT           keep them from it
N  no acl [HOST:PORT[/PATH]]    take back what is said of it; alone: empty the list, which denies everything
S  show acl                     show the list
F  acl file FILE                replace the list by the lines of a file
   help                         show this
q  quit                         end the client
";

    /// Reads one line; `None` for a blank one.
    ///
    /// # Errors
    /// When it is no command, or its target is none.
    pub fn parse(line: &str) -> Result<Option<Self>, Invalid> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let long = |prefix: &str| {
            let rest = line.strip_prefix(prefix)?;
            (rest.is_empty() || rest.starts_with(char::is_whitespace)).then(|| rest.trim())
        };
        // The long form that a letter stands for, or the one that was typed.
        let command = match word {
            "" => return Ok(None),
            "A" => format!("acl allow {rest}"),
            "D" => format!("acl deny {rest}"),
            "N" => format!("no acl {rest}"),
            "S" => format!("show acl {rest}"),
            "F" => return file(rest),
            "help" if rest.is_empty() => return Ok(Some(Self::Help)),
            "q" | "quit" if rest.is_empty() => return Ok(Some(Self::Quit)),
            _ => match long("acl file") {
                Some(path) => return file(path),
                None if ["acl allow", "acl deny", "no acl", "show acl"]
                    .iter()
                    .any(|form| long(form).is_some()) =>
                {
                    line.to_owned()
                }
                None => return Err(unknown(line)),
            },
        };
        match AclCommand::parse(&command)? {
            Some(command) => Ok(Some(Self::Acl(command))),
            None => Err(unknown(line)),
        }
    }
}

fn file(path: &str) -> Result<Option<ConsoleCommand>, Invalid> {
    if path.is_empty() {
        return Err(Invalid::new("file", "write F FILE"));
    }
    Ok(Some(ConsoleCommand::File(path.into())))
}

fn unknown(line: &str) -> Invalid {
    let problem = format!("'{}' is no command; help lists them", line.escape_debug());
    Invalid::new("command", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_long_forms_mean_the_same() {
        for (short, long) in [
            ("A db:5432", "acl allow db:5432"),
            (" A  web:80/api ", "acl allow web:80 /api"),
            ("D :22", "acl deny :22"),
            ("N db:5432", "no acl db:5432"),
            ("N", "no acl"),
            ("S", "show acl"),
            ("F /etc/my list.acl", "acl file /etc/my list.acl"),
            ("q", "quit"),
        ] {
            let short = ConsoleCommand::parse(short).unwrap();
            assert_eq!(short, ConsoleCommand::parse(long).unwrap(), "{long}");
            assert!(short.is_some(), "{long}");
        }
        assert_eq!(ConsoleCommand::parse("  "), Ok(None));
    }

    #[test]
    fn what_differs_in_case_is_another_command() {
        for bad in [
            "a db:1",
            "d db:1",
            "n",
            "s",
            "f x",
            "Q",
            "HELP",
            "ACL allow db:1",
            "acl Allow db:1",
            "A",
            "D",
            "F",
            "A db:1 x",
            "D db:1/x",
            "S all",
            "Adb:1",
            "acl",
            "acl filex",
            "help me",
        ] {
            assert!(ConsoleCommand::parse(bad).is_err(), "{bad}");
        }
    }
}
