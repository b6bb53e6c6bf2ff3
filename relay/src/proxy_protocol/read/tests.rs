//! What is read, what is refused, and that never a byte too many is taken.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::super::{ClientCertificate, Facts, TlsFacts, Version};
use super::*;

fn parse(bytes: &[u8]) -> Result<(usize, Option<Conveyed>), HeaderError> {
    Parser::default().take(bytes)
}

fn to(source: &str, destination: &str) -> Conveyed {
    Conveyed::Addresses {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

/// A header of version 2, signature and length included.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE.as_slice(), &[command, family], &length, rest].concat()
}

const FOUR: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0xc7, 0x38, 0x01, 0xbb];

#[test]
fn both_versions_are_read() {
    let four = to("192.0.2.7:51000", "198.51.100.1:443");
    let six = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    let six = [six.as_slice(), &six, &[0, 1, 0, 2]].concat();
    let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets();
    let mapped = [mapped.as_slice(), &mapped, &[0, 1, 0, 2]].concat();
    let v1 = |line: &str| line.as_bytes().to_vec();
    for (header, expected) in [
        (v1("PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n"), four),
        (
            v1("PROXY TCP6 2001:db8::7 ::1 1 65535\r\n"),
            to("[2001:db8::7]:1", "[::1]:65535"),
        ),
        (
            v1("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 0\r\n"),
            to("192.0.2.7:1", "[::1]:0"),
        ),
        (v1("PROXY UNKNOWN\r\n"), Conveyed::Nothing),
        (
            v1("PROXY UNKNOWN ffff:f:f:f:f:f:f:f:f whatever 1 2\r\n"),
            Conveyed::Nothing,
        ),
        (v2(0x21, 0x11, FOUR), four),
        (
            v2(0x21, 0x21, &six),
            to("[2001:db8::7]:1", "[2001:db8::7]:2"),
        ),
        (v2(0x21, 0x21, &mapped), to("192.0.2.7:1", "192.0.2.7:2")),
        (v2(0x20, 0x00, b""), Conveyed::Nothing),
        (v2(0x20, 0x11, FOUR), Conveyed::Nothing),
        (v2(0x20, 0x77, b"anything"), Conveyed::Nothing),
        (v2(0x21, 0x00, b"anything"), Conveyed::Nothing),
        (v2(0x21, 0x31, &[0; 216]), Conveyed::Nothing),
        (v2(0x21, 0x11, &[FOUR, &[0xea, 0, 2, 1, 2]].concat()), four),
    ] {
        let followed = [header.as_slice(), b"GET / HTTP/1.1\r\n\r\n"].concat();
        let (taken, conveyed) = parse(&followed).unwrap();
        assert_eq!(conveyed, Some(expected), "{}", header.escape_ascii());
        assert_eq!(taken, header.len(), "nothing after the header is taken");
    }
}

#[test]
fn what_is_no_header_is_missing_and_what_is_a_wrong_one_is_bad() {
    let word = |bytes: &[u8]| parse(bytes).expect_err("it is refused").as_str();
    for other in [
        "GET / HTTP/1.1\r\n",
        "\u{16}\u{3}\u{1}",
        "SSH-2.0-x\r\n",
        "PROXYTCP4",
        "proxy TCP4 1.2.3.4",
        "\r\n\r\n\r\n",
    ] {
        assert_eq!(word(other.as_bytes()), "proxy-header-missing", "{other:?}");
    }
    let long = format!("PROXY UNKNOWN {}", "x".repeat(200));
    for line in [
        "PROXY \r\n",
        "PROXY TCP5 192.0.2.7 192.0.2.8 1 2\r\n",
        "PROXY TCP4 192.0.2.7 192.0.2.8 1\r\n",
        "PROXY TCP4 192.0.2.7 192.0.2.8 1 2 3\r\n",
        "PROXY TCP4 192.0.2.7 192.0.2.8 1 2\n",
        "PROXY TCP4 192.0.2.7 192.0.2.8 1 70000\r\n",
        "PROXY TCP4 192.0.2.7 192.0.2.8 01 2\r\n",
        "PROXY TCP4 192.0.2.7 192.0.2.8 +1 2\r\n",
        "PROXY TCP4  192.0.2.7 192.0.2.8 1 2\r\n",
        "PROXY TCP4 192.0.2.007 192.0.2.8 1 2\r\n",
        "PROXY TCP4 ::1 ::1 1 2\r\n",
        "PROXY TCP6 192.0.2.7 192.0.2.8 1 2\r\n",
        "PROXY TCP4 name.example 192.0.2.8 1 2\r\n",
        "PROXY TCP4 192.0.2.7 192.0.2.8\r1 2\r\n",
        &long,
    ] {
        assert_eq!(word(line.as_bytes()), "proxy-header-bad", "{line:?}");
    }
    let too_long = [SIGNATURE.as_slice(), &[0x21, 0x11, 0xff, 0xff]].concat();
    let wrong_sum = [FOUR, &[3, 0, 4, 0, 0, 0, 0]].concat();
    for header in [
        v2(0x11, 0x11, FOUR),
        v2(0x22, 0x11, FOUR),
        v2(0x21, 0x12, FOUR),
        v2(0x21, 0x41, FOUR),
        v2(0x21, 0x11, &FOUR[..11]),
        v2(0x21, 0x21, FOUR),
        v2(0x21, 0x31, FOUR),
        v2(0x21, 0x11, &[FOUR, &[1]].concat()),
        v2(0x21, 0x11, &[FOUR, &[1, 0, 3, 1, 2]].concat()),
        v2(0x21, 0x11, &[FOUR, &[3, 0, 1, 1]].concat()),
        v2(0x21, 0x11, &wrong_sum),
        too_long,
    ] {
        assert_eq!(
            word(&header),
            "proxy-header-bad",
            "{}",
            header.escape_ascii()
        );
    }
}

#[tokio::test]
async fn what_follows_the_header_stays_in_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n";
    for cut in [0, 1, 12, 20, header.len()] {
        let mut balancer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        let sending = async {
            let (first, second) = header.split_at(cut);
            balancer.write_all(first).await.unwrap();
            balancer.flush().await.unwrap();
            // The reader has had its turn when this is run again.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            balancer
                .write_all(&[second, b"hello"].concat())
                .await
                .unwrap();
            balancer.shutdown().await.unwrap();
        };
        let (conveyed, ()) = tokio::join!(receive(&mut accepted, HEADER_LIMIT), sending);
        assert_eq!(conveyed.unwrap(), to("192.0.2.7:51000", "198.51.100.1:443"));
        let mut rest = Vec::new();
        accepted.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"hello");
    }
}

#[tokio::test]
async fn silence_and_an_end_have_their_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let short = Duration::from_millis(50);
    for (sent, ends, word) in [
        ("", false, "proxy-header-missing"),
        ("", true, "proxy-header-missing"),
        ("PROXY TCP4 ", false, "proxy-header-timeout"),
        ("PROXY TCP4 ", true, "proxy-header-bad"),
    ] {
        let mut balancer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        balancer.write_all(sent.as_bytes()).await.unwrap();
        let limit = if ends {
            drop(balancer.shutdown().await);
            HEADER_LIMIT
        } else {
            short
        };
        let error = receive(&mut accepted, limit).await.unwrap_err();
        assert_eq!(error.as_str(), word, "{sent:?} {ends}");
    }
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        any::<(u32, u16)>().prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into()),
        any::<(u128, u16)>().prop_map(|(ip, port)| (Ipv6Addr::from(ip), port).into()),
    ]
}

fn facts() -> impl Strategy<Value = Facts> {
    let text = || "[a-z.]{0,300}";
    let certificate = proptest::option::of((text(), any::<bool>()));
    let tls = proptest::option::of((text(), text(), text(), text(), certificate));
    (address(), address(), tls).prop_map(|(source, destination, tls)| Facts {
        source,
        destination,
        tls: tls.map(
            |(version, cipher, server_name, alpn, certificate)| TlsFacts {
                version,
                cipher,
                server_name,
                alpn: alpn.into_bytes(),
                client_certificate: certificate.map(|(common_name, verified)| ClientCertificate {
                    common_name,
                    verified,
                }),
            },
        ),
    })
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Random bytes, many of which begin like a header.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let noise = || proptest::collection::vec(any::<u8>(), 0..300);
    let commands = (
        0x1fu8..=0x22,
        prop_oneof![Just(0x11u8), Just(0x21), Just(0x31), any::<u8>()],
    );
    prop_oneof![
        noise(),
        noise().prop_map(|rest| [V1_BEGINS, &rest].concat()),
        "PROXY (TCP4|TCP6|UNKNOWN|X)( [0-9a-f:.]{0,8}){0,5}(\r\n|\n|\r)?"
            .prop_map(String::into_bytes),
        (commands, noise()).prop_map(|((command, family), rest)| v2(command, family, &rest)),
        noise().prop_map(|rest| [SIGNATURE.as_slice(), &rest].concat()),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_whatever_the_pieces(
        facts in facts(), version in 0..3, cuts in proptest::collection::vec(1usize..80, 1..30),
        after in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let version = match version {
            0 => Version::V1,
            other => Version::V2 { checksum: other == 1 },
        };
        let header = facts.header(version);
        prop_assert!(version != Version::V1 || header.len() <= LONGEST_V1);
        let stream = [header.as_slice(), &after].concat();
        let (mut parser, mut at) = (Parser::default(), 0);
        let mut cuts = cuts.into_iter().cycle();
        let read = loop {
            let end = (at + cuts.next().unwrap()).min(stream.len());
            let (taken, conveyed) = parser.take(&stream[at..end]).unwrap();
            at += taken;
            if let Some(conveyed) = conveyed {
                break conveyed;
            }
            prop_assert!(at == end, "all is taken until the header is complete");
        };
        prop_assert_eq!(at, header.len());
        let (source, destination) = (canonical(facts.source), canonical(facts.destination));
        prop_assert_eq!(read, Conveyed::Addresses { source, destination });
    }

    #[test]
    fn no_bytes_panic_and_pieces_do_not_matter(bytes in hostile(), cut in 0usize..300) {
        let whole = parse(&bytes);
        let mut parser = Parser::default();
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let pieces = match parser.take(first) {
            Ok((_, None)) => parser.take(second).map(|(taken, done)| (taken + first.len(), done)),
            other => other,
        };
        match (whole, pieces) {
            (Ok(whole), Ok(pieces)) => prop_assert_eq!(whole, pieces),
            (Err(whole), Err(pieces)) => prop_assert_eq!(whole.to_string(), pieces.to_string()),
            (whole, pieces) => prop_assert!(false, "{whole:?} {pieces:?}"),
        }
        prop_assert!(parser.taken.len() <= FIXED_V2 + LONGEST_V2);
    }

    #[test]
    fn a_changed_address_is_found_by_the_checksum(facts in facts(), at in 0usize..12, bit in 0..8u32) {
        let mut header = facts.header(Version::V2 { checksum: true });
        header[FIXED_V2 + at] ^= 1u8 << bit;
        let error = parse(&header).expect_err("the checksum is wrong");
        prop_assert_eq!(error.as_str(), "proxy-header-bad");
    }
}
