//! `sgctl version`.

use serde::Serialize;

use crate::failure::Failure;
use crate::output;
use crate::session::Session;

pub(crate) fn run(session: &Session) -> Result<(), Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        version: &'static str,
        api_versions: [&'static str; 1],
    }
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        api_versions: ["securegateway.v1"],
    };
    output::value(
        session.format(),
        &version,
        &format!("sgctl {}\n", version.version),
    )
}
