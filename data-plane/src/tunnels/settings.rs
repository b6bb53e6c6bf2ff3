//! The settings of tunnels: one copy for all that have the same resume time, not one for each tunnel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sg_tunnel_io::Config;

/// Settings that differ in nothing but the resume time, for as long as a tunnel has them.
#[derive(Debug)]
pub(super) struct Settings {
    /// What all have alike.
    config: Config,
    known: Mutex<HashMap<Duration, Weak<Config>>>,
}

impl Settings {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            known: Mutex::default(),
        }
    }

    /// Those with this resume time.
    pub(super) fn of(&self, resume_time: Duration) -> Arc<Config> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(settings) = known.get(&resume_time).and_then(Weak::upgrade) {
            return settings;
        }
        known.retain(|_, settings| settings.strong_count() > 0);
        let settings = Arc::new(Config {
            resume_time,
            ..self.config.clone()
        });
        known.insert(resume_time, Arc::downgrade(&settings));
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_those_of_their_resume_time_and_go_with_their_last_tunnel() {
        let config = Config::default();
        let budget = Arc::clone(&config.budget);
        let known = Settings::new(config);
        let seconds = |count| known.of(Duration::from_secs(count));
        let (one, same, other) = (seconds(1), seconds(1), seconds(2));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        assert_eq!(other.resume_time, Duration::from_secs(2));
        assert!(Arc::ptr_eq(&one.budget, &budget) && Arc::ptr_eq(&other.budget, &budget));
        drop((one, same));
        let _third = seconds(3);
        let known = known.known.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(known.len(), 2);
    }
}
