//! What records are about and who made them, by name. Records have ids, which stay; people know names.
//!
//! A record that made, renamed or deleted something tells its name itself. Other names are those of now; what is gone
//! by now, or not for the caller to see, keeps its id.

use sg_model::{DestinationId, GatewayId, NodeId};
use sg_proto::store as wire;

use crate::world::World;

/// The object of a record, as `destination/dev/db`.
#[must_use]
pub fn object(world: &World, record: &wire::Audit) -> String {
    let parts: Vec<&str> = record.object.split('/').collect();
    match parts.as_slice() {
        ["gateway", id] => {
            let name = told(record).unwrap_or_else(|| gateway(world, id));
            format!("gateway/{name}")
        }
        ["acl", id] => format!("acl/{}", gateway(world, id)),
        ["destination", of, id] => {
            let name = told(record).or_else(|| destination(world, of, id));
            let name = name.unwrap_or_else(|| (*id).to_owned());
            format!("destination/{}/{name}", gateway(world, of))
        }
        ["node", id] => {
            let name = told(record).unwrap_or_else(|| node(world, id));
            format!("node/{name}")
        }
        // Operators' tokens are not looked up: not every reader may list them.
        ["token", id] => {
            let name = told(record).unwrap_or_else(|| (*id).to_owned());
            format!("token/{name}")
        }
        _ => record.object.clone(),
    }
}

/// Who made a record, as `node/node-1`, or `client/ID via node/node-1`.
#[must_use]
pub fn principal(world: &World, record: &wire::Audit) -> String {
    let principal = record.principal.as_str();
    if principal == record.object {
        return object(world, record);
    }
    if let Some(id) = principal.strip_prefix("node/") {
        return format!("node/{}", node(world, id));
    }
    // The name that the node had then stands behind its id.
    let via = principal.split_once(" via node/");
    let named = via.and_then(|(client, of)| Some((client, of.split_once(" (")?.1)));
    match named.and_then(|(client, name)| Some((client, name.strip_suffix(')')?))) {
        Some((client, name)) if client.starts_with("client/") => {
            format!("{client} via node/{name}")
        }
        _ => principal.to_owned(),
    }
}

/// The name of its object that a record tells, of before for what is gone.
fn told(record: &wire::Audit) -> Option<String> {
    let is_it = |change: &&wire::AuditChange| {
        change.object == record.object
            || (change.object == "token" && record.object.starts_with("token/"))
    };
    let change = record.changes.iter().find(is_it)?;
    let name = change.fields.iter().find(|field| field.name == "name")?;
    let either = [&name.after, &name.before];
    either.into_iter().find(|name| !name.is_empty()).cloned()
}

fn gateway(world: &World, id: &str) -> String {
    let found = GatewayId::new(id).ok();
    let found = found.and_then(|id| world.gateway(&id).map(|(gateway, _)| gateway));
    found.map_or_else(
        || id.to_owned(),
        |gateway| gateway.value.gateway.name.to_string(),
    )
}

fn destination(world: &World, gateway: &str, id: &str) -> Option<String> {
    let (_, entry) = world.gateway(&GatewayId::new(gateway).ok()?)?;
    let found = entry.destination(&DestinationId::new(id).ok()?)?;
    Some(found.value.destination.name.to_string())
}

fn node(world: &World, id: &str) -> String {
    let found = NodeId::new(id).ok();
    let found = found.and_then(|id| world.node(&id));
    found.map_or_else(|| id.to_owned(), |node| node.value.name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_keeps_its_id() {
        let world = World::default();
        let of = |principal: &str, object: &str| {
            let record = wire::Audit {
                principal: principal.to_owned(),
                object: object.to_owned(),
                ..wire::Audit::default()
            };
            (
                super::principal(&world, &record),
                super::object(&world, &record),
            )
        };
        for object in [
            "gateway/G1",
            "acl/G1",
            "destination/G1/D1",
            "node/N1",
            "token/T1",
            "token/join",
            "meta/ca",
            "meta",
            "",
        ] {
            assert_eq!(of("admin", object), ("admin".to_owned(), object.to_owned()));
        }
        assert_eq!(of("node/N1", "meta").0, "node/N1");
        assert_eq!(
            of("client/c1 via node/N1 (node-1)", "acl/G1").0,
            "client/c1 via node/node-1"
        );
        for odd in [
            "client/c1 via node/N1",
            "x via node/N1 (n)",
            "client/c1 via node/N1 (n",
            "control-plane",
        ] {
            assert_eq!(of(odd, "meta").0, odd);
        }
    }

    #[test]
    fn a_record_tells_the_name_that_it_gave_or_took() {
        let record = |before: &str, after: &str, object: &str, of: &str| wire::Audit {
            object: object.to_owned(),
            changes: vec![wire::AuditChange {
                object: of.to_owned(),
                fields: vec![wire::AuditField {
                    name: "name".to_owned(),
                    before: before.to_owned(),
                    after: after.to_owned(),
                }],
                truncated: false,
            }],
            ..wire::Audit::default()
        };
        let shown = |record: wire::Audit| object(&World::default(), &record);
        assert_eq!(
            shown(record("", "new", "gateway/G1", "gateway/G1")),
            "gateway/new"
        );
        assert_eq!(
            shown(record("old", "new", "gateway/G1", "gateway/G1")),
            "gateway/new"
        );
        assert_eq!(shown(record("old", "", "node/N1", "node/N1")), "node/old");
        assert_eq!(shown(record("ci", "", "token/T1", "token")), "token/ci");
        // Another object of the same change.
        assert_eq!(
            shown(record("", "db", "gateway/G1", "destination/G1/D1")),
            "gateway/G1"
        );
    }
}
