//! The audit trail as its readers see it.

use sg_model::Role;
use sg_proto::api;
use sg_proto::api::audit_client::AuditClient;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response};

use super::harness::{Authorized, Bearer, Plane, within};
use super::roles::token;

pub(super) async fn auditor(plane: &Plane, token: &str) -> AuditClient<Authorized> {
    let bearer = Bearer(format!("Bearer {token}").parse().unwrap());
    AuditClient::new(InterceptedService::new(plane.channel(None).await, bearer))
}

pub(super) async fn records(
    client: &mut AuditClient<Authorized>,
    gateway: &str,
) -> Vec<api::AuditRecord> {
    let request = api::ListAuditRecordsRequest {
        gateway: gateway.to_owned(),
        page_size: 1000,
        ..api::ListAuditRecordsRequest::default()
    };
    let answer = client
        .list_audit_records(request)
        .await
        .map(Response::into_inner);
    answer.unwrap().records
}

#[tokio::test]
async fn a_change_is_told_with_who_made_it_and_no_secret() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let made = admin.gateway("dev").await;
    admin.destination("dev", "db").await;
    let rotate = api::RotateTokenRequest {
        name: "dev".to_owned(),
        request_id: "rotate-1".to_owned(),
        ..api::RotateTokenRequest::default()
    };
    let rotated = admin
        .gateways
        .rotate_token(rotate)
        .await
        .unwrap()
        .into_inner();
    let mut client = auditor(&plane, &plane.token()).await;
    let all = records(&mut client, "").await;
    let methods: Vec<_> = all.iter().map(|r| r.method.as_str()).collect();
    assert_eq!(
        methods,
        [
            "Gateways.RotateToken",
            "Destinations.CreateDestination",
            "Gateways.CreateGateway",
            "first-start"
        ]
    );
    let last = &all[0];
    assert_eq!(
        (last.principal.as_str(), last.source.as_str()),
        ("admin", "127.0.0.1")
    );
    assert!(last.principal_id.starts_with('T'));
    assert_eq!((last.request_id.as_str(), last.number), ("rotate-1", 4));
    assert_eq!(last.revision.to_string(), rotated.etag);
    assert_eq!(last.previous_sha256, all[1].sha256);
    let names: Vec<_> = all.iter().map(|r| r.object_name.as_str()).collect();
    assert_eq!(
        names,
        ["gateway/dev", "destination/dev/db", "gateway/dev", "meta"]
    );
    assert_eq!(last.principal_name, "admin");
    assert_eq!(last.object, format!("gateway/{}", made.id));
    let text = format!("{all:?}");
    for secret in [
        &made.security_token,
        &rotated.security_token,
        &plane.token(),
    ] {
        assert!(!text.contains(secret.as_str()));
        let hash = sg_runtime::crypto::sha256(secret.as_bytes());
        assert!(!text.contains(&sg_runtime::crypto::hex(&hash)));
    }
    assert!(text.contains("<redacted>"));
    assert_eq!(records(&mut client, "dev").await.len(), 3);
    let verified = client
        .verify_audit(Request::new(api::VerifyAuditRequest {}))
        .await;
    let verified = verified.unwrap().into_inner();
    assert!(verified.intact && verified.records == 4, "{verified:?}");
    assert_eq!(verified.sha256, last.sha256);
}

#[tokio::test]
async fn records_are_followed_by_those_who_may() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("own-plant").await;
    let made = token(&mut admin, "ed", Role::Editor, &["own-plant"]).await;
    let mut whole = auditor(&plane, &plane.token()).await;
    let mut scoped = auditor(&plane, &made).await;
    let watch = api::WatchAuditRecordsRequest::default();
    let mut all = whole
        .watch_audit_records(watch.clone())
        .await
        .unwrap()
        .into_inner();
    let mut own = scoped
        .watch_audit_records(watch)
        .await
        .unwrap()
        .into_inner();
    // The second control plane on the same store makes the changes.
    let other = plane.another("two").await;
    let mut there = other.admin_with(&format!("Bearer {}", plane.token())).await;
    there.gateway("foreign-plant").await;
    there.destination("own-plant", "db").await;
    let first = within("a record", all.message()).await.unwrap().unwrap();
    let second = within("a record", all.message()).await.unwrap().unwrap();
    assert_eq!(first.method, "Gateways.CreateGateway");
    assert_eq!(
        (second.method.as_str(), second.number),
        ("Destinations.CreateDestination", first.number + 1)
    );
    let seen = within("a record", own.message()).await.unwrap().unwrap();
    assert_eq!(seen, second, "the foreign one is left out");
    let after = api::WatchAuditRecordsRequest {
        after: 1,
        ..api::WatchAuditRecordsRequest::default()
    };
    let mut again = whole.watch_audit_records(after).await.unwrap().into_inner();
    assert_eq!(
        within("a record", again.message())
            .await
            .unwrap()
            .unwrap()
            .number,
        2
    );
}
