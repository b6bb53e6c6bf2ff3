//! Who may call what: every public method × every role × own, foreign and unknown gateways, made out
//! of the descriptors, so that a new method is tried as soon as it exists.

use bytes::{Buf, BufMut as _, Bytes};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MethodDescriptor, Value,
};
use sg_control_plane::api::access::{Need, RULES};
use sg_control_plane::store::{Store as _, Txn};
use sg_model::Role;
use sg_proto::{api, store};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};

use super::harness::{Admin, Authorized, Bearer, Plane, reason, within};

/// Messages as their bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// A request of this method about a gateway, in which everything is as it should be.
fn request(method: &MethodDescriptor, gateway: &str, number: usize) -> Bytes {
    let mut message = DynamicMessage::new(method.input());
    for field in method.input().fields() {
        let value = match field.name() {
            "name"
                if method.name().contains("Destination") || method.name().ends_with("Source") =>
            {
                Value::String(format!("gateways/{gateway}/destinations/db"))
            }
            "name" if method.name().contains("Client") => {
                Value::String(format!("gateways/{gateway}/clients/c{}", "0".repeat(24)))
            }
            "name" if method.name().contains("Node") => Value::String("nodes/none".to_owned()),
            "name" if method.name().contains("AdminToken") => {
                Value::String("adminTokens/none".to_owned())
            }
            "name" | "parent" | "gateway" if field.kind() == Kind::String => {
                Value::String(format!("gateways/{gateway}"))
            }
            "validate_only" | "force" => Value::Bool(true),
            "spec" => Value::String("10.0.0.0/8".to_owned()),
            // From the beginning, so that there is something to see.
            "after" => Value::U64(1),
            _ => match field.kind() {
                Kind::Message(inner)
                    if !field.is_list() && inner.full_name().starts_with("securegateway") =>
                {
                    let mut nested = DynamicMessage::new(inner.clone());
                    for field in inner.fields() {
                        if let Some(value) = sample(&field, number) {
                            nested.set_field(&field, value);
                        }
                    }
                    Value::Message(nested)
                }
                _ => continue,
            },
        };
        message.set_field(&field, value);
    }
    message.encode_to_vec().into()
}

/// Something acceptable for a field of what is to be made.
fn sample(field: &FieldDescriptor, number: usize) -> Option<Value> {
    Some(match field.name() {
        "name" => Value::String(format!("fresh-{number}")),
        "protocol" => Value::String("tcp".to_owned()),
        "resource_host" | "host" => Value::String("127.0.0.1".to_owned()),
        "resource_port" | "port" => Value::U32(5432),
        "spec" => Value::String("10.0.0.0/8".to_owned()),
        "action" => Value::String("allow".to_owned()),
        "role" => Value::String("viewer".to_owned()),
        _ => return None,
    })
}

/// An answer: all bytes of it, or the first message of a stream.
async fn ask(
    channel: &Authorized,
    method: &MethodDescriptor,
    message: Bytes,
) -> Result<Bytes, Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = path.parse::<http::uri::PathAndQuery>().unwrap();
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let request = Request::new(message);
    if method.is_server_streaming() {
        let mut stream = grpc
            .server_streaming(request, path, Raw)
            .await?
            .into_inner();
        Ok(within("a first answer", stream.message())
            .await?
            .unwrap_or_default())
    } else {
        grpc.unary(request, path, Raw)
            .await
            .map(tonic::Response::into_inner)
    }
}

pub async fn token(admin: &mut Admin, name: &str, role: Role, gateways: &[&str]) -> String {
    let request = api::CreateAdminTokenRequest {
        admin_token: Some(api::AdminToken {
            name: name.to_owned(),
            role: role.to_string(),
            gateways: gateways.iter().map(|&id| id.to_owned()).collect(),
            ..api::AdminToken::default()
        }),
        ..api::CreateAdminTokenRequest::default()
    };
    let made = admin
        .tokens
        .create_admin_token(request)
        .await
        .unwrap()
        .into_inner();
    assert!(made.token.starts_with("sga_"));
    assert_eq!(made.gateways.len(), gateways.len());
    made.token
}

async fn holder(plane: &Plane, token: &str) -> Authorized {
    let bearer = Bearer(format!("Bearer {token}").parse().unwrap());
    InterceptedService::new(plane.channel(None).await, bearer)
}

fn told(result: &Result<Bytes, Status>, gateway: &str) -> String {
    match result {
        Ok(bytes) => format!("ok {bytes:?}").replace(gateway, "GATEWAY"),
        Err(status) => format!(
            "{:?} {} {}",
            status.code(),
            reason(status),
            status.message()
        )
        .replace(gateway, "GATEWAY"),
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// Row 36 of the threats: nothing of another tenant is seen or touched, whatever is called.
#[tokio::test]
async fn threat_36_every_call_by_every_role_on_own_and_foreign_gateways() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let own = admin.gateway("own-plant").await;
    let foreign = admin.gateway("foreign-plant").await;
    admin.destination("own-plant", "db").await;
    let secret = admin.destination("foreign-plant", "db").await;
    let leaks = ["foreign-plant", foreign.id.as_str(), secret.id.as_str()];

    let mut callers = Vec::new();
    for role in [Role::Viewer, Role::Editor, Role::Admin] {
        let made = token(&mut admin, &format!("whole-{role}"), role, &[]).await;
        callers.push((role, false, holder(&plane, &made).await));
    }
    for (role, gateway) in [(Role::Viewer, "own-plant"), (Role::Editor, &own.id)] {
        let made = token(&mut admin, &format!("scoped-{role}"), role, &[gateway]).await;
        callers.push((role, true, holder(&plane, &made).await));
    }
    let nobody = holder(&plane, &format!("sga_{}", "0".repeat(64))).await;
    let mut refused = 0;

    let pool = DescriptorPool::decode(sg_proto::DESCRIPTORS).unwrap();
    let public = pool
        .services()
        .filter(|service| service.full_name().starts_with("securegateway.v1."));
    let methods: Vec<_> = public
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect();
    assert!(methods.len() > 25, "{}", methods.len());
    for method in &methods {
        let name = method.full_name();
        let row = RULES.iter().find(|rule| {
            rule.service == method.parent_service().full_name() && rule.method == method.name()
        });
        let Need::Operator {
            role: least, whole, ..
        } = row.unwrap().need
        else {
            panic!("{name} is not for operators");
        };
        // More failures than this, and the connection is cut: that is another test's.
        if refused < 10 {
            let status = ask(&nobody, method, request(method, "own-plant", 0))
                .await
                .unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{name}");
            refused += 1;
        }
        let names_gateway = method.input().fields().any(|field| {
            ["name", "parent"].contains(&field.name())
                || (field.name() == "gateway" && field.kind() == Kind::String)
        });
        for (number, (role, scoped, channel)) in callers.iter().enumerate() {
            let what = format!("{name} as {role}, scoped: {scoped}");
            let answer = ask(channel, method, request(method, "own-plant", number)).await;
            if *role < least {
                let status = answer.unwrap_err();
                assert_eq!(status.code(), Code::PermissionDenied, "{what}");
                assert_eq!(reason(&status), "ROLE_NOT_SUFFICIENT", "{what}");
                continue;
            }
            if whole && *scoped {
                let status = answer.unwrap_err();
                assert_eq!(status.code(), Code::PermissionDenied, "{what}");
                assert_eq!(reason(&status), "SCOPE_NOT_SUFFICIENT", "{what}");
                continue;
            }
            if let Err(status) = &answer {
                let of_handler = [
                    Code::NotFound,
                    Code::FailedPrecondition,
                    Code::AlreadyExists,
                ];
                assert!(
                    of_handler.contains(&status.code()),
                    "{what}: {status:?}; extend `sample`"
                );
            }
            if !scoped {
                continue;
            }
            if let Ok(bytes) = &answer {
                let leaked: Vec<_> = leaks.iter().filter(|leak| holds(bytes, leak)).collect();
                assert!(leaked.is_empty(), "{what} shows {leaked:?}");
            }
            if names_gateway {
                for gateway in ["foreign-plant", foreign.id.as_str()] {
                    let unknown = if gateway == foreign.id {
                        "G0000"
                    } else {
                        "unknown-plant"
                    };
                    let there = ask(channel, method, request(method, gateway, number)).await;
                    let nowhere = ask(channel, method, request(method, unknown, number)).await;
                    assert!(there.is_err(), "{what} on a foreign gateway");
                    assert_eq!(told(&there, gateway), told(&nowhere, unknown), "{what}");
                }
            }
        }
    }
    // Nothing of all this has changed the foreign gateway.
    let request = api::GetGatewayRequest {
        name: foreign.id.clone(),
    };
    let after = admin
        .gateways
        .get_gateway(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(after.etag, foreign.etag);
}

#[tokio::test]
async fn a_scoped_editor_does_not_learn_who_has_a_name_or_a_port() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("own-plant").await;
    admin.gateway("foreign-plant").await;
    let taken = admin.destination("foreign-plant", "secret-db").await;
    let made = token(&mut admin, "ed", Role::Editor, &["own-plant"]).await;
    let mut editor = plane.admin_with(&format!("Bearer {made}")).await;

    let mut request = super::harness::create_destination("own-plant", "db");
    request.destination.as_mut().unwrap().cloud_port = taken.cloud_port;
    let status = editor
        .destinations
        .create_destination(request)
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "PORT_TAKEN");
    for leak in ["foreign", "secret-db"] {
        assert!(!status.message().contains(leak), "{}", status.message());
    }
    let rename = |group: &str| api::UpdateGatewayRequest {
        name: "own-plant".to_owned(),
        gateway: Some(api::Gateway {
            name: if group.is_empty() {
                "foreign-plant".to_owned()
            } else {
                String::new()
            },
            group: group.to_owned(),
            ..api::Gateway::default()
        }),
        force: true,
        ..api::UpdateGatewayRequest::default()
    };
    let status = editor
        .gateways
        .update_gateway(rename(""))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "NAME_TAKEN");
    let status = editor
        .gateways
        .update_gateway(rename("other-group"))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "SCOPE_NOT_SUFFICIENT");
    editor.destination("own-plant", "db").await;
}

#[tokio::test]
async fn the_last_admin_token_stays() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let delete = |name: &str| api::DeleteAdminTokenRequest {
        name: name.to_owned(),
        ..api::DeleteAdminTokenRequest::default()
    };
    token(&mut admin, "ci", Role::Editor, &[]).await;
    let status = admin
        .tokens
        .delete_admin_token(delete("admin"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status), "LAST_ADMIN_TOKEN");
    let second = token(&mut admin, "second", Role::Admin, &[]).await;
    let mut other = plane.admin_with(&format!("Bearer {second}")).await;
    // Each takes the other's back at the same time: one is left.
    let (a, b) = tokio::join!(
        admin.tokens.delete_admin_token(delete("second")),
        other.tokens.delete_admin_token(delete("admin")),
    );
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    let mut left = if a.is_ok() { admin } else { other };
    let list = left
        .tokens
        .list_admin_tokens(api::ListAdminTokensRequest::default());
    let list = list.await.unwrap().into_inner().admin_tokens;
    let roles: Vec<_> = list.iter().map(|token| token.role.as_str()).collect();
    assert_eq!(
        roles.iter().filter(|role| **role == "admin").count(),
        1,
        "{roles:?}"
    );
    assert!(
        list.iter().all(|token| token.token.is_empty()),
        "secrets are shown once"
    );
    left.tokens.delete_admin_token(delete("ci")).await.unwrap();
    let status = left
        .tokens
        .delete_admin_token(delete("ci"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn tokens_are_checked_before_they_are_made() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let mut create = async |name: &str, role: &str, gateways: &[&str], days: u32| {
        let request = api::CreateAdminTokenRequest {
            admin_token: Some(api::AdminToken {
                name: name.to_owned(),
                role: role.to_owned(),
                gateways: gateways.iter().map(|&name| name.to_owned()).collect(),
                ..api::AdminToken::default()
            }),
            days,
            ..api::CreateAdminTokenRequest::default()
        };
        let answer = admin.tokens.create_admin_token(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| status.code())
    };
    assert_eq!(
        create("a", "root", &[], 0).await.unwrap_err(),
        Code::InvalidArgument
    );
    assert_eq!(
        create("A", "viewer", &[], 0).await.unwrap_err(),
        Code::InvalidArgument
    );
    assert_eq!(
        create("a", "admin", &["dev"], 0).await.unwrap_err(),
        Code::InvalidArgument
    );
    assert_eq!(
        create("a", "viewer", &[], 9999).await.unwrap_err(),
        Code::InvalidArgument
    );
    assert_eq!(
        create("a", "viewer", &["none"], 0).await.unwrap_err(),
        Code::NotFound
    );
    assert_eq!(
        create("admin", "viewer", &[], 0).await.unwrap_err(),
        Code::AlreadyExists
    );
    let made = create("a", "viewer", &["dev"], 7).await.unwrap();
    assert!(made.expire_time.is_some() && made.created_by == "admin");
    assert_eq!(
        create("a", "viewer", &[], 0).await.unwrap_err(),
        Code::AlreadyExists
    );
}

/// An open stream ends within two seconds when its token is taken back or expires.
#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let watch = api::WatchAclRequest {
        name: "dev".to_owned(),
    };
    let made = token(&mut admin, "watcher", Role::Viewer, &[]).await;
    let mut watcher = plane.admin_with(&format!("Bearer {made}")).await;
    let mut stream = watcher
        .acls
        .watch_acl(watch.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let request = api::DeleteAdminTokenRequest {
        name: "watcher".to_owned(),
        ..api::DeleteAdminTokenRequest::default()
    };
    admin.tokens.delete_admin_token(request).await.unwrap();
    let started = std::time::Instant::now();
    let status = within("the end of the stream", stream.message())
        .await
        .unwrap_err();
    assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "TOKEN_UNKNOWN")
    );
    let status = watcher.acls.watch_acl(watch.clone()).await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_UNKNOWN");

    // One that expires in a moment; the API makes none that are so short.
    let secret = "sga_short";
    let key = sg_runtime::crypto::hex(&sg_runtime::crypto::sha256(secret.as_bytes()));
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let end = i64::try_from(now.as_secs()).unwrap() + 2;
    let value = store::AdminToken {
        id: "T1".to_owned(),
        name: "short".to_owned(),
        role: "viewer".to_owned(),
        expire_time: Some(pbjson_types::Timestamp {
            seconds: end,
            nanos: 0,
        }),
        ..store::AdminToken::default()
    };
    let put = Txn::new().put(format!("v1/token/admin/{key}"), value.encode_to_vec());
    plane.store.txn(put).await.unwrap();
    let mut short = plane.admin_with("Bearer sga_short").await;
    let mut stream = within("the token to be known", async {
        loop {
            match short.acls.watch_acl(watch.clone()).await {
                Ok(stream) => break stream.into_inner(),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    assert!(stream.message().await.unwrap().is_some());
    let status = within("the end of the stream", stream.message())
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "TOKEN_EXPIRED");
    let late = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!(late.as_secs() <= u64::try_from(end).unwrap() + 2);
    let status = short.acls.watch_acl(watch).await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_EXPIRED");
}

/// Row 51: trying costs the one who tries his connection, and nobody else anything.
#[tokio::test]
async fn who_fails_too_often_loses_the_connection() {
    let plane = Plane::start().await;
    let mut bad = plane
        .admin_with(&format!("Bearer sga_{}", "1".repeat(64)))
        .await;
    let mut reasons = Vec::new();
    for _ in 0..40 {
        let list = bad
            .gateways
            .list_gateways(api::ListGatewaysRequest::default());
        reasons.push(reason(&list.await.unwrap_err()));
    }
    assert!(
        reasons
            .iter()
            .take(20)
            .all(|reason| reason == "TOKEN_UNKNOWN"),
        "{reasons:?}"
    );
    assert!(
        reasons.iter().any(|reason| reason == "TOO_MANY_FAILURES"),
        "{reasons:?}"
    );
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
}
