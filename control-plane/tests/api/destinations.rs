//! Destinations and access control lists through the API.

use pbjson_types::FieldMask;
use sg_proto::api;
use tonic::Code;

use super::harness::{Plane, create_destination, fields, reason, within};

#[tokio::test]
async fn a_destination_lives_through_all_its_methods() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let gateway = admin.gateway("dev").await;
    let made = admin.destination("dev", "db").await;
    assert_eq!(
        (made.kind.as_str(), made.gateway.as_str()),
        ("on-premises", "dev")
    );
    assert!((15000..20000).contains(&made.cloud_port) && made.enabled);
    assert_eq!(made.connect_timeout.unwrap().seconds, 10);
    let status = made.status.clone().unwrap();
    assert!(!status.ready && status.nodes.is_empty());

    let mut request = create_destination(&gateway.id, "db2");
    request.destination.as_mut().unwrap().cloud_port = made.cloud_port;
    let status = admin
        .destinations
        .create_destination(request)
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::AlreadyExists, "PORT_TAKEN".to_owned())
    );
    let expected = format!(
        "port {} of group default is used by destination db of gateway dev",
        made.cloud_port
    );
    assert_eq!(status.message(), expected);

    let update = api::UpdateDestinationRequest {
        name: "dev/db".to_owned(),
        destination: Some(api::Destination {
            resource_host: "db.plant".to_owned(),
            max_connections: 5,
            etag: made.etag.clone(),
            ..api::Destination::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["resource_host".to_owned(), "max_connections".to_owned()],
        }),
        ..api::UpdateDestinationRequest::default()
    };
    let changed = admin
        .destinations
        .update_destination(update.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (changed.resource_host.as_str(), changed.resource_port),
        ("db.plant", 5432)
    );
    assert_eq!((changed.max_connections, changed.generation), (5, 2));
    assert_eq!(changed.cloud_port, made.cloud_port);
    let status = admin
        .destinations
        .update_destination(update)
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "ETAG_MISMATCH");

    let name = format!("gateways/{}/destinations/{}", gateway.id, made.id);
    let disable = api::DisableDestinationRequest {
        name: name.clone(),
        ..Default::default()
    };
    let disabled = admin
        .destinations
        .disable_destination(disable)
        .await
        .unwrap()
        .into_inner();
    assert!(!disabled.enabled);
    for parent in ["", "gateways/-", "dev"] {
        let request = api::ListDestinationsRequest {
            parent: parent.to_owned(),
            ..Default::default()
        };
        let list = admin
            .destinations
            .list_destinations(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            list.destinations,
            std::slice::from_ref(&disabled),
            "{parent}"
        );
    }
    let delete = api::DeleteDestinationRequest {
        name: name.clone(),
        ..Default::default()
    };
    let status = admin
        .destinations
        .delete_destination(delete.clone())
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "ETAG_REQUIRED");
    let delete = api::DeleteDestinationRequest {
        etag: disabled.etag,
        ..delete
    };
    admin.destinations.delete_destination(delete).await.unwrap();
    let get = api::GetDestinationRequest { name };
    assert_eq!(
        admin
            .destinations
            .get_destination(get)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn what_cannot_be_served_is_said() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    // Something that means nothing for the protocol.
    let mut request = create_destination("dev", "web");
    let asked = request.destination.as_mut().unwrap();
    asked.user_end.get_or_insert_default().preface = "postgres".to_owned();
    let status = admin
        .destinations
        .create_destination(request)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(fields(&status), ["user_end.preface"]);
    // And a certificate that is none.
    let mut request = create_destination("dev", "web");
    let asked = request.destination.as_mut().unwrap();
    asked.protocol = "tls-mutual".to_owned();
    asked.user_end.get_or_insert_default().certificates = vec![b"nonsense".to_vec()];
    let status = admin
        .destinations
        .create_destination(request)
        .await
        .unwrap_err();
    assert_eq!(fields(&status), ["user_end.certificates"]);

    let mut request = create_destination("dev", "Bad");
    request.destination.as_mut().unwrap().kind = "cloud".to_owned();
    request.destination.as_mut().unwrap().resource_port = 0;
    let status = admin
        .destinations
        .create_destination(request)
        .await
        .unwrap_err();
    assert_eq!(fields(&status), ["name", "resource_port", "client_port"]);

    let mut request = create_destination("dev", "cloudy");
    request.destination.as_mut().unwrap().kind = "cloud".to_owned();
    request.destination.as_mut().unwrap().client_port = 3306;
    let made = admin
        .destinations
        .create_destination(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (made.client_port, made.cloud_port, made.cloud_host.as_str()),
        (3306, 0, "")
    );
    request.destination.as_mut().unwrap().name = "cloudy2".to_owned();
    let status = admin
        .destinations
        .create_destination(request)
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "CLIENT_PORT_TAKEN");
}

#[tokio::test]
async fn a_watch_tells_of_changes_and_of_the_end() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let made = admin.destination("dev", "db").await;
    let request = api::WatchDestinationRequest {
        name: "dev/db".to_owned(),
    };
    let mut watch = admin
        .destinations
        .watch_destination(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        within("the present", watch.message())
            .await
            .unwrap()
            .unwrap(),
        made
    );
    let disable = api::DisableDestinationRequest {
        name: "dev/db".to_owned(),
        ..Default::default()
    };
    admin
        .destinations
        .disable_destination(disable)
        .await
        .unwrap();
    let changed = within("the change", watch.message())
        .await
        .unwrap()
        .unwrap();
    assert!(!changed.enabled);
    let delete = api::DeleteDestinationRequest {
        name: "dev/db".to_owned(),
        force: true,
        ..Default::default()
    };
    admin.destinations.delete_destination(delete).await.unwrap();
    let status = within("the end", watch.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn lists_are_edited_entry_by_entry() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let entry = |action: &str, host: &str, port| {
        Some(api::AclEntry {
            action: action.to_owned(),
            host: host.to_owned(),
            port,
            ..api::AclEntry::default()
        })
    };
    let add = |entry| api::AddAclEntryRequest {
        name: "dev".to_owned(),
        entry,
        ..api::AddAclEntryRequest::default()
    };
    let first = admin
        .acls
        .add_acl_entry(add(entry("allow", "db", 5432)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((first.entries.len(), first.unlisted.as_str()), (1, "deny"));
    assert_eq!((first.epoch, first.generation), (1, 2));
    let second = admin
        .acls
        .add_acl_entry(add(entry("deny", "db", 5432)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (second.entries.len(), second.generation),
        (1, 3),
        "replaced"
    );
    let stale = api::AddAclEntryRequest {
        etag: first.etag,
        ..add(entry("allow", "x", 1))
    };
    assert_eq!(
        reason(&admin.acls.add_acl_entry(stale).await.unwrap_err()),
        "ETAG_MISMATCH"
    );
    let status = admin
        .acls
        .add_acl_entry(add(entry("permit", "x", 1)))
        .await
        .unwrap_err();
    assert_eq!(fields(&status), ["action"]);
    let remove = |host: &str| api::RemoveAclEntryRequest {
        name: "dev".to_owned(),
        entry: entry("", host, 5432),
        ..api::RemoveAclEntryRequest::default()
    };
    let status = admin
        .acls
        .remove_acl_entry(remove("nowhere"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let emptied = admin
        .acls
        .remove_acl_entry(remove("db"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(emptied.entries, []);
    let reset = api::ResetAclRequest {
        name: "dev".to_owned(),
        ..Default::default()
    };
    let same = admin.acls.reset_acl(reset).await.unwrap().into_inner();
    assert_eq!(same.generation, emptied.generation, "nothing changed");
}
