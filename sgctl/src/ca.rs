//! `sgctl ca`: the internal certificate authority, and how another one takes its place.

use std::path::PathBuf;

use clap::Subcommand;
use sg_proto::api;
use sg_proto::api::certificate_authority_client::CertificateAuthorityClient;
use sg_runtime::files;

use crate::failure::Failure;
use crate::names::request_id;
use crate::output;
use crate::session::Session;
use crate::show;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the authority, and who still needs the one before it
    Show {
        /// Write the certificates of all trusted authorities to this file (PEM)
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Make a new authority, which issues from now on; the present one stays trusted beside it
    Rotate,
    /// Stop trusting the authority before the present one, once nobody needs it
    Finish {
        /// Go on although nodes need it; they have to join anew
        #[arg(long)]
        force: bool,
    },
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let api = session.api()?;
    let authority = match command {
        Command::Show { out } => {
            let request = api::GetAuthorityRequest {};
            let shown = api
                .call(request, |channel, request| async move {
                    CertificateAuthorityClient::new(channel)
                        .get_authority(request)
                        .await
                })
                .await?;
            if let Some(path) = out {
                let pem = shown.certificates_pem.as_bytes();
                files::write_atomic(&path, pem, files::PUBLIC).map_err(|error| {
                    Failure::local(format!("cannot write {}", path.display()), &error)
                })?;
            }
            shown
        }
        Command::Rotate => {
            let request = api::RotateAuthorityRequest {
                request_id: request_id(),
            };
            api.call(request, |channel, request| async move {
                CertificateAuthorityClient::new(channel)
                    .rotate_authority(request)
                    .await
            })
            .await?
        }
        Command::Finish { force } => {
            let request = api::FinishAuthorityRotationRequest {
                request_id: request_id(),
                force,
            };
            api.call(request, |channel, request| async move {
                CertificateAuthorityClient::new(channel)
                    .finish_authority_rotation(request)
                    .await
            })
            .await
            .map_err(|failure| match failure.code() {
                tonic::Code::FailedPrecondition => failure.hint("sgctl ca show"),
                _ => failure,
            })?
        }
    };
    output::value(session.format(), &authority, &text(&authority))
}

fn text(authority: &api::Authority) -> String {
    let ends = |time| show::date(time, "");
    let mut rows = vec![
        ("authority", format!("sha256:{}", authority.sha256)),
        ("ends", ends(authority.expire_time.as_ref())),
    ];
    if !authority.previous_sha256.is_empty() {
        rows.push((
            "trusted too",
            format!("sha256:{}", authority.previous_sha256),
        ));
        rows.push(("ends", ends(authority.previous_expire_time.as_ref())));
    }
    for node in &authority.lagging_nodes {
        let how = match node.connected {
            true => "about to get a certificate of the new authority",
            false => "not connected",
        };
        rows.push(("lagging", format!("node {}: {how}", node.node)));
    }
    rows.iter()
        .map(|(key, value)| format!("{key:<14} {value}\n"))
        .collect()
}
