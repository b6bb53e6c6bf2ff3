//! stunnel, both ends: plain, TLS, plain; a TLS connection for each user.

use anyhow::Result;

use super::{Place, Running};

/// What both ends have in common.
const HEAD: &str = "foreground = yes
pid =
debug = err
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[tunnel]
";

pub(super) fn start(place: &mut Place<'_>) -> Result<Running> {
    let (address, between) = (place.address(), place.address());
    let server = format!(
        "{HEAD}accept = {between}\nconnect = {}\ncert = {}\n",
        place.resource,
        place.pki.both().display()
    );
    let client = format!(
        "{HEAD}client = yes\naccept = {address}\nconnect = {between}\nCAfile = {}\n\
         verifyChain = yes\ncheckHost = localhost\nsni = localhost\n",
        place.pki.authority().display()
    );
    let mut processes = Vec::new();
    for (name, text) in [("server", server), ("client", client)] {
        let file = place.write(&format!("{name}.conf"), &text)?;
        processes.push((name, place.launch(name, "stunnel")?.arg(file).start()?));
    }
    Ok(Running { address, processes })
}
