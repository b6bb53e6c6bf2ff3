//! Lines of standard input, read by a thread of their own. It waits without reading, so that it can be given up, and reads a
//! terminal only while the process is in its foreground: a client that was sent to the background is not stopped by it.

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use tokio::sync::mpsc;

/// Lines that wait to be answered.
const WAITING: usize = 16;
/// Longest line, in bytes.
const LONGEST_LINE: usize = 16 * 1024;
/// How long the thread waits before it looks whether it is still wanted.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// One line, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Its text.
    Text(String),
    /// It was too long, and nothing of it is kept.
    TooLong,
    /// It is not UTF-8.
    NoText,
}

/// Reads standard input until its end, or until nobody takes the lines.
///
/// # Errors
/// There is no thread to be had.
pub fn lines() -> std::io::Result<mpsc::Receiver<Line>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    std::thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || read(rustix::stdio::stdin(), &sender))?;
    Ok(receiver)
}

fn read(input: BorrowedFd<'_>, sender: &mpsc::Sender<Line>) {
    let mut splitter = Splitter::default();
    let mut buffer = [0; 4096];
    while !sender.is_closed() {
        if !in_foreground(input) {
            // Only waits.
            match poll(&mut [], Some(&LOOK)) {
                Ok(_) | Err(Errno::INTR) => continue,
                Err(_) => return,
            }
        }
        match poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&LOOK)) {
            Ok(0) | Err(Errno::INTR) => continue,
            // Ctrl-Z and `bg` may have come while it waited.
            Ok(_) if !in_foreground(input) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        let lines = match rustix::io::read(input, &mut buffer) {
            Ok(0) => {
                if let Some(line) = splitter.end() {
                    drop(sender.blocking_send(line));
                }
                return;
            }
            Ok(length) => splitter.take(buffer.get(..length).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(_) => return,
        };
        for line in lines {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    }
}

/// Whether reading would not stop the process: `input` is no terminal of ours, or we are in its foreground.
fn in_foreground(input: BorrowedFd<'_>) -> bool {
    tcgetpgrp(input).map_or(true, |group| group == getpgrp())
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Splitter {
    line: Vec<u8>,
    too_long: bool,
}

impl Splitter {
    fn take(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            if self.line.len() + part.len() > LONGEST_LINE {
                self.too_long = true;
            }
            if self.too_long {
                self.line.clear();
            } else {
                self.line.extend_from_slice(part);
            }
            // What follows the last line end is not complete.
            if parts.peek().is_some() {
                lines.push(self.line());
            }
        }
        lines
    }

    /// What there is without a line end at the end of all.
    fn end(&mut self) -> Option<Line> {
        (self.too_long || !self.line.is_empty()).then(|| self.line())
    }

    fn line(&mut self) -> Line {
        let line = std::mem::take(&mut self.line);
        match (std::mem::take(&mut self.too_long), String::from_utf8(line)) {
            (true, _) => Line::TooLong,
            (false, Ok(text)) => Line::Text(text),
            (false, Err(_)) => Line::NoText,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use super::*;

    fn text(text: &str) -> Line {
        Line::Text(text.to_owned())
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.take(b"A d"), []);
        assert_eq!(
            splitter.take(b"b:1\nS\n\n"),
            [text("A db:1"), text("S"), text("")]
        );
        assert_eq!(splitter.take(b"\xff\nq"), [Line::NoText]);
        assert_eq!(splitter.end(), Some(text("q")));
        assert_eq!(splitter.end(), None);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut splitter = Splitter::default();
        for _ in 0..100 {
            assert_eq!(splitter.take(&[b'x'; 4096]), []);
            assert!(splitter.line.capacity() <= 2 * LONGEST_LINE);
        }
        assert_eq!(splitter.take(b"x\nS\n"), [Line::TooLong, text("S")]);
        let longest = vec![b'x'; LONGEST_LINE];
        assert_eq!(splitter.take(&longest), []);
        assert_eq!(splitter.take(b"\n").len(), 1);
        assert_eq!(splitter.end(), None);
    }

    #[test]
    fn the_end_of_input_and_of_interest_end_the_thread() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (sender, mut lines) = mpsc::channel(4);
        let thread = std::thread::spawn(move || read(reader.as_fd(), &sender));
        writer.write_all(b"S\nunfinished").unwrap();
        assert_eq!(lines.blocking_recv(), Some(text("S")));
        drop(writer);
        assert_eq!(lines.blocking_recv(), Some(text("unfinished")));
        assert_eq!(lines.blocking_recv(), None);
        thread.join().unwrap();

        let (reader, _writer) = std::io::pipe().unwrap();
        let (sender, lines) = mpsc::channel(4);
        let thread = std::thread::spawn(move || read(reader.as_fd(), &sender));
        drop(lines);
        thread.join().unwrap();
    }
}
