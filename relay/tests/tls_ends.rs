//! How ends travel when one end of the relay, or both, is secured: the table of `join`, with TLS.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod certs;
mod rig;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::{Ca, HOST, Wish, client, connection, server, soon};
use rig::{LIMIT, Rig, pattern, read_all};
use rustls::pki_types::ServerName;
use sg_relay::tls::{ResourceTls, ResourceTlsSettings, TlsStream, UserTls, UserTlsSettings};
use sg_relay::{ByteCounters, EndReason, Ended, JoinOptions, LocalIo, StreamEnd, StreamIo, join};
use sg_tunnel_io::code;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const PROMPT: Duration = Duration::from_secs(1);

/// Who is at the other end of TLS.
#[derive(Debug, Clone, Copy, PartialEq)]
enum As {
    User12,
    User,
    Resource,
}

const BOTH: [As; 2] = [As::User, As::Resource];
const ALL: [As; 3] = [As::User, As::User12, As::Resource];

/// The program at the other end of TLS, of another make than ours.
type Program = tokio_rustls::TlsStream<TcpStream>;

/// A TLS connection: the program, and our end of it.
async fn secured(who: As) -> (Program, TlsStream) {
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    let (near, far) = connection().await;
    if who == As::Resource {
        let mut settings = ResourceTlsSettings::new(HOST);
        settings.certificates = vec![ca.certificate.clone()];
        let ours = ResourceTls::new(settings).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(server(&own, None, false));
        let (ours, program) = tokio::join!(ours.connect(near, soon()), acceptor.accept(far));
        return (program.unwrap().into(), ours.unwrap().0);
    }
    let ours = UserTls::new(UserTlsSettings {
        servers: vec![own.pair()],
        ..UserTlsSettings::default()
    })
    .unwrap();
    let mut config = client(&ca, None, &[]);
    if who == As::User12 {
        let versions = &[&rustls::version::TLS12];
        let builder = rustls::ClientConfig::builder_with_protocol_versions(versions);
        let roots = builder.with_root_certificates(certs::roots(&ca));
        config = Arc::new(roots.with_no_client_auth());
    }
    let name = ServerName::try_from(HOST).unwrap();
    let program = tokio_rustls::TlsConnector::from(config).connect(name, near);
    let ours = async {
        let hello = ours.accept(far, soon()).await.unwrap();
        hello.finish(None, soon()).await.unwrap().0
    };
    let (program, ours) = tokio::join!(program, ours);
    (program.unwrap().into(), ours)
}

/// A program with TLS, the relay, and a plain connection at the far end of the tunnel.
struct Pair {
    rig: Rig,
    program: Program,
    far: TcpStream,
    end: StreamEnd,
    counters: Arc<ByteCounters>,
    joined: JoinSet<Ended>,
}

async fn pair(who: As) -> Pair {
    pair_with(who, None).await
}

async fn pair_with(who: As, idle_timeout: Option<Duration>) -> Pair {
    let mut rig = Rig::new().await;
    let (program, ours) = secured(who).await;
    let (stream, far) = rig.open_raw().await;
    let end = StreamEnd::new();
    let counters = Arc::new(ByteCounters::new());
    let options = JoinOptions {
        end: end.clone(),
        idle_timeout,
        counters: Arc::clone(&counters),
        ..JoinOptions::default()
    };
    let mut joined = JoinSet::new();
    joined.spawn(join(ours, stream, options));
    Pair {
        rig,
        program,
        far,
        end,
        counters,
        joined,
    }
}

impl Pair {
    async fn ended(&mut self) -> Ended {
        ended(&mut self.joined, LIMIT).await
    }
}

async fn ended(joined: &mut JoinSet<Ended>, limit: Duration) -> Ended {
    let ended = timeout(limit, joined.join_next()).await.unwrap();
    ended.unwrap().unwrap()
}

/// Until nothing more is taken for a moment.
async fn fill(io: &mut (impl AsyncWrite + Unpin)) -> usize {
    let chunk = vec![7; 64 * 1024];
    let mut written = 0;
    while let Ok(result) = timeout(Duration::from_millis(300), io.write(&chunk)).await {
        written += result.unwrap();
    }
    written
}

async fn read_to_end(io: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, std::io::Result<usize>) {
    let mut bytes = Vec::new();
    let result = timeout(LIMIT, io.read_to_end(&mut bytes)).await.unwrap();
    (bytes, result)
}

async fn expect_reset(io: &mut (impl AsyncRead + Unpin)) {
    let started = Instant::now();
    let (_, result) = read_to_end(io).await;
    let kind = result.expect_err("a reset, not an end").kind();
    assert!(
        matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{kind:?}"
    );
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
}

fn reset(program: Program) {
    let tcp = program.into_inner();
    tcp.set_zero_linger().unwrap();
    drop(tcp);
}

trait IntoTcp {
    fn into_inner(self) -> TcpStream;
}

impl IntoTcp for Program {
    fn into_inner(self) -> TcpStream {
        match self {
            Self::Client(client) => client.into_inner().0,
            Self::Server(server) => server.into_inner().0,
        }
    }
}

#[tokio::test]
async fn the_program_half_closes_and_still_gets_the_answer() {
    for who in ALL {
        let mut pair = pair(who).await;
        let (question, answer) = (pattern(1, 3_000_000), pattern(2, 5_000_000));
        let program = async {
            pair.program.write_all(&question).await.unwrap();
            pair.program.shutdown().await.unwrap();
            read_to_end(&mut pair.program).await
        };
        let far = async {
            let (received, end) = read_all(&mut pair.far).await;
            end.unwrap();
            assert!(received == question);
            pair.far.write_all(&answer).await.unwrap();
            pair.far.shutdown().await.unwrap();
        };
        let ((received, end), ()) = tokio::join!(program, far);
        // With close_notify, or the program would say UnexpectedEof.
        end.unwrap();
        assert!(received == answer);
        let ended = pair.ended().await;
        assert_eq!(
            (ended.reason, ended.from_tcp, ended.to_tcp),
            (EndReason::Finished, 3_000_000, 5_000_000),
            "{who:?}: the bytes inside of TLS are counted"
        );
        assert_eq!(pair.rig.client_end().await.reason, EndReason::Finished);
    }
}

#[tokio::test]
async fn the_far_side_half_closes_and_still_gets_the_rest() {
    for who in ALL {
        let mut pair = pair(who).await;
        pair.far.write_all(b"greeting").await.unwrap();
        pair.far.shutdown().await.unwrap();
        let (greeting, end) = read_to_end(&mut pair.program).await;
        end.unwrap();
        assert_eq!(greeting, b"greeting");
        // The FIN came behind close_notify.
        pair.program.write_all(&pattern(3, 100_000)).await.unwrap();
        pair.program.shutdown().await.unwrap();
        let (rest, end) = read_all(&mut pair.far).await;
        end.unwrap();
        assert!(rest == pattern(3, 100_000));
        assert_eq!(pair.ended().await.reason, EndReason::Finished);
    }
}

#[tokio::test]
async fn an_end_without_close_notify_is_the_end_of_that_direction() {
    for who in BOTH {
        let mut pair = pair(who).await;
        pair.program.write_all(b"last words").await.unwrap();
        pair.program.flush().await.unwrap();
        let mut tcp = pair.program.into_inner();
        tcp.shutdown().await.unwrap();
        let (received, end) = read_all(&mut pair.far).await;
        end.unwrap();
        assert_eq!(received, b"last words");
        pair.far.shutdown().await.unwrap();
        let joined = ended(&mut pair.joined, LIMIT).await;
        assert_eq!(joined.reason, EndReason::Finished);
        drop(tcp);
    }
}

#[tokio::test]
async fn an_end_within_a_record_and_a_broken_record_are_resets() {
    // Half a record and a FIN; a whole one that nobody sealed.
    let whole = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
    for (bytes, fin) in [(&[23, 3, 3, 0, 32, 1][..], true), (&whole, false)] {
        for who in BOTH {
            let mut pair = pair(who).await;
            let mut tcp = pair.program.into_inner();
            tcp.write_all(bytes).await.unwrap();
            if fin {
                tcp.shutdown().await.unwrap();
            }
            expect_reset(&mut pair.far).await;
            let joined = ended(&mut pair.joined, LIMIT).await;
            assert_eq!(joined.reason, EndReason::Ended(code::TLS_FAILED));
            let far = pair.rig.client_end().await.reason;
            assert_eq!(far, EndReason::StreamReset(code::TLS_FAILED));
            expect_reset(&mut tcp).await;
        }
    }
}

#[tokio::test]
async fn a_reset_by_the_program_reaches_the_far_side() {
    for who in BOTH {
        let mut pair = pair(who).await;
        reset(pair.program);
        expect_reset(&mut pair.far).await;
        let joined = ended(&mut pair.joined, PROMPT).await;
        assert_eq!(joined.reason, EndReason::TcpReset);
        let reason = pair.rig.client_end().await.reason;
        assert_eq!(reason, EndReason::StreamReset(code::PEER_RESET));
    }
}

#[tokio::test]
async fn a_reset_by_the_far_side_reaches_the_program_without_close_notify() {
    for who in BOTH {
        let mut pair = pair(who).await;
        pair.far.set_zero_linger().unwrap();
        drop(pair.far);
        expect_reset(&mut pair.program).await;
        let reason = ended(&mut pair.joined, PROMPT).await.reason;
        assert_eq!(reason, EndReason::StreamReset(code::PEER_RESET));
    }
}

#[tokio::test]
async fn a_reset_overtakes_data_that_nobody_reads() {
    for who in BOTH {
        let mut pair = pair(who).await;
        let written = fill(&mut pair.program).await;
        assert!(written > 100_000, "{written}");
        fill(&mut pair.far).await;
        reset(pair.program);
        let joined = ended(&mut pair.joined, PROMPT).await;
        assert_eq!(joined.reason, EndReason::TcpReset);
        expect_reset(&mut pair.far).await;
    }
}

#[tokio::test]
async fn a_broken_record_is_noticed_while_nobody_reads_the_bytes() {
    let mut pair = pair(As::User).await;
    // The far side does not read. Piece by piece, until the relay takes no more.
    let piece = [7; 8192];
    let mut written = 0;
    loop {
        pair.program.write_all(&piece).await.unwrap();
        pair.program.flush().await.unwrap();
        written += piece.len() as u64;
        let taken = async {
            while pair.counters.from_tcp() < written {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(Duration::from_millis(400), taken).await.is_err() {
            break;
        }
    }
    let mut tcp = pair.program.into_inner();
    let broken = [[23, 3, 3, 0, 32].as_slice(), &[9; 32]].concat();
    tcp.write_all(&broken).await.unwrap();
    let joined = ended(&mut pair.joined, PROMPT).await;
    assert_eq!(joined.reason, EndReason::Ended(code::TLS_FAILED));
    expect_reset(&mut pair.far).await;
}

#[tokio::test]
async fn whoever_ends_a_stream_from_outside_resets_the_program() {
    let mut pair = pair(As::User).await;
    pair.end.end(code::POLICY_CHANGED);
    expect_reset(&mut pair.program).await;
    expect_reset(&mut pair.far).await;
    assert_eq!(pair.ended().await.reason.as_str(), "policy-changed");
}

#[tokio::test]
async fn an_idle_stream_ends_and_an_aborted_one_is_reset() {
    let mut idle = pair_with(As::Resource, Some(Duration::from_millis(200))).await;
    expect_reset(&mut idle.program).await;
    assert_eq!(idle.ended().await.reason, EndReason::IdleTimeout);
    let mut aborted = pair(As::Resource).await;
    aborted.joined.abort_all();
    expect_reset(&mut aborted.program).await;
}

#[tokio::test]
async fn much_goes_both_ways_past_slow_readers() {
    for who in ALL {
        let mut pair = pair(who).await;
        let (up, down) = (pattern(4, 20_000_000), pattern(5, 20_000_000));
        let (mut program_read, mut program_write) = tokio::io::split(pair.program);
        let (mut far_read, mut far_write) = pair.far.into_split();
        let send_up = async {
            // Pieces of every size make records of every size.
            let mut rest = &up[..];
            let mut size = 1;
            while !rest.is_empty() {
                let (head, tail) = rest.split_at(size.min(rest.len()));
                program_write.write_all(head).await.unwrap();
                (rest, size) = (tail, size * 7 % 100_003 + 1);
            }
            program_write.shutdown().await.unwrap();
        };
        let send_down = async {
            far_write.write_all(&down).await.unwrap();
            far_write.shutdown().await.unwrap();
        };
        let read_up = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            read_to_end(&mut far_read).await
        };
        let read_down = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            read_to_end(&mut program_read).await
        };
        let ((), (), got_up, got_down) = tokio::join!(send_up, send_down, read_up, read_down);
        got_up.1.unwrap();
        got_down.1.unwrap();
        assert!(got_up.0 == up && got_down.0 == down, "{who:?}");
        let joined = ended(&mut pair.joined, LIMIT).await;
        assert_eq!(joined.reason, EndReason::Finished);
    }
}

#[tokio::test]
async fn a_fresh_key_in_the_middle_changes_nothing() {
    let mut pair = pair(As::User).await;
    for round in 0..5_u64 {
        if let Program::Client(client) = &mut pair.program {
            client.get_mut().1.refresh_traffic_keys().unwrap();
        }
        let bytes = pattern(round, 50_000);
        pair.program.write_all(&bytes).await.unwrap();
        pair.program.flush().await.unwrap();
        let mut received = vec![0; bytes.len()];
        pair.far.read_exact(&mut received).await.unwrap();
        assert!(received == bytes);
        pair.far.write_all(&bytes).await.unwrap();
        pair.program.read_exact(&mut received).await.unwrap();
        assert!(received == bytes);
    }
}

#[tokio::test]
async fn both_ends_can_be_read_and_written_by_hand() {
    let mut rig = Rig::new().await;
    for who in ALL {
        let (mut program, ours) = secured(who).await;
        let (stream, mut far) = rig.open_raw().await;
        let mut local = LocalIo::from(sg_relay::Local::from(ours));
        let mut stream = StreamIo::new(stream, None);
        let bytes = pattern(9, 400_000);
        let relay = async {
            let (up, down) = tokio::io::copy_bidirectional(&mut local, &mut stream)
                .await
                .unwrap();
            assert_eq!((up, down), (400_000, 400_000));
            local.close();
        };
        let program = async {
            program.write_all(&bytes).await.unwrap();
            program.shutdown().await.unwrap();
            let (received, end) = read_to_end(&mut program).await;
            end.unwrap();
            assert!(received == bytes);
        };
        let far = async {
            let (received, end) = read_all(&mut far).await;
            end.unwrap();
            far.write_all(&received).await.unwrap();
            far.shutdown().await.unwrap();
        };
        tokio::join!(relay, program, far);
    }
}

#[tokio::test]
async fn a_failure_is_noticed_by_hand_too() {
    let (program, ours) = secured(As::User).await;
    let mut local = LocalIo::from(sg_relay::Local::from(ours));
    reset(program);
    let failed = std::future::poll_fn(|cx| local.poll_failed(cx));
    let error = timeout(PROMPT, failed).await.unwrap();
    assert_eq!(LocalIo::reason(&error), EndReason::TcpReset);

    let (program, ours) = secured(As::User).await;
    let mut local = LocalIo::from(sg_relay::Local::from(ours));
    let mut tcp = program.into_inner();
    tcp.write_all(&[[23, 3, 3, 0, 32].as_slice(), &[9; 32]].concat())
        .await
        .unwrap();
    let error = local.read_u8().await.unwrap_err();
    assert_eq!(LocalIo::reason(&error), EndReason::Ended(code::TLS_FAILED));
    // Dropping is a reset.
    drop(local);
    expect_reset(&mut tcp).await;
}
