//! HTTP paths: the one form in which a path is decided on and forwarded.
//!
//! Two programs that read a path differently are how access control is walked around: the one that decides sees
//! `/public/x`, the one that serves sees `/admin`. So there is one form here, and both ends of a tunnel decide on it
//! and send exactly it to the resource. Percent-encoding is undone once, dot segments are taken away, empty segments
//! are folded, and what is left is encoded again in one way. What servers are known to read in two ways is not
//! repaired but refused ([`PathRefusal`]).
//!
//! What it is not: a router, or a judge of queries. A query is neither read nor changed.
//!
//! Where to start: [`CanonicalPath::parse`]; [`PathPrefix`] is what a rule names.

use std::fmt;
use std::str::FromStr;

use crate::Invalid;
use crate::words::words;

words!(
    /// How a rule's path is compared with a request's.
    #[derive(Default)]
    PrefixMode, "path_prefix" {
        /// Whole segments: `/api` covers `/api` and `/api/x`, not `/apix`.
        #[default]
        Segment = "segment",
        /// Text, as Secure Gateway did it: `/api` covers `/apix` too.
        Text = "text",
    }
);

/// Why a path is not taken. All of these are the requester's doing and none is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PathRefusal {
    /// It does not begin with a slash.
    #[error("a path begins with '/'")]
    NoLeadingSlash,
    /// `*`, which only `OPTIONS` may ask for.
    #[error("'*' is for OPTIONS only")]
    Asterisk,
    /// A `#`, which clients must keep to themselves.
    #[error("a request has no '#' fragment")]
    Fragment,
    /// `%2f`: some servers see a separator there, some a letter.
    #[error("an encoded slash (%2F) is read in two ways")]
    EncodedSlash,
    /// A backslash, encoded or not: a separator for some servers.
    #[error("a backslash is read in two ways")]
    Backslash,
    /// NUL, line ends and the like, encoded or not; and a bare space.
    #[error("a control character or a bare space")]
    ControlCharacter,
    /// A `%` that two hexadecimal digits do not follow.
    #[error("a '%' without two hexadecimal digits")]
    BadEncoding,
    /// Text that would change again if somebody decoded it a second time.
    #[error("encoded twice")]
    DoubleEncoding,
    /// A dot segment with something attached: `..;x`, `...`, `.. `.
    #[error("a dot segment with something attached is read in two ways")]
    DotSegment,
    /// More `..` than there are segments.
    #[error("'..' leads out of the root")]
    BeyondRoot,
    /// Decoded, it is not UTF-8; overlong forms are not either.
    #[error("not UTF-8")]
    NotUtf8,
    /// Longer than [`CanonicalPath::MAX_LEN`].
    #[error("longer than 8192 bytes")]
    TooLong,
}

impl PathRefusal {
    /// The word for logs and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::NoLeadingSlash => "no-leading-slash",
            Self::Asterisk => "asterisk",
            Self::Fragment => "fragment",
            Self::EncodedSlash => "encoded-slash",
            Self::Backslash => "backslash",
            Self::ControlCharacter => "control-character",
            Self::BadEncoding => "bad-encoding",
            Self::DoubleEncoding => "double-encoding",
            Self::DotSegment => "dot-segment",
            Self::BeyondRoot => "beyond-root",
            Self::NotUtf8 => "not-utf8",
            Self::TooLong => "too-long",
        }
    }
}

/// A request's path in its one form, with the query as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalPath {
    /// What is forwarded: the encoded path, and `?` and the query if there is one.
    target: String,
    /// Where the path ends in `target`.
    path_len: usize,
    /// The decoded segments, each behind a slash. As no decoded segment contains a slash, this says the same
    /// as a list of segments.
    decoded: String,
}

impl CanonicalPath {
    /// Longest path, without query, as it arrives.
    pub const MAX_LEN: usize = 8_192;

    /// Reads the target of a request in origin form: `/path` or `/path?query`.
    ///
    /// # Errors
    /// When different servers could understand it differently.
    pub fn parse(target: &str) -> Result<Self, PathRefusal> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        if path.len() > Self::MAX_LEN {
            return Err(PathRefusal::TooLong);
        }
        if target.contains('#') {
            return Err(PathRefusal::Fragment);
        }
        if path == "*" {
            return Err(PathRefusal::Asterisk);
        }
        let Some(inner) = path.strip_prefix('/') else {
            return Err(PathRefusal::NoLeadingSlash);
        };
        if query.is_some_and(|query| query.bytes().any(is_control_or_space)) {
            return Err(PathRefusal::ControlCharacter);
        }
        let (mut target, decoded) = Builder::default().read(inner)?;
        let path_len = target.len();
        if let Some(query) = query {
            target.push('?');
            target.push_str(query);
        }
        Ok(Self {
            target,
            path_len,
            decoded,
        })
    }

    /// As [`CanonicalPath::parse`], and takes `*` when the method is `OPTIONS`: it asks about the whole server,
    /// so only a rule for `/` covers it.
    ///
    /// # Errors
    /// When different servers could understand it differently.
    pub fn parse_for(method: &str, target: &str) -> Result<Self, PathRefusal> {
        if method == "OPTIONS" && target == "*" {
            return Ok(Self {
                target: "*".to_owned(),
                path_len: 1,
                decoded: "*".to_owned(),
            });
        }
        Self::parse(target)
    }

    /// The path to forward, encoded, without the query.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.target
            .split_at_checked(self.path_len)
            .map_or(&self.target, |(path, _)| path)
    }

    /// The query as it came, without its `?`.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        let (_, rest) = self.target.split_at_checked(self.path_len)?;
        rest.strip_prefix('?')
    }

    /// Path and query, as they are to be forwarded.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The decoded segments. A path that ends in a slash ends in an empty one.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.decoded.trim_start_matches('/').split('/')
    }

    /// Whether a rule for `prefix` covers this path.
    #[must_use]
    pub fn is_within(&self, prefix: &PathPrefix, mode: PrefixMode) -> bool {
        let prefix = prefix.0.decoded.as_str();
        if prefix == "/" {
            return true;
        }
        match self.decoded.strip_prefix(prefix) {
            None => false,
            Some(rest) => {
                mode == PrefixMode::Text
                    || rest.is_empty()
                    || rest.starts_with('/')
                    || prefix.ends_with('/')
            }
        }
    }
}

impl fmt::Display for CanonicalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The path of a rule: a canonical path without query. `/a/` covers what is below `/a` but not `/a` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPrefix(CanonicalPath);

impl PathPrefix {
    /// The path as it is written in a list: encoded in the one way.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether everything that `other` covers is covered by this one too.
    #[must_use]
    pub fn covers(&self, other: &Self, mode: PrefixMode) -> bool {
        other.0.is_within(self, mode)
    }
}

impl std::hash::Hash for PathPrefix {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl FromStr for PathPrefix {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = |why: String| {
            Err(Invalid::new(
                "path",
                format!("'{}': {why}", text.escape_debug()),
            ))
        };
        if text.contains('?') {
            return invalid("a rule has no query; leave '?' and what follows away".to_owned());
        }
        if text.ends_with('*') {
            return invalid(
                "a rule covers everything below its path; leave the '*' away (a star itself is %2A)"
                    .to_owned(),
            );
        }
        match CanonicalPath::parse(text) {
            Ok(path) => Ok(Self(path)),
            Err(refusal) => invalid(refusal.to_string()),
        }
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The two forms of a path while its segments arrive. Both hold the same number of slashes.
#[derive(Default)]
struct Builder {
    encoded: String,
    decoded: String,
}

impl Builder {
    /// `inner` is the path behind its first slash.
    fn read(mut self, inner: &str) -> Result<(String, String), PathRefusal> {
        // Whether the path names what is below its last segment: it ends in a slash or in a dot segment.
        let mut below = true;
        for raw in inner.split('/') {
            let (encoded, decoded) = segment(raw)?;
            below = match decoded.as_str() {
                "" | "." => true,
                ".." => {
                    self.pop()?;
                    true
                }
                _ if is_dubious(&decoded) => return Err(PathRefusal::DotSegment),
                _ => {
                    self.encoded.push('/');
                    self.encoded.push_str(&encoded);
                    self.decoded.push('/');
                    self.decoded.push_str(&decoded);
                    false
                }
            };
        }
        if below {
            self.encoded.push('/');
            self.decoded.push('/');
        }
        Ok((self.encoded, self.decoded))
    }

    fn pop(&mut self) -> Result<(), PathRefusal> {
        for text in [&mut self.encoded, &mut self.decoded] {
            let last = text.rfind('/').ok_or(PathRefusal::BeyondRoot)?;
            text.truncate(last);
        }
        Ok(())
    }
}

/// A segment that is no dot segment, and that some servers make one of: they cut parameters, trailing spaces or
/// trailing dots off.
fn is_dubious(decoded: &str) -> bool {
    let name = decoded.split(';').next().unwrap_or_default();
    name.starts_with('.') && name.chars().all(|c| c == '.' || c.is_whitespace())
}

/// One segment: encoded in the one way, and decoded.
fn segment(raw: &str) -> Result<(String, String), PathRefusal> {
    let mut bytes = Vec::with_capacity(raw.len());
    // Which of the bytes had to be decoded.
    let mut was_encoded = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let (value, encoded, after) = if byte == b'%' {
            let (digits, after) = after.split_at_checked(2).ok_or(PathRefusal::BadEncoding)?;
            (hex(digits).ok_or(PathRefusal::BadEncoding)?, true, after)
        } else {
            (byte, false, after)
        };
        match value {
            b'/' => return Err(PathRefusal::EncodedSlash),
            b'\\' => return Err(PathRefusal::Backslash),
            b' ' if encoded => {}
            _ if is_control_or_space(value) => return Err(PathRefusal::ControlCharacter),
            _ => {}
        }
        bytes.push(value);
        was_encoded.push(encoded);
        rest = after;
    }
    let decoded = String::from_utf8(bytes).map_err(|_| PathRefusal::NotUtf8)?;
    if decoded.chars().any(char::is_control) {
        return Err(PathRefusal::ControlCharacter);
    }
    if decodes_again(decoded.as_bytes()) {
        return Err(PathRefusal::DoubleEncoding);
    }
    let mut encoded = String::with_capacity(raw.len());
    for (byte, was_encoded) in decoded.bytes().zip(was_encoded) {
        let plain = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => true,
            // Encoding these can change their meaning for the server, so they stay as they came.
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':'
            | b'@' => !was_encoded,
            _ => false,
        };
        if plain {
            encoded.push(char::from(byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            encoded.push('%');
            encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
            encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    Ok((encoded, decoded))
}

/// Whether decoding once more would change the text: `%41`, or `%u0041` as some servers have it.
fn decodes_again(decoded: &[u8]) -> bool {
    let all_hex = |digits: Option<&[u8]>| {
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    (0..decoded.len()).any(|at| {
        decoded.get(at) == Some(&b'%')
            && (all_hex(decoded.get(at + 1..at + 3))
                || (matches!(decoded.get(at + 1), Some(b'u' | b'U'))
                    && all_hex(decoded.get(at + 2..at + 6))))
    })
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    match digits {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    }
}

fn is_control_or_space(byte: u8) -> bool {
    byte <= b' ' || byte == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(target: &str) -> Result<String, PathRefusal> {
        CanonicalPath::parse(target).map(|path| path.target().to_owned())
    }

    #[test]
    fn spellings_of_one_path_become_one() {
        for (raw, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//a///b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../c", "/a/c"),
            ("/a/%2e%2E/b", "/b"),
            ("/%61%7Eb", "/a~b"),
            ("/%c3%bc", "/%C3%BC"),
            ("/ü", "/%C3%BC"),
            ("/a%3bb;c", "/a%3Bb;c"),
            ("/a%20b", "/a%20b"),
            ("/100%25", "/100%25"),
            ("/a%3Fb?c=%2f..", "/a%3Fb?c=%2f.."),
            ("/a?", "/a?"),
        ] {
            assert_eq!(canonical(raw).as_deref(), Ok(expected), "{raw}");
            assert_eq!(canonical(expected).as_deref(), Ok(expected), "{raw} again");
        }
    }

    #[test]
    fn what_is_read_in_two_ways_is_refused() {
        use PathRefusal as R;
        for (raw, refusal) in [
            ("", R::NoLeadingSlash),
            ("a", R::NoLeadingSlash),
            ("http://host/a", R::NoLeadingSlash),
            ("*", R::Asterisk),
            ("/a#b", R::Fragment),
            ("/a%2fb", R::EncodedSlash),
            ("/a\\b", R::Backslash),
            ("/a%5Cb", R::Backslash),
            ("/a%00", R::ControlCharacter),
            ("/a%C2%85", R::ControlCharacter),
            ("/a b", R::ControlCharacter),
            ("/a?b c", R::ControlCharacter),
            ("/a%", R::BadEncoding),
            ("/a%4", R::BadEncoding),
            ("/a%zz", R::BadEncoding),
            ("/a%u002f", R::BadEncoding),
            ("/a%252fb", R::DoubleEncoding),
            ("/a%25%34%31", R::DoubleEncoding),
            ("/a%25u002f", R::DoubleEncoding),
            ("/a/..;x/b", R::DotSegment),
            ("/a/.;/b", R::DotSegment),
            ("/a/%2e.%3bx", R::DotSegment),
            ("/a/...", R::DotSegment),
            ("/a/..%20/b", R::DotSegment),
            ("/..", R::BeyondRoot),
            ("/a/../../b", R::BeyondRoot),
            ("/%c0%af", R::NotUtf8),
            ("/%ff", R::NotUtf8),
        ] {
            assert_eq!(canonical(raw), Err(refusal), "{raw}");
        }
        let long = "/".repeat(CanonicalPath::MAX_LEN + 1);
        assert_eq!(canonical(&long), Err(R::TooLong));
    }

    #[test]
    fn the_asterisk_is_for_options_and_within_the_root_alone() {
        assert_eq!(
            CanonicalPath::parse_for("GET", "*"),
            Err(PathRefusal::Asterisk)
        );
        let all = CanonicalPath::parse_for("OPTIONS", "*").unwrap();
        assert_eq!(all.as_str(), "*");
        assert!(all.is_within(&"/".parse().unwrap(), PrefixMode::Segment));
        assert!(!all.is_within(&"/a".parse().unwrap(), PrefixMode::Text));
    }

    #[test]
    fn a_prefix_ends_at_a_segment_unless_text_is_asked_for() {
        for (prefix, path, segment, text) in [
            ("/api", "/api", true, true),
            ("/api", "/api/", true, true),
            ("/api", "/api/x", true, true),
            ("/api", "/apix", false, true),
            ("/api", "/Api", false, false),
            ("/api/", "/api", false, false),
            ("/api/", "/api/x", true, true),
            ("/", "/x", true, true),
            ("/a%62", "/ab/c", true, true),
            ("/api", "/api/../x", false, false),
            ("/api", "/api;v=1/x", false, true),
        ] {
            let prefix: PathPrefix = prefix.parse().unwrap();
            let path = CanonicalPath::parse(path).unwrap();
            let within = |mode| path.is_within(&prefix, mode);
            assert_eq!(within(PrefixMode::Segment), segment, "{prefix} {path}");
            assert_eq!(within(PrefixMode::Text), text, "{prefix} {path} as text");
        }
        for bad in ["", "api", "/api?x", "/api/*", "/..", "/%2f"] {
            assert!(bad.parse::<PathPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn segments_are_decoded() {
        let path = CanonicalPath::parse("/a%20b//c/?q").unwrap();
        assert_eq!(path.segments().collect::<Vec<_>>(), ["a b", "c", ""]);
        assert_eq!((path.as_str(), path.query()), ("/a%20b/c/", Some("q")));
    }
}
