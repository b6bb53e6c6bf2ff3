//! `securegateway.node.v1`: how a node joins, and its stream. No token of an administrator is of
//! use here: a join token opens one door, the node's certificate the other.

use sg_proto::node as wire;
use sg_proto::node::enrollment_server::Enrollment;
use sg_proto::node::node_sync_server::NodeSync;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::errors::status;
use super::{Api, auth};
use crate::push::session::End;

/// Messages to a node that its connection has not taken yet.
const OUTGOING: usize = 4;

#[tonic::async_trait]
impl Enrollment for Api {
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let asked = request.into_inner();
        let work = async {
            let _turn = self.joins.acquire().await;
            let joined = self.core.join(&asked).await.inspect_err(|error| {
                let name: String = asked.name.chars().take(63).collect();
                tracing::warn!(name, %error, "a node was not let in");
            })?;
            tracing::info!(node = %joined.id, name = asked.name, "node joined");
            Ok(wire::JoinResponse {
                node_id: joined.id.to_string(),
                certificates_der: joined.chain.iter().map(|der| der.to_vec()).collect(),
            })
        };
        self.rpcs.unary("Enrollment.Join", work).await
    }
}

#[tonic::async_trait]
impl NodeSync for Api {
    type SyncStream = ReceiverStream<Result<wire::ControlMessage, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<wire::NodeMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let opened = self.open_sync(request).await;
        self.rpcs.count("NodeSync.Sync", opened.as_ref().err());
        opened.map(Response::new)
    }
}

impl Api {
    async fn open_sync(
        &self,
        request: Request<Streaming<wire::NodeMessage>>,
    ) -> Result<ReceiverStream<Result<wire::ControlMessage, Status>>, Status> {
        let node = auth::node(&request)?;
        let known = self.core.views.now().world.node(&node).is_some();
        if !known && !self.sessions.registry.is_registered(&node).await {
            return Err(end_status(&End::Removed));
        }
        let (outgoing, answers) = mpsc::channel(OUTGOING);
        let (sessions, incoming) = (self.sessions.clone(), request.into_inner());
        let session = async move {
            let end = sessions.serve(&node, incoming, &outgoing).await;
            tracing::info!(%node, %end, "node disconnected");
            // If nobody takes it the stream is gone, and the node knows.
            if outgoing.try_send(Err(end_status(&end))).is_err() {
                tracing::trace!(%node, "the end could not be told");
            }
        };
        let started = self.pool.spawn(session);
        started.map_err(|_| {
            let text = "this control plane serves as many nodes as it can; use another one";
            status(Code::ResourceExhausted, "TOO_MANY_NODES", text)
        })?;
        Ok(ReceiverStream::new(answers))
    }
}

fn end_status(end: &End) -> Status {
    let (code, reason) = match end {
        End::Closed => (Code::Cancelled, "CLOSED"),
        End::Silent => (Code::DeadlineExceeded, "SILENT"),
        End::Protocol(_) => (Code::InvalidArgument, "PROTOCOL"),
        End::Stalled => (Code::DeadlineExceeded, "STALLED"),
        End::Replaced => (Code::Aborted, "REPLACED"),
        End::Removed => (Code::PermissionDenied, "NODE_REMOVED"),
        End::Draining => (Code::Unavailable, "DRAINING"),
    };
    status(code, reason, &end.to_string())
}
