//! What users send before, or instead of, TLS: a PostgreSQL client's question, plain HTTP, anything else.

use super::TlsError;

/// `SSLRequest`: length 8 and the code 1234.5679.
pub(super) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// `GSSENCRequest`: length 8 and the code 1234.5680.
const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

/// What a connection begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Begin {
    /// Too little to tell.
    Short,
    /// A TLS handshake.
    Tls,
    /// The question whether there is TLS.
    PostgresTls,
    /// The question whether there is GSSAPI encryption.
    PostgresGss,
    /// Something else.
    Other,
}

pub(super) fn begin(bytes: &[u8]) -> Begin {
    let of = |request: [u8; 8]| bytes.starts_with(&request);
    if of(SSL_REQUEST) {
        return Begin::PostgresTls;
    }
    if of(GSS_REQUEST) {
        return Begin::PostgresGss;
    }
    match bytes {
        [] | [0x16] => Begin::Short,
        [0x16, 3, ..] => Begin::Tls,
        _ if bytes.len() < 8
            && (SSL_REQUEST.starts_with(bytes) || GSS_REQUEST.starts_with(bytes)) =>
        {
            Begin::Short
        }
        _ => Begin::Other,
    }
}

/// The error for a user who began with something else; nothing of what the user sent is repeated, since a plain
/// request may hold a password.
pub(super) fn not_tls(bytes: &[u8]) -> TlsError {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"POST ",
        b"PUT ",
        b"HEAD ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"CONNECT ",
        b"PRI ",
    ];
    let starts = |word: &[u8]| bytes.starts_with(word);
    let found = if METHODS.iter().any(|method| starts(method)) {
        "a plain HTTP request"
    } else if starts(b"SSH-") {
        "SSH"
    } else if starts(b"PROXY ") || starts(b"\r\n\r\n\0\r\nQUIT\n") {
        "a PROXY protocol header from an address that is not trusted to send one"
    } else if bytes.len() >= 8 && bytes.starts_with(&[0, 0]) && bytes[4..8] == [0, 3, 0, 0] {
        "a PostgreSQL client that does not ask for TLS"
    } else if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
        "SSL 2, or noise"
    } else {
        "another protocol"
    };
    TlsError::NotTls {
        found: found.to_owned(),
    }
}

/// The beginning of what a resource said without TLS, for people.
pub(super) fn banner(bytes: &[u8]) -> String {
    const SHOWN: usize = 60;
    let line = bytes
        .split(|byte| matches!(byte, b'\r' | b'\n'))
        .find(|line| !line.is_empty())
        .unwrap_or(bytes);
    let shown = &line[..line.len().min(SHOWN)];
    shown
        .iter()
        .map(|byte| match byte {
            b' '..=b'~' if *byte != b'"' => char::from(*byte),
            _ => '.',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_what_it_is() {
        for (bytes, expected) in [
            (&[][..], Begin::Short),
            (&[0x16], Begin::Short),
            (&[0x16, 3, 1], Begin::Tls),
            (&[0x16, 4], Begin::Other),
            (&[0, 0, 0], Begin::Short),
            (&[0, 0, 0, 9], Begin::Other),
            (&SSL_REQUEST[..7], Begin::Short),
            (&SSL_REQUEST, Begin::PostgresTls),
            (&GSS_REQUEST, Begin::PostgresGss),
            (b"G", Begin::Other),
        ] {
            assert_eq!(begin(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn other_protocols_are_named_and_not_repeated() {
        let text = |bytes: &[u8]| not_tls(bytes).to_string();
        let http = text(b"GET /?password=secret HTTP/1.1\r\n");
        assert!(http.contains("plain HTTP") && !http.contains("secret"));
        assert!(text(b"SSH-2.0-OpenSSH").contains("SSH"));
        assert!(text(&[0, 0, 0, 40, 0, 3, 0, 0, 1]).contains("PostgreSQL"));
        assert_eq!(
            banner(b"\r\n220 mail \"x\" ESMTP\xff\r\n250"),
            "220 mail .x. ESMTP."
        );
        assert_eq!(banner(&[b'a'; 100]).len(), 60);
    }
}
