//! What a client's certificate says: whose it is, of which gateway, and which security token it goes back to.
//!
//! Verified elsewhere; here it is only taken apart and put together.

use crate::{ClientId, GatewayId, Invalid, Timestamp};

/// A client's certificate as a gateway judges it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The gateway that it is for.
    pub gateway: GatewayId,
    /// The gateway's count of security tokens when it was issued.
    pub token_generation: u64,
    /// The client.
    pub client: ClientId,
    /// From this instant on it is refused.
    pub expires: Timestamp,
}

/// Why a client's certificate was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateRefusal {
    /// It is another gateway's.
    Unauthenticated,
    /// The gateway's security token was replaced since, or the gateway wants no certificates.
    Withdrawn,
    /// The right one, too late.
    Expired,
}

impl ClientCertificate {
    /// The id in its identity: gateway, count of tokens, client.
    #[must_use]
    pub fn identity_of(gateway: &GatewayId, token_generation: u64, client: &ClientId) -> String {
        format!("{gateway}.{token_generation}.{client}")
    }

    /// Takes the id of an identity apart.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn parse(id: &str, expires: Timestamp) -> Result<Self, Invalid> {
        let malformed = || Invalid::new("identity", "must be GATEWAY.NUMBER.CLIENT");
        let mut parts = id.split('.');
        let (Some(gateway), Some(number), Some(client), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let token_generation = number.parse::<u64>().map_err(|_| malformed())?;
        // One spelling only: a second one would be a second name of the same.
        if token_generation.to_string() != number {
            return Err(malformed());
        }
        Ok(Self {
            gateway: GatewayId::new(gateway)?,
            token_generation,
            client: ClientId::new(client)?,
            expires,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_as_it_is_written_and_in_no_other_spelling() {
        let gateway = GatewayId::new("G1-_x").unwrap();
        let client = ClientId::new("c0123").unwrap();
        let id = ClientCertificate::identity_of(&gateway, 7, &client);
        let read = ClientCertificate::parse(&id, Timestamp(9)).unwrap();
        assert_eq!((read.gateway, read.client), (gateway, client));
        assert_eq!((read.token_generation, read.expires), (7, Timestamp(9)));
        for bad in [
            "",
            "g1",
            "g1.1",
            "g1..c1",
            ".1.c1",
            "g1.1.",
            "g1.01.c1",
            "g1.+1.c1",
            "g1.-1.c1",
            "g1.1.c1.x",
            "g1.18446744073709551616.c1",
            "g1.1.c 1",
        ] {
            assert!(
                ClientCertificate::parse(bad, Timestamp(0)).is_err(),
                "{bad}"
            );
        }
    }
}
