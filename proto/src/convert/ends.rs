//! The ends of a destination (`UserEnd`, `ResourceEnd`) and the domain, for every package that has them.
//!
//! Keys and passwords go through a closure, since each package treats them in its own way: nodes and
//! clients get them as they are, the store gets them sealed, callers of the API get none. Every secret
//! has a place, as `user_end.server_pairs.0`, which a sealed one is bound to.

use sg_model::{
    Certificate, Host, Invalid, KeyPair, PairOrigin, Protocol, ResourceEnd, SecretBytes, Socks,
    SourceOwner, SourcePolicy, SourceRule, SourceSpec, UserEnd,
};

use super::{timestamp_from_wire, timestamp_to_wire};
use crate::api as wire;

/// Writes a secret down, given its place.
pub type WriteSecret<'a> = &'a dyn Fn(&str, &SecretBytes) -> Vec<u8>;
/// Reads a secret, given its place.
pub type ReadSecret<'a> = &'a dyn Fn(&str, &[u8]) -> Result<SecretBytes, Invalid>;

/// A secret as it is, for those who need it.
#[must_use]
pub fn plain(_: &str, secret: &SecretBytes) -> Vec<u8> {
    secret.expose().to_vec()
}

/// No secret at all, for those who only look.
#[must_use]
pub fn hidden(_: &str, _: &SecretBytes) -> Vec<u8> {
    Vec::new()
}

/// Takes a secret that was written by [`plain`].
///
/// # Errors
/// None.
pub fn as_it_is(_: &str, secret: &[u8]) -> Result<SecretBytes, Invalid> {
    Ok(SecretBytes::new(secret.to_vec()))
}

/// The user side for the wire.
#[must_use]
pub fn user_end_to_wire(end: &UserEnd, secret: WriteSecret<'_>) -> wire::UserEnd {
    let numbered = end.server_pairs.iter().enumerate();
    wire::UserEnd {
        server_pairs: numbered
            .map(|(n, pair)| pair_to_wire(pair, &format!("user_end.server_pairs.{n}"), secret))
            .collect(),
        server_names: end.server_names.iter().map(ToString::to_string).collect(),
        certificates: certificates_to_wire(&end.certificates),
        generated_pair: end
            .generated_pair
            .as_ref()
            .map(|pair| pair_to_wire(pair, "user_end.generated_pair", secret)),
        alpn: end.alpn.clone(),
        preface: end.preface.to_string(),
        restrict: end.sources.restrict,
        sources: end.sources.rules.iter().map(source_to_wire).collect(),
        forwarded: end.forwarded.to_string(),
    }
}

/// The user side from the wire; absent means all defaults.
///
/// # Errors
/// When a field is not acceptable, or means nothing for the protocol.
pub fn user_end_from_wire(
    end: Option<&wire::UserEnd>,
    protocol: Protocol,
    secret: ReadSecret<'_>,
) -> Result<UserEnd, Invalid> {
    let Some(end) = end else {
        return UserEnd::default().checked(protocol);
    };
    let numbered = end.server_pairs.iter().enumerate();
    let rules = end.sources.iter().map(source_from_wire);
    let rules: Vec<SourceRule> = rules.collect::<Result<_, _>>()?;
    if rules.len() > SourcePolicy::MAX_RULES {
        return Err(Invalid::new(
            "user_end.sources",
            format!("at most {} rules are possible", SourcePolicy::MAX_RULES),
        ));
    }
    let read = UserEnd {
        server_pairs: numbered
            .map(|(n, pair)| pair_from_wire(pair, &format!("user_end.server_pairs.{n}"), secret))
            .collect::<Result<_, _>>()?,
        server_names: end
            .server_names
            .iter()
            .map(|name| name.parse::<Host>())
            .collect::<Result<_, _>>()
            .map_err(|e| e.in_field("user_end.server_names"))?,
        certificates: certificates_from_wire(&end.certificates),
        generated_pair: end
            .generated_pair
            .as_ref()
            .map(|pair| pair_from_wire(pair, "user_end.generated_pair", secret))
            .transpose()?,
        alpn: end.alpn.clone(),
        preface: word(&end.preface).map_err(|e| e.in_field("user_end.preface"))?,
        sources: SourcePolicy {
            restrict: end.restrict,
            rules,
        },
        forwarded: word(&end.forwarded).map_err(|e| e.in_field("user_end.forwarded"))?,
    };
    read.checked(protocol)
}

/// The resource side for the wire.
#[must_use]
pub fn resource_end_to_wire(end: &ResourceEnd, secret: WriteSecret<'_>) -> wire::ResourceEnd {
    wire::ResourceEnd {
        tls: end.tls.to_string(),
        certificates: certificates_to_wire(&end.certificates),
        client_pair: end
            .client_pair
            .as_ref()
            .map(|pair| pair_to_wire(pair, "resource_end.client_pair", secret)),
        sni: end
            .sni
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        insecure_skip_verify: !end.verify,
        http: end.http.to_string(),
        socks: end.socks.as_ref().map(|socks| wire::SocksProxy {
            version: socks.version.to_string(),
            address: socks.address.to_string(),
            user: socks.user.clone(),
            password: socks
                .password
                .as_ref()
                .map(|password| secret("resource_end.socks.password", password))
                .unwrap_or_default(),
        }),
        proxy_protocol: end.proxy_protocol.to_string(),
    }
}

/// The resource side from the wire; absent means all defaults.
///
/// # Errors
/// When a field is not acceptable, or means nothing for the protocol.
pub fn resource_end_from_wire(
    end: Option<&wire::ResourceEnd>,
    protocol: Protocol,
    secret: ReadSecret<'_>,
) -> Result<ResourceEnd, Invalid> {
    let Some(end) = end else {
        return ResourceEnd::default().checked(protocol);
    };
    let sni = match end.sni.as_str() {
        "" => None,
        name => Some(
            name.parse::<Host>()
                .map_err(|e| e.in_field("resource_end.sni"))?,
        ),
    };
    let read = ResourceEnd {
        tls: word(&end.tls).map_err(|e| e.in_field("resource_end.tls"))?,
        certificates: certificates_from_wire(&end.certificates),
        client_pair: end
            .client_pair
            .as_ref()
            .map(|pair| pair_from_wire(pair, "resource_end.client_pair", secret))
            .transpose()?,
        sni,
        verify: !end.insecure_skip_verify,
        http: word(&end.http).map_err(|e| e.in_field("resource_end.http"))?,
        socks: end
            .socks
            .as_ref()
            .map(|socks| socks_from_wire(socks, secret))
            .transpose()?,
        proxy_protocol: word(&end.proxy_protocol)
            .map_err(|e| e.in_field("resource_end.proxy_protocol"))?,
    };
    read.checked(protocol)
}

/// One source rule from the wire.
///
/// # Errors
/// When a part is not acceptable.
pub fn source_from_wire(rule: &wire::SourceRule) -> Result<SourceRule, Invalid> {
    let owner = match rule.owner.as_str() {
        "" => None,
        owner => Some(owner.parse::<SourceOwner>()?),
    };
    Ok(SourceRule {
        spec: rule.spec.parse::<SourceSpec>()?,
        owner,
        expires: rule
            .expire_time
            .as_ref()
            .map(|time| timestamp_from_wire("expire_time", time))
            .transpose()?,
    })
}

fn source_to_wire(rule: &SourceRule) -> wire::SourceRule {
    wire::SourceRule {
        spec: rule.spec.to_string(),
        owner: rule
            .owner
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        expire_time: rule.expires.map(timestamp_to_wire),
    }
}

fn socks_from_wire(socks: &wire::SocksProxy, secret: ReadSecret<'_>) -> Result<Socks, Invalid> {
    let field = "resource_end.socks";
    Socks {
        version: socks
            .version
            .parse()
            .map_err(|e: Invalid| e.in_field(field))?,
        address: socks
            .address
            .parse()
            .map_err(|e: Invalid| e.in_field(field))?,
        user: socks.user.clone(),
        password: match socks.password.as_slice() {
            [] => None,
            password => Some(secret("resource_end.socks.password", password)?),
        },
    }
    .checked()
}

fn pair_to_wire(pair: &KeyPair, place: &str, secret: WriteSecret<'_>) -> wire::KeyPair {
    wire::KeyPair {
        certificates: certificates_to_wire(&pair.certificates),
        key: pair
            .key
            .as_ref()
            .map(|key| secret(place, key))
            .unwrap_or_default(),
        origin: pair.origin.to_string(),
    }
}

fn pair_from_wire(
    pair: &wire::KeyPair,
    place: &str,
    secret: ReadSecret<'_>,
) -> Result<KeyPair, Invalid> {
    Ok(KeyPair {
        certificates: certificates_from_wire(&pair.certificates),
        key: match pair.key.as_slice() {
            [] => None,
            key => Some(secret(place, key)?),
        },
        origin: word::<PairOrigin>(&pair.origin)?,
    })
}

fn certificates_to_wire(certificates: &[Certificate]) -> Vec<Vec<u8>> {
    certificates.iter().map(|one| one.der().to_vec()).collect()
}

fn certificates_from_wire(certificates: &[Vec<u8>]) -> Vec<Certificate> {
    certificates
        .iter()
        .map(|der| Certificate::new(der.as_slice()))
        .collect()
}

/// A word whose absence means the default.
fn word<T: std::str::FromStr<Err = Invalid> + Default>(text: &str) -> Result<T, Invalid> {
    match text {
        "" => Ok(T::default()),
        text => text.parse(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::{ForwardedHeaders, Preface, ProxyProtocol, ResourceHttp, ResourceTls};

    use super::*;

    fn pair(origin: PairOrigin) -> KeyPair {
        KeyPair {
            certificates: vec![Certificate::new([1, 2]), Certificate::new([3])],
            key: Some(SecretBytes::new(b"canary".to_vec())),
            origin,
        }
    }

    pub(in super::super) fn user_end() -> UserEnd {
        UserEnd {
            server_pairs: vec![pair(PairOrigin::Uploaded), pair(PairOrigin::Issued)],
            server_names: vec!["db.example".parse().unwrap()],
            certificates: vec![Certificate::new([4])],
            generated_pair: Some(pair(PairOrigin::Generated)),
            alpn: vec!["postgresql".to_owned()],
            preface: Preface::Postgres,
            sources: SourcePolicy {
                restrict: true,
                rules: vec![SourceRule {
                    spec: "10.0.0.0/8 1:5".parse().unwrap(),
                    owner: Some("app:1".parse().unwrap()),
                    expires: Some(sg_model::Timestamp(1_700_000_000_000)),
                }],
            },
            forwarded: ForwardedHeaders::Set,
        }
    }

    pub(in super::super) fn resource_end() -> ResourceEnd {
        let mut socks = Socks::parse("5:proxy:1080").unwrap();
        socks.user = "u".to_owned();
        socks.password = Some(SecretBytes::new(b"canary".to_vec()));
        ResourceEnd {
            tls: ResourceTls::Mutual,
            certificates: vec![Certificate::new([5])],
            client_pair: Some(pair(PairOrigin::Uploaded)),
            sni: Some("inner.example".parse().unwrap()),
            verify: false,
            http: ResourceHttp::Auto,
            socks: Some(socks),
            proxy_protocol: ProxyProtocol::V2,
        }
    }

    #[test]
    fn both_ends_survive_the_wire() {
        let protocol = Protocol::TlsMutual;
        let user = user_end();
        let wire = user_end_to_wire(&user, &plain);
        assert_eq!(
            user_end_from_wire(Some(&wire), protocol, &as_it_is),
            Ok(user)
        );
        let resource = resource_end();
        let wire = resource_end_to_wire(&resource, &plain);
        assert_eq!(
            resource_end_from_wire(Some(&wire), protocol, &as_it_is),
            Ok(resource)
        );
        assert_eq!(
            user_end_from_wire(None, Protocol::Tcp, &as_it_is),
            Ok(UserEnd::default())
        );
    }

    #[test]
    fn nothing_of_a_secret_is_written_where_it_is_hidden_or_shown() {
        let canary = b"canary";
        let wire = prost::Message::encode_to_vec(&user_end_to_wire(&user_end(), &hidden));
        assert!(!wire.windows(canary.len()).any(|part| part == canary));
        let resource = resource_end_to_wire(&resource_end(), &plain);
        let shown = format!("{resource:?} {:?}", user_end_to_wire(&user_end(), &plain));
        assert!(!shown.contains("99, 97, 110"), "{shown}");
        let wire = prost::Message::encode_to_vec(&resource_end_to_wire(&resource_end(), &hidden));
        assert!(!wire.windows(canary.len()).any(|part| part == canary));
    }

    #[test]
    fn every_secret_has_a_place_of_its_own() {
        let places = std::cell::RefCell::new(Vec::new());
        let note = |place: &str, secret: &SecretBytes| {
            places.borrow_mut().push(place.to_owned());
            secret.expose().to_vec()
        };
        drop(user_end_to_wire(&user_end(), &note));
        drop(resource_end_to_wire(&resource_end(), &note));
        let mut places = places.into_inner();
        assert_eq!(places.len(), 5);
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 5);
    }
}
