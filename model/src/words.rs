//! Closed sets of words that stand in the API, the command line and the logs alike.

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $field:literal { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::Invalid;

            fn from_str(text: &str) -> Result<Self, crate::Invalid> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(crate::Invalid::new($field, format!(
                        "'{}' is not one of {}",
                        text.escape_debug(),
                        [$($word,)+].join(", "),
                    ))),
                }
            }
        }
    };
}
pub(crate) use words;

words!(
    /// What the user of a destination speaks.
    Protocol, "protocol" {
        /// Bytes as they are.
        Tcp = "tcp",
        /// TLS, ended where the user connects.
        Tls = "tls",
        /// TLS that asks the user for a certificate.
        TlsMutual = "tls-mutual",
        /// HTTP with the Host header rewritten to the resource.
        Http = "http",
        /// HTTP over TLS.
        Https = "https",
        /// HTTP over TLS that asks the user for a certificate.
        HttpsMutual = "https-mutual",
        /// Datagrams.
        Udp = "udp",
    }
);

words!(
    /// What becomes of a client's tunnels when the security token they were opened with expires.
    TokenExpiry, "token_expiry" {
        /// They stay for a day at most.
        Keep = "keep",
        /// They end.
        Cut = "cut",
    }
);

words!(
    /// Whether clients of a gateway may exchange its security token for a certificate, and come back with that.
    ClientCertificates, "client_certificates" {
        /// They may.
        On = "on",
        /// They may not, and certificates from before are not accepted.
        Off = "off",
    }
);

words!(
    /// Who may change a gateway's access control list, beside what operators may.
    #[derive(Default)]
    AclEdits, "acl_edits" {
        /// Whoever sits at one of its clients, too.
        #[default]
        Clients = "clients",
        /// Operators alone.
        Operators = "operators",
    }
);

impl Protocol {
    /// Whether users encrypt what they send, and the node decrypts it.
    #[must_use]
    pub fn is_encrypted(self) -> bool {
        match self {
            Self::Tls | Self::TlsMutual | Self::Https | Self::HttpsMutual => true,
            Self::Tcp | Self::Http | Self::Udp => false,
        }
    }

    /// Whether bytes or datagrams are passed on as they are.
    #[must_use]
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }

    /// Whether users must show a certificate.
    #[must_use]
    pub fn is_mutual(self) -> bool {
        matches!(self, Self::TlsMutual | Self::HttpsMutual)
    }

    /// Whether requests are read and their Host is rewritten.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https | Self::HttpsMutual)
    }
}

words!(
    /// How the bytes of a destination's streams are compressed inside tunnels.
    #[derive(Default)]
    Compression, "compression" {
        /// Not at all.
        #[default]
        None = "none",
        /// Zstandard: smaller, for slow links.
        Zstd = "zstd",
        /// LZ4: cheaper, for fast links.
        Lz4 = "lz4",
    }
);

words!(
    /// How new streams are spread over the tunnels of a gateway.
    Policy, "policy" {
        /// Each tunnel in turn.
        RoundRobin = "round-robin",
        /// The tunnel with the fewest streams.
        LeastLoaded = "least-loaded",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_unknown_ones_list_what_is_possible() {
        for p in Protocol::ALL {
            assert_eq!(p.as_str().parse::<Protocol>(), Ok(*p));
        }
        let err = "tpc".parse::<Protocol>().unwrap_err();
        assert_eq!(err.field, "protocol");
        assert!(err.message.contains("tls-mutual"));
    }
}
