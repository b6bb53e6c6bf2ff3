//! One run of a command: its settings, its deadline, its connection.

use std::time::Duration;

use tokio::time::Instant;

use crate::cli::Global;
use crate::connection::Api;
use crate::failure::Failure;
use crate::output::{self, Format, Resource};
use crate::settings::Settings;

#[derive(Debug)]
pub(crate) struct Session {
    settings: Settings,
    started: Instant,
}

impl Session {
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        Ok(Self {
            settings: Settings::read(global)?,
            started: Instant::now(),
        })
    }

    pub(crate) fn format(&self) -> Format {
        self.settings.format
    }

    /// When the time of the whole command ends.
    pub(crate) fn deadline(&self) -> Instant {
        self.started + self.settings.timeout
    }

    /// When a wait of this length ends, counted from the start of the command.
    pub(crate) fn after(&self, duration: Duration) -> Instant {
        self.started + duration
    }

    /// The API of the control planes that the settings name.
    pub(crate) fn api(&self) -> Result<Api, Failure> {
        Api::new(&self.settings.target()?, self.deadline())
    }

    pub(crate) fn one(&self, resource: &impl Resource) -> Result<(), Failure> {
        output::one(self.format(), resource, false)
    }

    pub(crate) fn one_with_details(&self, resource: &impl Resource) -> Result<(), Failure> {
        output::one(self.format(), resource, true)
    }

    pub(crate) fn list(&self, resources: &[impl Resource]) -> Result<(), Failure> {
        output::list(self.format(), resources)
    }

    /// What was deleted: data for scripts, a remark for people.
    pub(crate) fn deleted(&self, kind: &str, resource: &impl Resource) -> Result<(), Failure> {
        self.gone(kind, resource, "deleted")
    }

    /// As [`Session::deleted`], in the word of the command.
    pub(crate) fn gone(
        &self,
        kind: &str,
        resource: &impl Resource,
        how: &str,
    ) -> Result<(), Failure> {
        match self.format() {
            Format::Table | Format::Wide => {
                output::note(&format!("{kind} {} {how}", resource.reference()));
                Ok(())
            }
            Format::Json | Format::Yaml | Format::Name => self.one(resource),
        }
    }
}
