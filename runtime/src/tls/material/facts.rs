//! What a certificate says: names, dates, whether it may issue others. Nothing is verified here.

use std::fmt;
use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::X509Version;

use crate::identity::{self, CertificateError};

/// Names and dates of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The whole subject, for people.
    pub subject: String,
    /// The subject's common name; empty if it has none.
    pub common_name: String,
    /// The issuer, for people.
    pub issuer: String,
    /// DNS names among the subject alternative names, `*.` ones included.
    pub dns_names: Vec<String>,
    /// Addresses among the subject alternative names.
    pub addresses: Vec<IpAddr>,
    /// First second of its life, since 1970.
    pub not_before: i64,
    /// Last second of its life, since 1970.
    pub not_after: i64,
    /// It may issue certificates: CA:TRUE, or, as in the old days, nothing said and issued by itself.
    pub may_issue: bool,
    /// Subject and issuer are the same.
    pub self_issued: bool,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
}

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`].
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let parsed = identity::parse(certificate)?;
        let mut dns_names = Vec::new();
        let mut addresses = Vec::new();
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| CertificateError::Malformed)?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        let common_name = parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .unwrap_or_default()
            .to_owned();
        let self_issued = parsed.subject() == parsed.issuer();
        let constraints = parsed
            .basic_constraints()
            .map_err(|_| CertificateError::Malformed)?;
        let may_issue = constraints.map_or(self_issued, |found| found.value.ca);
        Ok(Self {
            subject: parsed.subject().to_string(),
            common_name,
            issuer: parsed.issuer().to_string(),
            dns_names,
            addresses,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            may_issue,
            self_issued,
            sha256: crate::crypto::sha256(certificate),
        })
    }

    /// Whether it is for this host: a DNS name or an address. Without any alternative name the common name
    /// counts, as it did when such certificates were made.
    #[must_use]
    pub fn is_for(&self, host: &str) -> bool {
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.addresses.contains(&address)
                || (self.has_no_names() && self.common_name.parse() == Ok(address));
        }
        let mut names = self.dns_names.iter();
        names.any(|name| host_matches(name, host))
            || (self.has_no_names() && host_matches(&self.common_name, host))
    }

    /// The names it is for, as text for people.
    #[must_use]
    pub fn names(&self) -> String {
        if self.has_no_names() {
            return match self.common_name.as_str() {
                "" => "no name".to_owned(),
                name => format!("CN={name} and no alternative name"),
            };
        }
        let mut names = self.dns_names.clone();
        names.extend(self.addresses.iter().map(ToString::to_string));
        let more = names.len().saturating_sub(MOST_SHOWN);
        names.truncate(MOST_SHOWN);
        let mut text = names.join(", ");
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        text
    }

    fn has_no_names(&self) -> bool {
        self.dns_names.is_empty() && self.addresses.is_empty()
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} for {}, valid from {} to {}",
            self.subject,
            self.names(),
            date(self.not_before),
            date(self.not_after)
        )
    }
}

/// Names that a text shows.
const MOST_SHOWN: usize = 8;

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// Whether a name of a certificate, perhaps beginning with `*.`, is that of a host. Case and a final dot do not
/// matter; the star stands for one label.
#[must_use]
pub fn host_matches(name: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || host.is_empty() {
        return false;
    }
    match name.strip_prefix("*.") {
        None => name.eq_ignore_ascii_case(host),
        Some(parent) => host.split_once('.').is_some_and(|(label, rest)| {
            !label.is_empty() && parent.contains('.') && parent.eq_ignore_ascii_case(rest)
        }),
    }
}

/// A time as people read it: `2026-11-27T22:56:03Z`.
#[must_use]
pub fn date(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 1 March of the year 0, counted in eras of 400 years; the year begins in March, so that the
    // leap day is its last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Whether a certificate is of X.509 version 1, as old tools make them: without any extension, and so without
/// names but the common one.
#[must_use]
pub fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    identity::parse(certificate).is_ok_and(|parsed| parsed.version() == X509Version::V1)
}

/// The bits of a certificate's public key.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn public_key_bits(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, CertificateError> {
    let parsed = identity::parse(certificate)?;
    Ok(parsed.public_key().subject_public_key.data.to_vec())
}
