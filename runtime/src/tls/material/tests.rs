//! Pairs in every form that people have them in, and what is said of those that cannot be used.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn problem<T: fmt::Debug>(result: Result<T, MaterialError>) -> Problem {
    result.unwrap_err().problem
}

fn secret(bytes: &[u8]) -> Secret<Vec<u8>> {
    Secret::new(bytes.to_vec())
}

fn key_pem(pair: &Pair) -> Secret<Vec<u8>> {
    secret(pair.key().to_pem().expose().as_bytes())
}

#[test]
fn bundles_and_der_are_read_with_text_and_keys_around_them() {
    let (one, two) = (
        Pair::self_signed("one.example", DAY).unwrap(),
        Pair::self_signed("two.example", DAY).unwrap(),
    );
    let bundle = format!(
        "Bag Attributes\r\n  friendlyName: one\r\n{}\n# between\n{}{}",
        one.chain_pem().replace('\n', "\r\n"),
        one.key().to_pem().expose(),
        two.chain_pem()
    );
    let found = certificates(bundle.as_bytes(), "ca").unwrap();
    assert_eq!(found, [one.chain()[0].clone(), two.chain()[0].clone()]);
    assert_eq!(
        certificates(&one.chain()[0], "ca").unwrap(),
        [one.chain()[0].clone()]
    );
}

#[test]
fn what_cannot_be_used_is_named() {
    let pair = Pair::self_signed("one.example", DAY).unwrap();
    let key = pair.key().to_pem();
    assert_eq!(problem(certificates(b" \n", "ca")), Problem::Empty);
    assert_eq!(
        problem(certificates(b"hello", "ca")),
        Problem::NotACertificate
    );
    assert_eq!(
        problem(certificates(key.expose().as_bytes(), "ca")),
        Problem::OnlyOther("PRIVATE KEY".to_owned())
    );
    let cut = pair.chain_pem().replace("-----END CERTIFICATE-----", "");
    assert!(matches!(
        problem(certificates(cut.as_bytes(), "ca")),
        Problem::DamagedPem(_)
    ));
    let block = pem::Pem::new("CERTIFICATE", b"nonsense".to_vec());
    let damaged = format!("{}{}", pair.chain_pem(), pem::encode(&block));
    let error = certificates(damaged.as_bytes(), "user-ca[2]").unwrap_err();
    assert_eq!(
        error.to_string(),
        "user-ca[2]: certificate 2 in it is damaged"
    );
    let many = pair.chain_pem().repeat(MOST_CERTIFICATES + 1);
    assert_eq!(
        problem(certificates(many.as_bytes(), "ca")),
        Problem::TooMany
    );
    assert_eq!(
        problem(certificates(&vec![b'x'; LONGEST + 1], "ca")),
        Problem::TooLong
    );
}

#[test]
fn a_pair_must_belong_together_and_the_key_finds_its_certificate() {
    let (one, two) = (
        Pair::self_signed("one.example", DAY).unwrap(),
        Pair::self_signed("two.example", DAY).unwrap(),
    );
    let mixed = format!("{}{}", two.chain_pem(), one.chain_pem());
    let found = Pair::parse(mixed.as_bytes(), &key_pem(&one), "server").unwrap();
    assert_eq!(
        found.chain(),
        [one.chain()[0].clone(), two.chain()[0].clone()]
    );
    assert_eq!(found.facts().common_name, "one.example");
    found.certified().unwrap().keys_match().unwrap();
    let error = Pair::parse(two.chain_pem().as_bytes(), &key_pem(&one), "server").unwrap_err();
    assert_eq!(
        error.to_string(),
        "server: the private key does not belong to the certificate \"CN=two.example\""
    );
    assert!(!format!("{one:?}").contains("PRIVATE KEY"));
}

#[test]
fn keys_are_read_in_every_usual_form() {
    let pair = Pair::self_signed("one.example", DAY).unwrap();
    let chain = pair.chain_pem();
    let parse = |key: &[u8]| Pair::parse(chain.as_bytes(), &secret(key), "server");
    let pkcs8 = pem::parse(pair.key().to_pem().expose()).unwrap();
    parse(pkcs8.contents()).unwrap();
    // The SEC1 key lies in the PKCS#8 one: the last octet string of the outer sequence.
    let der = pkcs8.contents();
    let at = (0..der.len())
        .find(|at| der[*at..].starts_with(&[0x02, 0x01, 0x01, 0x04, 0x20]))
        .unwrap();
    let sec1 = &der[at - 2..];
    parse(sec1).unwrap();
    let sec1_pem = pem::encode(&pem::Pem::new("EC PRIVATE KEY", sec1.to_vec()));
    let found = parse(sec1_pem.as_bytes()).unwrap();
    assert!(found.key().to_pem().expose().contains("EC PRIVATE KEY"));
    let parameters = pem::encode(&pem::Pem::new("EC PARAMETERS", vec![6, 1, 0]));
    parse(format!("{parameters}{sec1_pem}").as_bytes()).unwrap();

    assert_eq!(problem(parse(b"hello")), Problem::NoKey);
    assert_eq!(problem(parse(chain.as_bytes())), Problem::NoKey);
    let twice = format!("{sec1_pem}{sec1_pem}");
    assert_eq!(problem(parse(twice.as_bytes())), Problem::SeveralKeys(2));
    let encrypted = pem::encode(&pem::Pem::new("ENCRYPTED PRIVATE KEY", vec![0x30, 0]));
    assert_eq!(problem(parse(encrypted.as_bytes())), Problem::EncryptedKey);
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n";
    assert_eq!(problem(parse(legacy.as_bytes())), Problem::EncryptedKey);
    let nonsense = pem::encode(&pem::Pem::new("PRIVATE KEY", vec![0x30, 0]));
    assert_eq!(problem(parse(nonsense.as_bytes())), Problem::UnusableKey);
}

#[test]
fn names_of_hosts_are_compared_as_tls_does() {
    for (name, host, same) in [
        ("db.example", "DB.example.", true),
        ("*.example.com", "a.example.com", true),
        ("*.example.com", "example.com", false),
        ("*.example.com", "a.b.example.com", false),
        ("*.com", "example.com", false),
        ("*", "example", false),
        ("", "", false),
    ] {
        assert_eq!(host_matches(name, host), same, "{name} {host}");
    }
}

#[test]
fn an_issued_certificate_is_for_its_names_and_ends_with_the_ca() {
    let key = crate::identity::KeyPair::generate();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(key.signing()).unwrap().der().clone();
    let names = ["cloud.example", "*.apps.example", "10.0.0.7"].map(str::to_owned);
    let pair = Pair::issue(&ca, &key, &names, DAY).unwrap();
    assert_eq!(pair.chain()[1], ca);
    assert!(Facts::of(&ca).unwrap().may_issue);
    let facts = pair.facts();
    for host in ["cloud.example", "x.apps.example", "10.0.0.7"] {
        assert!(facts.is_for(host), "{host}");
    }
    assert!(!facts.is_for("10.0.0.8") && !facts.is_for("other.example") && !facts.may_issue);
    assert_eq!(facts.names(), "cloud.example, *.apps.example, 10.0.0.7");
    for name in ["", "a b", "a..b", "*.*.example"] {
        assert!(
            Pair::issue(&ca, &key, &[name.to_owned()], DAY).is_err(),
            "{name:?}"
        );
    }
    // A common name can be anything, and counts as the host only where nothing else does.
    let odd = Pair::self_signed("Our Gateway", DAY).unwrap();
    assert_eq!(
        odd.facts().names(),
        "CN=Our Gateway and no alternative name"
    );
    assert!(odd.facts().is_for("our gateway"));
}

#[test]
fn dates_are_written_as_people_read_them() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_827_696, "2000-02-29T12:34:56Z"),
        (1_795_820_163, "2026-11-27T22:56:03Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
        (-1, "1969-12-31T23:59:59Z"),
    ] {
        assert_eq!(date(seconds), text);
    }
}
