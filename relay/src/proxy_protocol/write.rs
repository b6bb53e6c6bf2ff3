//! Headers towards a resource.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::crc32c::checksum;
use super::{Facts, SIGNATURE, TlsFacts, v2};

/// Longest text of a user's handshake that is passed on: a longer one is left out, so that a header stays small.
const LONGEST_TEXT: usize = 255;

/// Which header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary, with details of TLS.
    V2 {
        /// Whether with a checksum.
        checksum: bool,
    },
}

impl Facts {
    /// The header, to be written before anything else.
    #[must_use]
    pub fn header(&self, version: Version) -> Vec<u8> {
        match version {
            Version::V1 => self.version_1().into_bytes(),
            Version::V2 { checksum } => self.version_2(checksum),
        }
    }

    /// Both addresses in one family. A user of one family at a port of the other is told in IPv6.
    fn addresses(&self) -> (IpAddr, IpAddr) {
        let (source, destination) = (
            self.source.ip().to_canonical(),
            self.destination.ip().to_canonical(),
        );
        match (source, destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => (source, destination),
            _ => (in_v6(source).into(), in_v6(destination).into()),
        }
    }

    fn version_1(&self) -> String {
        let (source, destination) = self.addresses();
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (self.source.port(), self.destination.port());
        format!("PROXY {family} {source} {destination} {from} {to}\r\n")
    }

    fn version_2(&self, with_checksum: bool) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let mut addresses = Vec::with_capacity(36);
        for ip in [source, destination] {
            match ip {
                IpAddr::V4(v4) => addresses.extend_from_slice(&v4.octets()),
                IpAddr::V6(v6) => addresses.extend_from_slice(&v6.octets()),
            }
        }
        for port in [self.source.port(), self.destination.port()] {
            addresses.extend_from_slice(&port.to_be_bytes());
        }
        let mut details = Vec::new();
        if let Some(tls) = &self.tls {
            tls.append(&mut details);
        }
        if with_checksum {
            append(&mut details, v2::CRC32C, &[0; 4]);
        }
        let family = if source.is_ipv4() {
            v2::TCP_4
        } else {
            v2::TCP_6
        };
        let length = u16::try_from(addresses.len() + details.len())
            .expect("invariant: every text is bounded, and there are five");
        let mut header = SIGNATURE.to_vec();
        header.extend_from_slice(&[v2::PROXY, family]);
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&addresses);
        header.extend_from_slice(&details);
        if with_checksum {
            // Of the whole header, with zeros where the checksum, which is last, will be.
            let sum = checksum(&[&header]);
            header.truncate(header.len() - 4);
            header.extend_from_slice(&sum.to_be_bytes());
        }
        header
    }
}

impl TlsFacts {
    fn append(&self, out: &mut Vec<u8>) {
        append_text(out, v2::ALPN, &self.alpn);
        append_text(out, v2::AUTHORITY, self.server_name.as_bytes());
        let mut client = v2::CLIENT_SSL;
        if self.client_certificate.is_some() {
            client |= v2::CLIENT_CERTIFICATE | v2::CLIENT_SESSION_CERTIFICATE;
        }
        let verified = self
            .client_certificate
            .as_ref()
            .is_some_and(|certificate| certificate.verified);
        let mut ssl = vec![client];
        // Zero is good, and only with a certificate.
        ssl.extend_from_slice(&u32::from(!verified).to_be_bytes());
        append_text(&mut ssl, v2::SSL_VERSION, self.version.as_bytes());
        if let Some(certificate) = &self.client_certificate {
            append_text(
                &mut ssl,
                v2::SSL_COMMON_NAME,
                certificate.common_name.as_bytes(),
            );
        }
        append_text(&mut ssl, v2::SSL_CIPHER, self.cipher.as_bytes());
        append(out, v2::SSL, &ssl);
    }
}

/// Leaves out what is empty or too long.
fn append_text(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    if (1..=LONGEST_TEXT).contains(&text.len()) {
        append(out, kind, text);
    }
}

fn append(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("invariant: every value is bounded");
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
}

fn in_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Writes the header within `limit`. It is small, so a new connection takes it at once.
///
/// # Errors
/// The resource is gone, or does not take it in time (`TimedOut`).
pub async fn send<T>(io: &mut T, facts: &Facts, version: Version, limit: Duration) -> io::Result<()>
where
    T: AsyncWrite + Unpin,
{
    let header = facts.header(version);
    let writing = async {
        io.write_all(&header).await?;
        io.flush().await
    };
    timeout(limit, writing)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::ClientCertificate;
    use super::*;

    fn facts(source: &str, destination: &str) -> Facts {
        Facts {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            tls: None,
        }
    }

    const V2: Version = Version::V2 { checksum: false };

    #[test]
    fn version_1_is_a_line() {
        for (source, destination, line) in [
            (
                "192.0.2.7:51000",
                "198.51.100.1:443",
                "PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n",
            ),
            (
                "[2001:db8::7]:1",
                "[2001:db8::1]:65535",
                "PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n",
            ),
            (
                "[::ffff:192.0.2.7]:51000",
                "198.51.100.1:443",
                "PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n",
            ),
            (
                "192.0.2.7:51000",
                "[2001:db8::1]:443",
                "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 51000 443\r\n",
            ),
        ] {
            let header = facts(source, destination).header(Version::V1);
            assert_eq!(String::from_utf8(header).unwrap(), line);
        }
    }

    #[test]
    fn version_2_byte_for_byte() {
        let plain = facts("192.0.2.7:51000", "198.51.100.1:443").header(V2);
        let expected =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb";
        assert_eq!(plain, expected);

        let six = facts("[2001:db8::7]:1", "[2001:db8::1]:2").header(V2);
        assert_eq!(six[12..16], *b"\x21\x21\x00\x24");
        assert_eq!(six.len(), 16 + 36);
        assert_eq!(six[48..], *b"\x00\x01\x00\x02");

        let mut with_tls = facts("192.0.2.7:51000", "198.51.100.1:443");
        with_tls.tls = Some(TlsFacts {
            version: "TLSv1.3".into(),
            cipher: "AES".into(),
            server_name: "a.example".into(),
            alpn: b"h2".to_vec(),
            client_certificate: Some(ClientCertificate {
                common_name: "me".into(),
                verified: true,
            }),
        });
        let ssl = b"\x20\x00\x1a\x07\0\0\0\0\x21\x00\x07TLSv1.3\x22\x00\x02me\x23\x00\x03AES";
        let details = [b"\x01\x00\x02h2\x02\x00\x09a.example".as_slice(), ssl].concat();
        let header = with_tls.header(V2);
        assert_eq!(
            header[14..16],
            [0, 12 + u8::try_from(details.len()).unwrap()]
        );
        assert_eq!(header[28..], details);
    }

    #[test]
    fn a_user_without_an_accepted_certificate_is_not_verified() {
        let mut facts = facts("192.0.2.7:51000", "198.51.100.1:443");
        for (certificate, client, verify) in [
            (None, 1, 1),
            (Some(ClientCertificate::default()), 7, 1),
            (
                Some(ClientCertificate {
                    verified: true,
                    ..ClientCertificate::default()
                }),
                7,
                0,
            ),
        ] {
            facts.tls = Some(TlsFacts {
                client_certificate: certificate,
                // Too long to be passed on.
                server_name: "x".repeat(300),
                ..TlsFacts::default()
            });
            assert_eq!(
                facts.header(V2)[28..],
                [0x20, 0, 5, client, 0, 0, 0, verify]
            );
        }
    }

    #[test]
    fn a_checksum_makes_the_header_one_that_checks() {
        let mut header =
            facts("192.0.2.7:51000", "198.51.100.1:443").header(Version::V2 { checksum: true });
        let at = header.len() - 4;
        assert_eq!(header[at - 3..at], [3, 0, 4]);
        let sum = header.split_off(at);
        header.extend_from_slice(&[0; 4]);
        assert_eq!(sum, checksum(&[&header]).to_be_bytes());
    }
}
