//! The literal bytes of every frame. A change here breaks every peer in the field.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use sg_tunnel::frame::{Frame, HEADER_LEN, Header, Settings};
use sg_tunnel::record::{RecordHeader, kind, offset_record};

fn check(frame: &Frame, bytes: &[u8]) {
    let mut out = Vec::new();
    frame.put(&mut out);
    assert_eq!(out, bytes, "{frame:?}");
    let header = Header::peek(bytes).unwrap();
    assert_eq!(Frame::check_header(header, 1024), Ok(true));
    let payload = Bytes::copy_from_slice(&bytes[HEADER_LEN..]);
    assert_eq!(&Frame::parse(header, payload).unwrap(), frame);
}

#[test]
fn every_frame_has_exactly_these_bytes() {
    check(
        &Frame::Open {
            id: 0x0102_0304,
            credit: 65_536,
            flow: false,
            metadata: Bytes::from_static(b"hi"),
        },
        &[1, 0, 0, 6, 1, 2, 3, 4, 0, 1, 0, 0, b'h', b'i'],
    );
    check(
        &Frame::Open {
            id: 2,
            credit: 0,
            flow: true,
            metadata: Bytes::from_static(b"u"),
        },
        &[1, 1, 0, 5, 0, 0, 0, 2, 0, 0, 0, 0, b'u'],
    );
    check(
        &Frame::OpenOk {
            id: 3,
            credit: 16_384,
            answer: Bytes::new(),
        },
        &[2, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0x40, 0],
    );
    check(
        &Frame::OpenOk {
            id: 3,
            credit: 16_384,
            answer: Bytes::from_static(b"yes"),
        },
        &[2, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0x40, 0, b'y', b'e', b's'],
    );
    check(
        &Frame::Reset { id: 5, code: 0x101 },
        &[3, 0, 0, 4, 0, 0, 0, 5, 0, 0, 1, 1],
    );
    check(
        &Frame::Window {
            id: 2,
            limit: 0x0102_0304_0506_0708,
        },
        &[4, 0, 0, 8, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8],
    );
    check(
        &Frame::Ping(7),
        &[5, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
    );
    check(
        &Frame::Pong(7),
        &[6, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
    );
    check(
        &Frame::Goaway {
            code: 8,
            message: Bytes::from_static(b"bye"),
        },
        &[7, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 8, b'b', b'y', b'e'],
    );
    check(
        &Frame::Datagram {
            id: 4,
            payload: Bytes::from_static(b"dg"),
        },
        &[8, 0, 0, 2, 0, 0, 0, 4, b'd', b'g'],
    );
    check(
        &Frame::Control(Bytes::from_static(&[9, 9])),
        &[9, 0, 0, 2, 0, 0, 0, 0, 9, 9],
    );
    check(
        &Frame::Settings(Settings {
            max_streams: 10_000,
            max_frame: 16_376,
            max_metadata: 4096,
        }),
        &[
            0x0a, 0, 0, 24, 0, 0, 0, 0, //
            0, 1, 0, 4, 0, 0, 0x27, 0x10, //
            0, 2, 0, 4, 0, 0, 0x3f, 0xf8, //
            0, 3, 0, 4, 0, 0, 0x10, 0,
        ],
    );
    check(
        &Frame::Streams { total: 20_000 },
        &[0x0b, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x4e, 0x20],
    );
}

/// protocol 204
#[test]
fn every_record_has_exactly_these_bytes() {
    for (kind, length, bytes) in [
        (kind::LOGGED, 0x01_0203, [0, 1, 2, 3]),
        (kind::UNLOGGED, 16, [1, 0, 0, 16]),
    ] {
        let header = RecordHeader { kind, length };
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(RecordHeader::parse(bytes), Ok(header));
    }
    let offset = 0x0102_0304_0506_0708;
    let ack = [2, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(offset_record(kind::ACK, offset), ack);
    let resume = [3, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(offset_record(kind::RESUME, offset), resume);
}

#[test]
fn data_has_exactly_these_bytes() {
    let header = Header {
        kind: 0,
        flags: 1,
        length: 0x3ff8,
        id: 0x7fff_ffff,
    };
    let bytes = [0, 1, 0x3f, 0xf8, 0x7f, 0xff, 0xff, 0xff];
    assert_eq!(header.to_bytes(), bytes);
    assert_eq!(Header::peek(&bytes), Some(header));
    assert_eq!(Header::peek(&bytes[..7]), None);
}

/// protocol 308
#[test]
fn settings_skip_what_they_do_not_know() {
    let payload = [0, 1, 0, 4, 0, 0, 0, 9, 0x12, 0x34, 0, 3, 1, 2, 3];
    let header = Header {
        kind: 0x0a,
        flags: 0,
        length: 15,
        id: 0,
    };
    let parsed = Frame::parse(header, Bytes::copy_from_slice(&payload)).unwrap();
    let expected = Settings {
        max_streams: 9,
        ..Settings::DEFAULT
    };
    assert_eq!(parsed, Frame::Settings(expected));
}
