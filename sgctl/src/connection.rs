//! The connection to a control plane: several addresses, one deadline, and every call made so that
//! making it again on another address is safe.
//!
//! The TLS connection verifies the CA and that a control plane answers, never a host name. A call
//! goes to the address that answered last; on a failure of transport, or when that control plane is
//! not available, it goes to the next one. Changes carry a request id, so that a change whose answer
//! was lost is not made twice.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use sg_runtime::identity::PeerKind;
use sg_runtime::secret::{Secret, TokenKind};
use sg_runtime::tls::{self, ClientTls, Trust};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::failure::Failure;
use crate::settings::Target;

/// Pause before a watch that ended is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

/// The public API of one installation.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    servers: Arc<[String]>,
    tls: ClientTls,
    authorization: MetadataValue<Ascii>,
    deadline: Instant,
    /// The connection in use and the index of its address.
    link: Arc<Mutex<Option<(usize, Channel)>>>,
}

/// A watch that did not see what it waited for.
#[derive(Debug)]
pub(crate) struct WatchEnd<R> {
    pub(crate) failure: Failure,
    /// The last thing it saw.
    pub(crate) last: Option<R>,
}

/// Why one attempt failed, and whether another address may do better.
struct Attempt {
    failure: Failure,
    elsewhere: bool,
}

impl Api {
    /// Prepares connections; none is made yet. Calls end at `deadline`.
    pub(crate) fn new(target: &Target, deadline: Instant) -> Result<Self, Failure> {
        let flag = target.variables.flag("ca");
        let trust: Trust = target
            .ca
            .parse()
            .map_err(|error| Failure::usage(format!("{flag}: {error}")))?;
        let tls = tls::client_config(&trust, PeerKind::ControlPlane, None, &[b"h2"])
            .map_err(|error| Failure::usage(format!("{flag} {}: {error}", target.ca)))?;
        Ok(Self {
            servers: target.servers.clone().into(),
            tls,
            authorization: authorization(target)?,
            deadline,
            link: Arc::default(),
        })
    }

    /// Makes one call, on the first control plane that answers it.
    pub(crate) async fn call<M, R, F, Fut>(&self, message: M, method: F) -> Result<R, Failure>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        self.call_until(self.deadline, true, &message, &method)
            .await
    }

    /// Follows a stream until `done` says so of something it brought, or until `deadline`. A stream
    /// that ends or breaks is opened again, for as long as it takes: the control plane may be starting
    /// anew.
    pub(crate) async fn watch<M, R, F, Fut>(
        &self,
        deadline: Instant,
        message: M,
        method: F,
        done: impl Fn(&R) -> bool,
    ) -> Result<R, WatchEnd<R>>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<Streaming<R>>, Status>>,
    {
        let mut last = None;
        loop {
            let opened = self.call_until(deadline, false, &message, &method).await;
            let mut stream = match opened {
                Ok(stream) => stream,
                Err(failure) if failure.may_pass() && Instant::now() + REOPEN_PAUSE < deadline => {
                    sleep(REOPEN_PAUSE).await;
                    continue;
                }
                Err(failure) => return Err(WatchEnd { failure, last }),
            };
            loop {
                match timeout_at(deadline, stream.message()).await {
                    Err(_) => {
                        let failure = Failure::deadline("the time to wait has ended");
                        return Err(WatchEnd { failure, last });
                    }
                    Ok(Ok(Some(seen))) if done(&seen) => return Ok(seen),
                    Ok(Ok(Some(seen))) => last = Some(seen),
                    Ok(Ok(None)) => break,
                    Ok(Err(status)) if is_unavailable(&status) => break,
                    Ok(Err(status)) => {
                        return Err(WatchEnd {
                            failure: Failure::from_status(&status),
                            last,
                        });
                    }
                }
            }
            self.forget();
            sleep(REOPEN_PAUSE).await;
        }
    }

    async fn call_until<M, R, F, Fut>(
        &self,
        deadline: Instant,
        tell_server: bool,
        message: &M,
        method: &F,
    ) -> Result<R, Failure>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let attempts = self.order();
        let mut refused = None;
        for (made, (index, channel)) in attempts.iter().enumerate() {
            // Each remaining address gets an equal share of the time that is left, so that one that
            // never answers cannot use up all of it.
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            let share = left / u32::try_from(attempts.len() - made).unwrap_or(1);
            let attempt = async {
                let channel = match channel {
                    Some(channel) => channel.clone(),
                    None => self.connect(*index).await?,
                };
                let mut request = Request::new(message.clone());
                request
                    .metadata_mut()
                    .insert("authorization", self.authorization.clone());
                if tell_server {
                    request.set_timeout(share);
                }
                let answer = method(channel.clone(), request)
                    .await
                    .map_err(|s| Attempt::of(&s))?;
                self.keep(*index, channel);
                Ok::<R, Attempt>(answer.into_inner())
            };
            match timeout_at(now + share, attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Attempt {
                    failure,
                    elsewhere: false,
                })) => return Err(failure),
                Ok(Err(Attempt {
                    failure,
                    elsewhere: true,
                })) => {
                    refused.get_or_insert(failure);
                }
                Err(_) => {
                    let server = &self.servers[*index];
                    refused.get_or_insert(
                        Failure::deadline(format!("{server} did not answer in time"))
                            .hint("--timeout 30s, if it may need longer"),
                    );
                }
            }
            self.forget();
        }
        Err(refused.unwrap_or_else(|| Failure::deadline("the time of the command has ended")))
    }

    /// The attempts of one call: the connection in use first, then every address once, starting at
    /// the one that answered last.
    fn order(&self) -> Vec<(usize, Option<Channel>)> {
        let link = self
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let first = link.as_ref().map_or(0, |(index, _)| *index);
        let kept = link.map(|(index, channel)| (index, Some(channel)));
        let count = self.servers.len();
        kept.into_iter()
            .chain((0..count).map(|i| ((first + i) % count, None)))
            .collect()
    }

    fn keep(&self, index: usize, channel: Channel) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some((index, channel));
    }

    fn forget(&self) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn connect(&self, index: usize) -> Result<Channel, Attempt> {
        let server = &self.servers[index];
        let host = server
            .rsplit_once(':')
            .map_or(server.as_str(), |(host, _)| host);
        let tcp = TcpStream::connect(server.as_str())
            .await
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|error| Attempt::unreachable(server, &error))?;
        let (stream, _) = tls::connect(&self.tls, tcp, host.trim_matches(['[', ']']))
            .await
            .map_err(|error| Attempt::distrusted(server, &error))?;
        // The channel gets this one connection. When it breaks, the next call makes a new channel:
        // so every failure to connect is seen here, typed, and not inside the channel.
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        });
        Endpoint::from_static("http://control-plane")
            .connect_with_connector(connector)
            .await
            .map_err(|error| Attempt::unreachable(server, &error))
    }
}

impl Attempt {
    fn of(status: &Status) -> Self {
        let failure = Failure::from_status(status);
        // A status with a source was made here, by the transport; the server said nothing.
        let failure = match std::error::Error::source(status) {
            Some(source) => Failure::new(
                Code::Unavailable,
                "CONNECTION_LOST",
                "the connection to the control plane was lost",
            )
            .cause(sg_runtime::telemetry::chain(source)),
            None => failure,
        };
        Self {
            failure,
            elsewhere: is_unavailable(status),
        }
    }

    fn unreachable(server: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let failure = Failure::new(
            Code::Unavailable,
            "UNREACHABLE",
            format!("no connection to {server}"),
        )
        .cause(sg_runtime::telemetry::chain(error))
        .hint("whether a control plane runs there: --server names its gRPC address");
        Self {
            failure,
            elsewhere: true,
        }
    }

    fn distrusted(server: &str, error: &tls::Error) -> Self {
        let code = if error.retryable() {
            Code::Unavailable
        } else {
            Code::Unknown
        };
        let reason = error.reason().replace('-', "_").to_uppercase();
        let failure = Failure::new(code, &reason, format!("{server} is not a control plane that --ca vouches for"))
            .cause(sg_runtime::telemetry::chain(error))
            .hint("--ca with the ca.pem of this control plane (under its --data-dir), --server with its gRPC address");
        Self {
            failure,
            elsewhere: true,
        }
    }
}

fn is_unavailable(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

fn authorization(target: &Target) -> Result<MetadataValue<Ascii>, Failure> {
    let path = &target.token_file;
    let shown = format!("{} {}", target.variables.flag("token_file"), path.display());
    let unreadable = |error: std::io::Error| {
        Failure::new(Code::Unauthenticated, "NO_TOKEN", format!("{shown} cannot be read"))
            .cause(error.to_string())
            .hint("--token-file with an admin token (admin.token under the --data-dir of the control plane)")
    };
    let token = if path.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
            .map(|text| Secret::new(text.trim().to_owned()))
            .map_err(unreadable)?
    } else {
        Secret::read(path).map_err(unreadable)?
    };
    // The control plane would only say that it is none.
    if let Some(kind) = TokenKind::of(token.expose()).filter(|kind| *kind != TokenKind::Admin) {
        let text = format!("{shown} holds {kind}; sgctl needs {}", TokenKind::Admin);
        return Err(Failure::new(Code::Unauthenticated, "TOKEN_MALFORMED", text)
            .hint("--token-file with an admin token (admin.token under the --data-dir of the control plane)"));
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.expose())
        .parse()
        .map_err(|_| Failure::usage(format!("{shown} holds no token")))?;
    value.set_sensitive(true);
    Ok(value)
}
