//! The bytes of each version, and what every answer means.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sg_runtime::secret::Secret;
use tokio::io::duplex;

use super::*;

fn socks(version: SocksVersion, user: &str, password: Option<&str>) -> Socks {
    Socks {
        version,
        address: "proxy:1080".parse().unwrap(),
        user: user.to_owned(),
        password: password.map(|text| Secret::new(text.as_bytes().to_vec())),
    }
}

/// One step of a proxy: what it must get, and what it answers.
type Step<'a> = (&'a [u8], &'a [u8]);

async fn talk(
    socks: &Socks,
    target: Target<'_>,
    steps: &[Step<'_>],
) -> (Result<(), SocksError>, Stage) {
    let (mut near, mut far) = duplex(4096);
    let mut stage = Stage::default();
    let proxy = async move {
        for (expected, answer) in steps {
            let mut got = vec![0; expected.len()];
            far.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, expected);
            far.write_all(answer).await.unwrap();
        }
        // The resource's first bytes come right behind the answer.
        far.write_all(b"banner").await.unwrap();
        far
    };
    let (result, far) = tokio::join!(handshake(&mut near, socks, target, &mut stage), proxy);
    drop(far);
    if result.is_ok() {
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"banner", "nothing of the resource's is lost");
    }
    (result, stage)
}

fn v4(text: &str) -> Target<'static> {
    Target::Address(text.parse().unwrap())
}

#[tokio::test]
async fn version_4_asks_for_an_address() {
    let request = b"\x04\x01\x00\x50\x0a\x00\x00\x01me\x00";
    let socks = socks(SocksVersion::V4, "me", None);
    let good = [(request.as_slice(), b"\x00\x5a\0\0\0\0\0\0".as_slice())];
    let (result, stage) = talk(&socks, v4("10.0.0.1:80"), &good).await;
    result.unwrap();
    assert_eq!(stage, Stage::Asked);
    for (answer, code) in [
        (b"\x00\x5b\0\0\0\0\0\0", code("socks-refused")),
        (b"\x00\x5c\0\0\0\0\0\0", code("socks-auth")),
        (b"\x00\x5d\0\0\0\0\0\0", code("socks-auth")),
        (b"HTTP/1.1", code("socks-protocol")),
    ] {
        let steps = [(request.as_slice(), answer.as_slice())];
        let (result, _) = talk(&socks, v4("10.0.0.1:80"), &steps).await;
        assert_eq!(result.unwrap_err().code(), code);
    }
}

fn code(word: &str) -> u32 {
    let found = (0x100..0x200).find(|code| sg_tunnel_io::code::word(*code) == word);
    found.unwrap_or_else(|| panic!("{word} has no code"))
}

#[tokio::test]
async fn version_4a_asks_for_a_name() {
    let steps = [(
        b"\x04\x01\x15\x38\x00\x00\x00\x01\x00db.example\x00".as_slice(),
        b"\x00\x5a\0\0\0\0\0\0".as_slice(),
    )];
    let socks = socks(SocksVersion::V4a, "", None);
    let (result, _) = talk(&socks, Target::Name("db.example", 5432), &steps).await;
    result.unwrap();
}

#[tokio::test]
async fn what_version_4_cannot_carry_is_said_before_a_byte_is_sent() {
    for (version, target) in [
        (SocksVersion::V4, Target::Name("db.example", 1)),
        (SocksVersion::V4, v4("[::1]:1")),
        (SocksVersion::V4a, v4("[::1]:1")),
    ] {
        let (result, stage) = talk(&socks(version, "", None), target, &[]).await;
        assert_eq!(result.unwrap_err().code(), code("socks-protocol"));
        assert_eq!(stage, Stage::Greeting);
    }
}

const OPEN: Step<'static> = (b"\x05\x01\x00", b"\x05\x00");
const ASK: &[u8] = b"\x05\x01\x00\x03\x0adb.example\x15\x38";

#[tokio::test]
async fn version_5_asks_for_names_and_addresses_of_both_families() {
    let socks = socks(SocksVersion::V5, "", None);
    let bound_v4 = b"\x05\x00\x00\x01\x0a\0\0\x01\x30\x39".as_slice();
    let bound_v6 = [b"\x05\x00\x00\x04".as_slice(), &[0; 18]].concat();
    let bound_name = b"\x05\x00\x00\x03\x02ab\x30\x39".as_slice();
    let to_v4 = b"\x05\x01\x00\x01\x0a\x00\x00\x01\x15\x38".as_slice();
    let to_v6 = [b"\x05\x01\x00\x04".as_slice(), &[0; 15], b"\x01\x15\x38"].concat();
    for (target, asked, answer) in [
        (Target::Name("db.example", 5432), ASK, bound_v4),
        (Target::Name("db.example", 5432), ASK, bound_v6.as_slice()),
        (Target::Name("db.example", 5432), ASK, bound_name),
        (v4("10.0.0.1:5432"), to_v4, bound_v4),
        (v4("[::1]:5432"), to_v6.as_slice(), bound_v4),
    ] {
        let (result, _) = talk(&socks, target, &[OPEN, (asked, answer)]).await;
        result.unwrap();
    }
}

#[tokio::test]
async fn version_5_proves_the_user_only_where_it_is_asked_to() {
    let socks = socks(SocksVersion::V5, "me", Some("secret"));
    let bound = b"\x05\x00\x00\x01\0\0\0\0\0\0".as_slice();
    let hello = b"\x05\x02\x00\x02".as_slice();
    let proof = b"\x01\x02me\x06secret".as_slice();
    let target = Target::Name("db.example", 5432);
    let unasked = [(hello, b"\x05\x00".as_slice()), (ASK, bound)];
    talk(&socks, target, &unasked).await.0.unwrap();
    for version in [b"\x01\x00", b"\x05\x00"] {
        let asked = [
            (hello, b"\x05\x02".as_slice()),
            (proof, version),
            (ASK, bound),
        ];
        talk(&socks, target, &asked).await.0.unwrap();
    }
    let wrong = [(hello, b"\x05\x02".as_slice()), (proof, b"\x01\x01")];
    let (result, stage) = talk(&socks, target, &wrong).await;
    let error = result.unwrap_err();
    assert_eq!(error.code(), code("socks-auth"));
    assert_eq!(stage, Stage::Greeting);
    assert!(!format!("{error} {error:?} {socks:?}").contains("secret\""));
    let (result, _) = talk(&socks, target, &[(hello, b"\x05\xff")]).await;
    assert_eq!(result.unwrap_err().code(), code("socks-auth"));
}

#[tokio::test]
async fn every_answer_of_version_5_has_a_word() {
    let socks = socks(SocksVersion::V5, "", None);
    let target = Target::Name("db.example", 5432);
    for (reply, word) in [
        (1, "socks-refused"),
        (2, "socks-refused"),
        (3, "unreachable"),
        (4, "unreachable"),
        (5, "refused"),
        (6, "unreachable"),
        (7, "socks-protocol"),
        (8, "socks-protocol"),
        (9, "socks-refused"),
    ] {
        let answer = [5, reply, 0, 1, 0, 0, 0, 0, 0, 0];
        let (result, _) = talk(&socks, target, &[OPEN, (ASK, &answer)]).await;
        assert_eq!(result.unwrap_err().code(), code(word), "{reply}");
    }
    for (first, word) in [
        (b"\x05\xff", "socks-auth"),
        (b"\x05\x02", "socks-protocol"),
        (b"\x05\x01", "socks-protocol"),
        (b"\x04\x00", "socks-protocol"),
        (b"HT", "socks-protocol"),
    ] {
        let (result, _) = talk(&socks, target, &[(b"\x05\x01\x00", first)]).await;
        assert_eq!(result.unwrap_err().code(), code(word), "{first:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_goes_away_refused() {
    let (mut near, far) = duplex(64);
    drop(far);
    let socks = socks(SocksVersion::V5, "", None);
    let mut stage = Stage::default();
    let result = handshake(&mut near, &socks, Target::Name("a", 1), &mut stage).await;
    assert_eq!(result.unwrap_err().code(), code("socks-refused"));
}

proptest! {
    #[test]
    fn no_answer_panics_and_none_makes_it_read_for_ever(
        answer in proptest::collection::vec(any::<u8>(), 0..300), four in any::<bool>(), user in any::<bool>(),
    ) {
        let version = if four { SocksVersion::V4a } else { SocksVersion::V5 };
        let socks = socks(version, if user { "me" } else { "" }, user.then_some("secret"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut near, mut far) = duplex(4096);
            far.write_all(&answer).await.unwrap();
            far.shutdown().await.unwrap();
            let mut stage = Stage::default();
            drop(handshake(&mut near, &socks, Target::Name("db.example", 1), &mut stage).await);
        });
    }
}
