//! Clients that are let in no more: a list in their gateway, which every node of the group enforces.

use sg_model::{ClientId, GatewayId, MAX_REVOKED};
use sg_proto::convert::store::GatewayRecord;

use super::change::Call;
use super::gateways::GatewayAnswer;
use super::{Core, ServiceError};
use crate::ids;

impl Core {
    /// Lets a client in no more. It stays so if it is so already.
    ///
    /// # Errors
    /// There is no such gateway, its list is full, or the store failed.
    pub async fn revoke_client(
        &self,
        call: &Call,
        gateway: &str,
        client: &ClientId,
    ) -> Result<GatewayAnswer, ServiceError> {
        let now = ids::now();
        let edit = |record: &mut GatewayRecord| {
            let revoked = &mut record.gateway.revoked;
            if revoked.contains_key(client) {
                return Ok(());
            }
            if revoked.len() >= MAX_REVOKED {
                return Err(ServiceError::Exhausted {
                    reason: "TOO_MANY_REVOKED",
                    message: format!(
                        "{MAX_REVOKED} clients of the gateway are revoked; rotate its security token, which ends \
                         everything that was issued under it, and restore clients that have it no more"
                    ),
                });
            }
            revoked.insert(client.clone(), now);
            Ok(())
        };
        self.update_gateway(call, gateway, "", None, edit).await
    }

    /// Takes a revocation back.
    ///
    /// # Errors
    /// There is no such gateway, the client is not revoked there, or the store failed.
    pub async fn restore_client(
        &self,
        call: &Call,
        gateway: &str,
        client: &ClientId,
    ) -> Result<GatewayAnswer, ServiceError> {
        let edit = |record: &mut GatewayRecord| {
            let id: &GatewayId = &record.gateway.id;
            if record.gateway.revoked.contains_key(client) {
                record.gateway.revoked.remove(client);
                return Ok(());
            }
            let name = format!("{id}/{client}");
            Err(ServiceError::not_found("revoked client", name))
        };
        self.update_gateway(call, gateway, "", None, edit).await
    }
}
