//! Who may go on with a tunnel whose connection was lost, and how the tunnel changes hands.
//!
//! A client that comes back shows the tunnel's id and a proof made with the tunnel's secret over its new TLS connection
//! (protocol 213 to 217). It must be the same process, by key and boot id, of the same gateway. The answer is written
//! before the tunnel is handed over, so two connections may be on their way at once: the one whose proof was
//! checked last wins, and a later one always takes over from an earlier one, whatever the node believes of that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sg_model::GatewayId;
use sg_proto::tunnel::{ClientHello, ResumeOffer};
use sg_runtime::crypto;
use sg_runtime::tls::{self, Exporter};
use sg_tunnel_io::Closed;
use sg_tunnel_io::resume::{EXPORTER_LABEL, LENGTH, Secret, Secrets, TunnelId};

use super::Session;
use super::registry::Registry;

/// What a tunnel is resumed by.
#[derive(Debug)]
pub(crate) struct Resumption {
    pub(super) id: TunnelId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    secrets: Secrets,
    /// Proofs that were right so far.
    tickets: u64,
    /// What the tunnel had received when the ticket that was given last was used.
    handed_over: Option<u64>,
}

/// A proof that was right: the permission to hand the tunnel over, unless a later one comes first.
#[derive(Debug)]
pub(super) struct Ticket {
    number: u64,
    /// What the client needs the next time.
    pub(super) secret: Secret,
}

impl Resumption {
    /// That of a new tunnel, and the secret for its client.
    pub(super) fn new() -> (Self, Secret) {
        let secret = Secret::new(crypto::random_bytes());
        let resumption = Self {
            id: TunnelId::new(crypto::random_bytes()),
            state: Mutex::new(State {
                secrets: Secrets::new(secret.clone()),
                tickets: 0,
                handed_over: None,
            }),
        };
        (resumption, secret)
    }

    /// Checks a proof. `received` is what the tunnel has received so far, in bytes.
    fn check(&self, exported: &[u8; LENGTH], proof: &[u8], received: u64) -> Option<Ticket> {
        let mut state = self.lock();
        if state.handed_over.is_some_and(|before| received > before) {
            // The client has used the connection that came with the newest secret.
            state.secrets.arrived();
        }
        let secret = Secret::new(crypto::random_bytes());
        let right = state.secrets.prove(exported, proof, secret.clone());
        right.then(|| {
            state.tickets += 1;
            state.handed_over = None;
            Ticket {
                number: state.tickets,
                secret,
            }
        })
    }

    /// Hands the tunnel over, by `attach`, to the connection that the ticket was given for; it answers how much the
    /// tunnel had received by then.
    ///
    /// # Errors
    /// Why it was not: a later connection, or the tunnel's end.
    pub(super) fn hand_over(
        &self,
        ticket: &Ticket,
        attach: impl FnOnce() -> Result<u64, Closed>,
    ) -> Result<(), HandOverError> {
        let mut state = self.lock();
        if ticket.number != state.tickets {
            return Err(HandOverError::Superseded);
        }
        state.handed_over = Some(attach().map_err(HandOverError::Ended)?);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a tunnel was not handed over to a connection whose proof was right.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandOverError {
    /// Another one came.
    #[error("a later connection resumes the tunnel")]
    Superseded,
    /// The tunnel did not live to see it.
    #[error("the tunnel has ended: {0}")]
    Ended(Closed),
}

/// What becomes of a connection, as far as its offer to resume goes.
#[derive(Debug)]
pub(super) enum Decision {
    /// It gets a new tunnel.
    New,
    /// It goes on with this one.
    Resume(Arc<Session>, Ticket),
    /// It gets nothing: whoever has the client's key and not the tunnel's secret is not its owner.
    WrongProof,
}

/// Decides over an offer of an admitted client. What is not the client's own tunnel might as well not exist.
pub(super) fn decide(
    registry: &Registry,
    gateway: &GatewayId,
    client_id: &str,
    hello: &ClientHello,
    offer: &ResumeOffer,
    io: &impl Exporter,
) -> Decision {
    let id = TunnelId::from_slice(&offer.tunnel_id);
    let found = id.and_then(|id| registry.find(gateway, &id));
    let own = found.filter(|session| {
        *session.client_id == *client_id
            && session.boot_id == crypto::hex(&hello.boot_id)
            && session.connection == hello.connection
    });
    let Some(session) = own.filter(|session| session.resumable()) else {
        return Decision::New;
    };
    let mut exported = [0; LENGTH];
    if let Err(error) = tls::exporter(io, EXPORTER_LABEL, &mut exported) {
        tracing::warn!(%error, "no keying material of a connection");
        return Decision::WrongProof;
    }
    let received = session.tunnel.stats().received_bytes;
    match session.resumption.check(&exported, &offer.proof, received) {
        Some(ticket) => Decision::Resume(session, ticket),
        None => Decision::WrongProof,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [u8; LENGTH] = [1; LENGTH];

    #[test]
    fn the_secret_of_an_answer_that_was_lost_is_not_needed() {
        let (resumption, first) = Resumption::new();
        let proof = first.prove(&HERE);
        assert!(resumption.check(&[2; LENGTH], &proof, 0).is_none());
        let lost = resumption.check(&HERE, &proof, 0).unwrap();
        let taken = resumption.check(&HERE, &proof, 0).unwrap();
        assert!(taken.number > lost.number);
        // Or it was late, and the attempt that came after it was the one that got lost.
        let proof_of_late = lost.secret.prove(&HERE);
        assert!(resumption.check(&HERE, &proof_of_late, 0).is_some());
        assert!(resumption.check(&HERE, &proof, 0).is_none());
        let proof = proof_of_late;
        // Bytes of an old connection that came after the check prove nothing.
        let again = resumption.check(&HERE, &proof, 100).unwrap();
        resumption.lock().handed_over = Some(100);
        // The client has used the connection of that answer.
        assert!(resumption.check(&HERE, &proof, 101).is_none());
        let proof = again.secret.prove(&HERE);
        assert!(resumption.check(&HERE, &proof, 101).is_some());
    }

    #[test]
    fn tunnels_have_ids_and_secrets_of_their_own() {
        let ((a, x), (b, y)) = (Resumption::new(), Resumption::new());
        assert_ne!(a.id.as_bytes(), b.id.as_bytes());
        assert_ne!(x.expose(), y.expose());
    }
}
