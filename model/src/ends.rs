//! The two ends of a destination's streams: how its users are received, and how its resource is
//! connected to. Plain values; certificates and keys are opaque bytes here, checked where they are
//! uploaded.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::words::words;
use crate::{Host, HostPort, Invalid, Protocol, SourcePolicy};

/// Most certificates in one list.
pub const MAX_CERTIFICATES: usize = 64;
/// Most pairs that a user side chooses among.
pub const MAX_SERVER_PAIRS: usize = 16;
/// Most application protocols in a list.
pub const MAX_ALPN: usize = 16;
/// Longest name of an application protocol, in bytes: one length byte in TLS.
pub const MAX_ALPN_NAME: usize = 255;

words!(
    /// Whether and how the resource is spoken to by TLS.
    #[derive(Default)]
    ResourceTls, "resource_tls" {
        /// Not at all.
        #[default]
        None = "none",
        /// TLS; the resource shows a certificate.
        Tls = "tls",
        /// TLS; both show a certificate.
        Mutual = "mutual",
    }
);

words!(
    /// Which HTTP the resource of an HTTP destination speaks.
    #[derive(Default)]
    ResourceHttp, "resource_http" {
        /// What ALPN says, otherwise HTTP/1.1.
        #[default]
        Auto = "auto",
        /// HTTP/1.1.
        One = "1",
        /// HTTP/2, also where there is no TLS to agree on it.
        Two = "2",
    }
);

words!(
    /// What users say before TLS begins.
    #[derive(Default)]
    Preface, "preface" {
        /// Nothing.
        #[default]
        None = "none",
        /// PostgreSQL's SSLRequest, which waits for an answer.
        Postgres = "postgres",
    }
);

words!(
    /// The header that tells a resource who its user is.
    #[derive(Default)]
    ProxyProtocol, "proxy_protocol" {
        /// None.
        #[default]
        None = "none",
        /// Version 1, a line of text.
        V1 = "v1",
        /// Version 2, with details of the user's TLS.
        V2 = "v2",
    }
);

words!(
    /// What becomes of the headers that name the user: X-Forwarded-* and Forwarded.
    #[derive(Default)]
    ForwardedHeaders, "forwarded" {
        /// What the user sent of them is replaced by what is so.
        #[default]
        Set = "set",
        /// What the user sent is trusted, and added to.
        Append = "append",
        /// They are removed, and none is added.
        Off = "off",
    }
);

words!(
    /// Which SOCKS a proxy speaks.
    SocksVersion, "socks" {
        /// SOCKS 4: addresses only, resolved at the dialling end.
        V4 = "4",
        /// SOCKS 4a: names are resolved at the proxy.
        V4a = "4a",
        /// SOCKS 5: names are resolved at the proxy.
        V5 = "5",
    }
);

words!(
    /// Where a certificate with its key comes from.
    #[derive(Default)]
    PairOrigin, "origin" {
        /// An operator brought it.
        #[default]
        Uploaded = "uploaded",
        /// The internal CA issued it.
        Issued = "issued",
        /// It was made for this destination, signed by itself.
        Generated = "generated",
    }
);

/// Bytes that must not be seen: `Debug` shows nothing of them, and they are wiped when the last copy goes.
/// Clones share them.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Arc<Zeroizing<Vec<u8>>>);

impl SecretBytes {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// The bytes themselves. Do not log them, do not put them into an error.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A certificate in DER. Clones share it.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate(Arc<[u8]>);

impl Certificate {
    /// Takes the DER over.
    #[must_use]
    pub fn new(der: impl Into<Arc<[u8]>>) -> Self {
        Self(der.into())
    }

    /// The DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} bytes)", self.0.len())
    }
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// Leaf first.
    pub certificates: Vec<Certificate>,
    /// PKCS#8, PKCS#1 or SEC1 in DER; `None` where only the certificate is needed.
    pub key: Option<SecretBytes>,
    /// Where it comes from.
    pub origin: PairOrigin,
}

/// A proxy between the dialling end and the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socks {
    /// What it speaks.
    pub version: SocksVersion,
    /// Where it is.
    pub address: HostPort,
    /// User name; empty: none.
    pub user: String,
    /// Password, for SOCKS 5.
    pub password: Option<SecretBytes>,
}

/// How users are received.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserEnd {
    /// What is shown to users of TLS, chosen by the name they ask for; the first where none fits.
    pub server_pairs: Vec<KeyPair>,
    /// Names in the certificate that the internal CA issues, beside the host that users connect to.
    pub server_names: Vec<Host>,
    /// Whom mutual TLS accepts: certificates of authorities, or of users themselves.
    pub certificates: Vec<Certificate>,
    /// What a user of mutual TLS can show where no certificate was uploaded.
    pub generated_pair: Option<KeyPair>,
    /// Application protocols that are accepted; empty: whatever user and resource agree on.
    pub alpn: Vec<String>,
    /// What comes before TLS.
    pub preface: Preface,
    /// Who may connect, by address.
    pub sources: SourcePolicy,
    /// Headers that name the user of an HTTP destination.
    pub forwarded: ForwardedHeaders,
}

/// How the resource is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceEnd {
    /// Whether by TLS.
    pub tls: ResourceTls,
    /// Whom to believe: certificates of authorities, or the resource's own; empty: the system's authorities.
    pub certificates: Vec<Certificate>,
    /// What to show to a resource that asks.
    pub client_pair: Option<KeyPair>,
    /// The name to ask for and to check; `None`: the resource's host.
    pub sni: Option<Host>,
    /// False accepts any certificate.
    pub verify: bool,
    /// Which HTTP to speak.
    pub http: ResourceHttp,
    /// The proxy on the way.
    pub socks: Option<Socks>,
    /// The header that is sent first.
    pub proxy_protocol: ProxyProtocol,
}

impl Default for ResourceEnd {
    fn default() -> Self {
        Self {
            tls: ResourceTls::None,
            certificates: Vec::new(),
            client_pair: None,
            sni: None,
            verify: true,
            http: ResourceHttp::Auto,
            socks: None,
            proxy_protocol: ProxyProtocol::None,
        }
    }
}

impl UserEnd {
    /// Certificates that mutual TLS accepts: those uploaded, or else the generated one.
    #[must_use]
    pub fn accepted_certificates(&self) -> Vec<Certificate> {
        if !self.certificates.is_empty() {
            return self.certificates.clone();
        }
        let leaf = self
            .generated_pair
            .as_ref()
            .and_then(|pair| pair.certificates.first());
        leaf.cloned().into_iter().collect()
    }

    /// Checks that everything set here means something for the protocol.
    ///
    /// # Errors
    /// The first field that does not.
    pub fn checked(self, protocol: Protocol) -> Result<Self, Invalid> {
        let needs = |field, what: &str, with: &str| {
            Err(Invalid::new(
                field,
                format!("{what} {with}; protocol is {protocol}"),
            ))
        };
        let uploaded = self
            .server_pairs
            .iter()
            .any(|pair| pair.origin == PairOrigin::Uploaded);
        if !protocol.is_encrypted() {
            let for_tls = "belongs to protocols tls, tls-mutual, https and https-mutual";
            if uploaded {
                return needs("user_end.server_pairs", "a server certificate", for_tls);
            }
            if !self.server_names.is_empty() {
                return needs(
                    "user_end.server_names",
                    "a name in the certificate",
                    for_tls,
                );
            }
            if self.preface != Preface::None {
                return needs("user_end.preface", "a preface", for_tls);
            }
            if !self.alpn.is_empty() {
                return needs("user_end.alpn", "a list of application protocols", for_tls);
            }
        }
        if !protocol.is_mutual() && !self.certificates.is_empty() {
            let with = "belong to protocols tls-mutual and https-mutual";
            return needs("user_end.certificates", "certificates of users", with);
        }
        if protocol.is_http() {
            if self.preface != Preface::None {
                return needs("user_end.preface", "a preface", "does not go with HTTP");
            }
            if self
                .alpn
                .iter()
                .any(|name| name != "h2" && name != "http/1.1")
            {
                let with = "is h2 or http/1.1 where HTTP is spoken";
                return needs("user_end.alpn", "an application protocol", with);
            }
        } else if self.forwarded != ForwardedHeaders::Set {
            let with = "belong to protocols http, https and https-mutual";
            return needs("user_end.forwarded", "headers that name the user", with);
        }
        let limit = |field, length: usize, most: usize| {
            if length > most {
                return Err(Invalid::new(field, format!("at most {most} are possible")));
            }
            Ok(())
        };
        limit(
            "user_end.server_pairs",
            self.server_pairs.len(),
            MAX_SERVER_PAIRS,
        )?;
        limit(
            "user_end.server_names",
            self.server_names.len(),
            MAX_CERTIFICATES,
        )?;
        limit(
            "user_end.certificates",
            self.certificates.len(),
            MAX_CERTIFICATES,
        )?;
        limit("user_end.alpn", self.alpn.len(), MAX_ALPN)?;
        if self
            .alpn
            .iter()
            .any(|name| name.is_empty() || name.len() > MAX_ALPN_NAME)
        {
            return Err(Invalid::new(
                "user_end.alpn",
                format!("a name has 1 to {MAX_ALPN_NAME} bytes"),
            ));
        }
        Ok(self)
    }
}

impl ResourceEnd {
    /// Whether there is more to it than what an opener can say in a few words.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.tls == ResourceTls::None && self.socks.is_none()
    }

    /// Checks that everything set here means something together.
    ///
    /// # Errors
    /// The first field that does not.
    pub fn checked(self, protocol: Protocol) -> Result<Self, Invalid> {
        let fault = |field, why: &str| Err(Invalid::new(field, why));
        if protocol == Protocol::Udp {
            if self.tls != ResourceTls::None {
                return fault("resource_end.tls", "must be none for protocol udp");
            }
            if self.socks.is_some() {
                return fault(
                    "resource_end.socks",
                    "cannot carry protocol udp; leave it out",
                );
            }
            if self.proxy_protocol != ProxyProtocol::None {
                return fault(
                    "resource_end.proxy_protocol",
                    "must be none for protocol udp",
                );
            }
        }
        if self.http != ResourceHttp::Auto && !protocol.is_http() {
            return fault(
                "resource_end.http",
                "belongs to protocols http, https and https-mutual",
            );
        }
        if self.tls == ResourceTls::None {
            let without = "needs resource TLS: set it to tls or mutual";
            if !self.certificates.is_empty() {
                return fault("resource_end.certificates", without);
            }
            if self.sni.is_some() {
                return fault("resource_end.sni", without);
            }
            if !self.verify {
                return fault("resource_end.insecure_skip_verify", without);
            }
        }
        let uploaded = self
            .client_pair
            .as_ref()
            .is_some_and(|pair| pair.origin == PairOrigin::Uploaded);
        if uploaded && self.tls != ResourceTls::Mutual {
            return fault(
                "resource_end.client_pair",
                "belongs to mutual resource TLS: set it to mutual",
            );
        }
        if matches!(self.sni, Some(Host::Ip(_))) {
            return fault("resource_end.sni", "must be a host name, not an address");
        }
        if self.certificates.len() > MAX_CERTIFICATES {
            return Err(Invalid::new(
                "resource_end.certificates",
                format!("at most {MAX_CERTIFICATES} are possible"),
            ));
        }
        Ok(self)
    }
}

impl Socks {
    /// Reads `VERSION:HOST:PORT`.
    ///
    /// # Errors
    /// When a part is not what it should be.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (version, address) = text.split_once(':').ok_or_else(|| {
            Invalid::new("socks", "must be 4:HOST:PORT, 4a:HOST:PORT or 5:HOST:PORT")
        })?;
        Ok(Self {
            version: version.parse()?,
            address: address
                .parse()
                .map_err(|error: Invalid| error.in_field("socks"))?,
            user: String::new(),
            password: None,
        })
    }

    /// Checks user and password.
    ///
    /// # Errors
    /// When they do not fit the version, or are too long for it.
    pub fn checked(self) -> Result<Self, Invalid> {
        let fault = |why: &str| Err(Invalid::new("resource_end.socks", why));
        if self.password.is_some() && self.version != SocksVersion::V5 {
            return fault("only SOCKS 5 has passwords");
        }
        if self.password.is_some() && self.user.is_empty() {
            return fault("a password needs a user name");
        }
        let long = |length: usize| length > 255;
        if long(self.user.len())
            || self.password.as_ref().is_some_and(|password| {
                long(password.expose().len()) || password.expose().is_empty()
            })
        {
            return fault("user name and password have 1 to 255 bytes");
        }
        if self.user.bytes().any(|byte| byte == 0) {
            return fault("a user name has no zero byte");
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(origin: PairOrigin) -> KeyPair {
        KeyPair {
            certificates: vec![Certificate::new([1, 2, 3])],
            key: Some(SecretBytes::new(b"canary".to_vec())),
            origin,
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let shown = format!("{:?}", pair(PairOrigin::Uploaded));
        assert!(
            !shown.contains("canary") && !shown.contains("99"),
            "{shown}"
        );
    }

    #[test]
    fn what_means_nothing_for_a_protocol_is_refused() {
        let field = |end: UserEnd, protocol| end.checked(protocol).map_err(|e| e.field).err();
        let tls = UserEnd {
            server_pairs: vec![pair(PairOrigin::Uploaded)],
            ..UserEnd::default()
        };
        assert_eq!(field(tls.clone(), Protocol::Tls), None);
        assert_eq!(field(tls, Protocol::Tcp), Some("user_end.server_pairs"));
        let users = UserEnd {
            certificates: vec![Certificate::new([1])],
            ..UserEnd::default()
        };
        assert_eq!(field(users.clone(), Protocol::TlsMutual), None);
        assert_eq!(field(users, Protocol::Tls), Some("user_end.certificates"));
        let preface = UserEnd {
            preface: Preface::Postgres,
            ..UserEnd::default()
        };
        assert_eq!(field(preface.clone(), Protocol::Tls), None);
        assert_eq!(
            field(preface.clone(), Protocol::Https),
            Some("user_end.preface")
        );
        assert_eq!(field(preface, Protocol::Tcp), Some("user_end.preface"));
        let alpn = UserEnd {
            alpn: vec!["postgresql".to_owned()],
            ..UserEnd::default()
        };
        assert_eq!(field(alpn.clone(), Protocol::Tls), None);
        assert_eq!(field(alpn, Protocol::Https), Some("user_end.alpn"));
        let off = UserEnd {
            forwarded: ForwardedHeaders::Off,
            ..UserEnd::default()
        };
        assert_eq!(field(off.clone(), Protocol::Http), None);
        assert_eq!(field(off, Protocol::Tcp), Some("user_end.forwarded"));
    }

    #[test]
    fn a_generated_certificate_counts_only_where_none_was_uploaded() {
        let mut end = UserEnd {
            generated_pair: Some(pair(PairOrigin::Generated)),
            ..UserEnd::default()
        };
        assert_eq!(end.accepted_certificates(), [Certificate::new([1, 2, 3])]);
        end.certificates = vec![Certificate::new([9])];
        assert_eq!(end.accepted_certificates(), [Certificate::new([9])]);
    }

    #[test]
    fn resource_tls_is_needed_for_what_is_part_of_it() {
        let field = |end: ResourceEnd| end.checked(Protocol::Tcp).map_err(|e| e.field).err();
        let plain = ResourceEnd::default;
        assert_eq!(field(plain()), None);
        let skip = ResourceEnd {
            verify: false,
            ..plain()
        };
        assert_eq!(field(skip), Some("resource_end.insecure_skip_verify"));
        let pair = ResourceEnd {
            tls: ResourceTls::Tls,
            client_pair: Some(pair(PairOrigin::Uploaded)),
            ..plain()
        };
        assert_eq!(field(pair), Some("resource_end.client_pair"));
        let sni = ResourceEnd {
            tls: ResourceTls::Tls,
            sni: "10.0.0.1".parse().ok(),
            ..plain()
        };
        assert_eq!(field(sni), Some("resource_end.sni"));
        let udp = ResourceEnd {
            tls: ResourceTls::Tls,
            ..plain()
        };
        assert!(udp.checked(Protocol::Udp).is_err());
    }

    #[test]
    fn proxies_are_written_with_their_version() {
        let socks = Socks::parse("5:[::1]:1080").unwrap();
        assert_eq!(
            (socks.version, socks.address.to_string()),
            (SocksVersion::V5, "[::1]:1080".to_owned())
        );
        for bad in ["", "5", "6:host:1", "5:host", "host:1080"] {
            assert!(Socks::parse(bad).is_err(), "{bad}");
        }
        let mut socks = Socks::parse("4a:proxy:1080").unwrap();
        socks.password = Some(SecretBytes::new(b"x".to_vec()));
        assert!(socks.checked().is_err());
    }
}
