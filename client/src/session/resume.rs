//! The way back to a tunnel whose connection was lost: dial the same node again until it answers, and offer to go on.
//!
//! The session does this by itself, at once and again and again for as long as the tunnel may be resumed; it does not
//! ask its supervisor, for which the session just goes on. Dropping the future ends the attempt.

use std::sync::Arc;
use std::time::Duration;

use sg_model::{HostPort, NodeId};
use sg_proto::tunnel::{Accepted, ClientHello, ResumeOffer};
use sg_runtime::backoff::Backoff;
use sg_runtime::tls;
use sg_tunnel_io::resume::{EXPORTER_LABEL, LENGTH, Secret, TunnelId};
use tokio::time::{sleep, timeout};

use super::establish::{self, ConnectError, NodeStream};
use crate::gateway::GatewayContext;

/// The wait after the first failed attempt; each further one doubles it.
const BASE: Duration = Duration::from_millis(100);
/// However many attempts have failed.
const LONGEST: Duration = Duration::from_secs(1);
/// Time for one attempt, at first. A way that swallows packets may be whole again at any moment.
const FIRST_ATTEMPT: Duration = Duration::from_secs(3);
/// Time for one attempt after some that were too short.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(12);
/// However long a node says that streams are to wait.
const LONGEST_RESUME_TIME: Duration = Duration::from_secs(3600);

/// What is needed to come back to a tunnel.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    id: TunnelId,
    secret: Secret,
}

impl Ticket {
    /// What a node gave with its answer, and how long the tunnel outlives its connection; the secret is taken out of the
    /// answer.
    pub(super) fn take(accepted: &mut Accepted) -> Result<(Option<Self>, Duration), ConnectError> {
        let secret = Secret::take(std::mem::take(&mut accepted.resume_secret));
        let time = Duration::from_millis(accepted.resume_ms.into()).min(LONGEST_RESUME_TIME);
        if time.is_zero() {
            return Ok((None, time));
        }
        match (TunnelId::from_slice(&accepted.tunnel_id), secret) {
            (Some(id), Some(secret)) => Ok((Some(Self { id, secret }), time)),
            _ => Err(ConnectError::Hello("the answer has no id or no secret")),
        }
    }

    /// Whether the two name one tunnel.
    pub(super) fn same_tunnel(&self, other: &Self) -> bool {
        self.id == other.id
    }

    fn offer(&self, stream: &NodeStream) -> Result<ResumeOffer, ConnectError> {
        let mut exported = [0; LENGTH];
        tls::exporter(stream, EXPORTER_LABEL, &mut exported)?;
        Ok(ResumeOffer {
            tunnel_id: self.id.as_bytes().to_vec(),
            proof: self.secret.prove(&exported).to_vec(),
        })
    }
}

/// Whom to go back to, and as whom.
#[derive(Debug)]
pub(super) struct Return {
    pub(super) gateway: Arc<GatewayContext>,
    pub(super) connection: u32,
    pub(super) address: HostPort,
    pub(super) node: NodeId,
    pub(super) ticket: Ticket,
    /// Connections of this tunnel in a row that did not live long.
    pub(super) short_lives: u32,
}

/// The node has answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// It lets the client in; whether to the old tunnel stands in the answer.
    Accepted(Box<(NodeStream, Accepted)>),
    /// It does not, and so there is nothing to come back to.
    Refused(ConnectError),
}

impl Return {
    /// Tries until the node answers.
    pub(super) async fn run(self) -> Answer {
        let mut backoff = Backoff::new(BASE, LONGEST);
        for _ in 0..self.short_lives {
            backoff.next_delay();
        }
        let mut limit = FIRST_ATTEMPT;
        loop {
            sleep(backoff.next_delay()).await;
            let error = match timeout(limit, self.attempt()).await {
                Ok(Ok(accepted)) => return Answer::Accepted(Box::new(accepted)),
                Ok(Err(error @ ConnectError::Refused { .. })) => return Answer::Refused(error),
                Ok(Err(error)) => error,
                Err(_) => {
                    limit = (limit * 2).min(LONGEST_ATTEMPT);
                    ConnectError::HelloTimeout
                }
            };
            tracing::debug!(gateway = %self.gateway.gateway, address = %self.address, reason = error.reason(),
                "the tunnel is not resumed yet: {}", error.text());
        }
    }

    async fn attempt(&self) -> Result<(NodeStream, Accepted), ConnectError> {
        let shared = &self.gateway.shared;
        let (mut stream, node) =
            establish::connect(&self.address, &shared.trust.tls(), shared.proxy.as_ref()).await?;
        if node != self.node {
            // Another node behind the same address knows nothing of the tunnel.
            return Err(ConnectError::Identity);
        }
        let hello = ClientHello {
            resume: Some(self.ticket.offer(&stream)?),
            ..self.gateway.hello(self.connection)
        };
        let accepted = establish::hello(&mut stream, &node, &hello)
            .await
            .map_err(|error| match self.gateway.turns_to_token(&hello, &error) {
                // Not the end: the next attempt shows the token.
                true => ConnectError::CertificateRefused,
                false => error,
            })?;
        Ok((stream, accepted))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_answer_is_taken_with_everything_or_not_at_all() {
        let whole = Accepted {
            tunnel_id: vec![1; 16],
            resume_secret: vec![2; 32],
            resume_ms: 30_000,
            ..Accepted::default()
        };
        let mut accepted = whole.clone();
        let (ticket, time) = Ticket::take(&mut accepted).unwrap();
        assert_eq!(time, Duration::from_secs(30));
        assert!(ticket.unwrap().same_tunnel(&Ticket {
            id: TunnelId::new([1; 16]),
            secret: Secret::new([9; 32]),
        }));
        assert!(accepted.resume_secret.is_empty());

        let mut without = Accepted {
            resume_ms: 0,
            ..whole.clone()
        };
        let (ticket, time) = Ticket::take(&mut without).unwrap();
        assert!(ticket.is_none() && time.is_zero());
        let mut short = Accepted {
            resume_secret: vec![2; 31],
            ..whole.clone()
        };
        assert!(Ticket::take(&mut short).is_err());
        let mut long = Accepted {
            resume_ms: u32::MAX,
            ..whole
        };
        assert_eq!(Ticket::take(&mut long).unwrap().1, LONGEST_RESUME_TIME);
    }
}
