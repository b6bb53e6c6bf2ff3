//! A control plane on a memory store, and connections to it as an administrator, a stranger or a
//! node.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use hyper_util::rt::TokioIo;
use sg_control_plane::app::{self, AppError};
use sg_control_plane::config::Args;
use sg_control_plane::store::Store;
use sg_control_plane::store::memory::MemoryStore;
use sg_proto::api::acls_client::AclsClient;
use sg_proto::api::certificate_authority_client::CertificateAuthorityClient;
use sg_proto::api::clients_client::ClientsClient;
use sg_proto::api::destinations_client::DestinationsClient;
use sg_proto::api::gateways_client::GatewaysClient;
use sg_proto::api::nodes_client::NodesClient;
use sg_proto::api::system_client::SystemClient;
use sg_proto::api::tokens_client::TokensClient;
use sg_proto::{api, node};
use sg_runtime::identity::{self, CertificateDer, KeyPair, PeerKind};
use sg_runtime::shutdown::Shutdown;
use sg_runtime::tls::{self, Credentials, Trust};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

/// Longest wait for anything here.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One running control plane.
pub struct Plane {
    pub store: MemoryStore,
    pub dir: Arc<TempDir>,
    pub address: String,
    pub admin_address: Option<String>,
    pub shutdown: Shutdown,
    pub task: JoinHandle<Result<(), AppError>>,
    data_dir: PathBuf,
}

/// Sends the admin token with every request.
#[derive(Clone)]
pub struct Bearer(pub MetadataValue<tonic::metadata::Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub type Authorized = InterceptedService<Channel, Bearer>;

/// The clients of an administrator.
pub struct Admin {
    pub gateways: GatewaysClient<Authorized>,
    pub destinations: DestinationsClient<Authorized>,
    pub acls: AclsClient<Authorized>,
    pub clients: ClientsClient<Authorized>,
    pub nodes: NodesClient<Authorized>,
    pub tokens: TokensClient<Authorized>,
    pub system: SystemClient<Authorized>,
    pub authority: CertificateAuthorityClient<Authorized>,
}

/// Waits for something, with a message if it does not come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come about within {PATIENCE:?}"),
    }
}

/// The reason in a status.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|info| info.reason.clone())
        .unwrap_or_default()
}

/// The fields that a status complains about.
pub fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details
        .bad_request()
        .map(|bad| bad.field_violations.clone());
    violations
        .unwrap_or_default()
        .into_iter()
        .map(|v| v.field)
        .collect()
}

impl Plane {
    pub async fn start() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::start_on(MemoryStore::new(), dir, "one").await
    }

    /// Another one on the same store, with the first one's key file.
    pub async fn another(&self, name: &str) -> Self {
        Self::start_on(self.store.clone(), Arc::clone(&self.dir), name).await
    }

    async fn start_on(store: MemoryStore, dir: Arc<TempDir>, name: &str) -> Self {
        sg_runtime::crypto::install();
        let data_dir = dir.path().join(name);
        std::fs::create_dir_all(&data_dir).unwrap();
        let ready = data_dir.join("ready.json");
        let key = dir.path().join("store.key");
        let any = "127.0.0.1:0";
        let args = Args::parse_from(
            [
                "sg-control-plane",
                "--store",
                "memory:",
                "--listen",
                any,
                "--http-listen",
                any,
            ]
            .into_iter()
            .chain([
                "--admin-listen",
                any,
                "--data-dir",
                data_dir.to_str().unwrap(),
            ])
            .chain(["--store-key-file", key.to_str().unwrap()])
            .chain(["--ready-file", ready.to_str().unwrap()]),
        );
        let shutdown = Shutdown::manual(Duration::from_secs(5));
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let running = app::start(args, shared, shutdown.clone());
        #[allow(clippy::disallowed_methods, reason = "the handle is awaited in `stop`")]
        let task = tokio::spawn(running);
        let line = within("the ready file", async {
            loop {
                match std::fs::read(&ready) {
                    Ok(line) => break line,
                    Err(_) if task.is_finished() => panic!("the control plane ended"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await;
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        Self {
            store,
            dir,
            address: line["listen"].as_str().unwrap().to_owned(),
            admin_address: line["admin_listen"].as_str().map(str::to_owned),
            shutdown,
            task,
            data_dir,
        }
    }

    pub fn token(&self) -> String {
        let token = std::fs::read_to_string(self.dir.path().join("one/admin.token")).unwrap();
        token.trim().to_owned()
    }

    /// A connection that shows these credentials, if any.
    pub async fn channel(&self, credentials: Option<&Credentials>) -> Channel {
        self.connect(credentials).await.unwrap()
    }

    /// The same, for credentials that may be refused.
    pub async fn try_channel(
        &self,
        credentials: &Credentials,
    ) -> Result<Channel, tonic::transport::Error> {
        self.connect(Some(credentials)).await
    }

    async fn connect(
        &self,
        credentials: Option<&Credentials>,
    ) -> Result<Channel, tonic::transport::Error> {
        let trust = Trust::Ca(self.data_dir.join("ca.pem"));
        let tls =
            tls::client_config(&trust, PeerKind::ControlPlane, credentials, &[b"h2"]).unwrap();
        let address = self.address.clone();
        let connector = tower::service_fn(move |_| {
            let (tls, address) = (tls.clone(), address.clone());
            async move {
                let tcp = TcpStream::connect(&address).await?;
                tcp.set_nodelay(true)?;
                let (stream, _) = tls::connect(&tls, tcp, "control-plane")
                    .await
                    .map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://control-plane");
        endpoint.connect_with_connector(connector).await
    }

    pub async fn admin(&self) -> Admin {
        let token = self.token();
        self.admin_with(&format!("Bearer {token}")).await
    }

    pub async fn admin_with(&self, authorization: &str) -> Admin {
        let bearer = Bearer(authorization.parse().unwrap());
        let channel = InterceptedService::new(self.channel(None).await, bearer);
        Admin {
            gateways: GatewaysClient::new(channel.clone()),
            destinations: DestinationsClient::new(channel.clone()),
            acls: AclsClient::new(channel.clone()),
            clients: ClientsClient::new(channel.clone()),
            nodes: NodesClient::new(channel.clone()),
            tokens: TokensClient::new(channel.clone()),
            system: SystemClient::new(channel.clone()),
            authority: CertificateAuthorityClient::new(channel),
        }
    }

    /// Lets a node join and answers its id and credentials.
    pub async fn join(&self, admin: &mut Admin, name: &str) -> (String, Credentials) {
        let request = api::CreateJoinTokenRequest::default();
        let token = admin
            .tokens
            .create_join_token(request)
            .await
            .unwrap()
            .into_inner()
            .token;
        let key = KeyPair::generate();
        let answer = self.join_with(&token, name, &key).await.unwrap();
        let chain = answer
            .certificates_der
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        (answer.node_id, Credentials::new(chain, key))
    }

    pub async fn join_with(
        &self,
        token: &str,
        name: &str,
        key: &KeyPair,
    ) -> Result<node::JoinResponse, Status> {
        let channel = self.channel(None).await;
        let mut enrollment = node::enrollment_client::EnrollmentClient::new(channel);
        let request = node::JoinRequest {
            join_token: token.to_owned(),
            csr_der: identity::csr_der(key),
            name: name.to_owned(),
            group: "default".to_owned(),
            version: "0.1.0".to_owned(),
        };
        enrollment
            .join(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Ends it as a signal does.
    pub async fn stop(self) -> Result<(), AppError> {
        self.shutdown.begin();
        within("the end of the control plane", self.task)
            .await
            .unwrap()
    }
}

impl Admin {
    pub async fn gateway(&mut self, name: &str) -> api::Gateway {
        let gateway = api::Gateway {
            name: name.to_owned(),
            ..api::Gateway::default()
        };
        let request = api::CreateGatewayRequest {
            gateway: Some(gateway),
            ..api::CreateGatewayRequest::default()
        };
        self.gateways
            .create_gateway(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub async fn destination(&mut self, gateway: &str, name: &str) -> api::Destination {
        let request = create_destination(gateway, name);
        self.destinations
            .create_destination(request)
            .await
            .unwrap()
            .into_inner()
    }
}

pub fn create_destination(gateway: &str, name: &str) -> api::CreateDestinationRequest {
    api::CreateDestinationRequest {
        parent: format!("gateways/{gateway}"),
        destination: Some(api::Destination {
            name: name.to_owned(),
            protocol: "tcp".to_owned(),
            resource_host: "127.0.0.1".to_owned(),
            resource_port: 5432,
            ..api::Destination::default()
        }),
        ..api::CreateDestinationRequest::default()
    }
}
