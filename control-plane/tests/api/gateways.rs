//! Authentication, errors, pages, repeated requests, health: what all services share, shown on
//! gateways.

use pbjson_types::FieldMask;
use sg_proto::api;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use super::harness::{Plane, fields, reason, within};

#[tokio::test]
async fn only_the_admin_token_opens_the_api() {
    let plane = Plane::start().await;
    let token = plane.token();
    let unknown = format!("Bearer sga_{}", "0".repeat(64));
    for (authorization, expected) in [
        ("Basic abc", "TOKEN_MALFORMED"),
        (token.as_str(), "TOKEN_MALFORMED"),
        ("Bearer sgt_00", "TOKEN_MALFORMED"),
        (unknown.as_str(), "TOKEN_UNKNOWN"),
    ] {
        let mut admin = plane.admin_with(authorization).await;
        let status = admin
            .gateways
            .list_gateways(api::ListGatewaysRequest::default())
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{authorization}");
        assert_eq!(reason(&status), expected, "{authorization}");
        assert!(!status.message().contains(&token));
    }
    let channel = plane.channel(None).await;
    let mut nobody = api::system_client::SystemClient::new(channel.clone());
    let status = nobody
        .get_status(api::GetStatusRequest {})
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "TOKEN_MISSING");
    let mut admin = plane.admin_with(&format!("bearer {token}")).await;
    let status = admin
        .system
        .get_status(api::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(status.store_healthy && status.gateways == 0 && !status.control_plane_id.is_empty());
}

#[tokio::test]
async fn health_and_reflection_need_no_token_and_health_tells_of_the_drain() {
    let plane = Plane::start().await;
    let channel = plane.channel(None).await;
    let mut health = HealthClient::new(channel.clone());
    for service in [
        "",
        "securegateway.v1.Gateways",
        "securegateway.node.v1.NodeSync",
    ] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );

    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    let ask = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::iter([ask]))
        .await
        .unwrap()
        .into_inner();
    let text = format!("{:?}", answers.message().await.unwrap().unwrap());
    assert!(text.contains("securegateway.v1.Destinations"), "{text}");

    plane.shutdown.begin();
    let next = within("the health to change", watch.message())
        .await
        .unwrap();
    assert_eq!(next.unwrap().status(), ServingStatus::NotServing);
    within("the end", plane.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_gateway_lives_through_all_its_methods() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let made = admin.gateway("dev").await;
    assert!(made.security_token.starts_with("sgt_") && made.security_token.len() == 68);
    assert!(made.enabled && made.token_required && made.token_expire_time.is_some());
    assert_eq!(
        (made.group.as_str(), made.policy.as_str()),
        ("default", "round-robin")
    );
    let status = admin
        .gateways
        .create_gateway(api::CreateGatewayRequest {
            gateway: Some(api::Gateway {
                name: "dev".to_owned(),
                ..api::Gateway::default()
            }),
            ..api::CreateGatewayRequest::default()
        })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::AlreadyExists, "NAME_TAKEN".to_owned())
    );

    for name in ["dev", "gateways/dev", made.id.as_str()] {
        let request = api::GetGatewayRequest {
            name: name.to_owned(),
        };
        let found = admin
            .gateways
            .get_gateway(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(found.id, made.id);
        assert_eq!(found.security_token, "", "the secret is shown once");
    }
    let update = api::UpdateGatewayRequest {
        name: "dev".to_owned(),
        gateway: Some(api::Gateway {
            name: "plant".to_owned(),
            policy: "least-loaded".to_owned(),
            description: "x".to_owned(),
            ..api::Gateway::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["name".to_owned(), "policy".to_owned()],
        }),
        ..api::UpdateGatewayRequest::default()
    };
    let status = admin
        .gateways
        .update_gateway(update.clone())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::FailedPrecondition, "ETAG_REQUIRED".to_owned())
    );
    let mut with_etag = update.clone();
    with_etag
        .gateway
        .as_mut()
        .unwrap()
        .etag
        .clone_from(&made.etag);
    let changed = admin
        .gateways
        .update_gateway(with_etag.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (changed.name.as_str(), changed.policy.as_str()),
        ("plant", "least-loaded")
    );
    assert_eq!(changed.description, "", "not in the mask");
    with_etag.name = "plant".to_owned();
    let status = admin.gateways.update_gateway(with_etag).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Aborted, "ETAG_MISMATCH".to_owned())
    );
    let status = admin
        .gateways
        .get_gateway(api::GetGatewayRequest {
            name: "dev".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::NotFound, "NOT_FOUND".to_owned())
    );
    let kind = |status: &tonic::Status| {
        let details = status.get_error_details();
        details
            .error_info()
            .and_then(|info| info.metadata.get("kind").cloned())
    };
    assert_eq!(kind(&status).as_deref(), Some("gateway"));

    let disable = api::DisableGatewayRequest {
        name: "plant".to_owned(),
        ..Default::default()
    };
    assert!(
        !admin
            .gateways
            .disable_gateway(disable)
            .await
            .unwrap()
            .into_inner()
            .enabled
    );
    let enable = api::EnableGatewayRequest {
        name: "plant".to_owned(),
        ..Default::default()
    };
    assert!(
        admin
            .gateways
            .enable_gateway(enable)
            .await
            .unwrap()
            .into_inner()
            .enabled
    );
    let rotate = api::RotateTokenRequest {
        name: "plant".to_owned(),
        ..Default::default()
    };
    let rotated = admin
        .gateways
        .rotate_token(rotate)
        .await
        .unwrap()
        .into_inner();
    assert_ne!(rotated.security_token, made.security_token);
    let delete = api::DeleteGatewayRequest {
        name: made.id,
        etag: rotated.etag,
        ..api::DeleteGatewayRequest::default()
    };
    admin.gateways.delete_gateway(delete).await.unwrap();
    let list = admin
        .gateways
        .list_gateways(api::ListGatewaysRequest::default())
        .await
        .unwrap();
    assert_eq!(list.into_inner().gateways, []);
}

#[tokio::test]
async fn bad_fields_are_all_named() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let request = api::CreateGatewayRequest {
        gateway: Some(api::Gateway {
            name: "No".to_owned(),
            group: "-".to_owned(),
            policy: "none".to_owned(),
            ..api::Gateway::default()
        }),
        ..api::CreateGatewayRequest::default()
    };
    let status = admin.gateways.create_gateway(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(fields(&status), ["name", "group", "policy"]);
    let status = admin
        .gateways
        .create_gateway(api::CreateGatewayRequest {
            gateway: Some(api::Gateway {
                name: "a".to_owned(),
                ..api::Gateway::default()
            }),
            token_days: 366,
            ..api::CreateGatewayRequest::default()
        })
        .await
        .unwrap_err();
    assert_eq!(fields(&status), ["token_days"]);
    let status = admin
        .gateways
        .create_gateway(api::CreateGatewayRequest {
            request_id: "no spaces".to_owned(),
            ..api::CreateGatewayRequest::default()
        })
        .await
        .unwrap_err();
    assert_eq!(fields(&status), ["request_id"]);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    for n in 0..7 {
        admin.gateway(&format!("g{n}")).await;
    }
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let request = api::ListGatewaysRequest {
            page_size: 3,
            page_token: token,
        };
        let page = admin
            .gateways
            .list_gateways(request)
            .await
            .unwrap()
            .into_inner();
        assert!(page.gateways.len() <= 3);
        names.extend(page.gateways.into_iter().map(|gateway| gateway.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    // Lists are in the order of ids; those of one millisecond have no order among them.
    names.sort();
    assert_eq!(names, (0..7).map(|n| format!("g{n}")).collect::<Vec<_>>());
    let request = api::ListGatewaysRequest {
        page_size: -1,
        page_token: String::new(),
    };
    assert_eq!(
        fields(&admin.gateways.list_gateways(request).await.unwrap_err()),
        ["page_size"]
    );
}

#[tokio::test]
async fn a_request_id_makes_a_repetition_harmless() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let request = |name: &str| api::CreateGatewayRequest {
        gateway: Some(api::Gateway {
            name: name.to_owned(),
            ..api::Gateway::default()
        }),
        request_id: "2c6b".to_owned(),
        ..api::CreateGatewayRequest::default()
    };
    let first = admin
        .gateways
        .create_gateway(request("a"))
        .await
        .unwrap()
        .into_inner();
    // The other control plane on the same store knows the answer too.
    let other = plane.another("two").await;
    let mut there = other.admin().await;
    let again = there
        .gateways
        .create_gateway(request("a"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    let status = admin
        .gateways
        .create_gateway(request("b"))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn admin_http_tells_readiness_and_figures() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("a").await;
    let mut request = Request::new(api::GetGatewayRequest {
        name: "b".to_owned(),
    });
    request.set_timeout(std::time::Duration::from_secs(5));
    admin.gateways.get_gateway(request).await.unwrap_err();
    let address = plane.admin_address.clone().unwrap();
    let get = |path: &'static str| {
        let address = address.clone();
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            tcp.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            tcp.read_to_string(&mut text).await.unwrap();
            text
        }
    };
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics").await;
    for line in [
        "sg_rpcs_total{method=\"Gateways.CreateGateway\",code=\"ok\"} 1",
        "sg_rpcs_total{method=\"Gateways.GetGateway\",code=\"not_found\"} 1",
        "sg_nodes_connected 0",
        "sg_store_healthy 1",
        "sg_build_info{",
        "sg_config_revision ",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    plane.stop().await.unwrap();
}
