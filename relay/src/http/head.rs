//! Looks at the bytes of a request's head, line by line as they come, for forms that two readers could take
//! differently. It refuses and never interprets: hyper reads what passes. That it is needed at all is because
//! hyper takes bare line feeds for line ends, and drops silently a repeated Content-Length, or one beside
//! Transfer-Encoding, so that nobody after it could refuse them.

use super::refusal::Refusal;
use http::StatusCode;

/// How large a head may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadLimits {
    /// Request line and headers.
    pub(super) bytes: usize,
    /// Header lines.
    pub(super) headers: usize,
}

/// What the bytes so far make up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// More bytes are needed.
    Incomplete,
    /// A whole head, which begins and ends here in the bytes given.
    Complete { start: usize, end: usize },
}

/// The state between two looks at the same, longer bytes.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    /// Bytes that were looked at.
    seen: usize,
    /// Where the present line begins.
    line: usize,
    /// Where the request line begins: after one empty line at most.
    start: usize,
    stage: Stage,
    headers: usize,
    http_10: bool,
    lengths: usize,
    encodings: usize,
    /// A TE header was there.
    pub(super) te: bool,
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum Stage {
    #[default]
    Before,
    AfterBlank,
    Headers,
}

impl HeadScan {
    /// Looks at what is new in `bytes`, which begin where they began in the call before.
    pub(super) fn advance(&mut self, bytes: &[u8], limits: HeadLimits) -> Result<Scan, Refusal> {
        while let Some(&byte) = bytes.get(self.seen) {
            self.seen += 1;
            match byte {
                b'\n' => {
                    let line = bytes.get(self.line..self.seen - 1).unwrap_or_default();
                    let Some((b'\r', line)) = line.split_last() else {
                        return Err(Refusal::bad("a line ends without a carriage return"));
                    };
                    self.line = self.seen;
                    if self.end_of_line(line, limits)? {
                        return Ok(Scan::Complete {
                            start: self.start,
                            end: self.seen,
                        });
                    }
                }
                b'\r' => {
                    if bytes.get(self.seen).is_some_and(|&next| next != b'\n') {
                        return Err(Refusal::bad("a carriage return without a line feed"));
                    }
                }
                b'\t' | 0x20..=0x7e | 0x80.. => {}
                _ => return Err(Refusal::bad("a control character")),
            }
            if self.seen - self.start > limits.bytes {
                return Err(too_large());
            }
        }
        Ok(Scan::Incomplete)
    }

    /// Whether the request says HTTP/1.0.
    pub(super) const fn is_http_10(&self) -> bool {
        self.http_10
    }

    /// Whether the line was the empty one that ends a head.
    fn end_of_line(&mut self, line: &[u8], limits: HeadLimits) -> Result<bool, Refusal> {
        match self.stage {
            // A client may send an empty line after the body of its last request.
            Stage::Before if line.is_empty() => {
                self.stage = Stage::AfterBlank;
                self.start = self.line;
                Ok(false)
            }
            Stage::Before | Stage::AfterBlank => {
                self.http_10 = request_line(line)?;
                self.stage = Stage::Headers;
                Ok(false)
            }
            Stage::Headers if line.is_empty() => {
                if self.encodings > 0 && self.http_10 {
                    return Err(Refusal::bad("Transfer-Encoding in HTTP/1.0"));
                }
                if self.encodings > 0 && self.lengths > 0 {
                    return Err(Refusal::bad("Content-Length beside Transfer-Encoding"));
                }
                Ok(true)
            }
            Stage::Headers => self.header(line, limits).map(|()| false),
        }
    }

    fn header(&mut self, line: &[u8], limits: HeadLimits) -> Result<(), Refusal> {
        self.headers += 1;
        if self.headers > limits.headers {
            return Err(too_large());
        }
        let (name, value) = header_line(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            if self.lengths > 1 {
                return Err(Refusal::bad("more than one Content-Length"));
            }
            if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
                return Err(Refusal::bad("Content-Length is not a number"));
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.encodings += 1;
            if self.encodings > 1 || value != b"chunked" {
                return Err(Refusal::bad("Transfer-Encoding is not exactly chunked"));
            }
        } else if name.eq_ignore_ascii_case(b"te") {
            self.te = true;
        } else if name.contains(&b'_') && is_twin_of_framing(name) {
            return Err(Refusal::bad(
                "a header that some take for Content-Length or Transfer-Encoding",
            ));
        }
        Ok(())
    }
}

pub(super) const fn too_large() -> Refusal {
    Refusal::status(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        "headers-too-large",
        "the request line and headers are larger than 64 KiB, or more than 256",
    )
}

/// Whether it says HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::bad(
            "the request line is not method, target and version with one space between",
        ));
    };
    if method.is_empty() || !method.iter().all(|&byte| is_token(byte)) {
        return Err(Refusal::bad("the method is not a token"));
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(Refusal::bad(
            "the target is empty or has characters that must be percent-encoded",
        ));
    }
    if target.contains(&b'#') {
        return Err(Refusal::bad("the target has a fragment"));
    }
    if http::Uri::try_from(target).is_err() {
        return Err(Refusal::bad("the target is not a URI"));
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => Err(Refusal::bad("the version is not HTTP/1.1 or HTTP/1.0")),
    }
}

/// Name and value of a header or trailer line without its line end; spaces around the value are not part of it.
pub(super) fn header_line(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if line
        .first()
        .is_some_and(|&byte| matches!(byte, b' ' | b'\t'))
    {
        return Err(Refusal::bad("a header line that begins with white space"));
    }
    let Some(colon) = line.iter().position(|&byte| byte == b':') else {
        return Err(Refusal::bad("a header line without a colon"));
    };
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
        return Err(Refusal::bad("the name of a header is not a token"));
    }
    Ok((name, trim_spaces(value.get(1..).unwrap_or_default())))
}

/// Tabs stay: where a number or a token is expected they make it none.
fn trim_spaces(mut value: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = value {
        value = rest;
    }
    value
}

/// Whether a name with underscores is one of the headers that frame a message, for those who treat an
/// underscore as a hyphen.
fn is_twin_of_framing(name: &[u8]) -> bool {
    let twin: Vec<u8> = name
        .iter()
        .map(|&byte| if byte == b'_' { b'-' } else { byte })
        .collect();
    [&b"content-length"[..], b"transfer-encoding"]
        .iter()
        .any(|framing| twin.eq_ignore_ascii_case(framing))
}

pub(super) const fn is_token(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'#'
            | b'$'
            | b'%'
            | b'&'
            | b'\''
            | b'*'
            | b'+'
            | b'-'
            | b'.'
            | b'^'
            | b'_'
            | b'`'
            | b'|'
            | b'~'
    ) || byte.is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        bytes: 65_536,
        headers: 256,
    };

    fn scan(bytes: &[u8]) -> Result<Scan, Refusal> {
        // However the bytes are cut, the answer is the same.
        let whole = HeadScan::default().advance(bytes, LIMITS);
        let mut scan = HeadScan::default();
        for end in 0..=bytes.len() {
            match scan.advance(&bytes[..end], LIMITS) {
                Ok(Scan::Incomplete) => {}
                done => {
                    assert_eq!(done.is_err(), whole.is_err());
                    return done;
                }
            }
        }
        assert_eq!(whole, Ok(Scan::Incomplete));
        whole
    }

    #[test]
    fn an_ordinary_head_passes_and_ends_where_it_ends() {
        let head = b"GET /a?b HTTP/1.1\r\nHost: x\r\nX: \xe9\ta\r\n\r\n";
        let mut bytes = head.to_vec();
        bytes.extend_from_slice(b"rest");
        assert_eq!(
            scan(&bytes),
            Ok(Scan::Complete {
                start: 0,
                end: head.len()
            })
        );
    }

    #[test]
    fn one_empty_line_before_is_skipped_and_no_second() {
        assert_eq!(
            scan(b"\r\nGET / HTTP/1.0\r\n\r\n"),
            Ok(Scan::Complete { start: 2, end: 20 })
        );
        assert!(scan(b"\r\n\r\nGET / HTTP/1.0\r\n\r\n").is_err());
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_complete() {
        let mut bytes = b"GET / HTTP/1.1\r\nX: ".to_vec();
        bytes.resize(70_000, b'a');
        let error = HeadScan::default().advance(&bytes, LIMITS).unwrap_err();
        assert_eq!(error.code(), 431);
    }
}
