//! Input as choices: numbers and bytes, until there are none left. And the frames of a peer that
//! knows the format and is free to break its rules.

/// The rest of the input.
pub(crate) struct Script<'a>(pub(crate) &'a [u8]);

impl<'a> Script<'a> {
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte; 0 at the end.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub(crate) fn below(&mut self, end: u8) -> u8 {
        self.byte() % end.max(1)
    }

    pub(crate) fn wide(&mut self) -> u16 {
        u16::from(self.byte()) << 8 | u16::from(self.byte())
    }

    /// A number of any size: small ones are as likely as those at the limits.
    pub(crate) fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => u64::from(self.byte()),
            1 => u64::from(self.wide()),
            2 => u64::from(self.wide()) << 8,
            3 => u64::from(u32::MAX) - u64::from(self.byte()),
            4 => u64::MAX - u64::from(self.byte()),
            _ => 0,
        }
    }

    /// At most `most` bytes of the input itself.
    pub(crate) fn take(&mut self, most: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(most.min(self.0.len()));
        self.0 = later;
        now
    }
}

/// A record around `content`.
pub(crate) fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("invariant: inputs are short");
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&length.to_be_bytes()[1..]);
    bytes.extend_from_slice(content);
    bytes
}

pub(crate) fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![kind, flags];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) const LOGGED: u8 = 0;
pub(crate) const UNLOGGED: u8 = 1;
pub(crate) const ACK: u8 = 2;
pub(crate) const RESUME: u8 = 3;

/// SETTINGS that allow `streams` streams.
pub(crate) fn settings(streams: u32) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in [(1_u16, streams), (2, 16_376), (3, 4096)] {
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&4_u16.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    frame(0x0a, 0, 0, &payload)
}

/// The streams that the scripted peer knows of.
#[derive(Default)]
pub(crate) struct Ids {
    /// Streams that it has opened; the next id is `2 * opened + 2`.
    pub(crate) opened: u32,
}

impl Ids {
    fn choose(&self, script: &mut Script<'_>) -> u32 {
        let byte = script.byte();
        match byte {
            // An own stream, or one of the other side, or anything.
            0..=99 => 2 * (u32::from(byte) % self.opened.max(1)) + 2,
            100..=199 => 2 * (u32::from(byte) % 8) + 1,
            200..=250 => u32::from(byte) % 20,
            _ => u32::try_from(script.number() & 0xffff_ffff).expect("invariant: masked"),
        }
    }

    /// A frame that mostly obeys the format, and the kind of record that it belongs to.
    pub(crate) fn frame(&mut self, script: &mut Script<'_>) -> (u8, Vec<u8>) {
        let kind = script.below(16);
        let mut logged = LOGGED;
        let bytes = match kind {
            0 | 13 => {
                let id = self.choose(script);
                let flags = script.byte();
                let length = usize::from(script.wide()) % 2000;
                let payload = script.take(usize::from(flags >> 4)).to_vec();
                let mut payload = payload;
                if flags & 0x0c == 0 {
                    payload.resize(length, 7);
                }
                frame(0, flags & 1, id, &payload)
            }
            1 | 14 => {
                let flags = script.byte();
                let id = if flags < 250 {
                    self.opened += 1;
                    2 * self.opened
                } else {
                    self.choose(script)
                };
                let credit = u32::from(script.wide()) << (flags & 15);
                let mut payload = credit.to_be_bytes().to_vec();
                payload.extend_from_slice(script.take(usize::from(flags >> 5)));
                frame(1, u8::from(flags & 3 == 0), id, &payload)
            }
            2 | 15 => {
                let id = self.choose(script);
                let credit = u32::from(script.wide()) << script.below(17);
                let mut payload = credit.to_be_bytes().to_vec();
                payload.extend_from_slice(
                    script.take(usize::from(script.0.first().unwrap_or(&0) & 7)),
                );
                frame(2, 0, id, &payload)
            }
            3 => {
                let id = self.choose(script);
                frame(3, 0, id, &u32::from(script.wide()).to_be_bytes())
            }
            4 => {
                let id = self.choose(script);
                frame(4, 0, id, &script.number().to_be_bytes())
            }
            5 | 6 => {
                logged = UNLOGGED;
                frame(kind, 0, 0, &script.number().to_be_bytes())
            }
            7 => {
                let mut payload = u32::from(script.below(16)).to_be_bytes().to_vec();
                payload.extend_from_slice(script.take(3));
                frame(7, 0, 0, &payload)
            }
            8 => {
                logged = UNLOGGED;
                let id = self.choose(script);
                let length = usize::from(script.wide());
                let payload = if length & 1 == 0 {
                    script.take(length & 31).to_vec()
                } else {
                    vec![9; length]
                };
                frame(8, 0, id, &payload)
            }
            9 => {
                let length = usize::from(script.byte());
                frame(9, 0, 0, script.take(length))
            }
            10 => settings(u32::from(script.byte())),
            11 => frame(11, 0, 0, &u32::from(script.wide()).to_be_bytes()),
            _ => {
                let head = [script.byte(), script.byte()];
                let id = self.choose(script);
                let length = usize::from(script.byte());
                frame(head[0], head[1], id, script.take(length))
            }
        };
        (logged, bytes)
    }
}
