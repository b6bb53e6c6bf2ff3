//! What the figures were measured on, as far as it changes them. It reads the system's own words and judges nothing.

use std::fs;

use serde_json::{Value, json};

/// Processor, kernel and settings that figures depend on; a word that the system does not say is empty.
#[derive(Debug)]
pub(crate) struct Machine {
    processors: usize,
    /// The first one's name, and which instructions for AES it has.
    model: String,
    aes: Vec<&'static str>,
    kernel: String,
    congestion_control: String,
}

/// The first selects code of the record layer, the second another (`docs/decisions/0008`).
const AES: [&str; 2] = ["vaes", "avx512f"];

impl Machine {
    pub(crate) fn this() -> Self {
        let cpuinfo = said("/proc/cpuinfo");
        let value = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or("", |(_, value)| value.trim()).to_owned()
        };
        let flags = value("flags");
        Self {
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            model: value("model name"),
            aes: AES
                .into_iter()
                .filter(|name| flags.split(' ').any(|flag| flag == *name))
                .collect(),
            kernel: said("/proc/sys/kernel/osrelease"),
            congestion_control: said("/proc/sys/net/ipv4/tcp_congestion_control"),
        }
    }

    pub(crate) fn line(&self) -> String {
        format!(
            "on {} x {} ({}), Linux {}, congestion control {}\n",
            self.processors,
            self.model,
            self.aes.join(", "),
            self.kernel,
            self.congestion_control
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "processors": self.processors,
            "model": self.model,
            "aes": self.aes,
            "kernel": self.kernel,
            "congestion_control": self.congestion_control,
        })
    }
}

fn said(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_named() {
        let machine = Machine::this();
        assert!(machine.processors > 0);
        for word in [&machine.kernel, &machine.congestion_control] {
            assert!(!word.is_empty() && machine.line().contains(word.as_str()));
        }
        assert_eq!(
            machine.json()["congestion_control"],
            machine.congestion_control
        );
    }
}
