//! Source rules: from where users may connect to a destination.
//!
//! A policy that does not restrict admits everybody. One that restricts admits whoever a living rule names, so with
//! no rule it admits nobody. A rule may have an owner, whose next rule replaces it (a program with a changing
//! address registers itself again at every start), and may expire.
//!
//! Start with [`SourcePolicy::admits`]. Not here: which address a user has. Behind a trusted balancer it is the one
//! that the balancer tells, elsewhere that of the connection.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::{Invalid, IpRange, PortRange, Timestamp};

const FIELD: &str = "source";

/// Addresses, ports, or both, that a user's connection may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceSpec {
    addresses: Option<IpRange>,
    ports: Option<PortRange>,
}

impl SourceSpec {
    /// These addresses (`None`: every address) and source ports (`None`: every port).
    ///
    /// # Errors
    /// When neither is given: whoever means everybody leaves the restriction off.
    pub fn new(addresses: Option<IpRange>, ports: Option<PortRange>) -> Result<Self, Invalid> {
        if addresses.is_none() && ports.is_none() {
            return Err(Invalid::new(FIELD, format!("names nothing; {FORMS}")));
        }
        Ok(Self { addresses, ports })
    }

    /// The addresses; `None`: every address.
    #[must_use]
    pub fn addresses(&self) -> Option<IpRange> {
        self.addresses
    }

    /// The source ports; `None`: every port.
    #[must_use]
    pub fn ports(&self) -> Option<PortRange> {
        self.ports
    }

    /// Whether it names this user.
    #[must_use]
    pub fn names(&self, user: SocketAddr) -> bool {
        self.addresses.is_none_or(|range| range.contains(user.ip()))
            && self.ports.is_none_or(|ports| ports.contains(user.port()))
    }
}

/// What can be written, for refusals.
const FORMS: &str = "write ADDRESS, ADDRESS-ADDRESS or ADDRESS/BITS, each with ' PORT' or ' PORT:PORT' after it if \
                     only these source ports count, or :PORT or :PORT:PORT for ports of every address";

fn ports(text: &str) -> Result<PortRange, Invalid> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let port = |digits: &str| {
        Some(digits)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse::<u16>().ok())
    };
    let range = port(first)
        .zip(port(last))
        .and_then(|(first, last)| PortRange::new(first, last).ok());
    range.ok_or_else(|| {
        let problem = format!(
            "'{}' are not source ports; write PORT or LOWEST:HIGHEST, each 1 to 65535",
            text.escape_debug()
        );
        Invalid::new(FIELD, problem)
    })
}

impl FromStr for SourceSpec {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        if let Some(alone) = text.strip_prefix(':').filter(|rest| !rest.starts_with(':')) {
            return Self::new(None, Some(ports(alone)?));
        }
        let (addresses, ports) = match text.split_once(char::is_whitespace) {
            Some((addresses, rest)) => (addresses, Some(ports(rest.trim_start())?)),
            None => (text, None),
        };
        match addresses.parse::<IpRange>() {
            Ok(range) => Self::new(Some(range), ports),
            // As addresses and ports are written everywhere else.
            Err(_) if addresses.parse::<SocketAddr>().is_ok() => {
                let address = addresses
                    .rsplit_once(':')
                    .map_or("", |(address, _)| address);
                let port = addresses.rsplit_once(':').map_or("", |(_, port)| port);
                let problem = format!(
                    "a source port is written after a blank: '{} {port}'",
                    address.trim_matches(['[', ']'])
                );
                Err(Invalid::new(FIELD, problem))
            }
            Err(_) if text.is_empty() => Err(Invalid::new(FIELD, format!("is empty; {FORMS}"))),
            Err(error) => Err(error.in_field(FIELD)),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.addresses, self.ports) {
            (Some(addresses), None) => return addresses.fmt(f),
            (Some(addresses), Some(_)) => write!(f, "{addresses} ")?,
            (None, _) => f.write_str(":")?,
        }
        match self.ports {
            Some(ports) if ports.first() != ports.last() => {
                write!(f, "{}:{}", ports.first(), ports.last())
            }
            Some(ports) => ports.first().fmt(f),
            None => Ok(()),
        }
    }
}

/// Whose rule it is: `NAME` or `NAME:INSTANCE`, each 1 to 64 of `A-Z a-z 0-9 . _ - @ /`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceOwner(String);

impl SourceOwner {
    /// The owner as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SourceOwner {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = |part: &str| {
            (1..=64).contains(&part.len())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-@/".contains(&b))
        };
        let all_good = match text.split_once(':') {
            Some((name, instance)) => good(name) && good(instance),
            None => good(text),
        };
        if all_good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(
                "owner",
                "must be NAME or NAME:INSTANCE, each 1 to 64 letters, digits, '.', '_', '-', '@' or '/'",
            ))
        }
    }
}

impl fmt::Display for SourceOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One rule of a [`SourcePolicy`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceRule {
    /// Whom it admits.
    pub spec: SourceSpec,
    /// Whose rule it is; `None`: nobody's in particular.
    pub owner: Option<SourceOwner>,
    /// From when on it counts no more; `None`: never.
    pub expires: Option<Timestamp>,
}

impl SourceRule {
    /// Whether it has not expired.
    #[must_use]
    pub fn lives(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether `new` takes the place of this one: the next rule of the same owner, or the same rule of nobody.
    fn gives_way_to(&self, new: &Self) -> bool {
        self.owner == new.owner && (new.owner.is_some() || self.spec == new.spec)
    }
}

/// From where users may connect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourcePolicy {
    /// Whether the rules count; without, everybody is admitted.
    pub restrict: bool,
    /// At most [`SourcePolicy::MAX_RULES`], at most one of each owner.
    pub rules: Vec<SourceRule>,
}

impl SourcePolicy {
    /// Rules that one destination can have.
    pub const MAX_RULES: usize = 1_000;

    /// Whether a user may connect from this address and port at this time.
    #[must_use]
    pub fn admits(&self, user: SocketAddr, now: Timestamp) -> bool {
        !self.restrict
            || self
                .rules
                .iter()
                .any(|rule| rule.lives(now) && rule.spec.names(user))
    }

    /// Adds a rule. It replaces the rule of the same owner; without an owner, the rule without one for the same
    /// spec. Rules that have expired make room. Answers whether anything changed.
    ///
    /// # Errors
    /// When there are too many rules.
    pub fn add(&mut self, rule: SourceRule, now: Timestamp) -> Result<bool, Invalid> {
        if self.rules.contains(&rule) {
            return Ok(false);
        }
        match self.rules.iter_mut().find(|old| old.gives_way_to(&rule)) {
            Some(old) => *old = rule,
            None => {
                self.prune(now);
                if self.rules.len() >= Self::MAX_RULES {
                    let most = Self::MAX_RULES;
                    return Err(Invalid::new(
                        FIELD,
                        format!(
                            "a destination has at most {most} source rules; remove some, or write networks as ADDRESS/BITS"
                        ),
                    ));
                }
                self.rules.push(rule);
            }
        }
        Ok(true)
    }

    /// Removes the rules for a spec: those of this owner, or of everybody if none is given, so that nothing is left
    /// that admits it by the same words. Answers how many there were.
    pub fn remove(&mut self, spec: &SourceSpec, owner: Option<&SourceOwner>) -> usize {
        let before = self.rules.len();
        self.rules.retain(|rule| {
            let meant = owner.is_none_or(|owner| rule.owner.as_ref() == Some(owner));
            rule.spec != *spec || !meant
        });
        before - self.rules.len()
    }

    /// Removes the rule of an owner, whatever it admits. Answers whether there was one.
    pub fn remove_owner(&mut self, owner: &SourceOwner) -> bool {
        let before = self.rules.len();
        self.rules.retain(|rule| rule.owner.as_ref() != Some(owner));
        before != self.rules.len()
    }

    /// Removes what has expired. Answers whether there was anything.
    pub fn prune(&mut self, now: Timestamp) -> bool {
        let before = self.rules.len();
        self.rules.retain(|rule| rule.lives(now));
        before != self.rules.len()
    }

    /// When the next rule expires: then users who were admitted may have to leave. `None` when nothing does, or when
    /// it would change nothing.
    #[must_use]
    pub fn next_expiry(&self, now: Timestamp) -> Option<Timestamp> {
        let living = self.rules.iter().filter(|rule| rule.lives(now));
        living
            .filter_map(|rule| rule.expires)
            .min()
            .filter(|_| self.restrict)
    }
}

#[cfg(test)]
mod tests;
