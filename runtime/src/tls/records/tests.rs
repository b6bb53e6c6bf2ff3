//! Whole connections against rustls at the other end, in either role and between two of ours; and records that
//! nobody should send.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::task::Poll;

use bytes::{Buf as _, BytesMut};
use rustls::CipherSuite;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex,
};

use super::aead::{Cipher, Implementation};
use super::keys::{Suite, TrafficSecret};
use super::protect::{Fault, Opened, Opener, Sealer, content};
use super::*;
use crate::secret::Secret;
use crate::tls::tests::{Ca, client, self_signed_client, server};
use crate::tls::{ClientAuth, ClientStream, ServerStream, accept_records, connect_records};

type Io = RecordWise<DuplexStream>;

/// Two ends that have shaken hands, and can be taken over.
async fn shaken() -> (ClientStream<Io>, ServerStream<Io>) {
    let ca = Ca::new();
    let credentials = self_signed_client();
    let (client, server) = (
        client(&ca.trust(), Some(&credentials)),
        server(&ca.node(), &ClientAuth::AnySelfSigned),
    );
    let (near, far) = duplex(300 * 1024);
    let (near, far) = tokio::join!(
        connect_records(&client, near, "node"),
        accept_records(&server, far)
    );
    (near.unwrap().0, far.unwrap().0)
}

/// One of either kind, to write the same test for all.
trait End {
    async fn say(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// What comes next; nothing at an orderly end.
    async fn hear(&mut self) -> io::Result<Vec<u8>>;
    async fn finish(&mut self) -> io::Result<()>;
    /// Changes the keys of its sending direction now and then.
    fn change_keys(&mut self);
}

impl<T: AsyncRead + AsyncWrite + Unpin> End for RecordStream<T> {
    async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        while sent < bytes.len() {
            // In odd pieces, as a tunnel has them.
            let (a, b) = bytes[sent..].split_at((bytes.len() - sent) / 3);
            let slices = [IoSlice::new(a), IoSlice::new(&[]), IoSlice::new(b)];
            sent += poll_fn(|cx| self.poll_write(cx, &slices)).await?;
        }
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    async fn hear(&mut self) -> io::Result<Vec<u8>> {
        let mut pieces = VecDeque::new();
        let count = poll_fn(|cx| self.poll_read(cx, &mut pieces)).await?;
        let all = pieces
            .iter()
            .flat_map(|piece| piece.iter().copied())
            .collect::<Vec<_>>();
        assert_eq!(all.len(), count);
        Ok(all)
    }

    async fn finish(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_shutdown(cx)).await
    }

    fn change_keys(&mut self) {
        self.update_keys_after(3);
    }
}

macro_rules! library_end {
    ($stream:ident) => {
        impl End for $stream<Io> {
            async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
                self.write_all(bytes).await?;
                self.flush().await
            }

            async fn hear(&mut self) -> io::Result<Vec<u8>> {
                let mut bytes = vec![0; 100_000];
                let count = self.read(&mut bytes).await?;
                bytes.truncate(count);
                Ok(bytes)
            }

            async fn finish(&mut self) -> io::Result<()> {
                self.shutdown().await
            }

            fn change_keys(&mut self) {
                self.get_mut().1.refresh_traffic_keys().unwrap();
            }
        }
    };
}

library_end!(ClientStream);
library_end!(ServerStream);

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|i| ((i * 31 + seed) ^ (i >> 8)).to_le_bytes()[0])
        .collect()
}

/// Pieces of many sizes both ways, with changes of keys between them, then an orderly end both ways.
async fn converse(mut a: impl End, mut b: impl End) {
    let sizes = [
        1, 5, 100, 1000, 16_383, 16_384, 16_385, 65_536, 70_000, 200_000,
    ];
    for (round, size) in sizes.into_iter().chain(sizes).enumerate() {
        if round % 4 == 3 {
            a.change_keys();
        }
        if round % 5 == 4 {
            b.change_keys();
        }
        let (there, back) = (pattern(size, round), pattern(size / 2 + 1, round + 7));
        a.say(&there).await.unwrap();
        b.say(&back).await.unwrap();
        let mut heard = Vec::new();
        while heard.len() < there.len() {
            heard.extend(b.hear().await.unwrap());
        }
        assert!(heard == there, "round {round}");
        let mut heard = Vec::new();
        while heard.len() < back.len() {
            heard.extend(a.hear().await.unwrap());
        }
        assert!(heard == back, "round {round}, back");
    }
    a.finish().await.unwrap();
    assert_eq!(b.hear().await.unwrap(), b"");
    b.finish().await.unwrap();
    assert_eq!(a.hear().await.unwrap(), b"");
    assert!(a.say(b"late").await.is_err());
}

#[tokio::test]
async fn both_ends_are_ours() {
    let (near, far) = shaken().await;
    converse(
        RecordStream::take_over(near).unwrap(),
        RecordStream::take_over(far).unwrap(),
    )
    .await;
}

#[tokio::test]
async fn the_library_is_the_server() {
    let (near, far) = shaken().await;
    converse(RecordStream::take_over(near).unwrap(), far).await;
}

#[tokio::test]
async fn the_library_is_the_client() {
    let (near, far) = shaken().await;
    converse(RecordStream::take_over(far).unwrap(), near).await;
}

#[tokio::test]
async fn what_follows_the_hello_in_the_same_record_and_the_next_ones_is_not_lost() {
    let (mut near, mut far) = shaken().await;
    far.say(b"hello, and a frame").await.unwrap();
    far.say(b" and another").await.unwrap();
    let mut hello = [0; 6];
    near.read_exact(&mut hello).await.unwrap();
    let mut near = RecordStream::take_over(near).unwrap();
    let mut heard = Vec::new();
    while heard.len() < 24 {
        heard.extend(near.hear().await.unwrap());
    }
    assert_eq!(heard, b" and a frame and another");
}

#[tokio::test]
async fn a_connection_is_not_taken_over_between_two_keys_nor_with_something_to_send() {
    let (mut near, far) = shaken().await;
    near.change_keys();
    let error = RecordStream::take_over(near).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the TLS connection cannot be taken over: something is still to be sent, or it has failed"
    );
    drop(far);

    let (mut near, mut far) = shaken().await;
    near.change_keys();
    near.say(b"x").await.unwrap();
    assert_eq!(far.hear().await.unwrap(), b"x");
    let error = RecordStream::take_over(far).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the TLS connection cannot be taken over: the keys have changed already"
    );
}

#[tokio::test]
async fn an_end_without_a_goodbye_is_no_orderly_one() {
    let (near, far) = shaken().await;
    let mut near = RecordStream::take_over(near).unwrap();
    drop(far);
    let error = near.hear().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_byte_changed_on_its_way_ends_the_connection_and_the_other_end_is_told() {
    let (near, far) = shaken().await;
    let mut near = RecordStream::take_over(near).unwrap();
    let (mut socket, _) = far.into_inner();
    // No key of this connection made this.
    let mut record = vec![23, 3, 3, 0, 100];
    record.extend_from_slice(&[7; 100]);
    socket.write_all(&record).await.unwrap();
    let error = near.hear().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(
        error.to_string(),
        "a TLS record is not what the other end sent"
    );
    // It stays what it was, whatever comes behind.
    assert!(near.hear().await.is_err());
    // An alert of two bytes, sealed.
    let mut told = [0; HEADER + 2 + 1 + TAG];
    pin!(socket.read_exact(&mut told)).await.unwrap();
    assert_eq!(told[..HEADER], [23, 3, 3, 0, 19]);
}

#[tokio::test]
async fn what_leaves_piece_by_piece_is_seen_to_move() {
    let (near, far) = shaken().await;
    let mut near = RecordStream::take_over(near).unwrap();
    let block = pattern(200 * 1024, 1);
    // The second one does not fit beneath.
    for _ in 0..2 {
        let taken = poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(&block)])).await;
        assert_eq!(taken.unwrap(), block.len());
    }
    let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
    assert!(near.poll_flush(cx).is_pending());
    assert_eq!(near.sent(), 300 * 1024);
    let (mut socket, _) = far.into_inner();
    let mut some = [0; 1000];
    socket.read_exact(&mut some).await.unwrap();
    assert!(near.poll_flush(cx).is_pending());
    let sent = near.sent();
    assert!(sent > 300 * 1024, "{sent}");
}

#[tokio::test]
async fn who_waits_holds_no_buffer_and_the_next_reader_has_it() {
    let ((near, far), (third, fourth)) = (shaken().await, shaken().await);
    let (mut near, mut far) = (
        RecordStream::take_over(near).unwrap(),
        RecordStream::take_over(far).unwrap(),
    );
    let (mut third, mut fourth) = (
        RecordStream::take_over(third).unwrap(),
        RecordStream::take_over(fourth).unwrap(),
    );
    // By turns, so that each begins where the other has ended in the same buffer.
    for round in 0..200 {
        let sent = pattern(1 + round * 37, round);
        for (from, to) in [(&mut near, &mut far), (&mut third, &mut fourth)] {
            from.say(&sent).await.unwrap();
            let mut heard = Vec::new();
            while heard.len() < sent.len() {
                heard.extend(to.hear().await.unwrap());
            }
            assert!(heard == sent);
            let mut pieces = VecDeque::new();
            let more = poll_fn(|cx| Poll::Ready(to.poll_read(cx, &mut pieces).is_ready())).await;
            assert!(!more && pieces.is_empty());
            to.release();
            assert_eq!(to.held(), 0);
        }
    }
    // The beginning of a record stays with its reader: not all of this fits beneath.
    let block = pattern(200 * 1024, 1);
    for _ in 0..2 {
        let taken = poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(&block)])).await;
        assert_eq!(taken.unwrap(), block.len());
    }
    let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
    let mut pieces = VecDeque::new();
    while far.poll_read(cx, &mut pieces).is_ready() {}
    assert!(far.held() > 0);
    third.say(b"between").await.unwrap();
    assert_eq!(fourth.hear().await.unwrap(), b"between");
    assert!(near.poll_flush(cx).is_ready());
    while far.poll_read(cx, &mut pieces).is_ready() {}
    let heard: Vec<u8> = pieces.into_iter().flatten().collect();
    assert!(heard == [&block[..], &block[..]].concat());
}

#[tokio::test]
async fn who_fills_a_buffer_reads_into_a_large_one_next() {
    let (near, far) = shaken().await;
    let (mut near, mut far) = (
        RecordStream::take_over(near).unwrap(),
        RecordStream::take_over(far).unwrap(),
    );
    let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
    // A batch that is a few bytes longer than it should be leaves as one.
    let batch = pattern(256 * 1024 + 8, 1);
    let taken = poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(&batch)])).await;
    assert_eq!(taken.unwrap(), batch.len());
    assert!(near.poll_flush(cx).is_ready());
    let (mut pieces, mut reads) = (VecDeque::new(), Vec::new());
    while let Poll::Ready(count) = far.poll_read(cx, &mut pieces) {
        reads.push(count.unwrap());
    }
    // Whole records only: of the first read three.
    let first = 3 * MOST_PLAIN;
    assert_eq!(reads, [first, batch.len() - first]);
    assert!(pieces.into_iter().flatten().eq(batch));
    far.release();
    assert_eq!(far.held(), 0);
    // The large one is not for those who are slow: neither for itself, in the middle of a record, nor for others.
    let ((third, fourth), wire) = (shaken().await, pattern(100, 2));
    let (mut third, mut fourth) = (
        RecordStream::take_over(third).unwrap(),
        RecordStream::take_over(fourth).unwrap(),
    );
    for (from, to) in [(&mut near, &mut far), (&mut third, &mut fourth)] {
        let beginning = pattern(200 * 1024, 3);
        for round in 0..3 {
            from.say(&wire).await.unwrap();
            assert_eq!(to.hear().await.unwrap(), wire, "round {round}");
            assert!(!to.reads_large() || round == 0);
        }
        // More than the pipe takes: the rest of a record is still to come.
        for _ in 0..2 {
            let taken = poll_fn(|cx| from.poll_write(cx, &[IoSlice::new(&beginning)])).await;
            assert_eq!(taken.unwrap(), beginning.len());
        }
        let mut pieces = VecDeque::new();
        while to.poll_read(cx, &mut pieces).is_ready() {}
        assert!(to.held() > 0);
        assert!(from.poll_flush(cx).is_ready());
    }
}

#[tokio::test]
async fn many_short_records_come_a_thousand_at_a_time() {
    let (near, far) = shaken().await;
    let (mut near, mut far) = (
        RecordStream::take_over(near).unwrap(),
        RecordStream::take_over(far).unwrap(),
    );
    for _ in 0..2500 {
        let taken = poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(b"x")])).await;
        assert_eq!(taken.unwrap(), 1);
    }
    let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
    let mut counts = Vec::new();
    let mut pieces = VecDeque::new();
    while let Poll::Ready(count) = far.poll_read(cx, &mut pieces) {
        counts.push(count.unwrap());
    }
    assert_eq!(counts, [1024, 1024, 452]);
}

#[tokio::test]
async fn what_was_right_before_a_broken_record_is_given_first() {
    let (near, mut far) = shaken().await;
    let mut near = RecordStream::take_over(near).unwrap();
    far.say(b"last words").await.unwrap();
    let (mut socket, _) = far.into_inner();
    socket.write_all(&[22, 3, 3, 0, 1, 0]).await.unwrap();
    assert_eq!(near.hear().await.unwrap(), b"last words");
    let error = near.hear().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "a TLS message came that has no place here"
    );
}

fn secret() -> TrafficSecret {
    let suite = Suite::of(CipherSuite::TLS13_AES_128_GCM_SHA256).unwrap();
    TrafficSecret::new(suite, Secret::new(vec![9; 32]))
}

/// Two directions under one secret.
fn direction(tickets: bool) -> (Sealer, Opener) {
    let sealer = Sealer::new(Implementation::Ring, secret(), 0).unwrap();
    let opener = Opener::new(Implementation::AwsLc, secret(), 0, tickets).unwrap();
    (sealer, opener)
}

/// What becomes of one record with this content.
fn opened(
    opener: &mut Opener,
    sealer: &mut Sealer,
    kind: u8,
    bytes: &[u8],
) -> Result<Opened, Fault> {
    let mut out = BytesMut::new();
    let sealed = sealer.seal(kind, bytes, &mut out);
    assert_eq!(sealed, Ok(()));
    opener
        .open(&mut out)
        .map(|opened| opened.expect("it is all there"))
}

#[test]
fn records_that_have_no_place_here_are_refused() {
    for (kind, bytes, tickets, expected) in [
        (content::HANDSHAKE, &b""[..], true, Fault::Unexpected),
        // A message that is none of those that may come now: a client hello.
        (
            content::HANDSHAKE,
            &[1, 0, 0, 1, 0],
            true,
            Fault::Unexpected,
        ),
        // A ticket for a server.
        (
            content::HANDSHAKE,
            &[4, 0, 0, 1, 0],
            false,
            Fault::Unexpected,
        ),
        // An update of keys with something behind it, one with a third value, one without a value.
        (
            content::HANDSHAKE,
            &[24, 0, 0, 1, 0, 4],
            true,
            Fault::Unexpected,
        ),
        (
            content::HANDSHAKE,
            &[24, 0, 0, 1, 2],
            true,
            Fault::Unexpected,
        ),
        (content::HANDSHAKE, &[24, 0, 0, 0], true, Fault::Unexpected),
        // A message of more than 64 KiB.
        (content::HANDSHAKE, &[4, 1, 0, 1], true, Fault::Unexpected),
        (content::ALERT, &[2, 20], true, Fault::Alert(20)),
        (content::ALERT, &[2], true, Fault::Malformed),
        (20, &[1], true, Fault::Unexpected),
        (0, &[0, 0, 0], true, Fault::Unexpected),
    ] {
        let (mut sealer, mut opener) = direction(tickets);
        let result = opened(&mut opener, &mut sealer, kind, bytes);
        assert_eq!(result, Err(expected), "{kind} {bytes:?}");
    }
}

#[test]
fn headers_that_cannot_be_are_refused_before_anything_is_collected() {
    for (header, expected) in [
        ([22, 3, 3, 0, 50], Fault::Unexpected),
        ([20, 3, 3, 0, 1], Fault::Unexpected),
        ([23, 4, 3, 0, 50], Fault::Malformed),
        ([23, 3, 3, 0, 16], Fault::Malformed),
        ([23, 3, 3, 0x41, 1], Fault::TooLong),
        (*b"GET /", Fault::Malformed),
    ] {
        let (_, mut opener) = direction(true);
        let result = opener.open(&mut BytesMut::from(&header[..]));
        assert_eq!(result, Err(expected), "{header:?}");
    }
    let (_, mut opener) = direction(true);
    let mut half = BytesMut::from(&[23, 3, 3, 0x41, 0, 1, 2, 3][..]);
    assert_eq!(opener.open(&mut half), Ok(None));
}

#[test]
fn tickets_and_updates_may_be_cut_but_not_mixed_with_anything() {
    let (mut sealer, mut opener) = direction(true);
    let mut message = vec![4, 0, 2, 0];
    message.extend_from_slice(&[5; 512]);
    message.extend_from_slice(&[4, 0, 0, 1, 7]);
    for piece in message.chunks(100) {
        let result = opened(&mut opener, &mut sealer, content::HANDSHAKE, piece);
        assert_eq!(result, Ok(Opened::Nothing));
    }
    let data = opened(&mut opener, &mut sealer, content::DATA, b"data");
    assert_eq!(data, Ok(Opened::Data(BytesMut::from(&b"data"[..]))));
    let cut = opened(&mut opener, &mut sealer, content::HANDSHAKE, &[24, 0]);
    assert_eq!(cut, Ok(Opened::Nothing));
    let mixed = opened(&mut opener, &mut sealer, content::DATA, b"data");
    assert_eq!(mixed, Err(Fault::Unexpected));
}

#[test]
fn records_that_carry_nothing_are_borne_for_a_while() {
    let (mut sealer, mut opener) = direction(true);
    for _ in 0..3 {
        for _ in 0..32 {
            let empty = opened(&mut opener, &mut sealer, content::DATA, b"");
            assert_eq!(empty, Ok(Opened::Nothing));
        }
        let data = opened(&mut opener, &mut sealer, content::DATA, b"x");
        assert!(matches!(data, Ok(Opened::Data(_))));
    }
    for turn in 0..=32 {
        let canceled = opened(&mut opener, &mut sealer, content::ALERT, &[1, 90]);
        assert_eq!(canceled.is_err(), turn == 32);
    }
}

#[test]
fn a_record_out_of_order_twice_or_under_old_keys_is_refused() {
    let (mut sealer, mut opener) = direction(true);
    let mut sealed = [BytesMut::new(), BytesMut::new()];
    for out in &mut sealed {
        let taken = sealer.seal_data([&b"abc"[..]].into_iter(), usize::MAX, out);
        assert_eq!(taken, Ok(3));
    }
    let (_, mut other) = direction(true);
    assert_eq!(other.open(&mut sealed[1].clone()), Err(Fault::BadRecord));
    assert!(opener.open(&mut sealed[0].clone()).is_ok());
    assert_eq!(opener.open(&mut sealed[0].clone()), Err(Fault::BadRecord));

    let (mut sealer, mut opener) = direction(true);
    let mut before = BytesMut::new();
    sealer.update(&mut before).unwrap();
    assert_eq!(opener.open(&mut before), Ok(Some(Opened::Nothing)));
    let (mut old, _) = direction(true);
    let result = opened(&mut opener, &mut old, content::DATA, b"old");
    assert_eq!(result, Err(Fault::BadRecord));
}

#[test]
fn an_update_that_is_wanted_is_reported_and_padding_is_taken_off() {
    let (mut sealer, mut opener) = direction(true);
    let wanted = opened(
        &mut opener,
        &mut sealer,
        content::HANDSHAKE,
        &[24, 0, 0, 1, 1],
    );
    assert_eq!(wanted, Ok(Opened::UpdateWanted));
    let (mut sealer, mut opener) = direction(true);
    // Content, its kind, zeros: as if all of it were the content of kind 0.
    let padded = opened(
        &mut opener,
        &mut sealer,
        0,
        &[b'a', 0, b'b', content::DATA, 0, 0],
    );
    assert_eq!(padded, Ok(Opened::Data(BytesMut::from(&b"a\0b"[..]))));
}

#[test]
fn pieces_fill_records_and_no_more_is_taken_than_asked_for() {
    let (mut sealer, mut opener) = direction(true);
    let all = pattern(50_000, 3);
    let pieces = all.chunks(777).take(60).chain([&all[60 * 777..], &b""[..]]);
    let mut out = BytesMut::new();
    let taken = sealer.seal_data(pieces, 40_000, &mut out).unwrap();
    assert_eq!(taken, 40_000);
    let (mut lengths, mut got) = (Vec::new(), Vec::new());
    while let Some(opened) = opener.open(&mut out).unwrap() {
        let Opened::Data(piece) = opened else {
            panic!("{opened:?}")
        };
        lengths.push(piece.len());
        got.extend_from_slice(&piece);
    }
    // No piece that fits into a record is cut.
    assert_eq!(lengths, [21 * 777, 21 * 777, 40_000 - 42 * 777]);
    assert!(got == all[..40_000]);
    assert!(!out.has_remaining());
}

#[test]
fn frames_of_a_tunnel_and_records_line_up() {
    let (mut sealer, mut opener) = direction(true);
    let (payload, header) = (pattern(16_376, 1), [7; 8]);
    let mut pieces = vec![&[9; 12][..], &payload];
    for _ in 0..6 {
        pieces.extend([&header[..], &payload]);
    }
    let mut out = BytesMut::new();
    let taken = sealer.seal_data(pieces.into_iter(), usize::MAX, &mut out);
    assert_eq!(taken, Ok(12 + 6 * 8 + 7 * 16_376));
    let mut lengths = Vec::new();
    while let Some(opened) = opener.open(&mut out).unwrap() {
        let Opened::Data(piece) = opened else {
            panic!("{opened:?}")
        };
        lengths.push(piece.len());
    }
    assert_eq!(
        lengths,
        [12, 16_384, 16_384, 16_384, 16_384, 16_384, 16_384, 16_376]
    );
}

#[test]
fn every_suite_of_tunnels_is_known_and_no_other() {
    let known = [
        (CipherSuite::TLS13_AES_128_GCM_SHA256, Cipher::Aes128Gcm),
        (CipherSuite::TLS13_AES_256_GCM_SHA384, Cipher::Aes256Gcm),
        (
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            Cipher::ChaCha20Poly1305,
        ),
    ];
    for (suite, cipher) in known {
        assert_eq!(Suite::of(suite).unwrap().cipher, cipher);
    }
    let old = CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256;
    assert!(Suite::of(old).is_none());
}
