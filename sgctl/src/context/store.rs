//! The file with the contexts: `secure-gateway/contexts.toml` in the user's configuration folder
//! (`XDG_CONFIG_HOME`, else `~/.config`), readable by its owner only. It holds no secret, only where
//! secrets are; still nobody else needs to know which installations somebody operates.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sg_runtime::files;
use tonic::Code;

use crate::failure::Failure;

/// Where one installation is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Context {
    pub(crate) server: Option<String>,
    pub(crate) ca: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
}

/// All contexts of this user.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    #[serde(rename = "current")]
    current_name: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

impl Contexts {
    pub(crate) fn get(&self, name: &str) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            Failure::new(
                Code::NotFound,
                "CONTEXT_NOT_FOUND",
                format!("there is no context '{name}'"),
            )
            .hint("sgctl context list")
        })
    }

    pub(crate) fn current(&self) -> Option<(&str, &Context)> {
        let name = self.current_name.as_deref()?;
        self.contexts.get(name).map(|context| (name, context))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Context)> {
        self.contexts
            .iter()
            .map(|(name, context)| (name.as_str(), context))
    }

    /// Adds or replaces; the first context becomes the current one.
    pub(crate) fn put(&mut self, name: &str, context: Context) {
        self.contexts.insert(name.to_owned(), context);
        if self.current().is_none() {
            self.current_name = Some(name.to_owned());
        }
    }

    pub(crate) fn set_current(&mut self, name: &str) -> Result<(), Failure> {
        self.get(name)?;
        self.current_name = Some(name.to_owned());
        Ok(())
    }

    pub(crate) fn remove(&mut self, name: &str) -> Result<Context, Failure> {
        let context = self.get(name)?.clone();
        self.contexts.remove(name);
        if self.current_name.as_deref() == Some(name) {
            self.current_name = None;
        }
        Ok(context)
    }
}

/// Reads the file; an absent one has no contexts.
pub(crate) fn load() -> Result<Contexts, Failure> {
    let Some(path) = path() else {
        return Ok(Contexts::default());
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).map_err(|error| {
            Failure::usage(format!(
                "{} cannot be read: {}",
                path.display(),
                error.message()
            ))
            .hint("correct or remove that file")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Contexts::default()),
        Err(error) => Err(Failure::local(
            format!("cannot read {}", path.display()),
            &error,
        )),
    }
}

/// Writes the file whole.
pub(crate) fn save(contexts: &Contexts) -> Result<(), Failure> {
    let path = path().ok_or_else(|| {
        Failure::usage("there is no place for contexts: neither XDG_CONFIG_HOME nor HOME is set")
    })?;
    let text = toml::to_string(contexts)
        .map_err(|error| Failure::local("cannot write the contexts as TOML", &error))?;
    let written = match path.parent() {
        Some(folder) => files::create_private_dir(folder),
        None => Ok(()),
    };
    written
        .and_then(|()| files::write_atomic(&path, text.as_bytes(), files::PRIVATE))
        .map_err(|error| Failure::local(format!("cannot write {}", path.display()), &error))
}

/// A relative `XDG_CONFIG_HOME` is ignored, as its specification says.
fn path() -> Option<PathBuf> {
    let folder = |variable: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base =
        folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")))?;
    Some(base.join("secure-gateway").join("contexts.toml"))
}
