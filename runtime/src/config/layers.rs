//! How the layers become one command line: what the flags leave open is filled in from the
//! environment and then from the file, as further arguments, and clap parses the whole again. So
//! types, checks and error texts are the same wherever a value comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::error::{ConfigError, Invalid};
use super::file::{self, Values};

const CONFIG: &str = "config";

/// Adds the variable to the help of every flag.
pub(super) fn document_environment(command: Command) -> Command {
    command.mut_args(|arg| {
        // A name of its own comes before the one that every flag has.
        let own = arg.get_env().and_then(OsStr::to_str).map(str::to_owned);
        match (own.or_else(|| variable(&arg)), arg.get_help().cloned()) {
            (Some(name), Some(help)) => arg.help(format!("{help} [env: {name}]")),
            _ => arg,
        }
    })
}

/// Parses the arguments with all layers under them.
pub(super) fn merge(
    command: Command,
    arguments: &[OsString],
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<ArgMatches, ConfigError> {
    let mut built = command.clone();
    built.build();
    let Some(given) = given_on_command_line(&command, arguments) else {
        // Help, version, or nothing that can be made sense of: clap says what.
        return command
            .try_get_matches_from(arguments)
            .map_err(ConfigError::Usage);
    };
    let mut filled = Filled::new(&built, given.keys().cloned().collect());
    for arg in built.get_arguments() {
        filled.add_environment(arg, environment)?;
    }
    let path = given
        .get(CONFIG)
        .cloned()
        .flatten()
        .or_else(|| filled.value_of(CONFIG));
    if let Some(path) = path.map(PathBuf::from) {
        filled.add_file(&path, file::read(&path)?)?;
    }
    let all = filled.arguments(arguments);
    command
        .try_get_matches_from(all)
        .map_err(|error| filled.explain(error))
}

/// The ids of the arguments given as flags, with the value of `--config`. `None` if clap would
/// print help or the version.
fn given_on_command_line(
    command: &Command,
    arguments: &[OsString],
) -> Option<BTreeMap<String, Option<OsString>>> {
    let lenient = command.clone().ignore_errors(true);
    let matches = lenient.try_get_matches_from(arguments).ok()?;
    let given = matches.ids().map(|id| id.as_str()).filter(|id| {
        // Ids of groups have no value source of their own kind to trust, but no flag either.
        matches.value_source(id) == Some(ValueSource::CommandLine)
    });
    let path = || {
        matches
            .try_get_one::<PathBuf>(CONFIG)
            .ok()
            .flatten()
            .map(OsString::from)
    };
    Some(
        given
            .map(|id| (id.to_owned(), if id == CONFIG { path() } else { None }))
            .collect(),
    )
}

/// Flags that a person can set; not `--help` and its like.
fn settable(arg: &Arg) -> bool {
    !matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    )
}

fn key(arg: &Arg) -> Option<String> {
    if !settable(arg) {
        return None;
    }
    match (arg.get_long(), arg.is_positional()) {
        (Some(long), _) => Some(long.to_owned()),
        (None, true) => Some(arg.get_id().as_str().replace('_', "-")),
        (None, false) => None,
    }
}

fn variable(arg: &Arg) -> Option<String> {
    key(arg).map(|key| format!("SG_{}", key.replace('-', "_").to_uppercase()))
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
        || arg
            .get_num_args()
            .is_some_and(|range| range.max_values() > 1)
}

/// What the weaker layers add.
struct Filled<'a> {
    command: &'a Command,
    /// Ids that have a value by now.
    set: BTreeSet<String>,
    /// Ids of switches that a layer has put off, so that a weaker one does not put them on.
    off: BTreeSet<String>,
    /// Id, where the value stands, and the values.
    added: Vec<Added<'a>>,
}

struct Added<'a> {
    arg: &'a Arg,
    place: String,
    values: Vec<OsString>,
}

impl<'a> Filled<'a> {
    const fn new(command: &'a Command, set: BTreeSet<String>) -> Self {
        Self {
            command,
            set,
            off: BTreeSet::new(),
            added: Vec::new(),
        }
    }

    fn value_of(&self, id: &str) -> Option<OsString> {
        let added = self.added.iter().find(|added| added.arg.get_id() == id)?;
        added.values.first().cloned()
    }

    fn add_environment(
        &mut self,
        arg: &'a Arg,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(), ConfigError> {
        let Some(generic) = variable(arg) else {
            return Ok(());
        };
        let own = arg.get_env().and_then(OsStr::to_str).map(str::to_owned);
        let names = own.into_iter().chain([generic]);
        // An empty variable is one that is not set: that is how scripts clear them.
        let found = names.into_iter().find_map(|name| {
            environment(&name)
                .filter(|value| !value.is_empty())
                .map(|value| (name, value))
        });
        let Some((name, value)) = found else {
            return Ok(());
        };
        let values = match value.to_str() {
            Some(text) if is_list(arg) => text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(Into::into)
                .collect(),
            _ => vec![value],
        };
        self.add(arg, name, values)
    }

    fn add_file(&mut self, path: &Path, mut values: Values) -> Result<(), ConfigError> {
        let command = self.command;
        for arg in command.get_arguments().filter(|arg| arg.get_id() != CONFIG) {
            let Some(key) = key(arg) else { continue };
            let Some(texts) = values.remove(&key) else {
                continue;
            };
            let place = format!("key `{key}` in {}", path.display());
            if texts.len() != 1 && !is_list(arg) {
                let remedy = "give one value";
                let problem = "an array is not possible here";
                return Err(Invalid::new(place, texts.join(","), problem, remedy).into());
            }
            self.add(arg, place, texts.into_iter().map(Into::into).collect())?;
        }
        match values.pop_first() {
            None => Ok(()),
            Some((key, texts)) => {
                let place = format!("key `{key}` in {}", path.display());
                let remedy = self.remedy_for_unknown(&key);
                Err(Invalid::new(place, texts.join(","), "no such key", remedy).into())
            }
        }
    }

    fn remedy_for_unknown(&self, unknown: &str) -> String {
        let keys = self
            .command
            .get_arguments()
            .filter(|arg| arg.get_id() != CONFIG)
            .filter_map(key);
        let nearest = keys.map(|key| (distance(&key, unknown), key)).min();
        match nearest {
            Some((distance, key)) if distance <= 3 => format!("did you mean `{key}`?"),
            _ => "keys are the names of the flags in --help; remove it".to_owned(),
        }
    }

    /// True if a stronger layer has set this argument, or one that excludes it. Clap knows an
    /// exclusion only by the side that declares it.
    fn is_overruled(&self, arg: &Arg) -> bool {
        let excludes = |one: &Arg, other: &Arg| {
            self.command
                .get_arg_conflicts_with(one)
                .iter()
                .any(|found| found.get_id() == other.get_id())
        };
        self.command
            .get_arguments()
            .filter(|other| self.set.contains(other.get_id().as_str()))
            .any(|other| {
                other.get_id() == arg.get_id() || excludes(arg, other) || excludes(other, arg)
            })
    }

    fn add(
        &mut self,
        arg: &'a Arg,
        place: String,
        values: Vec<OsString>,
    ) -> Result<(), ConfigError> {
        let id = arg.get_id().as_str();
        if values.is_empty() || self.off.contains(id) || self.is_overruled(arg) {
            return Ok(());
        }
        if is_switch(arg) {
            let text = values
                .first()
                .map(|value| value.to_string_lossy().to_lowercase());
            match text.as_deref() {
                Some("true" | "1" | "yes" | "on") => {}
                Some("false" | "0" | "no" | "off") => {
                    self.off.insert(id.to_owned());
                    return Ok(());
                }
                other => {
                    let value = other.unwrap_or_default().to_owned();
                    return Err(Invalid::new(
                        place,
                        value,
                        "not a truth value",
                        "write true or false",
                    )
                    .into());
                }
            }
        }
        self.set.insert(id.to_owned());
        self.added.push(Added { arg, place, values });
        Ok(())
    }

    /// The command line with everything filled in: flags before the given ones, because after
    /// `--` they would be no flags, positional arguments after them.
    fn arguments(&self, given: &[OsString]) -> Vec<OsString> {
        let (program, rest) = given
            .split_first()
            .map_or((None, given), |(first, rest)| (Some(first), rest));
        let mut all: Vec<OsString> = program.cloned().into_iter().collect();
        let mut positional = Vec::new();
        for Added { arg, values, .. } in &self.added {
            match arg.get_long() {
                None => positional.extend(values.iter().cloned()),
                Some(long) if is_switch(arg) => all.push(format!("--{long}").into()),
                Some(long) => all.extend(values.iter().map(|value| {
                    let mut argument = OsString::from(format!("--{long}="));
                    argument.push(value);
                    argument
                })),
            }
        }
        all.extend(rest.iter().cloned());
        if !positional.is_empty() {
            if !rest.iter().any(|argument| argument == "--") {
                all.push("--".into());
            }
            all.extend(positional);
        }
        all
    }

    /// Says where a refused value stands, if it was not on the command line.
    fn explain(&self, error: clap::Error) -> ConfigError {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            _ => None,
        };
        let refused = context(ContextKind::InvalidArg);
        let value = context(ContextKind::InvalidValue);
        let added = self
            .added
            .iter()
            .find(|added| refused.as_deref() == Some(&added.arg.to_string()));
        let (Some(added), Some(value)) = (added, value) else {
            return ConfigError::Usage(error);
        };
        let problem = std::error::Error::source(&error)
            .map_or_else(|| "not a possible value".to_owned(), ToString::to_string);
        let remedy = match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                format!("possible are: {}", valid.join(", "))
            }
            _ => format!("see {} in --help", added.arg),
        };
        Invalid::new(&added.place, value, problem, remedy).into()
    }
}

/// Levenshtein's distance, to guess which key was meant.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.iter().enumerate() {
            let cost = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}
