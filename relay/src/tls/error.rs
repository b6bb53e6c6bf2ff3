//! Why TLS with a user or a resource did not come about: one word to search for, and a text that says what was
//! expected and what was found.

use std::io;

use rustls::{AlertDescription, CertificateError};
use sg_runtime::tls::material::date;
use sg_tunnel_io::code;

/// A handshake that failed, or a connection whose TLS broke later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The peer's certificate is for other names.
    #[error("the certificate is not for \"{asked}\": it is for {names}")]
    NameMismatch {
        /// The name that was asked for.
        asked: String,
        /// The names in the certificate.
        names: String,
    },
    /// Nobody who is trusted issued the peer's certificate.
    #[error(
        "nobody who is trusted issued the certificate of {subject}: its issuer is {issuer}{hint}"
    )]
    UnknownIssuer {
        /// Whose certificate it is.
        subject: String,
        /// Who issued it.
        issuer: String,
        /// What may help.
        hint: &'static str,
    },
    /// The peer's certificate has expired.
    #[error("the certificate of {subject} has expired: it was valid until {}", date(*.not_after))]
    Expired {
        /// Whose certificate it is, or which one of the chain.
        subject: String,
        /// Its last second.
        not_after: i64,
    },
    /// The peer's certificate is not valid yet.
    #[error("the certificate of {subject} is not valid yet: it will be from {}", date(*.not_before))]
    NotYetValid {
        /// Whose certificate it is, or which one of the chain.
        subject: String,
        /// Its first second.
        not_before: i64,
    },
    /// The peer's certificate cannot be used for another reason.
    #[error("the certificate cannot be used: {0}")]
    BadCertificate(String),
    /// The user showed no certificate, and one is demanded.
    #[error("no certificate was shown, and this destination demands one")]
    NoCertificate,
    /// The peer ended the handshake with an alert.
    #[error("the other end refused the handshake: {alert}{hint}")]
    Refused {
        /// The alert, in TLS' own words.
        alert: String,
        /// What it usually means.
        hint: &'static str,
    },
    /// The resource answered without TLS.
    #[error("the other end answered without TLS: \"{found}\"")]
    PlainText {
        /// What it began with.
        found: String,
    },
    /// The user began without TLS.
    #[error("the other end did not begin with TLS: {found}")]
    NotTls {
        /// What it looked like.
        found: String,
    },
    /// The user began with a PostgreSQL client's question whether there is TLS.
    #[error(
        "a PostgreSQL client asks for TLS in its own way: set the destination's preface to postgres"
    )]
    PostgresPreface,
    /// The peer did not finish in time.
    #[error("the TLS handshake did not finish in time")]
    Timeout,
    /// The peer closed the connection in the middle.
    #[error("the other end closed the connection during the TLS handshake")]
    Closed,
    /// Whatever else goes wrong with TLS.
    #[error("TLS failed: {0}")]
    Failed(String),
    /// The connection failed underneath.
    #[error("the connection failed: {0}")]
    Io(io::ErrorKind),
}

impl TlsError {
    /// The word for logs, metrics and access lines.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotTls { .. } => "not-tls",
            Self::PostgresPreface => "postgres-preface",
            Self::NoCertificate => "no-certificate",
            Self::Io(_) => "tcp-reset",
            _ => code::word(self.code()),
        }
    }

    /// The reset code that tells the far side.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::NameMismatch { .. } => code::TLS_NAME_MISMATCH,
            Self::UnknownIssuer { .. } => code::TLS_UNKNOWN_ISSUER,
            Self::Expired { .. } => code::TLS_EXPIRED,
            Self::NotYetValid { .. } => code::TLS_NOT_YET_VALID,
            Self::BadCertificate(_) => code::TLS_BAD_CERTIFICATE,
            Self::Refused { .. } => code::TLS_HANDSHAKE_REFUSED,
            Self::PlainText { .. } => code::TLS_PLAIN_TEXT,
            Self::Timeout => code::TLS_TIMEOUT,
            Self::Closed => code::TLS_CLOSED,
            Self::Io(_) => code::PEER_RESET,
            Self::NotTls { .. } | Self::PostgresPreface | Self::NoCertificate | Self::Failed(_) => {
                code::TLS_FAILED
            }
        }
    }

    pub(super) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            kind => Self::Io(kind),
        }
    }

    /// Sorts what rustls answers where the verifiers here have noted nothing better.
    pub(super) fn of_rustls(error: rustls::Error, certificate_was_asked: bool) -> Self {
        use rustls::Error as E;
        match error {
            E::AlertReceived(alert) => Self::refused(alert, certificate_was_asked),
            E::NoCertificatesPresented => Self::NoCertificate,
            E::InvalidCertificate(error) => Self::of_certificate(&error, &Shown::default()),
            E::PeerIncompatible(why) => Self::Failed(format!(
                "no version (1.2 or 1.3), cipher or signature in common: {why:?}"
            )),
            other => Self::Failed(other.to_string()),
        }
    }

    fn refused(alert: AlertDescription, certificate_was_asked: bool) -> Self {
        use AlertDescription as A;
        let hint = match alert {
            A::CertificateRequired | A::HandshakeFailure if certificate_was_asked => {
                " (it wants a client certificate)"
            }
            A::BadCertificate
            | A::UnknownCA
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnsupportedCertificate => {
                " (it does not accept the certificate that it was shown)"
            }
            A::ProtocolVersion => " (it speaks neither TLS 1.2 nor 1.3)",
            A::UnrecognisedName => " (it does not know the name that was asked for)",
            A::NoApplicationProtocol => " (it speaks none of the application protocols)",
            _ => "",
        };
        Self::Refused {
            alert: words(alert),
            hint,
        }
    }

    /// Sorts why a certificate was refused; `shown` is what it says.
    pub(super) fn of_certificate(error: &CertificateError, shown: &Shown) -> Self {
        use CertificateError as C;
        let seconds = |time: &rustls::pki_types::UnixTime| i64::try_from(time.as_secs());
        let subject = shown.subject.clone();
        match error {
            C::ExpiredContext { not_after, .. } => Self::Expired {
                subject,
                not_after: seconds(not_after).unwrap_or(i64::MAX),
            },
            C::NotValidYetContext { not_before, .. } => Self::NotYetValid {
                subject,
                not_before: seconds(not_before).unwrap_or(i64::MAX),
            },
            C::NotValidForNameContext { .. } | C::NotValidForName => Self::NameMismatch {
                asked: shown.asked.clone(),
                names: shown.names.clone(),
            },
            // One that is trusted has the issuer's name, and another key: it was not the issuer.
            C::UnknownIssuer | C::BadSignature => Self::UnknownIssuer {
                subject,
                issuer: shown.issuer.clone(),
                hint: if shown.self_issued {
                    " (itself; upload this very certificate to have it accepted)"
                } else {
                    ""
                },
            },
            // webpki takes a certificate that may issue others for no server's.
            other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                if shown.self_issued {
                    return Self::of_certificate(&C::UnknownIssuer, shown);
                }
                let text = format!(
                    "that of {subject} is a CA's (CA:TRUE); upload this very certificate to have it accepted"
                );
                Self::BadCertificate(text)
            }
            other => Self::BadCertificate(other.to_string()),
        }
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match &error {
            TlsError::Io(kind) => *kind,
            TlsError::Timeout => io::ErrorKind::TimedOut,
            TlsError::Closed => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

/// What a certificate says, for the text of an error.
#[derive(Debug, Clone, Default)]
pub(super) struct Shown {
    pub(super) asked: String,
    pub(super) subject: String,
    pub(super) issuer: String,
    pub(super) names: String,
    pub(super) self_issued: bool,
}

/// `CertificateRequired` as `certificate required`.
fn words(alert: AlertDescription) -> String {
    let name = format!("{alert:?}");
    let mut text = String::with_capacity(name.len() + 4);
    let mut before_is_lower = false;
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && before_is_lower {
            text.push(' ');
        }
        before_is_lower = letter.is_ascii_lowercase();
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// An end that cannot be built. Whoever configured it is to blame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSetupError {
    /// A server needs a certificate.
    #[error("there is no server certificate")]
    NoPair,
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Material(#[from] sg_runtime::tls::SetupError),
    /// A certificate cannot be used as a root.
    #[error("a certificate cannot be used: {0}")]
    Root(String),
    /// The name cannot be asked for.
    #[error("\"{0}\" is neither a host name nor an address")]
    Name(String),
    /// The system has no roots.
    #[error("this system has no CA certificates, and none are given")]
    NoSystemRoots,
    /// The provider refuses.
    #[error("TLS cannot be set up: {0}")]
    Provider(#[from] rustls::Error),
}
