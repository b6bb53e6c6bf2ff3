//! What the ends of a destination need and nobody brought: a certificate of the internal CA for users of TLS, pairs
//! for mutual TLS. And what users and resources are to be given of it.

use std::collections::BTreeSet;
use std::time::Duration;

use sg_model::{
    Certificate, Destination, DestinationKind, Host, KeyPair, PairOrigin, ResourceTls, SecretBytes,
    Timestamp,
};
use sg_proto::api as wire;
use sg_proto::convert::store::{DestinationRecord, GatewayRecord};
use sg_runtime::identity;
use sg_runtime::tls::material::{Facts, Pair};

use super::{Core, ServiceError};
use crate::authority::{Authority, IssueError};
use crate::ids;
use crate::service::change::Call;
use crate::world::World;

/// An issued certificate is replaced when less than this is left of it.
const RENEW_BEFORE: Duration = Duration::from_secs(130 * 24 * 3600);

/// The files of a destination.
pub type CertificateFiles = Vec<wire::CertificateFile>;

impl Core {
    /// Brings the ends of a changed destination in order: adds what is missing, drops what no longer belongs, and forgets
    /// source rules that are over. Does nothing where all is well.
    pub(super) fn complete_ends(
        &self,
        gateway: &GatewayRecord,
        record: &mut DestinationRecord,
    ) -> Result<(), ServiceError> {
        let now = ids::now();
        let names = issued_names(&self.views.whole().world, gateway, &record.destination);
        complete(&self.authority.get(), &mut record.destination, &names, now).map_err(refused)
    }

    /// Whether [`Core::renew_certificate`] would change something.
    pub fn needs_certificate(
        &self,
        world: &World,
        gateway: &GatewayRecord,
        destination: &Destination,
    ) -> bool {
        // Most want none, and all are looked at after every change.
        wants_issued(destination)
            && !is_good(
                &self.authority.get(),
                destination.user_end.server_pairs.first(),
                &issued_names(world, gateway, destination),
                ids::now(),
            )
    }

    /// Issues the certificate of a destination anew if it is about to end, or the hosts have others names by now.
    ///
    /// # Errors
    /// As [`Core::update_destination`].
    pub async fn renew_certificate(&self, gateway: &str, id: &str) -> Result<(), ServiceError> {
        let call = Call::internal("control-plane", "Destinations.RenewCertificate");
        self.update_destination(&call, (gateway, id), "", None, |record| Ok(record.clone()))
            .await
            .map(|_| ())
    }

    /// What users and the resource of a destination need, as files.
    ///
    /// # Errors
    /// The destination does not exist.
    pub async fn certificate_files(
        &self,
        (parent, name): (&str, &str),
    ) -> Result<CertificateFiles, ServiceError> {
        let gateway = self.gateway(parent).await?;
        let destination = self.destination(&gateway, name).await?.value.destination;
        Ok(files(&self.authority.get(), &destination))
    }
}

fn refused(error: IssueError) -> ServiceError {
    match error {
        IssueError::Request(why) => ServiceError::invalid("user_end.server_names", why),
        IssueError::Authority(why) => ServiceError::Internal(why),
    }
}

fn wants_issued(destination: &Destination) -> bool {
    let uploaded = |pair: &KeyPair| pair.origin == PairOrigin::Uploaded;
    destination.protocol.is_encrypted() && !destination.user_end.server_pairs.iter().any(uploaded)
}

/// The names that users may call the accepting end by.
fn issued_names(
    world: &World,
    gateway: &GatewayRecord,
    destination: &Destination,
) -> BTreeSet<String> {
    let own = destination
        .user_end
        .server_names
        .iter()
        .map(ToString::to_string);
    let mut names: BTreeSet<String> = own.collect();
    if destination.kind() == DestinationKind::OnPremises {
        let hosts = world
            .nodes_of(&gateway.group)
            .map(|node| &node.value.destination_host);
        let readable = hosts.filter_map(|host| host.parse::<Host>().ok());
        names.extend(readable.map(|host| host.to_string()));
    } else {
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    }
    if names.is_empty() {
        // No node has registered; the certificate is issued anew when one does.
        names.insert("localhost".to_owned());
    }
    names
}

fn complete(
    authority: &Authority,
    destination: &mut Destination,
    names: &BTreeSet<String>,
    now: Timestamp,
) -> Result<(), IssueError> {
    let protocol = destination.protocol;
    let issued = wants_issued(destination);
    let user = &mut destination.user_end;
    if issued {
        if !is_good(authority, user.server_pairs.first(), names, now) {
            user.server_pairs = vec![pair(&authority.server(names)?, PairOrigin::Issued)];
        }
    } else {
        user.server_pairs
            .retain(|pair| pair.origin == PairOrigin::Uploaded);
    }
    if !protocol.is_mutual() || !user.certificates.is_empty() {
        user.generated_pair = None;
    } else if user.generated_pair.is_none() {
        let name = format!("{} user", destination.name);
        user.generated_pair = Some(pair(&Authority::stranger(&name)?, PairOrigin::Generated));
    }
    user.sources.prune(now);
    let resource = &mut destination.resource_end;
    if resource.tls != ResourceTls::Mutual {
        resource.client_pair = None;
    } else if resource.client_pair.is_none() {
        let name = format!("{} client", destination.name);
        resource.client_pair = Some(pair(&Authority::stranger(&name)?, PairOrigin::Generated));
    }
    Ok(())
}

/// Keys are kept as PEM text, which says of which form they are.
fn pair(made: &Pair, origin: PairOrigin) -> KeyPair {
    let chain = made.chain().iter();
    KeyPair {
        certificates: chain.map(|one| Certificate::new(one.as_ref())).collect(),
        key: Some(SecretBytes::new(
            made.key().to_pem().expose().clone().into_bytes(),
        )),
        origin,
    }
}

/// Whether a pair is the CA's for exactly these names, and lasts.
fn is_good(
    authority: &Authority,
    pair: Option<&KeyPair>,
    names: &BTreeSet<String>,
    now: Timestamp,
) -> bool {
    let leaf = pair
        .filter(|pair| pair.origin == PairOrigin::Issued)
        .and_then(|pair| pair.certificates.first());
    let Some(leaf) = leaf else { return false };
    let der = identity::CertificateDer::from(leaf.der());
    let Ok(facts) = Facts::of(&der) else {
        return false;
    };
    let end = u64::try_from(facts.not_after).unwrap_or_default() * 1000;
    let lasts = end > now.0 + u64::try_from(RENEW_BEFORE.as_millis()).unwrap_or(u64::MAX);
    let addresses = facts.addresses.iter().map(ToString::to_string);
    let present: BTreeSet<String> = facts.dns_names.iter().cloned().chain(addresses).collect();
    // One of the authority before is good as long as that is trusted.
    let mut trusted = authority.trusted().into_iter();
    let issued = trusted.any(|root| identity::names_issuer(&der, &root));
    lasts && issued && present == *names
}

fn files(authority: &Authority, destination: &Destination) -> CertificateFiles {
    let mut files = Vec::new();
    let mut add = |name: &str, purpose: &str, content: Vec<u8>, secret: bool| {
        files.push(wire::CertificateFile {
            name: name.to_owned(),
            purpose: purpose.to_owned(),
            content,
            secret,
        });
    };
    let user = &destination.user_end;
    if wants_issued(destination) {
        add(
            "ca.pem",
            "users verify the destination's certificate with it",
            authority.trusted_pem().into_bytes(),
            false,
        );
    }
    for (n, pair) in user.server_pairs.iter().enumerate() {
        let name = match n {
            0 => "server_cert.pem".to_owned(),
            n => format!("server_cert_{n}.pem"),
        };
        add(
            &name,
            "what the destination shows to users",
            chain_pem(&pair.certificates),
            false,
        );
    }
    if let Some(pair) = &user.generated_pair {
        add(
            "user_cert.pem",
            "what users show to the destination",
            chain_pem(&pair.certificates),
            false,
        );
        if let Some(key) = &pair.key {
            add(
                "user_key.pem",
                "the key of user_cert.pem, for users alone",
                key.expose().to_vec(),
                true,
            );
        }
    }
    if let Some(pair) = &destination.resource_end.client_pair {
        add(
            "resource_client_cert.pem",
            "what the resource is shown; let it accept this certificate",
            chain_pem(&pair.certificates),
            false,
        );
    }
    files
}

fn chain_pem(chain: &[Certificate]) -> Vec<u8> {
    let chain: Vec<_> = chain
        .iter()
        .map(|one| identity::CertificateDer::from(one.der()))
        .collect();
    identity::certificates_to_pem(&chain).into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn destination(protocol: &str) -> Destination {
        let draft = sg_proto::convert::api::destination_draft(&wire::Destination {
            name: "db".to_owned(),
            protocol: protocol.to_owned(),
            resource_host: "db".to_owned(),
            resource_port: 1,
            ..wire::Destination::default()
        })
        .unwrap();
        Destination {
            id: sg_model::DestinationId::new("D1").unwrap(),
            gateway: sg_model::GatewayId::new("G1").unwrap(),
            name: draft.name,
            listen: sg_model::Listen::CloudPort(15000),
            protocol: draft.protocol,
            resource: draft.resource,
            enabled: true,
            connect_timeout: draft.connect_timeout,
            idle_timeout: None,
            max_connections: None,
            compression: draft.compression,
            keepalive: None,
            user_end: draft.user_end,
            resource_end: draft.resource_end,
            generation: 1,
        }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_certificate_is_issued_once_and_anew_for_other_names() {
        sg_runtime::crypto::install();
        let authority = Authority::generate().unwrap();
        let mut d = destination("tls");
        let first = names(&["10.0.0.1", "cloud.example"]);
        complete(&authority, &mut d, &first, ids::now()).unwrap();
        assert_eq!(d.user_end.server_pairs[0].origin, PairOrigin::Issued);
        let issued = d.clone();
        complete(&authority, &mut d, &first, ids::now()).unwrap();
        assert_eq!(d, issued);
        complete(&authority, &mut d, &names(&["cloud.example"]), ids::now()).unwrap();
        assert_ne!(d, issued);
        let late = Timestamp(ids::now().0 + 300 * 24 * 3600 * 1000);
        let before = d.clone();
        complete(&authority, &mut d, &names(&["cloud.example"]), late).unwrap();
        assert_ne!(d, before, "it is renewed in time");

        // Another authority takes over: nothing changes until the one before is not trusted any more.
        let before = d.clone();
        let new = authority.successor().unwrap();
        complete(&new, &mut d, &names(&["cloud.example"]), ids::now()).unwrap();
        assert_eq!(d, before);
        complete(
            &new.after(None),
            &mut d,
            &names(&["cloud.example"]),
            ids::now(),
        )
        .unwrap();
        assert_ne!(d, before);
    }

    #[test]
    fn what_no_longer_belongs_goes() {
        sg_runtime::crypto::install();
        let authority = Authority::generate().unwrap();
        let mut d = destination("tls-mutual");
        let all = names(&["h"]);
        complete(&authority, &mut d, &all, ids::now()).unwrap();
        assert!(d.user_end.generated_pair.is_some());
        let files = files(&authority, &d);
        let has = |name: &str| files.iter().any(|file| file.name == name);
        assert!(
            has("ca.pem") && has("server_cert.pem") && has("user_cert.pem") && has("user_key.pem")
        );
        d.protocol = sg_model::Protocol::Tcp;
        complete(&authority, &mut d, &all, ids::now()).unwrap();
        assert_eq!(d.user_end, sg_model::UserEnd::default());
        d.resource_end.tls = ResourceTls::Mutual;
        complete(&authority, &mut d, &all, ids::now()).unwrap();
        assert!(d.resource_end.client_pair.is_some());
        d.resource_end.tls = ResourceTls::Tls;
        complete(&authority, &mut d, &all, ids::now()).unwrap();
        assert_eq!(d.resource_end.client_pair, None);
    }
}
