//! `sgctl status`: the installation at a glance.

use sg_proto::api;
use sg_proto::api::system_client::SystemClient;

use crate::failure::Failure;
use crate::output;
use crate::session::Session;

pub(crate) async fn run(session: &Session) -> Result<(), Failure> {
    let status = session
        .api()?
        .call(api::GetStatusRequest {}, |channel, request| async move {
            SystemClient::new(channel).get_status(request).await
        })
        .await?;
    output::value(session.format(), &status, &text(&status))
}

fn text(status: &api::Status) -> String {
    let health = if status.store_healthy {
        "answers"
    } else {
        "does not answer"
    };
    let rows = [
        (
            "control plane",
            format!("{} (version {})", status.control_plane_id, status.version),
        ),
        (
            "store",
            format!("{}, {health}, revision {}", status.store, status.revision),
        ),
        (
            "nodes",
            format!("{} of {} connected", status.nodes_connected, status.nodes),
        ),
        ("gateways", status.gateways.to_string()),
        ("destinations", status.destinations.to_string()),
        ("clients", status.clients.to_string()),
        ("streams", status.streams.to_string()),
    ];
    let mut text: String = rows
        .iter()
        .map(|(key, value)| format!("{key:<14} {value}\n"))
        .collect();
    for problem in &status.problems {
        text.push_str(&format!("{:<14} {problem}\n", "problem"));
    }
    text
}
