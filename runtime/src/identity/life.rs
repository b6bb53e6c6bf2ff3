//! How long an issued certificate holds, and when it is to be renewed: from a third of its life on, each holder at another
//! instant, so that they do not come all at once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{CertificateDer, CertificateError, parse};
use crate::crypto;

/// Issued certificates begin so much earlier, for clocks that are behind.
pub const EARLY: Duration = Duration::from_secs(300);

/// From when to when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// When it was issued, which is [`EARLY`] after its first date.
    pub issued: SystemTime,
    /// From then on it does not hold.
    pub ends: SystemTime,
}

impl Life {
    /// The life of a certificate of ours.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`].
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let certificate = parse(certificate)?;
        let date = |seconds: i64| {
            u64::try_from(seconds)
                .ok()
                .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
                .ok_or(CertificateError::Malformed)
        };
        let validity = certificate.validity();
        Ok(Self {
            issued: date(validity.not_before.timestamp())? + EARLY,
            ends: date(validity.not_after.timestamp())?,
        })
    }

    /// When it is to be renewed; `random` is 0 to 1, and should be drawn anew for each certificate.
    #[must_use]
    pub fn renew_at(&self, random: f64) -> SystemTime {
        let third = self.length() / 3;
        self.issued + third + (third / 2).mul_f64(random.clamp(0.0, 1.0))
    }

    /// [`Life::renew_at`] with a random number: to be asked once for each certificate.
    #[must_use]
    pub fn draw_renewal(&self) -> SystemTime {
        let random = u32::from_be_bytes(crypto::random_bytes());
        self.renew_at(f64::from(random) / f64::from(u32::MAX))
    }

    /// How long it is, in all.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.ends.duration_since(self.issued).unwrap_or_default()
    }

    /// Whether more than half of it is over: a renewal is late then.
    #[must_use]
    pub fn is_half_over(&self, now: SystemTime) -> bool {
        now > self.issued + self.length() / 2
    }

    /// Whether it still holds.
    #[must_use]
    pub fn holds(&self, now: SystemTime) -> bool {
        now < self.ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_between_a_third_and_a_half() {
        let issued = UNIX_EPOCH + Duration::from_secs(1000);
        let life = Life {
            issued,
            ends: issued + Duration::from_secs(600),
        };
        let after = |random| {
            life.renew_at(random)
                .duration_since(issued)
                .unwrap()
                .as_secs()
        };
        assert_eq!((after(0.0), after(0.5), after(1.0)), (200, 250, 300));
        assert_eq!((after(-1.0), after(7.0)), (200, 300));
        assert!(!life.is_half_over(issued + Duration::from_secs(300)));
        assert!(life.is_half_over(issued + Duration::from_secs(301)));
        assert!(life.holds(issued) && !life.holds(life.ends));
    }
}
