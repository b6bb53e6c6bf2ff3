//! Records and frames as bytes: reading never panics, and writing what was read gives the same bytes.

use bytes::Bytes;
use sg_tunnel::frame::{Frame, HEADER_LEN, Header, kind};
use sg_tunnel::record::{RECORD_LEN, RecordHeader};

/// Reads the input as records, their contents and the input itself as frames.
pub fn frame_parser(input: &[u8]) {
    let (first, bytes) = input.split_first().unwrap_or((&0, &[]));
    let max_metadata = usize::from(*first) * 16;
    frames(bytes, max_metadata);
    records(bytes, max_metadata);
}

fn records(mut bytes: &[u8], max_metadata: usize) {
    while let Some((head, rest)) = bytes.split_first_chunk::<RECORD_LEN>() {
        let Ok(header) = RecordHeader::parse(*head) else {
            return;
        };
        assert_eq!(header.to_bytes(), *head);
        let (content, after) = rest.split_at(header.length.min(rest.len()));
        frames(content, max_metadata);
        bytes = after;
    }
}

fn frames(mut bytes: &[u8], max_metadata: usize) {
    while let Some(header) = Header::peek(bytes) {
        assert_eq!(header.to_bytes(), bytes[..HEADER_LEN]);
        let length = usize::from(header.length);
        let known = match header.kind {
            kind::DATA | kind::DATAGRAM => false,
            _ => match Frame::check_header(header, max_metadata) {
                Ok(known) => known,
                Err(violation) => {
                    assert!(!violation.detail.is_empty());
                    false
                }
            },
        };
        let rest = &bytes[HEADER_LEN..];
        let (payload, after) = rest.split_at(length.min(rest.len()));
        if known && payload.len() == length {
            round_trip(header, payload);
        }
        // What the check refuses must not make the parser panic either.
        drop(Frame::parse(header, Bytes::copy_from_slice(payload)));
        bytes = after;
    }
}

fn round_trip(header: Header, payload: &[u8]) {
    let Ok(frame) = Frame::parse(header, Bytes::copy_from_slice(payload)) else {
        // Only contents can still be wrong, and only SETTINGS have some.
        assert_eq!(header.kind, kind::SETTINGS, "{header:?} {payload:?}");
        return;
    };
    let mut written = Vec::new();
    frame.put(&mut written);
    if header.kind != kind::SETTINGS {
        assert_eq!(written[..HEADER_LEN], header.to_bytes());
        assert_eq!(&written[HEADER_LEN..], payload);
    }
    let again = Header::peek(&written).expect("a header was written");
    let payload = Bytes::copy_from_slice(&written[HEADER_LEN..]);
    assert_eq!(Frame::parse(again, payload).as_ref(), Ok(&frame));
}
