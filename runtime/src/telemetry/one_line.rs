//! Keeps one event one line, whatever somebody else has put into a name, a path or an error: control characters, the line
//! ends of Unicode and the marks that turn the direction of text are written as escapes, in both forms of the log.
//!
//! As text the values of fields are escaped where they are formatted, so that the colours of a terminal stay. JSON escapes
//! most by itself; what it leaves is escaped in the finished line.

use std::borrow::Cow;
use std::fmt;
use std::io;

use tracing::Metadata;
use tracing::field::Field;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;

/// Whether a character could end a line, move the cursor, or make text look like other text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with escapes as Rust writes them.
fn as_text(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_unsafe(c) {
            true => escaped.extend(c.escape_default()),
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// One field of an event as text: `name=value`, and the message without a name.
pub(super) fn field(out: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    let value = as_text(&value);
    match field.name() {
        "message" => out.write_str(&value),
        name => write!(out, "{name}={value}"),
    }
}

/// Writes finished lines of JSON, and escapes what is left in them.
#[derive(Debug, Clone)]
pub(super) struct JsonLines<M>(pub(super) M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for JsonLines<M> {
    type Writer = JsonLine<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        JsonLine(self.0.make_writer())
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self::Writer {
        JsonLine(self.0.make_writer_for(event))
    }
}

/// Takes one line per call, as the formatter gives it.
#[derive(Debug)]
pub(super) struct JsonLine<W>(W);

impl<W: io::Write> io::Write for JsonLine<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nearly all lines are such, and a look at each byte is cheap.
        if let Some(text) = bytes.strip_suffix(b"\n")
            && text.iter().all(|byte| matches!(byte, b' '..=b'~'))
        {
            return self.0.write_all(bytes).map(|()| bytes.len());
        }
        let line = String::from_utf8_lossy(bytes);
        let (text, end) = match line.strip_suffix('\n') {
            Some(text) => (text, "\n"),
            None => (&*line, ""),
        };
        if !text.contains(is_unsafe) {
            return self.0.write_all(bytes).map(|()| bytes.len());
        }
        let mut escaped = String::with_capacity(line.len() + 16);
        for c in text.chars() {
            match is_unsafe(c) {
                // All of them are in the plane that four digits reach, and can stand inside of texts only.
                true => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
                false => escaped.push(c),
            }
        }
        escaped.push_str(end);
        // One write, so that lines of several threads do not mix.
        self.0.write_all(escaped.as_bytes()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
