//! `sgctl destination certs`: the files that users and the resource of a destination need.

use std::path::{Path, PathBuf};

use sg_proto::api;
use sg_proto::api::destinations_client::DestinationsClient;
use sg_runtime::files;

use crate::connection::Api;
use crate::failure::Failure;
use crate::names::MemberRef;
use crate::output;
use crate::session::Session;

/// Mode of what everybody may read.
const PUBLIC: u32 = 0o644;

#[derive(Debug, clap::Args)]
pub(crate) struct Certs {
    /// Destination
    #[arg(value_name = "GATEWAY/NAME")]
    destination: MemberRef,
    /// Folder to write the files into; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) async fn run(api: &Api, session: &Session, args: &Certs) -> Result<(), Failure> {
    let message = api::GetDestinationCertificatesRequest {
        name: args.destination.path("destinations"),
    };
    let answer = api
        .call(message, |channel, request| async move {
            DestinationsClient::new(channel)
                .get_destination_certificates(request)
                .await
        })
        .await
        .map_err(|failure| super::hint_list(failure, &args.destination))?;
    std::fs::create_dir_all(&args.out)
        .map_err(|error| Failure::local(format!("cannot make {}", args.out.display()), &error))?;
    let mut rows = Vec::new();
    for file in &answer.files {
        let path = place(&args.out, &file.name)?;
        let mode = if file.secret { files::PRIVATE } else { PUBLIC };
        files::write_atomic(&path, &file.content, mode)
            .map_err(|error| Failure::local(format!("cannot write {}", path.display()), &error))?;
        rows.push(vec![path.display().to_string(), file.purpose.clone()]);
    }
    if rows.is_empty() {
        output::note("this destination needs no certificates");
    }
    let written: Vec<_> = rows
        .iter()
        .map(|row| serde_json::json!({"path": row[0], "purpose": row[1]}))
        .collect();
    let text = output::table(&["FILE", "PURPOSE"], rows);
    output::value(
        session.format(),
        &serde_json::json!({ "files": written }),
        &text,
    )
}

/// The server names files, and must not name any other place.
fn place(folder: &Path, name: &str) -> Result<PathBuf, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(Failure::usage(format!(
            "the control plane names a file '{}'; it is not written",
            name.escape_debug()
        )));
    }
    Ok(folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_in_their_folder() {
        assert!(place(Path::new("/x"), "ca.pem").is_ok());
        for bad in ["", "..", "../ca.pem", "a/b", ".hidden"] {
            assert!(place(Path::new("/x"), bad).is_err(), "{bad}");
        }
    }
}
